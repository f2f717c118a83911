"""Which pages of other origins may use the API from a browser: none, unless the settings name them."""

import structlog
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from sd35.api.problems import PROBLEM
from sd35.api.refusals import RequestRefused

_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
_SENT = (
    "Authorization",
    "Idempotency-Key",
    "If-None-Match",
    "Last-Event-ID",
    "Range",
    "Stability-Client-Id",
    "Stability-Client-User-Id",
    "Stability-Client-Version",
    "X-Api-Key",
    "X-Request-Id",
)
_READ = (
    "Content-Range",
    "ETag",
    "Finish-Reason",
    "Link",
    "Location",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Seed",
    "Server-Timing",
    "X-Request-Id",
    "X-Sd35-Cache",
    "X-Sd35-Content-Filtered",
    "X-Sd35-Cut-Off",
    "X-Sd35-Digest",
    "X-Sd35-Drawn-Size",
    "X-Sd35-Ignored",
    "X-Sd35-Model",
    "X-Sd35-Seed",
    "X-Sd35-Stored",
    "X-Sd35-Time-Ms",
)


class Cors(CORSMiddleware):
    """Starlette's, with this API's headers, and problems for what it refuses. There are no cookies to let in."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        super().__init__(app, allow_origins=origins, allow_methods=_METHODS, allow_headers=_SENT, expose_headers=_READ)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Whether a page may ask what it is about to ask."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        request_id = structlog.contextvars.get_contextvars()["request_id"]
        refused = RequestRefused(response.status_code, bytes(response.body).decode(), headers=headers)
        return PROBLEM.response(refused, request_id)
