"""Write a checkpoint's networks as portable graphs: with standard ONNX operators only, and in NVIDIA's layout.

The graphs are in the cache directory. They contain a copy of the weights in the number format that they compute in,
because TensorRT does not convert the types in a graph. Needs torch, diffusers, transformers and onnxscript.
"""

from functools import partial
from pathlib import Path

import onnx_ir as ir
import torch
from onnxscript.optimizer import optimize_ir

from sd35.backends.diffusers.loading import load_network
from sd35.checkpoints.build_cache import build
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import GraphPrecision, compiled_graph_paths, graph_key
from sd35.checkpoints.graphs.nvidia import GRAPH_FILE, OfficialGraphs
from sd35.compile.networks import PREFIX, Graph, graphs_of, tidy, trace
from sd35.compile.stages import Stages

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_INLINE_BYTES = 1024  # smaller tensors, such as shapes and scales, stay in the graph's file


def build_graphs(checkpoint: Checkpoint, precision: GraphPrecision, cache_dir: Path, stages: Stages) -> OfficialGraphs:
    """Build the graphs that are not built yet, and return the paths of all five.

    An FP8 transformer is not built here, but by `sd35.compile.fp8`. Raises CheckpointError if weights are missing or
    damaged, BuildFailed if the cache cannot be written.
    """
    graphs = compiled_graph_paths(cache_dir, checkpoint, precision)
    for graph in graphs_of(checkpoint):
        if graph.part != "transformer" or precision != "fp8":
            _build_graph(checkpoint, graph, graphs, stages)
    return graphs


def transformer_in_bf16(checkpoint: Checkpoint, directory: Path, stages: Stages) -> ir.Model:
    """Load the transformer's BF16 graph, and build it first if it is missing. Raises the errors of `build_graphs`."""
    graphs = OfficialGraphs(directory, "bf16")
    graph = next(graph for graph in graphs_of(checkpoint) if graph.part == "transformer")
    _build_graph(checkpoint, graph, graphs, stages)
    return ir.load(graphs.path("transformer"))


def export_graph(checkpoint: Checkpoint, graph: Graph, precision: str) -> ir.Model:
    """Export a network as an ONNX graph in the precision "fp32" or "bf16".

    The graph's weights are not copied: they are PyTorch's tensors, memory-mapped from the weight files if possible.
    """
    dtype = _DTYPES[precision]
    model = trace(graph.wrapper(load_network(checkpoint, graph.part, dtype), "standard"), graph, dtype)
    # None leaves the decision to the optimizer.
    optimize_ir(model, should_fold=lambda node: False if _reads_weight(node) else None)
    tidy(model, graph)
    for value in list(model.graph.initializers.values()):
        value.name = str(value.name).removeprefix(PREFIX)
    return model


def save(model: ir.Model, folder: Path) -> None:
    """Write a graph and its weights to a folder. Unused weights are left out.

    Weights are loaded and written one at a time, to limit memory use.
    """
    for value in list(model.graph.initializers.values()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[str(value.name)]
    ir.save(model, folder / GRAPH_FILE, external_data=f"{GRAPH_FILE}.data", size_threshold_bytes=_INLINE_BYTES)


def _build_graph(checkpoint: Checkpoint, graph: Graph, graphs: OfficialGraphs, stages: Stages) -> None:
    """Build one graph at its path in `graphs`, if it is not built yet."""
    key = graph_key(checkpoint, graph.part, graphs.transformer)
    with stages.stage(f"graph of {graph.part}"):
        build(graphs.path(graph.part).parent, key, partial(_write, checkpoint, graph, str(key["precision"])))


def _write(checkpoint: Checkpoint, graph: Graph, precision: str, folder: Path) -> None:
    """Export a network and write it to a folder."""
    save(export_graph(checkpoint, graph, precision), folder)


def _reads_weight(node: ir.Node) -> bool:
    """Return whether a node reads a weight. Folding it would store a weight twice or in another form."""
    return any(value is not None and str(value.name).startswith(PREFIX) for value in node.inputs)
