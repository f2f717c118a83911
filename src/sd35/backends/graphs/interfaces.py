"""The inputs and outputs of graphs in NVIDIA's layout, and how to fit a graph to them. Needs `onnx`.

A part is a network's name in the Diffusers layout, such as "text_encoder" or "vae".

Source: the exporter of NVIDIA's graphs, `demo/Diffusion` of github.com/NVIDIA/TensorRT, see
docs/benchmarks/history/backends.md. The graphs of `sd35 compile` have the same inputs and outputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeAlias

import onnx
from onnx import TensorProto, helper

from sd35.backends.graphs.float32 import FP8_OPSET, holds_fp8
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.nvidia import OfficialGraphs
from sd35.checkpoints.network_sizes import TEXT_ENCODERS
from sd35.errors import CheckpointError
from sd35.tensors import LATENT_CHANNELS

Dimensions: TypeAlias = tuple[str | int, ...]
"""The dimensions of a tensor. A fixed dimension is a number. A dimension that changes between calls is a name."""
Replace: TypeAlias = Callable[[Path, onnx.GraphProto, onnx.ValueInfoProto], None]
"""A function that replaces an input of a graph by constants, given the graph's file (for errors) and the input."""


class GraphTensors(NamedTuple):
    """The inputs and outputs of a graph by name."""

    inputs: Mapping[str, Dimensions]
    outputs: Mapping[str, Dimensions]


@dataclass(frozen=True)
class Interface:
    """The required inputs and outputs of a graph by name.

    Attributes:
        fixed: Inputs that a graph may have in addition, by name. Each has a function that replaces it by constants.
    """

    inputs: Mapping[str, Dimensions]
    outputs: Mapping[str, Dimensions]
    fixed: Mapping[str, Replace]


def fitted_graph(graphs: OfficialGraphs, part: str, interface: Interface) -> tuple[onnx.ModelProto, Path]:
    """Read a part's graph and fit it to an interface. Return the graph, and the folder that contains its weights.

    Does not read weights in separate files. Raises CheckpointError if the graph or a weight is missing or damaged, or
    if the graph belongs to another part. Also raises it if a transformer that should be in FP8 has no FP8 or an ONNX
    version without FP8, and if any other graph has FP8.
    """
    path = graphs.path(part)
    model = _read_graph(path)
    _fit_to_interface(path, model.graph, interface)
    is_fp8 = part == "transformer" and graphs.transformer == "fp8"
    if holds_fp8(model) != is_fp8:
        expected, found = ("FP8", "none") if is_fp8 else ("no FP8", "some")
        raise _unexpected(path, f"{expected} operators or weights", found)
    opset = next((each.version for each in model.opset_import if not each.domain), 0)  # the domain of ONNX is ""
    if is_fp8 and opset < FP8_OPSET:
        raise _unexpected(path, f"operators of ONNX's opset {FP8_OPSET} or newer, which support FP8", f"opset {opset}")
    return model, find_weights(path, model)


def _unexpected(where: Path | str, expected: str, found: str) -> CheckpointError:
    """Return an error for a graph that is damaged or has another form than NVIDIA's."""
    return CheckpointError(f"{where}: expected {expected}, found {found}; download or build the graph again")


def _read_graph(path: Path) -> onnx.ModelProto:
    """Read a graph without the weights in separate files. Raises CheckpointError if the file is not a graph."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no type information
        raise _unexpected(path, "an ONNX graph", f"a file that cannot be parsed ({error})") from error
    if not model.graph.node or not model.opset_import:
        raise _unexpected(path, "an ONNX graph", f"none in its {path.stat().st_size} bytes")
    return model


def graph_tensors(checkpoint: Checkpoint) -> dict[str, GraphTensors]:
    """Return the inputs and outputs of the five graphs, by part and in the order of their use.

    Dimensions: B is the number of prompts or images, R is the number of transformer rows, T is the number of text
    tokens, and h and w are the height and width of a latent.
    """

    def clip_tensors(part: str) -> GraphTensors:
        """Return the inputs and outputs of one of the two CLIPs."""
        config = checkpoint.config(part)
        length, width = config["max_position_embeddings"], config["hidden_size"]
        outputs: dict[str, Dimensions] = {
            "text_embeddings": ("B", config["projection_dim"]),
            "hidden_states": ("B", length, width),
        }
        return GraphTensors({"input_ids": ("B", length)}, outputs)

    sizes, t5_width = checkpoint.config("transformer"), checkpoint.config("text_encoder_3")["d_model"]
    latent: Dimensions = ("R", LATENT_CHANNELS, "h", "w")
    transformer: dict[str, Dimensions] = {
        "hidden_states": latent,
        "encoder_hidden_states": ("R", "T", sizes["joint_attention_dim"]),
        "pooled_projections": ("R", sizes["pooled_projection_dim"]),
        "timestep": ("R",),
    }
    return {
        "text_encoder": clip_tensors("text_encoder"),
        "text_encoder_2": clip_tensors("text_encoder_2"),
        "text_encoder_3": GraphTensors({"input_ids": ("B", "T")}, {"text_embeddings": ("B", "T", t5_width)}),
        "transformer": GraphTensors(transformer, {"latent": latent}),
        "vae": GraphTensors({"latent": ("B", LATENT_CHANNELS, "h", "w")}, {"images": ("B", 3, "8*h", "8*w")}),
    }


def interfaces_of(checkpoint: Checkpoint) -> dict[str, Interface]:
    """Return the interfaces of the five graphs, by part, for the checkpoint's number of text tokens."""
    sizes, t5_length = checkpoint.config("transformer"), checkpoint.card.max_sequence_length
    text_length = t5_length + checkpoint.config("text_encoder")["max_position_embeddings"]  # CLIP's tokens, then T5's
    width = sizes["num_attention_heads"] * sizes["attention_head_dim"]
    interfaces = {}
    for part, tensors in graph_tensors(checkpoint).items():
        length = text_length if part == "transformer" else t5_length
        fixed: dict[str, Replace] = {}
        if part == "transformer":
            fixed = {"block_controlnet_hidden_states": partial(_replace_controlnet, width)}
        elif part in TEXT_ENCODERS:
            fixed = {"attention_mask": _replace_mask}
        interfaces[part] = Interface(
            _with_text_length(tensors.inputs, length), _with_text_length(tensors.outputs, length), fixed
        )
    return interfaces


def _with_text_length(tensors: Mapping[str, Dimensions], length: int) -> dict[str, Dimensions]:
    """Return the dimensions of tensors by name, with the number of text tokens in place of "T"."""
    return {name: tuple(length if size == "T" else size for size in sizes) for name, sizes in tensors.items()}


def _fit_to_interface(path: Path, graph: onnx.GraphProto, interface: Interface) -> None:
    """Check a graph's inputs and outputs, and change them to exactly those of the interface.

    If an output is missing and an inner tensor has its name, such as CLIP's "hidden_states", the tensor becomes an
    output. NVIDIA's demo does the same when it builds an engine. Raises CheckpointError if the graph does not fit.
    """
    weights = {weight.name for weight in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in weights}
    if interface.inputs.keys() - inputs.keys() or inputs.keys() - interface.inputs.keys() - interface.fixed.keys():
        raise _unexpected(path, f"inputs ({', '.join(interface.inputs)})", f"({', '.join(inputs)})")
    inner = {name for node in graph.node for name in node.output}
    outputs = {value.name: value for value in graph.output}
    # A new output needs a number format: take that of the first output.
    kind = next((value.type.tensor_type.elem_type for value in outputs.values()), TensorProto.FLOAT)
    for name in interface.outputs.keys() - outputs.keys():
        if name not in inner:
            raise _unexpected(path, f"outputs ({', '.join(interface.outputs)})", f"({', '.join(outputs)})")
        graph.output.append(helper.make_tensor_value_info(name, kind, None))
    for name, dimensions in interface.inputs.items():
        _check_tensor(f"{path}: input {name}", inputs[name], dimensions)
    for name in interface.outputs.keys() & outputs.keys():
        _check_tensor(f"{path}: output {name}", outputs[name], interface.outputs[name])
    for name in interface.fixed.keys() & inputs.keys():
        graph.input.remove(inputs[name])
        interface.fixed[name](path, graph, inputs[name])


def _check_tensor(where: str, value: onnx.ValueInfoProto, expected: Dimensions) -> None:
    """Raise CheckpointError if an input or output does not have the expected number format and dimensions."""
    found = value.type.tensor_type
    sizes = [axis.dim_value or axis.dim_param or "?" for axis in found.shape.dim]  # a number, a name, or neither
    fits = len(sizes) == len(expected) and all(
        isinstance(size, str) or size == allowed for size, allowed in zip(sizes, expected, strict=True)
    )
    types = (TensorProto.INT32,) if value.name == "input_ids" else (TensorProto.FLOAT, TensorProto.BFLOAT16)
    if fits and found.elem_type in types:
        return
    kinds = " or ".join(TensorProto.DataType.Name(each) for each in types)
    shape = ", ".join("any" if isinstance(size, str) else str(size) for size in expected)
    kind = TensorProto.DataType.Name(found.elem_type)
    raise _unexpected(where, f"{kinds} [{shape}]", f"{kind} [{', '.join(map(str, sizes))}]")


def _replace_mask(_path: Path, graph: onnx.GraphProto, mask: onnx.ValueInfoProto) -> None:
    """Replace the input for the attention mask by ones, because SD3.5 uses the text encoders without a mask."""
    one = helper.make_tensor("one", mask.type.tensor_type.elem_type, [1], [1])
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["shape of input_ids"]),
        helper.make_node("ConstantOfShape", ["shape of input_ids"], [mask.name], value=one),
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(nodes)


def _replace_controlnet(width: int, path: Path, graph: onnx.GraphProto, control: onnx.ValueInfoProto) -> None:
    """Replace the input for a ControlNet by zeros: one per layer, broadcast to all rows, tokens and channels.

    Raises CheckpointError if the input does not have the dimensions [layers, rows, tokens, `width`].
    """
    sizes = [axis.dim_value for axis in control.type.tensor_type.shape.dim]
    if len(sizes) != 4 or not sizes[0] or sizes[3] != width:
        raise _unexpected(f"{path}: input {control.name}", f"dimensions [layers, any, any, {width}]", str(sizes))
    zeros = [0.0] * sizes[0]
    graph.initializer.append(
        helper.make_tensor(control.name, control.type.tensor_type.elem_type, [sizes[0], 1, 1, 1], zeros)
    )


def find_weights(path: Path, model: onnx.ModelProto) -> Path:
    """Return the folder that contains a graph's weights, and change the graph to name the files in this folder.

    Files in Hugging Face's cache are links to files in another folder, and runtimes do not follow these links. Raises
    CheckpointError if weights are missing or truncated, or in several folders.
    """
    folders = {path.resolve().parent}
    for weight in model.graph.initializer:
        needed_bytes = prod(weight.dims) * helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize
        if weight.data_location == TensorProto.EXTERNAL:
            file = _weight_file(path, weight, needed_bytes).resolve()
            next(entry for entry in weight.external_data if entry.key == "location").value = file.name
            folders.add(file.parent)
        elif weight.HasField("raw_data") and len(weight.raw_data) != needed_bytes:
            found = f"{len(weight.raw_data)} bytes"
            raise _unexpected(f"{path}: weight {weight.name}", f"{needed_bytes} bytes", found)
    if len(folders) > 1:
        raise _unexpected(path, "graph and weights in one folder", f"them in {', '.join(map(str, folders))}")
    return folders.pop()


def _weight_file(path: Path, weight: onnx.TensorProto, needed_bytes: int) -> Path:
    """Return the file that contains a weight of the graph at `path`. Raises CheckpointError if it is not complete."""
    where = {entry.key: entry.value for entry in weight.external_data}
    name = where.get("location", "")
    if not name or PurePosixPath(name).name != name:  # a path to another folder
        raise _unexpected(f"{path}: weight {weight.name}", "the name of a file next to the graph", repr(name))
    begin, length = (int(where.get(key) or 0) for key in ("offset", "length"))
    file = path.with_name(name)
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; download or build it again, because it contains weights of {path}")
    if length not in {0, needed_bytes}:  # 0: the graph does not say
        raise _unexpected(f"{path}: weight {weight.name}", f"{needed_bytes} bytes", f"{length} bytes")
    needed, found = begin + needed_bytes, file.stat().st_size
    if needed > found:
        raise CheckpointError(
            f"{file}: expected at least {needed} bytes, found {found}; it is truncated, so download or build it again"
        )
    return file
