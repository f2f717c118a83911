"""What graphs in NVIDIA's layout have to take and give, and graphs made to fit that. Needs `onnx`.

What NVIDIA's hold is known from what exports them, `demo/Diffusion` of github.com/NVIDIA/TensorRT: see
docs/architecture/06-backends-and-graphs.md. Those of `sd35 compile` are alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from sd35.backends.graphs.float32 import FP8_OPSET, holds_fp8
from sd35.backends.graphs.weights import find_weights
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.nvidia import OfficialGraphs
from sd35.errors import CheckpointError
from sd35.tensors import LATENT_CHANNELS

_FLOATS = (TensorProto.FLOAT, TensorProto.BFLOAT16)
_INTEGERS = (TensorProto.INT32,)


@dataclass(frozen=True)
class Tensor:
    """An input or output as it has to be: a size of None is one that changes from call to call."""

    sizes: tuple[int | None, ...]
    types: tuple[int, ...] = _FLOATS


@dataclass(frozen=True)
class Interface:
    """A graph's inputs and outputs by name; `fixed` are inputs it may have beside, which are made parts of it."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    fixed: Mapping[str, Callable[[Path, onnx.GraphProto, onnx.ValueInfoProto], None]]


def fitted_graph(graphs: OfficialGraphs, part: str, interface: Interface) -> tuple[onnx.ModelProto, Path]:
    """A part's graph with the inputs and outputs of its interface and no more, and the folder that its weights lie in.

    Weights in a file of their own are not read. Raises CheckpointError where the graph or a weight is missing, broken,
    another part's, or in FP8 where it should not be.
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
    """A graph, without the weights that lie in a file of their own."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's, which has no types
        raise CheckpointError(f"{path}: expected an ONNX graph, found what cannot be read as one: {error}") from error
    if not model.graph.node or not model.opset_import:
        raise CheckpointError(f"{path}: expected an ONNX graph, found none in its {path.stat().st_size} bytes")
    return model


def interfaces_of(checkpoint: Checkpoint) -> dict[str, Interface]:
    """What each part's graph has to take and give, by the configurations of the checkpoint's companion."""
    mask = {"attention_mask": _attend_to_all}

    def clip(part: str) -> Interface:
        config = checkpoint.config(part)
        length, width = config["max_position_embeddings"], config["hidden_size"]
        outputs = {
            "text_embeddings": Tensor((None, config["projection_dim"])),
            "hidden_states": Tensor((None, length, width)),
        }
        return Interface({"input_ids": Tensor((None, length), _INTEGERS)}, outputs, mask)

    sizes = checkpoint.config("transformer")
    heads = sizes["num_attention_heads"]
    length, width = checkpoint.card.max_sequence_length, checkpoint.config("text_encoder_3")["d_model"]
    latent = Tensor((None, LATENT_CHANNELS, None, None))
    text = length + checkpoint.config("text_encoder")["max_position_embeddings"]
    transformer = {
        "hidden_states": latent,
        "encoder_hidden_states": Tensor((None, text, sizes["joint_attention_dim"])),
        "pooled_projections": Tensor((None, sizes["pooled_projection_dim"])),
        "timestep": Tensor((None,)),
    }
    return {
        "text_encoder": clip("text_encoder"),
        "text_encoder_2": clip("text_encoder_2"),
        "text_encoder_3": Interface(
            {"input_ids": Tensor((None, length), _INTEGERS)},
            {"text_embeddings": Tensor((None, length, width))},
            mask,
        ),
        "transformer": Interface(
            transformer,
            {"latent": latent},
            {"block_controlnet_hidden_states": partial(_without_controlnet, heads * sizes["attention_head_dim"])},
        ),
        "vae": Interface({"latent": latent}, {"images": Tensor((None, 3, None, None))}, {}),
    }


def _fit(path: Path, graph: onnx.GraphProto, interface: Interface) -> None:
    """Checks a graph's inputs and outputs, and makes them those of the interface and no more.

    TensorRT makes outputs of inner tensors by their names, as of CLIP's "hidden_states": so does this.
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
    for name, tensor in interface.inputs.items():
        _check(path, f"input {name}", inputs[name], tensor)
    for name in interface.outputs.keys() & outputs.keys():
        _check(path, f"output {name}", outputs[name], interface.outputs[name])
    for name in interface.fixed.keys() & inputs.keys():
        graph.input.remove(inputs[name])
        interface.fixed[name](path, graph, inputs[name])


def _check(path: Path, what: str, value: onnx.ValueInfoProto, expected: Tensor) -> None:
    found = value.type.tensor_type
    sizes = [axis.dim_value or axis.dim_param or "?" for axis in found.shape.dim]
    fits = len(sizes) == len(expected.sizes) and all(
        not isinstance(size, int) or size == wanted for size, wanted in zip(sizes, expected.sizes, strict=True)
    )
    if fits and found.elem_type in expected.types:
        return
    types = " or ".join(TensorProto.DataType.Name(each) for each in expected.types)
    shape = ", ".join("any" if size is None else str(size) for size in expected.sizes)
    raise CheckpointError(
        f"{path}: {what}: expected {types} [{shape}];"
        f" found {TensorProto.DataType.Name(found.elem_type)} [{', '.join(map(str, sizes))}]"
    )


def _attend_to_all(_path: Path, graph: onnx.GraphProto, mask: onnx.ValueInfoProto) -> None:
    """A mask of ones for every prompt's tokens: SD3.5's text encoders are called without any."""
    one = helper.make_tensor("one", mask.type.tensor_type.elem_type, [1], [1])
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["shape of input_ids"]),
        helper.make_node("ConstantOfShape", ["shape of input_ids"], [mask.name], value=one),
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(nodes)


def _without_controlnet(width: int, path: Path, graph: onnx.GraphProto, control: onnx.ValueInfoProto) -> None:
    """What a ControlNet would add to each layer: zeros, one for all rows, tokens and channels of a layer."""
    sizes = [axis.dim_value for axis in control.type.tensor_type.shape.dim]
    if len(sizes) != 4 or not sizes[0] or sizes[3] != width:
        raise CheckpointError(f"{path}: input {control.name}: expected [layers, any, any, {width}], found {sizes}")
    zeros = [0.0] * sizes[0]
    graph.initializer.append(
        helper.make_tensor(control.name, control.type.tensor_type.elem_type, [sizes[0], 1, 1, 1], zeros)
    )
