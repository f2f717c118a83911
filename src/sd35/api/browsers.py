"""Protection of users' browsers: no other web site may use the server through them, or embed its pages."""

from collections.abc import Awaitable, Callable

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sd35.api.auth import ErrorHandler, is_open
from sd35.api.hosts import AllowedHosts
from sd35.api.origins import AllowedOrigins
from sd35.errors import Sd35Error

_PROBES = {"/healthz", "/readyz"}  # load balancers use any host name, and the responses hold nothing
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}  # no route of these methods has an effect


class BrowserProtection:
    """ASGI middleware that refuses DNS rebinding and cross-site requests, and forbids other sites to frame pages.

    A server with API keys needs neither check, because other sites do not know a key. It still refuses cross-site
    requests that need no key, and those whose key the browser may have added by itself, as it does for HTTP Basic.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: AllowedHosts,
        origins: AllowedOrigins,
        has_keys: Callable[[], Awaitable[bool]],
        on_error: ErrorHandler,
    ) -> None:
        self._app = app
        self._hosts, self._origins, self._has_keys, self._on_error = hosts, origins, has_keys, on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                _protect(MutableHeaders(scope=message))
            await send(message)

        try:
            await self._check(scope)
        except Sd35Error as error:
            response = await self._on_error(Request(scope), error)
            await response(scope, receive, send_protected)
            return
        await self._app(scope, receive, send_protected)

    async def _check(self, scope: Scope) -> None:
        """Raise HostNotAllowed or OriginNotAllowed; StoreUnavailable if it is unknown whether there are keys."""
        headers, path = Headers(scope=scope), get_route_path(scope)
        is_safe = scope["method"] in _SAFE_METHODS
        origin_error = None if is_safe else self._origins.error(headers, scope.get("scheme", "http"))
        if origin_error and (is_open(path) or _has_basic_credentials(headers)):
            raise origin_error
        error = (None if path in _PROBES else self._hosts.error(headers)) or origin_error
        if error and not await self._has_keys():  # last, because most requests do not need this lookup
            raise error


def _has_basic_credentials(headers: Headers) -> bool:
    return headers.get("authorization", "").lower().startswith("basic ")


def _protect(headers: MutableHeaders) -> None:
    headers["X-Content-Type-Options"] = "nosniff"
    if headers.get("content-type", "").startswith("text/html"):
        headers.setdefault("Content-Security-Policy", "frame-ancestors 'self'")  # the user interface has its own
        headers["X-Frame-Options"] = "SAMEORIGIN"
