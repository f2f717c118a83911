"""The description of a dialect."""

from typing import NamedTuple

from fastapi import APIRouter

from sd35.api.errors import ErrorFormat


class Dialect(NamedTuple):
    """An API for image generation: this project's own, or an API in the form of another service, such as OpenAI's.

    Attributes:
        name: The name in metrics.
        prefixes: The beginnings of the paths of its routes.
        routers: The routes.
        error_format: The format of error responses.
    """

    name: str
    prefixes: tuple[str, ...]
    routers: tuple[APIRouter, ...]
    error_format: ErrorFormat
