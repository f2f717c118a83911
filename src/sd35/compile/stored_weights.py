"""Lets an ONNX graph read its weights from the safetensors files they already lie in.

ONNX external data is a file name beside the graph, an offset and a length; a safetensors file is a JSON header and raw
little-endian tensors (its format is described in the safetensors README). So no weight is stored twice.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sd35.checkpoints.weights.parameters import weights_in
from sd35.errors import CheckpointError

_DTYPES = {"F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16, "F32": ir.DataType.FLOAT}
_INLINE_LIMIT_BYTES = 65536  # of what is no weight: shapes, position ids, the mask of 77 x 77 tokens


def stored_tensors(part: Path) -> dict[str, ir.ExternalTensor]:
    """Every floating-point tensor in the safetensors files of one part of a checkpoint, by name.

    Raises CheckpointError where there is no such file, where one cannot be read, or is a link that a graph cannot use.
    """
    tensors: dict[str, ir.ExternalTensor] = {}
    for name, weight in weights_in(part.parent, part.name).items():
        stored = weight.stored
        if stored.file.resolve().parent != part.resolve():
            raise CheckpointError(
                f"{stored.file} is a link to elsewhere, as in Hugging Face's cache, and ONNX Runtime follows none that"
                f" leaves the graph's directory; export a copy: cp -rL {part.parent} COPY"
            )
        if stored.dtype in _DTYPES:
            tensors[name] = ir.ExternalTensor(
                location=stored.file.name,
                offset=stored.start,
                length=stored.nbytes,
                dtype=_DTYPES[stored.dtype],
                shape=ir.Shape(stored.shape),
                name=name,
                base_dir=part,
            )
    return tensors


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
