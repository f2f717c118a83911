"""A checkpoint on disk: a directory in the Diffusers layout, and what is known of it beyond its weights.

Or NVIDIA's graphs, with such a directory for all that they lack.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from sd35.checkpoints.layout import CARD_FILE, PARTS, missing, needed
from sd35.checkpoints.tensorrt_onnx import OfficialGraphs, Transformer, find_graphs
from sd35.errors import CheckpointError
from sd35.request import GUIDANCE_SCALE, SIZE_MULTIPLE_PX, SKIP_LAYER_SCALE, STEPS

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
    """A checkpoint that was found. `name` is what requests call it.

    Where it has NVIDIA's `graphs`, its weights are theirs, and `directory` is its companion's, of all else.
    """

    name: str
    directory: Path
    card: Card
    graphs: OfficialGraphs | None = None

    @cached_property
    def revision(self) -> str:
        """SHA-256 over its card, and the names and contents of weights, configurations and tokenizers; not graphs."""
        total = hashlib.sha256(json.dumps(asdict(self.card), sort_keys=True).encode())  # wherever the card came from
        paths = (path for path in self.directory.rglob("*") if path.is_file() and _is_identity(path))
        files = {name: self.directory / name for name in needed(map(self._relative, paths))}
        if self.graphs:
            files = {name: path for name, path in files.items() if ".safetensors" not in name}
            files |= sorted(self.graphs.files().items())
        for name, path in files.items():
            total.update(f"{name} {_sha256(path)}\n".encode())
        return total.hexdigest()

    def config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        """A part's configuration, as Diffusers wrote it. Raises CheckpointError where it cannot be read."""
        return _read_json(self.directory / part / file)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.directory).as_posix()


def weights_layout(part: Path) -> str:
    """SHA-256 over the headers of a part's safetensors files: what lies where in them.

    Raises CheckpointError where one cannot be read.
    """
    total = hashlib.sha256()
    for path in sorted(part.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                length = file.read(8)
                total.update(path.name.encode() + length + file.read(int.from_bytes(length, "little")))
        except (OSError, OverflowError, MemoryError) as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    return total.hexdigest()


def open_checkpoint(
    name_or_directory: str,
    own_variants: Path | None = None,
    companion: str | None = None,
    transformer: Transformer = "auto",
) -> Checkpoint:
    """The embedded checkpoint or a variant by name, a directory in the Diffusers layout, or one of NVIDIA's graphs.

    `own_variants` is the user's file of variants. A name stands for that checkpoint at its revision, never for another:
    `./sd3.5-medium` is the directory. `companion`, in turn one of these, is where NVIDIA's graphs have tokenizers and
    configurations from; its weights may be missing. `transformer` says which of theirs is read. Raises CheckpointError
    where it is none of these, not whole on disk, or a part is missing; InvalidSetting where the user's file is wrong.
    """
    if found := _named(name_or_directory, own_variants):
        return found
    if graphs := find_graphs(Path(name_or_directory).expanduser().resolve(), transformer):
        return _with_companion(graphs, companion, own_variants)
    return _in_directory(name_or_directory, own_variants)


def _named(name: str, own_variants: Path | None, *, needs_weights: bool = True) -> Checkpoint | None:
    """The checkpoint of a name, or None where nothing has it."""
    if name == EMBEDDED:
        return _open(_EMBEDDED_DIRECTORY, EMBEDDED, Card())
    from sd35.checkpoints.variants import load_variants

    variant = load_variants(own_variants).get(name)
    if variant is None:
        return None
    from sd35.checkpoints.cache import place_of

    directory = place_of(variant).snapshot
    if lacking := [path for path in missing(directory) if needs_weights or ".safetensors" not in path]:
        shown = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
        state = f"not whole on disk: {shown} missing" if directory.is_dir() else "not on disk"
        raise CheckpointError(f"{variant.name} is {state}; fetch it with: sd35 pull {variant.name}")
    return _open(directory, variant.name, variant.card)


def _in_directory(path: str, own_variants: Path | None) -> Checkpoint:
    directory = Path(path).expanduser().resolve()
    if not directory.is_dir():
        from sd35.checkpoints.variants import load_variants

        known = ", ".join(map(repr, (EMBEDDED, *load_variants(own_variants))))
        raise CheckpointError(f"{path!r} is neither a directory nor one of {known}")
    return _open(directory, directory.name, Card())


def _with_companion(graphs: OfficialGraphs, companion: str | None, own_variants: Path | None) -> Checkpoint:
    if companion is None:
        raise CheckpointError(
            f"{graphs.directory} has no tokenizers and configurations; name where the same model's are, a variant or a"
            " directory in the Diffusers layout: --companion (SD35_COMPANION)"
        )
    rest = _named(companion, own_variants, needs_weights=False) or _in_directory(companion, own_variants)
    card = _read_card(graphs.directory / CARD_FILE) or rest.card
    return Checkpoint(graphs.directory.name, rest.directory, card, graphs)


def _open(directory: Path, name: str, card: Card) -> Checkpoint:
    """`card` is what is known of it where the directory has none of its own."""
    lacking = [part for part in PARTS if not (directory / part).is_dir()]
    if lacking:
        raise CheckpointError(
            f"{directory} is no SD3.5 checkpoint in the Diffusers layout: {', '.join(lacking)} missing"
        )
    return Checkpoint(name, directory, _read_card(directory / CARD_FILE) or card)


def _is_identity(path: Path) -> bool:
    return path.suffix != ".onnx" and path.name != CARD_FILE


def explain(error: ValidationError) -> str:
    """The fields that are wrong, what came, and why not."""
    return "; ".join(
        f"{'.'.join(map(str, detail['loc']))}: got {detail['input']!r}; {detail['msg']}" for detail in error.errors()
    )


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
        return TypeAdapter(Card).validate_python(_read_json(path))
    except ValidationError as error:
        raise CheckpointError(f"{path}: {explain(error)}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
