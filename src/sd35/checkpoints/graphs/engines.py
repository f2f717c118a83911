"""The TensorRT engines that `sd35 compile` builds for a checkpoint: their paths in the cache, and their keys.

An engine runs only on the GPU architecture and with the exact version of TensorRT that it was built for. Both are part
of its path and its key, so that no other engine is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sd35.checkpoints.build_cache import Key, build_root, fingerprint_of, is_built, read_key
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import GraphPrecision, compiled_graph_paths, part_precision
from sd35.checkpoints.network_sizes import NETWORKS
from sd35.errors import NotCompiled

ENGINE_FILE = "model.engine"
_FORMAT = 1  # increment it when the content of engines changes, so that they are rebuilt
# Folder names, as in NVIDIA's layout.
_NAMES: Mapping[str, str] = MappingProxyType(
    {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5", "transformer": "transformer"}
)


@dataclass(frozen=True)
class Target:
    """The target of an engine: "tensorrt" or "tensorrt_rtx", its version, and a GPU architecture such as "sm89"."""

    flavour: str
    version: str
    gpu: str

    def __str__(self) -> str:
        """Return the target as a folder name."""
        return f"{self.flavour}-{self.version}-{self.gpu}"


@dataclass(frozen=True)
class BuiltEngine:
    """An engine on disk.

    Attributes:
        shapes: The size buckets of its profiles, in their order, or "".
        batch: The largest number of rows.
        graph: The fingerprint of the graph that it was built from (see `fingerprint_of`); None for NVIDIA's graphs.
    """

    folder: Path
    shapes: str
    batch: int
    graph: str | None

    @property
    def file(self) -> Path:
        """The file with the engine, as TensorRT serialises it."""
        return self.folder / ENGINE_FILE


def engine_folder(
    cache_dir: Path, checkpoint: Checkpoint, part: str, precision: GraphPrecision, target: Target
) -> Path:
    """Return the folder of an engine, built or not."""
    name = f"{_NAMES.get(part, part)}-{part_precision(part, precision)}"
    return build_root(cache_dir, checkpoint) / "engines" / str(target) / name


def engine_key(checkpoint: Checkpoint, part: str, precision: GraphPrecision, target: Target) -> Key:
    """Return the fields of an engine's key that its readers know. The builder adds `shapes`, `batch` and `graph`."""
    return {
        "format": _FORMAT,
        "revision": checkpoint.revision,
        "network": part,
        "precision": part_precision(part, precision),
        "flavour": target.flavour,
        "version": target.version,
        "gpu": target.gpu,
    }


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
            arguments = ["compile", "--checkpoint", checkpoint.asked or checkpoint.name, "--precision", precision]
            raise NotCompiled(what, [*arguments, "--target", "tensorrt", "--gpu", target.gpu], cache_dir)
        built = read_key(folder)
        engines[part] = BuiltEngine(folder, str(built["shapes"]), int(built["batch"]), built.get("graph"))
    return engines


def _graph_key(cache_dir: Path | None, checkpoint: Checkpoint, part: str, precision: GraphPrecision) -> Key:
    """Return the fingerprint of the graph that the engine must be built from, if that graph exists."""
    if cache_dir is None or checkpoint.graphs:
        return {}
    fingerprint = fingerprint_of(compiled_graph_paths(cache_dir, checkpoint, precision).path(part).parent)
    return {"graph": fingerprint} if fingerprint else {}
