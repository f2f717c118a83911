"""The graphs that `sd35 compile` writes of a checkpoint: where they lie in the cache, and whether they are its own."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from sd35.checkpoints.build_cache import Key, home_of, is_built
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.nvidia import OfficialGraphs
from sd35.checkpoints.network_sizes import NETWORKS
from sd35.errors import NotCompiled

GraphPrecision: TypeAlias = Literal["fp32", "bf16", "fp8"]
"""Of the transformer. The other networks are in FP32 where it is, else in BF16."""

OF_PRECISION: Mapping[str, GraphPrecision] = MappingProxyType({"float32": "fp32", "bfloat16": "bf16", "fp8": "fp8"})
_FORMAT = 1  # of the graphs' contents: another number makes them anew


def place_of_graphs(cache_dir: Path, checkpoint: Checkpoint, precision: GraphPrecision) -> OfficialGraphs:
    """Where they lie, built or not."""
    others = of_part("vae", precision)
    return OfficialGraphs(home_of(cache_dir, checkpoint) / others, precision)


def graph_key(checkpoint: Checkpoint, part: str, precision: GraphPrecision) -> Key:
    """What one of them follows from, as far as its readers know."""
    return {
        "format": _FORMAT,
        "revision": checkpoint.revision,
        "network": part,
        "precision": of_part(part, precision),
    }


def compiled_graphs(cache_dir: Path | None, checkpoint: Checkpoint, precision: GraphPrecision) -> OfficialGraphs:
    """The graphs of a checkpoint, all built. Raises NotCompiled where one is not, or is another revision's."""
    graphs = place_of_graphs(cache_dir, checkpoint, precision) if cache_dir else None
    if graphs is None or not all(
        is_built(graphs.path(part).parent, graph_key(checkpoint, part, precision)) for part in NETWORKS
    ):
        arguments = ["compile", "--checkpoint", checkpoint.asked or checkpoint.name]
        what = f"the {precision} graphs of {checkpoint.name}{f' ({graphs.directory.parent})' if graphs else ''} are"
        raise NotCompiled(what, [*arguments, "--precision", precision, "--target", "onnx"], cache_dir)
    return graphs


def of_part(part: str, precision: GraphPrecision) -> GraphPrecision:
    """A part's own precision: only the transformer is in FP8."""
    return "bf16" if precision == "fp8" and part != "transformer" else precision
