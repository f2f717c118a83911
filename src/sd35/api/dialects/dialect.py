"""The description of a dialect."""

from typing import NamedTuple

from fastapi import APIRouter

from sd35.api.errors import ErrorFormat


class Dialect(NamedTuple):
    """An API that clients speak: its routes and error format. `prefixes` are the beginnings of its routes' paths."""

    name: str
    prefixes: tuple[str, ...]
    routers: tuple[APIRouter, ...]
    error_format: ErrorFormat
