"""The route `/metrics`, and the middleware that counts requests."""

import time

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sd35.api.dialects import dialect_at
from sd35.telemetry.metrics import Metrics
from sd35.telemetry.telemetry import Telemetry
from sd35.threads import STORES

_METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
_NO_DIALECT = "none"  # routes outside the dialects, such as /healthz
_OTHER = "other"
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that disconnects before the response

router = APIRouter(tags=["service"])


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", summary="Get metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Return metrics in Prometheus' text format. Some have no value until the service is ready."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    telemetry: Telemetry = request.app.state.telemetry
    text = await STORES.run(generate_latest, telemetry.metrics.registry)  # in a thread: it reads the job store
    return Response(text, media_type=CONTENT_TYPE_LATEST)


class RequestMetrics:
    """ASGI middleware that counts requests and their durations.

    Requests are counted by the template of their route, such as `/v1/jobs/{job_id}`, because the number of different
    paths has no limit.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and count it by its route, method and status, with its duration."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = CLIENT_CLOSED_REQUEST

        async def send_and_note_status(message: Message) -> None:
            """Send a message, and keep the status of the response for the metrics."""
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began_s = time.monotonic()
        with self._metrics.request_in_progress():
            try:
                await self._app(scope, receive, send_and_note_status)
            finally:
                route = getattr(scope.get("route"), "path_format", _OTHER)  # no route: the path does not exist
                method = scope["method"] if scope["method"] in _METHODS else _OTHER
                dialect = dialect_at(route)
                name = dialect.name if dialect else _NO_DIALECT
                self._metrics.request_ended(name, route, method, status, time.monotonic() - began_s)
