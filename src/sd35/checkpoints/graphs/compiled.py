"""The graphs that `sd35 compile` writes for a checkpoint: their paths in the cache, and their keys."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from sd35.checkpoints.build_cache import Key, build_root, is_built
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.nvidia import OfficialGraphs
from sd35.checkpoints.network_sizes import NETWORKS
from sd35.errors import NotCompiled

GraphPrecision: TypeAlias = Literal["fp32", "bf16", "fp8"]
"""The transformer's precision. With an FP32 transformer the other networks are in FP32, else in BF16."""

GRAPH_PRECISIONS: Mapping[str, GraphPrecision] = MappingProxyType({"float32": "fp32", "bfloat16": "bf16", "fp8": "fp8"})
_FORMAT = 1  # increment it when the content of graphs changes, so that they are rebuilt


def compiled_graph_paths(cache_dir: Path, checkpoint: Checkpoint, precision: GraphPrecision) -> OfficialGraphs:
    """Return the paths of a checkpoint's graphs, built or not."""
    return OfficialGraphs(build_root(cache_dir, checkpoint) / part_precision("vae", precision), precision)


def graph_key(checkpoint: Checkpoint, part: str, precision: GraphPrecision) -> Key:
    """Return the fields of a graph's key that its readers know."""
    return {
        "format": _FORMAT,
        "revision": checkpoint.revision,
        "network": part,
        "precision": part_precision(part, precision),
    }


def compiled_graphs(cache_dir: Path | None, checkpoint: Checkpoint, precision: GraphPrecision) -> OfficialGraphs:
    """Return a checkpoint's graphs. Raises NotCompiled if one is not built, or was built from another revision."""
    graphs = compiled_graph_paths(cache_dir, checkpoint, precision) if cache_dir else None
    if graphs is None or not all(
        is_built(graphs.path(part).parent, graph_key(checkpoint, part, precision)) for part in NETWORKS
    ):
        arguments = ["compile", "--checkpoint", checkpoint.asked or checkpoint.name]
        what = f"the {precision} graphs of {checkpoint.name}{f' ({graphs.directory.parent})' if graphs else ''} are"
        raise NotCompiled(what, [*arguments, "--precision", precision, "--target", "onnx"], cache_dir)
    return graphs


def part_precision(part: str, precision: GraphPrecision) -> GraphPrecision:
    """Return the precision of one part: only the transformer is in FP8."""
    return "bf16" if precision == "fp8" and part != "transformer" else precision
