"""A log line and an id for each request, and a response with status 500 for each uncaught exception."""

import re
import secrets
import time
from collections.abc import MutableMapping
from typing import Any

import structlog
from fastapi.telemetry import TelemetryConfig
from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sd35.api.dialects import error_response
from sd35.api.errors import ApiError
from sd35.telemetry.tracing import Tracing, bind_trace, hide_query
from sd35.ui import PATH as UI_PATH

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNLOGGED_PATHS = {"/healthz", "/readyz", "/metrics"}  # probes come every second
_UNLOGGED_FOLDER = f"{UI_PATH}/"  # files and streams; API calls of the user interface are logged


def is_unlogged(scope: MutableMapping[str, Any]) -> bool:
    """Return whether a request is neither logged nor traced."""
    return scope["path"] in _UNLOGGED_PATHS or get_route_path(scope).startswith(_UNLOGGED_FOLDER)


def telemetry_config(tracing: Tracing) -> TelemetryConfig:
    """Configure FastAPI's own telemetry: spans of requests if traces are exported, and nothing else."""
    return {
        "tracer_provider": tracing.provider,
        "tracing": tracing.provider is not None,
        "operation_spans": False,
        "metrics": False,
        "logs": False,
        "auto_configure": False,
        "exclude": is_unlogged,
    }


class RequestLog:
    """ASGI middleware that gives each request an id, logs its end, and answers uncaught exceptions with status 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._log = structlog.get_logger("sd35.access")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request: give it an id, log its end, and answer an uncaught exception with status 500."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _assign_request_id(scope)
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            """Send a message. Add the id to the head of the response, and keep its status for the log."""
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        is_logged = not is_unlogged(scope)  # before the app runs, because mounted apps change the path in the scope
        started_s = time.monotonic()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            self._log.exception("unexpected error")
            if status is not None:  # the response has begun
                raise
            detail = f"unexpected error; find it in the server's log by request_id {request_id}"
            await error_response(scope, ApiError(500, detail))(scope, receive, send_with_id)
        finally:
            if is_logged:
                self._log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    took_ms=round(1000 * (time.monotonic() - started_s), 1),
                    client=(scope.get("client") or ("",))[0],
                )


def _assign_request_id(scope: Scope) -> str:
    """Give a request its id, and return the id. Log lines of the request will contain its id and its trace.

    The id is the request's `X-Request-Id` if that header is valid, else random.
    """
    headers = Headers(scope=scope)
    requested = headers.get("x-request-id", "")
    request_id = requested if _REQUEST_ID.fullmatch(requested) else secrets.token_hex(8)
    scope.setdefault("state", {})["request_id"] = request_id
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=request_id)
    bind_trace(headers.get("traceparent"))
    hide_query()  # in the trace
    return request_id
