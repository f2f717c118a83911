"""Which pages of other origins may use the API from a browser: none, unless the settings name them."""

import structlog
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from sd35.api.problems import PROBLEM
from sd35.api.refusals import ApiError

_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
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
    "X-Sd35-Truncated",
    "X-Sd35-Digest",
    "X-Sd35-Drawn-Size",
    "X-Sd35-Ignored",
    "X-Sd35-Model",
    "X-Sd35-Seed",
    "X-Sd35-Stored",
    "X-Sd35-Time-Ms",
)


class Cors(CORSMiddleware):
    """Starlette's CORS middleware, which answers refused preflights in this API's error format.

    Pages of the allowed origins may send any header: client libraries add their own. Cookies are not used.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...], *, private_network: bool) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=["*"],
            expose_headers=_READ,
            allow_private_network=private_network,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Tell a browser whether a page may send the request that it is about to send."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        request_id = structlog.contextvars.get_contextvars()["request_id"]
        wrong = bytes(response.body).decode()
        detail = f"{wrong}; the settings cors_origins and cors_private_network say what is allowed"
        refused = ApiError(response.status_code, detail, headers=headers)
        return PROBLEM.response(refused, request_id)
