"""The checkpoints that can be opened by name: those in `registry.toml`, and those in the user's file."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from sd35.checkpoints.card import Card
from sd35.checkpoints.network_config import explain
from sd35.errors import InvalidSetting
from sd35.parsing import read_toml

EMBEDDED = "sd35-mini"  # the model that is part of the package
_BUILT_IN = Path(__file__).parent / "registry.toml"


@dataclass(frozen=True)
class RegisteredCheckpoint:
    """A checkpoint in a repository of the Hugging Face hub, at one revision.

    Attributes:
        repository: OWNER/NAME on the hub.
        revision: The full hash of a commit. A branch or a tag could move to other files.
        card: The defaults and limits of its images. They apply if the repository has no file `sd35.json`.
        files: The sizes of the weight files in bytes, by path, for estimates without the hub. A download uses the hub's
            own list.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    card: Card = field(default_factory=Card)
    files: dict[str, Annotated[int, Field(ge=0)]] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int | None:
        """The total size of the weights in bytes, or None if the entry does not list them."""
        return sum(self.files.values()) or None


def load_registry(registry_file: Path | None) -> dict[str, RegisteredCheckpoint]:
    """Return the registered checkpoints by name: the built-in ones, then those in the user's registry file.

    Raises InvalidSetting if the user's file is not valid or redefines a built-in name.
    """
    built_in = _built_in()
    if registry_file is None:
        return built_in
    added = _read(registry_file.expanduser())
    if taken := sorted(added.keys() & {*built_in, EMBEDDED}):
        raise InvalidSetting(f"registry: {registry_file}: {', '.join(taken)} cannot be redefined; use other names")
    return {**built_in, **added}


def find_registered(name: str, registry_file: Path | None) -> RegisteredCheckpoint:
    """Look up a registered checkpoint. Raises InvalidSetting if the name is not registered."""
    registry = load_registry(registry_file)
    if name not in registry:
        raise InvalidSetting(f"NAME: got {name!r}; allowed: {', '.join(registry)}. --registry FILE adds names")
    return registry[name]


@cache
def _built_in() -> dict[str, RegisteredCheckpoint]:
    return _read(_BUILT_IN)


def _read(path: Path) -> dict[str, RegisteredCheckpoint]:
    """Parse a registry file: a TOML table for each checkpoint. Raises InvalidSetting if it is not valid."""
    try:
        content = read_toml(path)
    except OSError as error:
        raise InvalidSetting(f"registry: {path} cannot be read: {error.strerror or error}; check the path") from error
    except ValueError as error:
        raise InvalidSetting(f"registry: {path} cannot be read as TOML: {error}; correct the file") from error
    # The table's name becomes a field. Values that are no tables stay as they are, for the validation to report.
    named = {name: {**entry, "name": name} if isinstance(entry, dict) else entry for name, entry in content.items()}
    try:
        return TypeAdapter(dict[str, RegisteredCheckpoint]).validate_python(named)
    except ValidationError as error:
        raise InvalidSetting(f"registry: {path}: {explain(error)}") from error
