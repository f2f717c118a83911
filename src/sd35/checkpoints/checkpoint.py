"""A checkpoint on disk: a directory in the Diffusers layout, and what is known of it beyond its weights."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from sd35.errors import CheckpointError
from sd35.request import GUIDANCE_SCALE, SIZE_MULTIPLE_PX, STEPS

CARD_FILE = "sd35.json"
EMBEDDED = "sd35-mini"
_EMBEDDED_DIRECTORY = Path(__file__).parent / "embedded" / EMBEDDED
_PARTS = ("scheduler", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae")
_IDENTITY_SUFFIXES = {".json", ".txt", ".model", ".safetensors"}


_Side = Annotated[int, Field(ge=SIZE_MULTIPLE_PX, multiple_of=SIZE_MULTIPLE_PX)]


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself in `sd35.json`; the defaults are those of the SD3.5 models.

    `side_px` bounds each side of what it draws. `enlarges` is for stand-ins: a size above that range is drawn with
    `native_pixels` at the same aspect and enlarged. `max_sequence_length` is T5's, in tokens.
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
    licence: str = "see the checkpoint's model card"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found. `name` is what requests call it."""

    name: str
    directory: Path
    card: Card

    @cached_property
    def revision(self) -> str:
        """SHA-256 over the names and contents of its weights, configurations and tokenizers; graphs excepted."""
        total = hashlib.sha256()
        for path in sorted(self.directory.rglob("*")):
            if path.is_file() and path.suffix in _IDENTITY_SUFFIXES:
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                total.update(f"{path.relative_to(self.directory).as_posix()} {content}\n".encode())
        return total.hexdigest()

    def config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        """A part's configuration, as Diffusers wrote it. Raises CheckpointError where it cannot be read."""
        return _read_json(self.directory / part / file)


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


def open_checkpoint(name_or_directory: str) -> Checkpoint:
    """The embedded checkpoint by name, or a directory in the Diffusers layout.

    Raises CheckpointError where it is neither, or where a part is missing.
    """
    is_embedded = name_or_directory == EMBEDDED
    directory = _EMBEDDED_DIRECTORY if is_embedded else Path(name_or_directory).expanduser().resolve()
    if not directory.is_dir():
        raise CheckpointError(f"{name_or_directory!r} is neither {EMBEDDED!r} nor a directory")
    missing = [part for part in _PARTS if not (directory / part).is_dir()]
    if missing:
        raise CheckpointError(
            f"{directory} is no SD3.5 checkpoint in the Diffusers layout: {', '.join(missing)} missing"
        )
    return Checkpoint(directory.name, directory, _read_card(directory / CARD_FILE))


def _read_card(path: Path) -> Card:
    if not path.exists():
        return Card()
    try:
        return TypeAdapter(Card).validate_python(_read_json(path))
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, detail['loc']))}: got {detail['input']!r}; {detail['msg']}"
            for detail in error.errors()
        )
        raise CheckpointError(f"{path}: {wrong}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
