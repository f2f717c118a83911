"""Logs: structured, one line per request, each with its request's id; uvicorn's go the same way."""

import logging
import re
import secrets
import sys
import time
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog
from fastapi.telemetry import TelemetryConfig
from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sd35.api.console import escape_controls
from sd35.api.dialects import refusal
from sd35.api.refusals import ApiError
from sd35.telemetry.tracing import Tracing, bind_trace, hide_query
from sd35.ui import PATH as PAGE

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_QUIET_PATHS = {"/healthz", "/readyz", "/metrics"}  # probes come every second
_QUIET_FOLDER = f"{PAGE}/"  # files and streams; what the page asks the service for is a request like others


def is_probe(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request is one that is neither logged nor traced."""
    return scope["path"] in _QUIET_PATHS or get_route_path(scope).startswith(_QUIET_FOLDER)


def telemetry_of(tracing: Tracing) -> TelemetryConfig:
    """FastAPI's own telemetry: the requests' spans, where any are exported, and nothing else of it."""
    return {
        "tracer_provider": tracing.provider,
        "tracing": tracing.provider is not None,
        "operation_spans": False,
        "metrics": False,
        "logs": False,
        "auto_configure": False,
        "exclude": is_probe,
    }


def configure_logs(log_format: Literal["auto", "console", "json"]) -> None:
    """Send structlog's and the standard library's logs to stderr, one format for both.

    structlog's own do not go by way of the standard library, which takes as long again for a line.
    """
    is_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper("iso", utc=True),
    ]
    rendering: list[structlog.typing.Processor] = (
        [
            escape_controls,
            _never_failing(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)),
        ]
        if is_console
        else [structlog.processors.format_exc_info, _never_failing(structlog.processors.JSONRenderer())]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # what the page asks for is logged where it is answered
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _never_failing(renderer: structlog.typing.Processor) -> structlog.typing.Processor:
    """Wrap a renderer so that a value it cannot render costs the line's values, not the request that logs it."""

    def render(logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:  # noqa: ANN401  structlog's own types
        plain = {"event": str(event.get("event")), "level": method, "timestamp": event.get("timestamp")}
        try:
            return renderer(logger, method, event)
        except Exception as error:  # noqa: BLE001  whatever a value's own methods raise
            return renderer(logger, method, {**plain, "unrendered": type(error).__name__})

    return render


class RequestLog:
    """ASGI middleware: names each request, logs its end, and turns what nobody caught into a 500 that names it too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._log = structlog.get_logger("sd35.access")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if _SANE_ID.fullmatch(asked) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        bind_trace(headers.get("traceparent"))
        hide_query()
        status: int | None = None

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        is_quiet = is_probe(scope)  # a mount changes what the path is told by
        started_s = time.monotonic()
        try:
            await self._app(scope, receive, send_named)
        except Exception:
            self._log.exception("unexpected")
            if status is not None:  # too late for another answer
                raise
            detail = f"an error that was not foreseen; the server's log has it under request_id {request_id}"
            await refusal(scope, ApiError(500, detail))(scope, receive, send_named)
        finally:
            if not is_quiet:
                self._log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    took_ms=round(1000 * (time.monotonic() - started_s), 1),
                    client=(scope.get("client") or ("",))[0],
                )
