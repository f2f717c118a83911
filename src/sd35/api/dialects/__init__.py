"""The list of dialects, see `Dialect`. To add a dialect, add it to `DIALECTS`."""

from starlette._utils import get_route_path
from starlette.responses import Response
from starlette.types import Scope

from sd35.api import images, jobs, txt2img
from sd35.api.dialects.automatic1111 import AUTOMATIC1111
from sd35.api.dialects.dialect import Dialect
from sd35.api.dialects.openai import OPENAI
from sd35.api.dialects.stability import STABILITY
from sd35.api.errors import PROBLEM, ApiError, ErrorFormat

_NATIVE = Dialect("sd35", ("/v1/",), (txt2img.router, jobs.router, images.router), PROBLEM)

DIALECTS = (OPENAI, AUTOMATIC1111, STABILITY, _NATIVE)  # longer prefixes come first, because the first match counts


def dialect_at(path: str) -> Dialect | None:
    """Return the dialect of a path or of a route's template, or None for routes outside the dialects."""
    return next((dialect for dialect in DIALECTS if path.startswith(dialect.prefixes)), None)


def error_format_at(path: str) -> ErrorFormat:
    """Return the error format of a path: the format of its dialect, or problem documents if it has no dialect."""
    dialect = dialect_at(path)
    return dialect.error_format if dialect else PROBLEM


def error_response(scope: Scope, error: ApiError) -> Response:
    """Build the response of an error in the format of the request's path."""
    return error_format_at(get_route_path(scope)).response(error, scope["state"]["request_id"])
