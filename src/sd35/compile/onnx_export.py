"""Exports the five networks of a checkpoint to ONNX: `python -m sd35.compile.onnx_export DIRECTORY`.

Tensors are named as in NVIDIA's published SD3.5 graphs, so that those and these are interchangeable. The graphs lie
beside the safetensors files and point into them. They compute in float32.
Needs torch, diffusers, transformers and onnxscript.
"""

import argparse
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from sd35.backends.graphs import WEIGHTS_LAYOUT
from sd35.checkpoints.checkpoint import Checkpoint, open_checkpoint, weights_layout
from sd35.compile.rewrites import rewrite
from sd35.compile.stored_weights import assert_only_small_inline, is_fixed, point_into_files, stored_tensors

OPSET = 21  # the first with FP8 Q/DQ as TensorRT and ONNX Runtime read it
_PREFIX = "network."  # of a parameter's name inside the wrappers below


class _Wrapper(nn.Module):
    network: Any  # each wrapper knows its own

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class _Clip(_Wrapper):
    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        output = self.network(input_ids, output_hidden_states=True)
        return output.text_embeds, output.hidden_states[-2]


class _T5(_Wrapper):
    def forward(self, input_ids: Tensor) -> Tensor:
        return self.network(input_ids).last_hidden_state


class _Transformer(_Wrapper):
    def __init__(self, network: SD3Transformer2DModel) -> None:
        super().__init__(network)
        rewrite(network)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor, timestep: Tensor
    ) -> Tensor:
        return self.network(hidden_states, encoder_hidden_states, pooled_projections, timestep, return_dict=False)[0]


class _Decoder(_Wrapper):
    def __init__(self, network: AutoencoderKL) -> None:
        super().__init__(network)
        rewrite(network)

    def forward(self, latent: Tensor) -> Tensor:
        return self.network.decode(latent, return_dict=False)[0]


@dataclass(frozen=True)
class _Graph:
    """One network's graph: how to load and call it, and the names of its tensors' dimensions; integers are fixed."""

    part: str
    file: str
    network: Callable[[Path], nn.Module]
    wrapper: type[_Wrapper]
    inputs: dict[str, tuple[str | int, ...]]
    outputs: dict[str, tuple[str | int, ...]]


def export(checkpoint: Checkpoint) -> list[Path]:
    """Writes the five graphs into the checkpoint's directory and returns their paths.

    Raises CheckpointError where a network's weights are not in its safetensors files.
    """
    return [_export_one(checkpoint.directory, graph) for graph in _graphs(checkpoint)]


def _graphs(checkpoint: Checkpoint) -> list[_Graph]:
    def clip(part: str) -> _Graph:
        config = checkpoint.config(part)
        length, width = config["max_position_embeddings"], config["hidden_size"]
        outputs = {"text_embeddings": ("B", config["projection_dim"]), "hidden_states": ("B", length, width)}
        return _Graph(
            part, "model.onnx", _loader(CLIPTextModelWithProjection), _Clip, {"input_ids": ("B", length)}, outputs
        )

    sizes = checkpoint.config("transformer")
    channels, joint, pooled = sizes["in_channels"], sizes["joint_attention_dim"], sizes["pooled_projection_dim"]
    t5_width = checkpoint.config("text_encoder_3")["d_model"]
    transformer_inputs: dict[str, tuple[str | int, ...]] = {
        "hidden_states": ("R", channels, "h", "w"),
        "encoder_hidden_states": ("R", "T", joint),
        "pooled_projections": ("R", pooled),
        "timestep": ("R",),
    }
    return [
        clip("text_encoder"),
        clip("text_encoder_2"),
        _Graph(
            "text_encoder_3", "model.onnx", _loader(T5EncoderModel), _T5,
            {"input_ids": ("B", "T")}, {"text_embeddings": ("B", "T", t5_width)},
        ),
        _Graph(
            "transformer", "model.onnx", _loader(SD3Transformer2DModel), _Transformer,
            transformer_inputs, {"latent": ("R", channels, "h", "w")},
        ),
        _Graph(
            "vae", "decoder.onnx", _loader(AutoencoderKL), _Decoder,
            {"latent": ("B", channels, "h", "w")}, {"images": ("B", 3, "8*h", "8*w")},
        ),
    ]  # fmt: skip


def _loader(kind: Any) -> Callable[[Path], nn.Module]:  # noqa: ANN401  Diffusers' and transformers' classes
    def load(directory: Path) -> nn.Module:
        network: nn.Module = kind.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
        return network.eval()

    return load


def _export_one(directory: Path, graph: _Graph) -> Path:
    part = directory / graph.part
    wrapper = graph.wrapper(graph.network(part))
    model = _trace(wrapper, graph)
    point_into_files(model, _stored_weights(wrapper, part))
    optimize_ir(model, should_fold=lambda node: False if is_fixed(node) else None)
    _tidy(model, graph)
    assert_only_small_inline(model)
    model.metadata_props[WEIGHTS_LAYOUT] = weights_layout(part)
    path = part / graph.file
    ir.save(model, path)
    return path


def _stored_weights(wrapper: _Wrapper, part: Path) -> dict[str, ir.ExternalTensor]:
    """The stored tensors by the names the graph gives them; a tied weight has several, and one in the file."""
    stored = stored_tensors(part)
    weights = wrapper.state_dict()
    by_address = {
        weights[_PREFIX + name].data_ptr(): tensor for name, tensor in stored.items() if _PREFIX + name in weights
    }
    return {name: by_address[weight.data_ptr()] for name, weight in weights.items() if weight.data_ptr() in by_address}


def _trace(module: nn.Module, graph: _Graph) -> ir.Model:
    """The network as the exporter writes it, not optimised: each parameter is still an initializer of its own name."""
    examples = tuple(_example(name, dimensions) for name, dimensions in graph.inputs.items())
    dynamic = {
        name: {axis: torch.export.Dim.AUTO for axis, size in enumerate(dimensions) if isinstance(size, str)}
        for name, dimensions in graph.inputs.items()
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, of its internals
        program = torch.onnx.export(
            module, examples, dynamo=True, opset_version=OPSET, optimize=False, verbose=False,
            input_names=list(graph.inputs), output_names=list(graph.outputs), dynamic_shapes=dynamic,
        )  # fmt: skip
    assert program is not None
    return program.model


def _example(name: str, dimensions: tuple[str | int, ...]) -> Tensor:
    """An input to trace with. No two dynamic sizes are equal, and none is 1: the exporter would take them for fixed."""
    sizes = {"R": 2, "B": 2, "T": 20, "h": 16, "w": 12}
    shape = [size if isinstance(size, int) else sizes[size] for size in dimensions]
    if name == "input_ids":
        return torch.ones(shape, dtype=torch.int32)
    return torch.rand(shape)


def _tidy(model: ir.Model, graph: _Graph) -> None:
    """Removes the exporter's notes (they name paths of this machine) and gives the dimensions their names."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():  # runtimes infer these themselves
                value.shape = value.type = None
    for values, named in ((model.graph.inputs, graph.inputs), (model.graph.outputs, graph.outputs)):
        for value, dimensions in zip(values, named.values(), strict=True):
            value.shape = ir.Shape(dimensions)


def main() -> None:
    """Exports the checkpoint named on the command line."""
    parser = argparse.ArgumentParser(description="Exports a checkpoint's networks to ONNX graphs beside its weights.")
    parser.add_argument(
        "checkpoint", help="a checkpoint's directory in the Diffusers layout, or an embedded one's name"
    )
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    for path in export(open_checkpoint(parser.parse_args().checkpoint)):
        print(path)  # noqa: T201  the command's output


if __name__ == "__main__":
    main()
