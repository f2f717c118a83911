"""Export a checkpoint's networks as graphs for ONNX Runtime: `python -m sd35.compile.onnx_export DIRECTORY`.

The graphs are next to the safetensors files and refer to them. They compute in float32, and use ONNX Runtime's own
operators if those are faster. For portable graphs, see `sd35.compile.graphs`.
"""

import argparse
from pathlib import Path

import onnx_ir as ir
import torch
from onnxscript.optimizer import optimize_ir

from sd35.backends.diffusers.loading import load_network
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.embedded import WEIGHTS_LAYOUT, embedded_graph_path
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.weights.safetensors_file import weights_layout
from sd35.compile.networks import PREFIX, Graph, Wrapper, graphs_of, tidy, trace
from sd35.compile.stored_weights import assert_only_small_inline, is_fixed, point_into_files, stored_tensors


def export(checkpoint: Checkpoint) -> list[Path]:
    """Write the five graphs into the checkpoint's directory and return their paths.

    Raises CheckpointError if a network's weights are not in its safetensors files.
    """
    return [_export_one(checkpoint, graph) for graph in graphs_of(checkpoint)]


def _export_one(checkpoint: Checkpoint, graph: Graph) -> Path:
    part = checkpoint.directory / graph.part
    wrapper = graph.wrapper(load_network(checkpoint, graph.part, torch.float32), "onnxruntime")
    model = trace(wrapper, graph)
    point_into_files(model, _stored_weights(wrapper, part))
    optimize_ir(model, should_fold=lambda node: False if is_fixed(node) else None)
    tidy(model, graph)
    assert_only_small_inline(model)
    model.metadata_props[WEIGHTS_LAYOUT] = weights_layout(part)
    path = embedded_graph_path(checkpoint, graph.part)
    ir.save(model, path)
    return path


def _stored_weights(wrapper: Wrapper, part: Path) -> dict[str, ir.ExternalTensor]:
    """Return the stored tensors by their names in the graph. A tied weight has several there, and one in the file."""
    stored = stored_tensors(part)
    weights = wrapper.state_dict()
    by_address = {
        weights[PREFIX + name].data_ptr(): tensor for name, tensor in stored.items() if PREFIX + name in weights
    }
    return {name: by_address[weight.data_ptr()] for name, weight in weights.items() if weight.data_ptr() in by_address}


def main() -> None:
    """Export the checkpoint given on the command line."""
    parser = argparse.ArgumentParser(description="Export a checkpoint's networks as ONNX graphs next to its weights.")
    parser.add_argument("checkpoint", help="a directory in the Diffusers layout, or a registered name")
    for path in export(open_checkpoint(parser.parse_args().checkpoint)):
        print(path)  # noqa: T201  the command's output


if __name__ == "__main__":
    main()
