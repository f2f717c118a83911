"""Types for the fields of `Settings`: metadata of flags, and lists separated by commas."""

from dataclasses import dataclass
from typing import Annotated, TypeAlias, TypeVar

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Flag:
    """Metadata of a setting for the command line and the settings reference.

    Attributes:
        metavar: The value's placeholder in the help, such as "SECONDS".
        default: The default as text, if it depends on the machine or on another setting.
        name: The flag, if it is not the setting's name with dashes.
        is_repeated: Whether the flag is repeated for each item of a list. Otherwise, commas separate the items.
    """

    metavar: str | None = None
    default: str | None = None
    name: str | None = None
    is_repeated: bool = False


def _split_at_commas(value: object) -> object:
    """Return the items of a text as a list. Values other than text are returned unchanged."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


CommaSeparated: TypeAlias = Annotated[tuple[_Item, ...], NoDecode, BeforeValidator(_split_at_commas)]
"""A setting with several items. In an environment variable or a flag, commas separate them."""
