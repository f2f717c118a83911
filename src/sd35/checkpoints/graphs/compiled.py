"""The graphs and TensorRT engines that `sd35 compile` builds for a checkpoint: their paths and keys in the build cache.

In this module, an engine is a TensorRT engine. It only runs on the GPU architecture and with the exact version of
TensorRT that it was built for. Both are part of its path and its key, so an engine for another target is never loaded.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from sd35.checkpoints.build_cache import Key, build_root, fingerprint_of, is_built, read_key
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.nvidia import FOLDERS, OfficialGraphs
from sd35.checkpoints.network_sizes import NETWORKS
from sd35.errors import NotCompiled

GraphPrecision: TypeAlias = Literal["fp32", "bf16", "fp8"]
"""The transformer's precision. The other networks are in FP32 if the transformer is, otherwise in BF16."""

GRAPH_PRECISIONS: Mapping[str, GraphPrecision] = MappingProxyType({"float32": "fp32", "bfloat16": "bf16", "fp8": "fp8"})
ENGINE_FILE = "model.engine"
_GRAPH_FORMAT, _ENGINE_FORMAT = 1, 1  # increment if the content of graphs or engines changes, to rebuild them


def compiled_graph_paths(cache_dir: Path, checkpoint: Checkpoint, precision: GraphPrecision) -> OfficialGraphs:
    """Return where `sd35 compile` writes a checkpoint's graphs. They may not exist."""
    return OfficialGraphs(build_root(cache_dir, checkpoint) / part_precision("vae", precision), precision)


def graph_key(checkpoint: Checkpoint, part: str, precision: GraphPrecision) -> Key:
    """Return the key of a graph: the fields that `is_built` checks when the graph is read."""
    return {
        "format": _GRAPH_FORMAT,
        "revision": checkpoint.revision,
        "network": part,
        "precision": part_precision(part, precision),
    }


def compiled_graphs(cache_dir: Path | None, checkpoint: Checkpoint, precision: GraphPrecision) -> OfficialGraphs:
    """Return the graphs of `sd35 compile`. Raises NotCompiled if one is missing or was built from another revision."""
    graphs = compiled_graph_paths(cache_dir, checkpoint, precision) if cache_dir else None
    if graphs is None or not all(
        is_built(graphs.path(part).parent, graph_key(checkpoint, part, precision)) for part in NETWORKS
    ):
        arguments = ["compile", "--checkpoint", checkpoint.opened_as or checkpoint.name]
        place = f" ({graphs.directory.parent})" if graphs else ""
        what = f"the {precision} graphs of {checkpoint.name}{place} are"
        raise NotCompiled(what, [*arguments, "--precision", precision, "--target", "onnx"], cache_dir)
    return graphs


def part_precision(part: str, precision: GraphPrecision) -> GraphPrecision:
    """Return a part's precision for a transformer in `precision`. With an FP8 transformer, other parts are in BF16."""
    return "bf16" if precision == "fp8" and part != "transformer" else precision


@dataclass(frozen=True)
class Target:
    """What an engine runs on: `flavour` ("tensorrt" or "tensorrt_rtx"), its version, and a `gpu` such as "sm89"."""

    flavour: str
    version: str
    gpu: str

    def __str__(self) -> str:
        """Format the target as a folder name."""
        return f"{self.flavour}-{self.version}-{self.gpu}"


@dataclass(frozen=True)
class BuiltEngine:
    """An engine on disk.

    Attributes:
        folder: The folder with the engine and its manifest.
        shapes: Its image sizes, as in `--shapes`, in the order of its optimization profiles. Empty for text encoders.
        batch: The largest batch that it supports: rows of the transformer, prompts of a text encoder, or images.
        graph: The fingerprint of the graph that it was built from (see `fingerprint_of`), or None for NVIDIA's graphs.
    """

    folder: Path
    shapes: str
    batch: int
    graph: str | None

    @property
    def file(self) -> Path:
        """The file with the serialised engine."""
        return self.folder / ENGINE_FILE


def engine_folder(
    cache_dir: Path, checkpoint: Checkpoint, part: str, precision: GraphPrecision, target: Target
) -> Path:
    """Return where `sd35 compile` writes an engine. The folder may not exist."""
    name = f"{FOLDERS.get(part, part)}-{part_precision(part, precision)}"
    return build_root(cache_dir, checkpoint) / "engines" / str(target) / name


def engine_key(checkpoint: Checkpoint, part: str, precision: GraphPrecision, target: Target) -> Key:
    """Return the fields of an engine's key that a reader knows. The builder adds `shapes`, `batch` and `graph`."""
    key = graph_key(checkpoint, part, precision)
    return {**key, "format": _ENGINE_FORMAT, **asdict(target)}


def graph_fingerprint(graphs: OfficialGraphs, part: str) -> Key:
    """Return the field `graph` of an engine's key, as a dict: the fingerprint of a graph of `sd35 compile`.

    The dict is empty for NVIDIA's graphs, because the field `revision` covers them already.
    """
    fingerprint = fingerprint_of(graphs.path(part).parent)
    return {"graph": fingerprint} if fingerprint else {}


def compiled_engines(
    cache_dir: Path | None, checkpoint: Checkpoint, precision: GraphPrecision, target: Target
) -> dict[str, BuiltEngine]:
    """Verify the checksums of a checkpoint's five engines, and return the engines by part.

    Raises NotCompiled if an engine is missing or damaged, was built for another revision, or was built from a graph
    that has been rebuilt since.
    """
    engines = {}
    for part in NETWORKS:
        folder = engine_folder(cache_dir, checkpoint, part, precision, target) if cache_dir else None
        key = dict(engine_key(checkpoint, part, precision, target))
        key |= _current_graph(cache_dir, checkpoint, part, precision)
        if not folder or not is_built(folder, key, verify_checksums=True):
            place = f" ({folder})" if folder else ""
            what = f"the {precision} engines of {checkpoint.name} for {target}{place} are"
            arguments = ["compile", "--checkpoint", checkpoint.opened_as or checkpoint.name, "--precision", precision]
            raise NotCompiled(what, [*arguments, "--target", "tensorrt", "--gpu", target.gpu], cache_dir)
        built = read_key(folder)
        engines[part] = BuiltEngine(folder, str(built["shapes"]), int(built["batch"]), built.get("graph"))
    return engines


def _current_graph(cache_dir: Path | None, checkpoint: Checkpoint, part: str, precision: GraphPrecision) -> Key:
    """Return the field `graph` of an engine's key, as a dict, for the graph that is in the cache now.

    The dict is empty if there is no such graph. An engine may be used without its graph, for example if only the
    engines were copied to the GPU's machine.
    """
    if cache_dir is None or checkpoint.graphs:
        return {}
    return graph_fingerprint(compiled_graph_paths(cache_dir, checkpoint, precision), part)
