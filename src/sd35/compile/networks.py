"""Convert the five networks to graphs with PyTorch's exporter.

Inputs and outputs have the names of NVIDIA's published SD3.5 graphs, so a backend can read graphs from both sources.
Needs torch, diffusers, transformers and onnxscript.
"""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn

from sd35.backends.graphs.interfaces import Dimensions, graph_tensors
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.compile.rewrites import Form, rewrite

OPSET = 21  # the first version of ONNX's operators with the FP8 QuantizeLinear of TensorRT and ONNX Runtime
PREFIX = "network."  # begins every parameter name in the wrappers below


class Wrapper(nn.Module):
    """Adapts a network to the inputs and outputs of its graph, and rewrites its modules."""

    network: Any  # each wrapper has another type

    def __init__(self, network: nn.Module, form: Form) -> None:
        super().__init__()
        rewrite(network, form)
        self.network = network


class _Clip(Wrapper):
    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled embedding, and the hidden states before the last layer, which SD3 uses."""
        output = self.network(input_ids, output_hidden_states=True)
        return output.text_embeds, output.hidden_states[-2]


class _T5(Wrapper):
    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings of the tokens."""
        return self.network(input_ids).last_hidden_state


class _Transformer(Wrapper):
    network: SD3Transformer2DModel

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor, timestep: Tensor
    ) -> Tensor:
        """Return the velocity."""
        return self.network(hidden_states, encoder_hidden_states, pooled_projections, timestep, return_dict=False)[0]


class _Decoder(Wrapper):
    network: AutoencoderKL

    def forward(self, latent: Tensor) -> Tensor:
        """Return the decoded image."""
        return self.network.decode(latent, return_dict=False)[0]


_WRAPPERS: Mapping[str, type[Wrapper]] = {
    "text_encoder": _Clip,
    "text_encoder_2": _Clip,
    "text_encoder_3": _T5,
    "transformer": _Transformer,
    "vae": _Decoder,
}


@dataclass(frozen=True)
class Graph:
    """What to export: a network, the wrapper that adapts it, and the graph's inputs and outputs (`graph_tensors`).

    `part` is the name of the network in the Diffusers layout, such as `transformer`.
    """

    part: str
    wrapper: type[Wrapper]
    inputs: Mapping[str, Dimensions]
    outputs: Mapping[str, Dimensions]


def graphs_of(checkpoint: Checkpoint) -> list[Graph]:
    """Return the five graphs to export from a checkpoint, in the order of their use."""
    return [Graph(part, _WRAPPERS[part], *tensors) for part, tensors in graph_tensors(checkpoint).items()]


def trace(wrapper: Wrapper, graph: Graph, dtype: torch.dtype = torch.float32) -> ir.Model:
    """Export a network with inputs in `dtype`, without optimisation.

    Each parameter becomes an ONNX initializer with the parameter's name.
    """
    examples = tuple(_example(name, dimensions, dtype) for name, dimensions in graph.inputs.items())
    dynamic = {
        name: {axis: torch.export.Dim.AUTO for axis, size in enumerate(dimensions) if isinstance(size, str)}
        for name, dimensions in graph.inputs.items()
    }
    # This logger warns about missing libraries that no graph here needs. PyTorch sets its loggers' levels on import,
    # so the level is set here, after the import.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the exporter's internals
        program = torch.onnx.export(
            wrapper, examples, dynamo=True, opset_version=OPSET, optimize=False, verbose=False,
            input_names=list(graph.inputs), output_names=list(graph.outputs), dynamic_shapes=dynamic,
        )  # fmt: skip
    assert program is not None
    return program.model


def tidy(model: ir.Model, graph: Graph) -> None:
    """Name the dimensions of inputs and outputs, and remove the exporter's metadata, which contains local paths."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():  # runtimes infer the shapes and types of inner values
                value.shape = value.type = None
    for values, named in ((model.graph.inputs, graph.inputs), (model.graph.outputs, graph.outputs)):
        for value, dimensions in zip(values, named.values(), strict=True):
            value.shape = ir.Shape(dimensions)


def _example(name: str, dimensions: Dimensions, dtype: torch.dtype) -> Tensor:
    """Create an input for tracing, with a size for each named dimension.

    Height and width differ, and no size is 1: otherwise the exporter would take the dimensions as equal or as fixed.
    """
    sizes = {"R": 2, "B": 2, "T": 20, "h": 16, "w": 12}
    shape = [size if isinstance(size, int) else sizes[size] for size in dimensions]
    if name == "input_ids":
        return torch.ones(shape, dtype=torch.int32)
    return torch.rand(shape).to(torch.float32 if name == "timestep" else dtype)
