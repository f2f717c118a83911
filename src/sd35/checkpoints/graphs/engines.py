"""The TensorRT engines that `sd35 compile` builds of a checkpoint: where they lie, and whether they are its own.

An engine runs on the GPU architecture, and by the very version of TensorRT, that it was built for. Both are part of
its place and of its key, so another's is never loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sd35.checkpoints.build_cache import Key, fingerprint_of, home_of, is_built, key_of
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import GraphPrecision, of_part, place_of_graphs
from sd35.checkpoints.network_sizes import NETWORKS
from sd35.errors import NotCompiled

ENGINE_FILE = "model.engine"
_FORMAT = 1  # of the engines' contents: another number makes them anew
# By which name each lies: those of NVIDIA's layout.
_NAMES: Mapping[str, str] = MappingProxyType(
    {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5", "transformer": "transformer"}
)


@dataclass(frozen=True)
class Target:
    """What engines are for: "tensorrt" or "tensorrt_rtx" and its version, and a GPU architecture, as "sm89"."""

    flavour: str
    version: str
    gpu: str

    def __str__(self) -> str:
        """As a folder's name."""
        return f"{self.flavour}-{self.version}-{self.gpu}"


@dataclass(frozen=True)
class BuiltEngine:
    """One that is there.

    `shapes`: the size buckets of its profiles, in their order, or "". `batch`: the most rows. `graph`: which graph it
    was built from, see `fingerprint_of`; None for one of NVIDIA's.
    """

    folder: Path
    shapes: str
    batch: int
    graph: str | None

    @property
    def file(self) -> Path:
        """The engine as TensorRT serialised it."""
        return self.folder / ENGINE_FILE


def engine_folder(
    cache_dir: Path, checkpoint: Checkpoint, part: str, precision: GraphPrecision, target: Target
) -> Path:
    """Where one of them lies, built or not."""
    name = f"{_NAMES.get(part, part)}-{of_part(part, precision)}"
    return home_of(cache_dir, checkpoint) / "engines" / str(target) / name


def engine_key(checkpoint: Checkpoint, part: str, precision: GraphPrecision, target: Target) -> Key:
    """What one of them follows from, as far as its readers know; who builds adds `shapes`, `batch` and the `graph`."""
    return {
        "format": _FORMAT,
        "revision": checkpoint.revision,
        "network": part,
        "precision": of_part(part, precision),
        "flavour": target.flavour,
        "version": target.version,
        "gpu": target.gpu,
    }


def compiled_engines(
    cache_dir: Path | None, checkpoint: Checkpoint, precision: GraphPrecision, target: Target
) -> dict[str, BuiltEngine]:
    """A checkpoint's five engines, by part, each whole to the last byte.

    Raises NotCompiled where one is not built, not whole, or another revision's, TensorRT's or architecture's, or where
    its graph is there and was built anew since.
    """
    found = {}
    for part in NETWORKS:
        folder = engine_folder(cache_dir, checkpoint, part, precision, target) if cache_dir else None
        wanted = {**engine_key(checkpoint, part, precision, target), **_graph(cache_dir, checkpoint, part, precision)}
        if not folder or not is_built(folder, wanted, thoroughly=True):
            what = f"the {precision} engines of {checkpoint.name} for {target}{f' ({folder})' if folder else ''} are"
            arguments = ["compile", "--checkpoint", checkpoint.asked or checkpoint.name, "--precision", precision]
            raise NotCompiled(what, [*arguments, "--target", "tensorrt", "--gpu", target.gpu], cache_dir)
        key = key_of(folder)
        found[part] = BuiltEngine(folder, str(key["shapes"]), int(key["batch"]), key.get("graph"))
    return found


def _graph(cache_dir: Path | None, checkpoint: Checkpoint, part: str, precision: GraphPrecision) -> Key:
    """Which graph the engine has to be of, where that graph is here."""
    if cache_dir is None or checkpoint.graphs:
        return {}
    found = fingerprint_of(place_of_graphs(cache_dir, checkpoint, precision).path(part).parent)
    return {"graph": found} if found else {}
