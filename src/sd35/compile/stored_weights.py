"""Lets an ONNX graph read its weights from the safetensors files they already lie in.

ONNX external data is a file name beside the graph, an offset and a length; a safetensors file is a JSON header and raw
little-endian tensors (its format is described in the safetensors README). So no weight is stored twice.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sd35.errors import CheckpointError

_DTYPES = {"F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16, "F32": ir.DataType.FLOAT}
_INLINE_LIMIT_BYTES = 65536  # of what is no weight: shapes, position ids, the mask of 77 x 77 tokens


def stored_tensors(directory: Path) -> dict[str, ir.ExternalTensor]:
    """Every floating-point tensor in the safetensors files of one part of a checkpoint, by name.

    Raises CheckpointError where there is no such file, or where one cannot be read.
    """
    tensors: dict[str, ir.ExternalTensor] = {}
    for file in _weight_files(directory):
        header, data_offset = _read_header(file)
        for name, entry in header.items():
            if name == "__metadata__" or entry["dtype"] not in _DTYPES:
                continue
            begin, end = entry["data_offsets"]
            tensors[name] = ir.ExternalTensor(
                location=file.name,
                offset=data_offset + begin,
                length=end - begin,
                dtype=_DTYPES[entry["dtype"]],
                shape=ir.Shape(entry["shape"]),
                name=name,
                base_dir=directory,
            )
    return tensors


def _weight_files(directory: Path) -> list[Path]:
    """The files Diffusers and transformers would load: those an index names, else the one without a variant."""
    indices = sorted(directory.glob("*.safetensors.index.json"), key=lambda path: len(path.name))
    if indices:
        names = json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values()
        return [directory / name for name in sorted(set(names))]
    for name in ("model.safetensors", "diffusion_pytorch_model.safetensors"):
        if (directory / name).is_file():
            return [directory / name]
    raise CheckpointError(f"{directory} holds no model.safetensors and no diffusion_pytorch_model.safetensors")


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """A safetensors header and where the data behind it begins, in bytes from the file's start."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            return json.loads(stream.read(length)), 8 + length
    except (OSError, OverflowError, ValueError, struct.error) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error


def point_into_files(model: ir.Model, stored: Mapping[str, ir.ExternalTensor]) -> None:
    """Replaces each float32 weight of a freshly exported graph by the stored tensor it came from, cast to float32.

    `stored` is keyed by the graph's own names. Each reference is compared by value with the weight it replaces. The
    runtime folds the casts when it loads the graph. Raises CheckpointError where a weight is not stored as it is.
    """
    graph = model.graph
    casts = []
    for value in list(graph.initializers.values()):
        if value.dtype != ir.DataType.FLOAT or not value.uses():
            continue
        tensor = stored.get(str(value.name))
        assert value.const_value is not None
        if tensor is None or not np.array_equal(tensor.numpy().astype(np.float32), value.const_value.numpy()):
            raise CheckpointError(f"{value.name} does not have the value that the checkpoint's safetensors files hold")
        del graph.initializers[str(value.name)]
        weight = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(weight)
        if tensor.dtype == ir.DataType.FLOAT:
            value.replace_all_uses_with(weight)
            continue
        cast = ir.node("Cast", [weight], {"to": int(ir.DataType.FLOAT)}, name=f"cast {tensor.name}")
        cast.outputs[0].name, cast.outputs[0].shape = f"{tensor.name} in float32", tensor.shape
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        value.replace_all_uses_with(cast.outputs[0])
        casts.append(cast)
    graph.insert_before(graph[0], casts)


def is_fixed(node: ir.Node) -> bool:
    """Whether a node reads a stored weight itself: what the optimizer must not fold into a second copy."""
    return any(value is not None and isinstance(value.const_value, ir.ExternalTensor) for value in node.inputs)


def assert_only_small_inline(model: ir.Model) -> None:
    """No weight slipped into the graph's own file."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor) or (tensor is not None and tensor.nbytes <= _INLINE_LIMIT_BYTES), (
            f"{value.name} would be stored inside the graph"
        )
