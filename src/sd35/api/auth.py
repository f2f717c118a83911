"""Authentication of requests, and functions that give routes the caller and the service."""

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
from sd35.api.errors import ApiError
from sd35.body_limits import limit_body_time
from sd35.errors import NotAllowed, Sd35Error
from sd35.service.lifecycle import ServiceLifecycle
from sd35.service.service import Service
from sd35.storage.links import is_link
from sd35.ui import PATH as UI_PATH

_OPEN_PATHS = {"/", "/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/openapi.json", "/favicon.ico", UI_PATH}
_OPEN_FOLDERS = ("/static-offline-docs/", f"{UI_PATH}/")

ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]


def is_open(path: str) -> bool:
    """Return whether a path needs no API key: a probe, the API's description, or the user interface."""
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDERS)


def has_link(scope: Scope) -> bool:
    """Return whether a request has the form of a signed link. The route checks the signature."""
    return scope["method"] in {"GET", "HEAD"} and is_link(
        get_route_path(scope), scope["query_string"].decode("latin-1")
    )


class AuthMiddleware:
    """ASGI middleware that authenticates callers and limits the time in which a request's body must arrive.

    It puts the `Caller` into the request's state, for `caller_of`, and adds headers about rate limits to the response.
    Requests of open paths and signed links pass unchanged. `on_error` turns an error into a response in the format of
    the request's dialect.
    """

    def __init__(
        self, app: ASGIApp, authenticator: Authenticator, on_error: ErrorHandler, body_timeout_s: float
    ) -> None:
        self._app = app
        self._authenticator, self._on_error, self._body_timeout_s = authenticator, on_error, body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authenticate one request and pass it on, with a time limit for its body, or answer with an error."""
        if scope["type"] != "http" or is_open(get_route_path(scope)) or has_link(scope):
            await self._app(scope, receive, send)
            return
        address = (scope.get("client") or ("",))[0]
        try:
            caller = await self._authenticator.authenticate(_secret_in(Headers(scope=scope)), address)
        except Sd35Error as error:
            response = await self._on_error(Request(scope), error)
            await response(scope, receive, send)
            return
        scope["state"]["caller"] = caller
        if caller.owner:
            structlog.contextvars.bind_contextvars(key=caller.owner)

        async def send_with_limit_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(caller.limit_headers())
            await send(message)

        on_timeout = partial(_raise_timeout, self._body_timeout_s)
        await self._app(scope, limit_body_time(receive, self._body_timeout_s, on_timeout), send_with_limit_headers)


def caller_of(request: Request) -> Caller:
    """Return the caller of a request. The route's path must need a key, see `is_open`."""
    caller: Caller = request.state.caller
    return caller


def service_of(request: Request) -> Service:
    """Return the service. Raises NotReady while it is loading or closing, and after its engine has failed.

    All calls during one request return the same service, even if it starts to close after the first call.
    """
    state: dict[str, Any] = request.scope["state"]
    if "service" not in state:
        lifecycle: ServiceLifecycle = request.app.state.lifecycle
        state["service"] = lifecycle.service
    service: Service = state["service"]
    return service


async def require_admin(request: Request) -> None:
    """Raise NotAllowed if the caller's API key is a user's. Use as a dependency of routes for administrators."""
    if caller_of(request).role is not Role.ADMIN:
        raise NotAllowed(
            "this route needs an administrator's API key, and this key is a user's; the operator can create an"
            " administrator's key with: sd35 keys add NAME --admin"
        )


def _secret_in(headers: Headers) -> str | None:
    """Return the API key that a request contains, or None."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return secret.strip()
    key = headers.get("x-api-key")
    if key is None and scheme.lower() == "basic":  # `X-Api-Key` comes first: Basic credentials may be meant for a proxy
        return _password(secret)
    return key


def _password(credentials: str) -> str | None:
    """Return the password of HTTP Basic credentials (RFC 7617). The user name is ignored."""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return None


def _raise_timeout(body_timeout_s: float) -> Message:
    """Refuse a body that is late: raises ApiError with status 408. Never returns a message."""
    detail = (
        f"the body did not arrive within {body_timeout_s:g} s; send the request again over a faster connection,"
        " or raise the setting body_timeout_s"
    )
    raise ApiError(408, detail, headers={"Connection": "close"})
