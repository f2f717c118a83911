"""A checkpoint on disk: a directory in the Diffusers layout, and what is known of it beyond its weights."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sd35.errors import CheckpointError

CARD_FILE = "sd35.json"
EMBEDDED = "sd35-mini"
_EMBEDDED_DIRECTORY = Path(__file__).parent / "embedded" / EMBEDDED
_PARTS = ("scheduler", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae")
_IDENTITY_SUFFIXES = {".json", ".txt", ".model", ".safetensors"}


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself in `sd35.json`; the defaults are those of the SD3.5 models.

    `side_px` bounds each side of what it draws. `enlarges` is for stand-ins: a size above that range is drawn with
    `native_pixels` at the same aspect and enlarged. `max_sequence_length` is T5's, in tokens.
    """

    width: int = 1024
    height: int = 1024
    steps: int = 30
    guidance_scale: float = 3.5
    max_sequence_length: int = 256
    side_px: tuple[int, int] = (256, 2048)
    native_pixels: int = 1024 * 1024
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
    fields = _read_json(path)
    try:
        return Card(**{**fields, "side_px": tuple(fields.get("side_px", Card.side_px))})
    except TypeError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
