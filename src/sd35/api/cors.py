"""CORS (cross-origin resource sharing): pages of other origins may use the API only if the settings name them."""

import structlog
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from sd35.api.dialects.automatic1111.txt2img import IGNORED
from sd35.api.errors import PROBLEM, ApiError
from sd35.api.generate import IMAGE_HEADERS

_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
_LIMIT_HEADERS = ("RateLimit", "RateLimit-Policy", "Retry-After")
_RESOURCE_HEADERS = ("Content-Range", "ETag", "Link", "Location")
_EXPOSED_HEADERS = (*IMAGE_HEADERS, *_LIMIT_HEADERS, *_RESOURCE_HEADERS, IGNORED, "Finish-Reason", "Seed")


class Cors(CORSMiddleware):
    """Starlette's CORS middleware, with this API's error format for refused preflight requests.

    Pages of the allowed origins may send any header, because client libraries add headers of their own. Cookies are not
    allowed.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...], *, private_network: bool) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=["*"],
            expose_headers=_EXPOSED_HEADERS,
            allow_private_network=private_network,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight request: a browser asks whether a page of another origin may send a request.

        A refusal is a problem document.
        """
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        # The new body gets its own `Content-Length` and `Content-Type`.
        headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        request_id = structlog.contextvars.get_contextvars()["request_id"]
        allowed = "from origins in the setting cors_origins; to a private address only with cors_private_network"
        detail = f"{bytes(response.body).decode()}; allowed: {', '.join(_METHODS)} {allowed}"
        return PROBLEM.response(ApiError(response.status_code, detail, headers=headers), request_id)
