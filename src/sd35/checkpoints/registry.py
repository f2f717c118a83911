"""The checkpoints that are known by name: `registry.toml`, and the user's own file of the same form."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from sd35.checkpoints.checkpoint import EMBEDDED, Card
from sd35.checkpoints.network_config import explain
from sd35.errors import InvalidSetting
from sd35.parsing import read_toml

_BUILT_IN = Path(__file__).parent / "registry.toml"


@dataclass(frozen=True)
class RegisteredCheckpoint:
    """A checkpoint in a repository of the Hugging Face hub, at one revision.

    `revision` is a commit, since a branch or a tag may come to mean other files. `files` are its weights and what they
    take, in bytes, to be told before the hub was asked; what is fetched follows from the hub's own list.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    card: Card = field(default_factory=Card)
    files: dict[str, Annotated[int, Field(ge=0)]] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int | None:
        """What its weights take, or None where its entry does not say."""
        return sum(self.files.values()) or None


def load_registry(own: Path | None) -> dict[str, RegisteredCheckpoint]:
    """The registered checkpoints by name: the built-in ones, then those of the user's file.

    Raises InvalidSetting, naming the file and the field, also where the file names a built-in one.
    """
    built_in = _built_in()
    if own is None:
        return built_in
    added = _read(own.expanduser())
    if taken := sorted(added.keys() & {*built_in, EMBEDDED}):
        raise InvalidSetting(f"registry: {own}: {', '.join(taken)} cannot be given another meaning; rename yours")
    return {**built_in, **added}


def find_registered(name: str, own: Path | None) -> RegisteredCheckpoint:
    """The registered checkpoint of a name. Raises InvalidSetting where there is none."""
    registry = load_registry(own)
    if name not in registry:
        raise InvalidSetting(f"NAME: got {name!r}; allowed: {', '.join(registry)}, and those of a file (SD35_REGISTRY)")
    return registry[name]


@cache
def _built_in() -> dict[str, RegisteredCheckpoint]:
    return _read(_BUILT_IN)


def _read(path: Path) -> dict[str, RegisteredCheckpoint]:
    try:
        content = read_toml(path)
    except (OSError, ValueError) as error:
        raise InvalidSetting(f"registry: {path} cannot be read as TOML: {error}") from error
    named = {name: {**entry, "name": name} if isinstance(entry, dict) else entry for name, entry in content.items()}
    try:
        return TypeAdapter(dict[str, RegisteredCheckpoint]).validate_python(named)
    except ValidationError as error:
        raise InvalidSetting(f"registry: {path}: {explain(error)}") from error
