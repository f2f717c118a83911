"""The inputs and outputs of graphs in NVIDIA's layout, and how to fit a graph to them. Needs `onnx`.

Source: the exporter of NVIDIA's graphs, `demo/Diffusion` of github.com/NVIDIA/TensorRT; see
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


class GraphTensors(NamedTuple):
    """The inputs and outputs of a graph by name. A dimension that changes between calls is a name, else a number."""

    inputs: Mapping[str, Dimensions]
    outputs: Mapping[str, Dimensions]


@dataclass(frozen=True)
class Interface:
    """The required inputs and outputs of a graph by name.

    Attributes:
        fixed: Optional inputs by name, each with a function that replaces the input by constants in the graph.
    """

    inputs: Mapping[str, Dimensions]
    outputs: Mapping[str, Dimensions]
    fixed: Mapping[str, Callable[[Path, onnx.GraphProto, onnx.ValueInfoProto], None]]


def fitted_graph(graphs: OfficialGraphs, part: str, interface: Interface) -> tuple[onnx.ModelProto, Path]:
    """Read a part's graph and fit it to an interface. Return it with the folder that contains its weights.

    Weights in separate files are not read. Raises CheckpointError if the graph or a weight is missing or damaged, if
    the graph is that of another part, or if its use of FP8 does not match its precision.
    """
    path = graphs.path(part)
    model = _read(path)
    _fit(path, model.graph, interface)
    is_fp8 = part == "transformer" and graphs.transformer == "fp8"
    if holds_fp8(model) != is_fp8:
        expected, found = ("FP8", "none") if is_fp8 else ("no FP8", "some")
        raise CheckpointError(f"{path}: expected {expected} operators or weights, found {found}")
    opset = next((each.version for each in model.opset_import if not each.domain), 0)
    if is_fp8 and opset < FP8_OPSET:
        raise CheckpointError(f"{path}: expected FP8 in ONNX's opset {FP8_OPSET} or newer, found {opset}")
    return model, find_weights(path, model)


def _read(path: Path) -> onnx.ModelProto:
    """Read a graph without the weights in separate files. Raises CheckpointError."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no type information
        raise CheckpointError(f"{path}: expected an ONNX graph, found a file that cannot be parsed: {error}") from error
    if not model.graph.node or not model.opset_import:
        raise CheckpointError(f"{path}: expected an ONNX graph, found none in its {path.stat().st_size} bytes")
    return model


def graph_tensors(checkpoint: Checkpoint) -> dict[str, GraphTensors]:
    """Return the inputs and outputs of each part's graph. Parts are in the order of their use.

    Dimensions: B is the number of prompts or images, R the number of transformer rows, T the number of text tokens, h
    and w the height and width of a latent.
    """

    def clip(part: str) -> GraphTensors:
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
        "text_encoder": clip("text_encoder"),
        "text_encoder_2": clip("text_encoder_2"),
        "text_encoder_3": GraphTensors({"input_ids": ("B", "T")}, {"text_embeddings": ("B", "T", t5_width)}),
        "transformer": GraphTensors(transformer, {"latent": latent}),
        "vae": GraphTensors({"latent": ("B", LATENT_CHANNELS, "h", "w")}, {"images": ("B", 3, "8*h", "8*w")}),
    }


def interfaces_of(checkpoint: Checkpoint) -> dict[str, Interface]:
    """Return the interface of each part's graph for the checkpoint's number of text tokens."""
    sizes, t5_length = checkpoint.config("transformer"), checkpoint.card.max_sequence_length
    text_length = t5_length + checkpoint.config("text_encoder")["max_position_embeddings"]
    width = sizes["num_attention_heads"] * sizes["attention_head_dim"]
    controlnet = {"block_controlnet_hidden_states": partial(_without_controlnet, width)}
    interfaces = {}
    for part, tensors in graph_tensors(checkpoint).items():
        length = text_length if part == "transformer" else t5_length
        inputs, outputs = (
            {name: tuple(length if each == "T" else each for each in dimensions) for name, dimensions in named.items()}
            for named in tensors
        )
        fixed = {"attention_mask": _attend_to_all} if part in TEXT_ENCODERS else {}
        interfaces[part] = Interface(inputs, outputs, controlnet if part == "transformer" else fixed)
    return interfaces


def _fit(path: Path, graph: onnx.GraphProto, interface: Interface) -> None:
    """Check a graph's inputs and outputs, and change them to exactly those of the interface. Raises CheckpointError.

    An inner tensor with the name of an output becomes an output, such as CLIP's "hidden_states". NVIDIA's demo does
    the same when it builds an engine.
    """
    weights = {weight.name for weight in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in weights}
    if interface.inputs.keys() - inputs.keys() or inputs.keys() - interface.inputs.keys() - interface.fixed.keys():
        raise CheckpointError(f"{path}: expected inputs {', '.join(interface.inputs)}; found {', '.join(inputs)}")
    inner = {name for node in graph.node for name in node.output}
    outputs = {value.name: value for value in graph.output}
    kind = next((value.type.tensor_type.elem_type for value in outputs.values()), TensorProto.FLOAT)
    for name in interface.outputs.keys() - outputs.keys():
        if name not in inner:
            expected = ", ".join(interface.outputs)
            raise CheckpointError(f"{path}: expected outputs {expected}; found {', '.join(outputs)}")
        graph.output.append(helper.make_tensor_value_info(name, kind, None))
    for name, dimensions in interface.inputs.items():
        _check(path, f"input {name}", inputs[name], dimensions)
    for name in interface.outputs.keys() & outputs.keys():
        _check(path, f"output {name}", outputs[name], interface.outputs[name])
    for name in interface.fixed.keys() & inputs.keys():
        graph.input.remove(inputs[name])
        interface.fixed[name](path, graph, inputs[name])


def _check(path: Path, description: str, value: onnx.ValueInfoProto, expected: Dimensions) -> None:
    found = value.type.tensor_type
    sizes = [axis.dim_value or axis.dim_param or "?" for axis in found.shape.dim]
    fits = len(sizes) == len(expected) and all(
        isinstance(size, str) or size == allowed for size, allowed in zip(sizes, expected, strict=True)
    )
    types = (TensorProto.INT32,) if value.name == "input_ids" else (TensorProto.FLOAT, TensorProto.BFLOAT16)
    if fits and found.elem_type in types:
        return
    kinds = " or ".join(TensorProto.DataType.Name(each) for each in types)
    shape = ", ".join("any" if isinstance(size, str) else str(size) for size in expected)
    raise CheckpointError(
        f"{path}: {description}: expected {kinds} [{shape}];"
        f" found {TensorProto.DataType.Name(found.elem_type)} [{', '.join(map(str, sizes))}]"
    )


def _attend_to_all(_path: Path, graph: onnx.GraphProto, mask: onnx.ValueInfoProto) -> None:
    """Replace the attention mask by ones, because SD3.5's text encoders are used without a mask."""
    one = helper.make_tensor("one", mask.type.tensor_type.elem_type, [1], [1])
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["shape of input_ids"]),
        helper.make_node("ConstantOfShape", ["shape of input_ids"], [mask.name], value=one),
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(nodes)


def _without_controlnet(width: int, path: Path, graph: onnx.GraphProto, control: onnx.ValueInfoProto) -> None:
    """Replace the input of a ControlNet by zeros: one per layer, broadcast to all rows, tokens and channels."""
    sizes = [axis.dim_value for axis in control.type.tensor_type.shape.dim]
    if len(sizes) != 4 or not sizes[0] or sizes[3] != width:
        raise CheckpointError(f"{path}: input {control.name}: expected [layers, any, any, {width}], found {sizes}")
    zeros = [0.0] * sizes[0]
    graph.initializer.append(
        helper.make_tensor(control.name, control.type.tensor_type.elem_type, [sizes[0], 1, 1, 1], zeros)
    )


def find_weights(path: Path, model: onnx.ModelProto) -> Path:
    """Return the folder that contains a graph's weights, and change the graph to name the real weight files.

    Files in Hugging Face's cache are links to another folder, which the runtime does not follow. Raises CheckpointError
    if weights are missing or truncated.
    """
    folders = {path.resolve().parent}
    for weight in model.graph.initializer:
        needed_bytes = prod(weight.dims) * helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize
        if weight.data_location == TensorProto.EXTERNAL:
            file = _file_of(path, weight, needed_bytes).resolve()
            next(entry for entry in weight.external_data if entry.key == "location").value = file.name
            folders.add(file.parent)
        elif weight.HasField("raw_data") and len(weight.raw_data) != needed_bytes:
            found = len(weight.raw_data)
            raise CheckpointError(f"{path}: weight {weight.name}: expected {needed_bytes} bytes, found {found}")
    if len(folders) > 1:
        raise CheckpointError(f"{path}: expected graph and weights in one folder, found {', '.join(map(str, folders))}")
    return folders.pop()


def _file_of(path: Path, weight: onnx.TensorProto, needed_bytes: int) -> Path:
    where = {entry.key: entry.value for entry in weight.external_data}
    name = where.get("location", "")
    if not name or PurePosixPath(name).name != name:
        raise CheckpointError(f"{path}: weight {weight.name}: expected a file next to the graph, found {name!r}")
    begin, length = (int(where.get(key) or 0) for key in ("offset", "length"))
    file = path.with_name(name)
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: it contains the weights of {path.name}")
    if length not in {0, needed_bytes}:
        raise CheckpointError(f"{path}: weight {weight.name}: expected {needed_bytes} bytes, found {length}")
    if begin + needed_bytes > (found := file.stat().st_size):
        raise CheckpointError(f"{file}: expected at least {begin + needed_bytes} bytes, found {found}; it is truncated")
    return file
