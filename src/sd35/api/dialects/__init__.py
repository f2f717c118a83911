"""The dialects that are spoken: what a fourth touches is this list."""

from starlette._utils import get_route_path
from starlette.responses import Response
from starlette.types import Scope

from sd35.api import images, jobs, txt2img
from sd35.api.dialects.automatic1111 import AUTOMATIC1111
from sd35.api.dialects.dialect import Dialect
from sd35.api.dialects.openai import OPENAI
from sd35.api.dialects.stability import STABILITY
from sd35.api.problems import PROBLEM
from sd35.api.refusals import ApiError, ErrorFormat

_OWN = Dialect("sd35", ("/v1/",), (txt2img.router, jobs.router, images.router), PROBLEM)

DIALECTS = (
    OPENAI,
    AUTOMATIC1111,
    STABILITY,
    _OWN,
)  # of two whose paths begin alike, the one of the longer beginning first


def dialect_at(path: str) -> Dialect | None:
    """The dialect of a path, or of a route as it is written in the code; None for the service's own pages."""
    return next((dialect for dialect in DIALECTS if path.startswith(dialect.starts)), None)


def wording_at(path: str) -> ErrorFormat:
    """How a refusal is worded at a path: where no dialect is spoken, as a problem."""
    dialect = dialect_at(path)
    return dialect.wording if dialect else PROBLEM


def refusal(scope: Scope, refused: ApiError) -> Response:
    """The response to a request that is refused."""
    return wording_at(get_route_path(scope)).response(refused, scope["state"]["request_id"])
