"""Registered checkpoints on the command line."""

from typing import Annotated, TypeAlias

import typer

from sd35.checkpoints.registry import EMBEDDED, RegisteredCheckpoint, find_registered, load_registry
from sd35.errors import InvalidSetting
from sd35.settings import Settings

IN_THE_PACKAGE = f"{EMBEDDED} is a part of sd35 itself"
Name: TypeAlias = Annotated[str, typer.Argument(help="A name that `sd35 models` lists.")]


def find_downloadable(name: str, settings: Settings) -> RegisteredCheckpoint:
    """Return a registered checkpoint. Raises InvalidSetting for the embedded one, and for unknown names."""
    if name == EMBEDDED:
        raise InvalidSetting(f"NAME: {IN_THE_PACKAGE}; allowed: {', '.join(load_registry(settings.registry))}")
    return find_registered(name, settings.registry)


def gigabytes(size_bytes: int) -> str:
    """Return a size as text, such as `16.24 GB`."""
    return f"{size_bytes / 1e9:.2f} GB"
