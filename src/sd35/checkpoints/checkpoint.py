"""A checkpoint on disk: a directory in the Diffusers layout, and what is known of it beyond its weights.

Or NVIDIA's graphs, with such a directory for all that they lack.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from sd35.checkpoints.graphs.nvidia import OfficialGraphs, Transformer, find_graphs
from sd35.checkpoints.layout import CARD_FILE, PARTS, missing, needed
from sd35.checkpoints.network_config import explain, read_config, read_object
from sd35.checkpoints.weights.parameters import CLIP, Weight, weights_in, weights_of_file
from sd35.checkpoints.weights.safetensors_file import header_bytes
from sd35.errors import CheckpointError
from sd35.parsing import shown
from sd35.request import GUIDANCE_SCALE, SIZE_MULTIPLE_PX, SKIP_LAYER_SCALE, STEPS

if TYPE_CHECKING:
    from sd35.checkpoints.registry import RegisteredCheckpoint

EMBEDDED = "sd35-mini"
_EMBEDDED_DIRECTORY = Path(__file__).parent / "embedded" / EMBEDDED

_Side = Annotated[int, Field(ge=SIZE_MULTIPLE_PX, multiple_of=SIZE_MULTIPLE_PX)]
_Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class SkipLayers:
    """Skip-layer guidance as a model wants it: the transformer's layers to leave out, counted from 0, and the scale.

    Of N steps, counted from 0, it is for those strictly between `N * start` and `N * stop`, as in Diffusers.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    scale: Annotated[float, Field(ge=SKIP_LAYER_SCALE[0], le=SKIP_LAYER_SCALE[1])]
    start: _Fraction
    stop: _Fraction


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself in `sd35.json`; the defaults are those of the SD3.5 models.

    `side_px` bounds each side of what it draws. `enlarges` is for stand-ins: a size above that range is drawn with
    `native_pixels` at the same aspect and enlarged. `max_sequence_length` is T5's, in tokens. `skip_layers` is None for
    what is not meant for skip-layer guidance; SD3.5 Medium's model card has layers 7, 8, 9, scale 2.8, 0.01 to 0.2.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    width: _Side = 1024
    height: _Side = 1024
    steps: Annotated[int, Field(ge=STEPS[0], le=STEPS[1])] = 30
    guidance_scale: Annotated[float, Field(ge=GUIDANCE_SCALE[0], le=GUIDANCE_SCALE[1])] = 3.5
    max_sequence_length: Annotated[int, Field(ge=1, le=512)] = 256
    side_px: tuple[_Side, _Side] = (256, 2048)
    native_pixels: Annotated[int, Field(ge=SIZE_MULTIPLE_PX**2)] = 1024 * 1024
    enlarges: bool = False
    skip_layers: SkipLayers | None = None
    licence: str = "see the checkpoint's model card"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found. `name` is what requests call it, `asked` what it was opened by, a name or a path.

    `files` hold weights that are read instead of the directory's: single files, text encoders. Where it has NVIDIA's
    `graphs`, all weights are theirs, and `directory` is the base checkpoint's.
    """

    name: str
    directory: Path
    card: Card
    files: tuple[Path, ...] = ()
    graphs: OfficialGraphs | None = None
    asked: str = ""

    @cached_property
    def revision(self) -> str:
        """SHA-256 over its card, and the names and contents of weights, configurations and tokenizers; not graphs.

        Raises CheckpointError where a file cannot be read.
        """
        try:
            return self._compute_revision()
        except OSError as error:
            raise CheckpointError(f"{error.filename or self.directory} cannot be read: {error.strerror}") from error

    def _compute_revision(self) -> str:
        total = hashlib.sha256(json.dumps(asdict(self.card), sort_keys=True).encode())  # wherever the card came from
        paths = (path for path in self.directory.rglob("*") if path.is_file() and _is_identity(path))
        for name in needed(path.relative_to(self.directory).as_posix() for path in paths):
            if not (".safetensors" in name and (self.graphs or name.split("/")[0] in self.replaced)):
                total.update(f"{name} {_sha256(self.directory / name)}\n".encode())
        for file in self.files:
            total.update(f"{_sha256(file)}\n".encode())
        for name, file in sorted(self.graphs.files().items()) if self.graphs else ():
            total.update(f"{name} {_sha256(file)}\n".encode())
        return total.hexdigest()

    @cached_property
    def replaced(self) -> dict[str, dict[str, Weight]]:
        """The weights that `files` hold, by part. Raises CheckpointError where one is broken, or two hold the same."""
        found: dict[str, dict[str, Weight]] = {}
        for file in self.files:
            for part, weights in weights_of_file(file).items():
                name = self._which_clip(file, weights) if part == CLIP else part
                if name in found:
                    other = next(iter(found[name].values())).stored.file
                    raise CheckpointError(f"weights: {other} and {file} both hold the {name}; leave one out")
                found[name] = weights
        return found

    def weights(self, part: str) -> dict[str, Weight]:
        """Where a part's parameters lie, by name. Raises CheckpointError where a file is missing or broken."""
        if part in self.replaced:
            return self.replaced[part]
        return weights_in(self.directory, part)

    def _which_clip(self, file: Path, weights: dict[str, Weight]) -> str:
        """By its width; by the file's name where both are as wide, which the published ones are not."""
        width = weights["text_model.embeddings.token_embedding.weight"].stored.shape[-1]
        widths = {part: self.config(part)["hidden_size"] for part in ("text_encoder", "text_encoder_2")}
        fitting = [part for part, wanted in widths.items() if wanted == width]
        if len(fitting) > 1:
            fitting = ["text_encoder_2" if "clip_g" in file.name else "text_encoder"]
        if not fitting:
            wanted = " or ".join(map(str, widths.values()))
            raise CheckpointError(f"{file}: expected a CLIP of width {wanted} for {self.name}, found {width}")
        return fitting[0]

    def config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        """A part's configuration, as Diffusers wrote it.

        Raises CheckpointError where it cannot be read, and the result where it is asked for what is missing.
        """
        return read_config(self.directory / part / file)


def weights_layout(part: Path) -> str:
    """SHA-256 over the headers of a part's safetensors files: what lies where in them.

    Raises CheckpointError where one cannot be read.
    """
    total = hashlib.sha256()
    for path in sorted(part.glob("*.safetensors")):
        total.update(path.name.encode() + header_bytes(path))
    return total.hexdigest()


def open_checkpoint(
    name_or_path: str,
    own_registry: Path | None = None,
    weights: Sequence[Path] = (),
    base_checkpoint: str | None = None,
    transformer: Transformer = "auto",
) -> Checkpoint:
    """Open a checkpoint: a registered name, a directory in the Diffusers layout or NVIDIA's, or a single file.

    A single file takes configurations, tokenizers and missing parts from the `base_checkpoint`: a name, or a directory
    in the Diffusers layout. By default, that is the registered checkpoint of the same architecture. NVIDIA's graphs
    take them from the `base_checkpoint` too, whose weights may be missing; `transformer` says which of theirs is read.
    `own_registry` is the user's file of registered checkpoints. `weights` are read instead of the checkpoint's own. A
    name stands for that checkpoint at its revision, never for another: `./sd3.5-medium` is the directory. Raises
    CheckpointError where it is none of these, not whole on disk, or a part is missing or broken; InvalidSetting where
    the user's file is wrong.
    """
    try:
        files = tuple(path.expanduser().resolve() for path in weights)
        found = _named(name_or_path, own_registry, files)
        found = found or _at(name_or_path, own_registry, files, base_checkpoint, transformer)
    except (OSError, RuntimeError) as error:  # RuntimeError: of `expanduser`, and of links that lead in a circle
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{shown(name_or_path)} cannot be looked for: {reason}") from error
    return replace(found, asked=name_or_path)


def _at(
    place: str,
    own_registry: Path | None,
    files: tuple[Path, ...],
    base_checkpoint: str | None,
    transformer: Transformer,
) -> Checkpoint:
    """What lies at a path: NVIDIA's graphs, a single file, a directory in the Diffusers layout."""
    from sd35.checkpoints.registry import load_registry

    path = Path(place).expanduser().resolve()
    if graphs := find_graphs(path, transformer):
        return _with_base_checkpoint(graphs, base_checkpoint, own_registry, files)
    registry = load_registry(own_registry)
    if path.is_file() and base_checkpoint:
        return replace(open_checkpoint(base_checkpoint, own_registry, (path, *files)), name=path.stem)
    if path.is_file():
        return _open_registered(registry[_registered_of(path)], path.stem, (path, *files))
    if not path.is_dir():
        known = ", ".join(map(repr, (EMBEDDED, *registry)))
        raise CheckpointError(f"{place!r} is neither a directory, nor a file, nor one of {known}")
    return _open(path, path.name, Card(), files)


def _named(
    name: str, own_registry: Path | None, files: tuple[Path, ...] = (), *, needs_weights: bool = True
) -> Checkpoint | None:
    """The checkpoint of a name, or None where nothing is called that."""
    if name == EMBEDDED:
        return _open(_EMBEDDED_DIRECTORY, EMBEDDED, Card(), files)
    from sd35.checkpoints.registry import load_registry

    registered = load_registry(own_registry).get(name)
    return _open_registered(registered, name, files, needs_weights=needs_weights) if registered else None


def _with_base_checkpoint(
    graphs: OfficialGraphs, base_checkpoint: str | None, own_registry: Path | None, files: tuple[Path, ...]
) -> Checkpoint:
    if base_checkpoint is None:
        raise CheckpointError(
            f"{graphs.directory} has no tokenizers and configurations; name where the same model's are, a registered"
            " checkpoint or a directory in the Diffusers layout: --base-checkpoint (SD35_BASE_CHECKPOINT)"
        )
    path = Path(base_checkpoint).expanduser().resolve()
    rest = _named(base_checkpoint, own_registry, needs_weights=False) or _open(path, path.name, Card(), ())
    card = _read_card(graphs.directory / CARD_FILE) or rest.card
    return Checkpoint(graphs.directory.name, rest.directory, card, files, graphs)


def _open_registered(
    registered: "RegisteredCheckpoint", name: str, files: tuple[Path, ...], *, needs_weights: bool = True
) -> Checkpoint:
    from sd35.checkpoints.hub.cache import place_of

    directory = place_of(registered).snapshot
    checkpoint = Checkpoint(name, directory, registered.card, files)
    lacking = missing(directory)
    if lacking and directory.is_dir():
        replaced = checkpoint.replaced if needs_weights else PARTS
        lacking = [path for path in lacking if not (".safetensors" in path and path.split("/")[0] in replaced)]
    if lacking:
        shown = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
        state = f"not whole on disk: {shown} missing" if directory.is_dir() else "not on disk"
        purpose = "" if name == registered.name else f", from which {name} takes what its file does not hold,"
        raise CheckpointError(f"{registered.name}{purpose} is {state}; fetch it with: sd35 pull {registered.name}")
    return _open(directory, name, registered.card, files)


def _registered_of(file: Path) -> str:
    """Find the built-in checkpoint of a single file's architecture. Turbo has Large's shapes: its file names tell."""
    transformer = weights_of_file(file).get("transformer", {})
    layers = {name.split(".")[1] for name in transformer if name.startswith("transformer_blocks.")}
    if not layers:
        raise CheckpointError(
            f"{file}: expected a transformer, found {', '.join(weights_of_file(file))} only; name it with --weights"
        )
    match len(layers), any(".attn2." in name for name in transformer):
        case 24, True:
            return "sd3.5-medium"
        case 38, False:
            return "sd3.5-large-turbo" if "turbo" in file.name.lower() else "sd3.5-large"
    raise CheckpointError(
        f"{file}: expected the 38 layers of SD3.5 Large or the 24 of Medium, found {len(layers)}; for a model of one's"
        " own, name a directory in the Diffusers layout with --checkpoint and this file with --weights"
    )


def _open(directory: Path, name: str, card: Card, files: tuple[Path, ...]) -> Checkpoint:
    """`card` is what is known of it where the directory has none of its own."""
    lacking = [part for part in PARTS if not (directory / part).is_dir()]
    if lacking:
        raise CheckpointError(
            f"{directory} is no SD3.5 checkpoint in the Diffusers layout: {', '.join(lacking)} missing"
        )
    return Checkpoint(name, directory, _read_card(directory / CARD_FILE) or card, files)


def _is_identity(path: Path) -> bool:
    return path.suffix != ".onnx" and path.name != CARD_FILE


def _sha256(path: Path) -> str:
    """SHA-256 of a file; Hugging Face's cache, where a file is a link, names weights by it, and spares reading them."""
    if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", name := path.readlink().name):
        return name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_card(path: Path) -> Card | None:
    if not path.exists():
        return None
    try:
        return TypeAdapter(Card).validate_python(read_object(path))
    except ValidationError as error:
        raise CheckpointError(f"{path}: {explain(error)}") from error
