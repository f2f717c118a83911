"""The argument NAME of commands: a checkpoint that the registry lists."""

from typing import Annotated, TypeAlias

import typer

from sd35.checkpoints.registry import EMBEDDED, RegisteredCheckpoint, find_registered, load_registry
from sd35.errors import InvalidSetting
from sd35.settings import Settings

IN_THE_PACKAGE = f"{EMBEDDED} is part of the sd35 package"
Name: TypeAlias = Annotated[str, typer.Argument(metavar="NAME", help="Name of a checkpoint that `sd35 models` lists.")]


def find_downloadable(name: str, settings: Settings) -> RegisteredCheckpoint:
    """Return a registered checkpoint. Raises InvalidSetting for unknown names and for the embedded model.

    The embedded model is part of the package, so it cannot be downloaded, verified or removed.
    """
    if name == EMBEDDED:
        allowed = ", ".join(load_registry(settings.registry))
        raise InvalidSetting(f"NAME: got {name!r}, which is part of the sd35 package; allowed: {allowed}")
    return find_registered(name, settings.registry)


def gigabytes(size_bytes: int) -> str:
    """Format a size, such as `16.24 GB`."""
    return f"{size_bytes / 1e9:.2f} GB"
