"""The graphs and TensorRT engines that `sd35 compile` builds for a checkpoint: paths in the cache, and keys.

An engine only runs on the GPU architecture and with the exact version of TensorRT that it was built for. Both are part
of its path and its key, so that an engine for another target is never loaded.
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
    """Return the paths of a checkpoint's graphs, which may not exist."""
    return OfficialGraphs(build_root(cache_dir, checkpoint) / part_precision("vae", precision), precision)


def graph_key(checkpoint: Checkpoint, part: str, precision: GraphPrecision) -> Key:
    """Return the fields of a graph's key that readers check."""
    return {
        "format": _GRAPH_FORMAT,
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
        arguments = ["compile", "--checkpoint", checkpoint.opened_as or checkpoint.name]
        what = f"the {precision} graphs of {checkpoint.name}{f' ({graphs.directory.parent})' if graphs else ''} are"
        raise NotCompiled(what, [*arguments, "--precision", precision, "--target", "onnx"], cache_dir)
    return graphs


def part_precision(part: str, precision: GraphPrecision) -> GraphPrecision:
    """Return the precision of one part. Only the transformer is ever in FP8."""
    return "bf16" if precision == "fp8" and part != "transformer" else precision


@dataclass(frozen=True)
class Target:
    """The target of an engine: "tensorrt" or "tensorrt_rtx", its version, and a GPU architecture such as "sm89"."""

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
        shapes: The size buckets of its profiles, in their order. Empty if its inputs have no image size.
        batch: The largest batch that it supports, in rows.
        graph: The fingerprint of the graph that it was built from (see `fingerprint_of`); None for NVIDIA's graphs.
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
    """Return the folder of an engine, which may not exist."""
    name = f"{FOLDERS.get(part, part)}-{part_precision(part, precision)}"
    return build_root(cache_dir, checkpoint) / "engines" / str(target) / name


def engine_key(checkpoint: Checkpoint, part: str, precision: GraphPrecision, target: Target) -> Key:
    """Return the fields of an engine's key that readers check. The builder adds `shapes`, `batch` and `graph`."""
    key = graph_key(checkpoint, part, precision)
    return {**key, "format": _ENGINE_FORMAT, **asdict(target)}


def graph_fingerprint(graphs: OfficialGraphs, part: str) -> Key:
    """Return the fingerprint of a graph of `sd35 compile`. Empty for NVIDIA's graphs, which the revision covers."""
    fingerprint = fingerprint_of(graphs.path(part).parent)
    return {"graph": fingerprint} if fingerprint else {}


def compiled_engines(
    cache_dir: Path | None, checkpoint: Checkpoint, precision: GraphPrecision, target: Target
) -> dict[str, BuiltEngine]:
    """Return a checkpoint's five engines by part, after verifying their checksums.

    Raises NotCompiled if an engine is not built, damaged, or built for another revision, version or architecture, or
    if its graph exists and was rebuilt since.
    """
    engines = {}
    for part in NETWORKS:
        folder = engine_folder(cache_dir, checkpoint, part, precision, target) if cache_dir else None
        key = {**engine_key(checkpoint, part, precision, target), **_graph_key(cache_dir, checkpoint, part, precision)}
        if not folder or not is_built(folder, key, verify_checksums=True):
            what = f"the {precision} engines of {checkpoint.name} for {target}{f' ({folder})' if folder else ''} are"
            arguments = ["compile", "--checkpoint", checkpoint.opened_as or checkpoint.name, "--precision", precision]
            raise NotCompiled(what, [*arguments, "--target", "tensorrt", "--gpu", target.gpu], cache_dir)
        built = read_key(folder)
        engines[part] = BuiltEngine(folder, str(built["shapes"]), int(built["batch"]), built.get("graph"))
    return engines


def _graph_key(cache_dir: Path | None, checkpoint: Checkpoint, part: str, precision: GraphPrecision) -> Key:
    """Return the fingerprint of the graph that the engine must have been built from. Empty if the graph is missing."""
    if cache_dir is None or checkpoint.graphs:
        return {}
    return graph_fingerprint(compiled_graph_paths(cache_dir, checkpoint, precision), part)
