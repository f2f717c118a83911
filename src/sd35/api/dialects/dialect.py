"""What a dialect is."""

from typing import NamedTuple

from fastapi import APIRouter

from sd35.api.refusals import ErrorFormat


class Dialect(NamedTuple):
    """A form of requests, answers and refusals that some clients speak. `starts`: how the paths of its routes begin."""

    name: str
    starts: tuple[str, ...]
    routers: tuple[APIRouter, ...]
    wording: ErrorFormat
