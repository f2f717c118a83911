"""What a request passes before any route: who asks is told by its key, and its body has to arrive in time."""

import base64
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import structlog
from fastapi import Request
from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sd35.access.authenticate import Authenticator, Caller
from sd35.access.keys import Role
from sd35.api.refusals import ApiError
from sd35.body_limits import limit_body_time
from sd35.errors import NotAllowed, Sd35Error
from sd35.service.lifecycle import ServiceLifecycle
from sd35.service.service import Service
from sd35.storage.links import is_link
from sd35.ui import PATH as PAGE

_OPEN_PATHS = {"/", "/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/openapi.json", "/favicon.ico", PAGE}
_OPEN_FOLDERS = ("/static-offline-docs/", f"{PAGE}/")

Refuse = Callable[[Request, Exception], Awaitable[Response]]


def is_open(path: str) -> bool:
    """Whether a path needs no key: what probes ask, the API's description, and the page, whose calls bring one."""
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDERS)


def has_link(scope: Scope) -> bool:
    """Whether an image is asked for by a signed link; its route checks the signature."""
    return scope["method"] in {"GET", "HEAD"} and is_link(
        get_route_path(scope), scope["query_string"].decode("latin-1")
    )


class AuthMiddleware:
    """ASGI middleware: puts the Caller into the request's state, or answers by `refuse`, which knows the dialects."""

    def __init__(self, app: ASGIApp, ring: Authenticator, refuse: Refuse, body_timeout_s: float) -> None:
        self._app = app
        self._ring, self._refuse, self._body_timeout_s = ring, refuse, body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or is_open(get_route_path(scope)) or has_link(scope):
            await self._app(scope, receive, send)
            return
        address = (scope.get("client") or ("",))[0]
        try:
            caller = await self._ring.authenticate(_secret_in(Headers(scope=scope)), address)
        except Sd35Error as error:
            response = await self._refuse(Request(scope), error)
            await response(scope, receive, send)
            return
        scope["state"]["caller"] = caller
        if caller.owner:
            structlog.contextvars.bind_contextvars(key=caller.owner)

        async def send_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(caller.limit_headers())
            await send(message)

        refuse = partial(_refuse_late, self._body_timeout_s)
        await self._app(scope, limit_body_time(receive, self._body_timeout_s, refuse), send_limits)


def caller_of(request: Request) -> Caller:
    """Who asks, of a request to a route that is not open."""
    caller: Caller = request.state.caller
    return caller


def service_of(request: Request) -> Service:
    """What answers it, to the end, also where that begins to close meanwhile. Raises NotReady."""
    state: dict[str, Any] = request.scope["state"]
    if "service" not in state:
        lifecycle: ServiceLifecycle = request.app.state.lifecycle
        state["service"] = lifecycle.service
    service: Service = state["service"]
    return service


async def require_admin(request: Request) -> None:
    """A dependency of routes for administrators. Raises NotAllowed."""
    if caller_of(request).role is not Role.ADMIN:
        raise NotAllowed("this is for administrators; the API key that came is a user's")


def _secret_in(headers: Headers) -> str | None:
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return secret.strip()
    key = headers.get("x-api-key")  # goes first: a proxy's own Basic credentials may stand beside it
    return _password(secret) if key is None and scheme.lower() == "basic" else key


def _password(credentials: str) -> str | None:
    """Of HTTP Basic (RFC 7617): the user's name is free, for the key tells who it is."""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return None


def _refuse_late(body_timeout_s: float) -> Message:
    raise ApiError(408, f"the body did not arrive within {body_timeout_s:g} s", headers={"Connection": "close"})
