"""The ASGI application: its routes, middleware, error handlers and lifespan."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import ALL_METHODS
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Mount
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from sd35.access.authenticate import Authenticator
from sd35.access.keys import KeyStore, Quota
from sd35.access.rate_limits import RateLimiter
from sd35.api import metrics, service_pages, ui_mount
from sd35.api.auth import AuthMiddleware, require_admin
from sd35.api.browsers import AllowedHosts, AllowedOrigins, BrowserProtection
from sd35.api.cors import Cors
from sd35.api.dialects import DIALECTS, error_response
from sd35.api.dialects.automatic1111.png_info import MAX_PARSED_IMAGES, MAX_RECEIVED_BYTES, MAX_RECEIVED_BYTES_EACH
from sd35.api.errors import ApiError, FieldError, echo, report_error
from sd35.api.metrics import CLIENT_CLOSED_REQUEST, RequestMetrics
from sd35.api.openapi import describe_middleware
from sd35.api.query import refuse_unknown_parameters
from sd35.api.request_log import RequestLog, telemetry_config
from sd35.api.sessions import Sessions
from sd35.api.ui_mount import UiMount
from sd35.body_limits import BodyMemory
from sd35.errors import Sd35Error
from sd35.images.record import own_version
from sd35.service.lifecycle import ServiceLifecycle
from sd35.service.metrics_collector import MetricsCollector
from sd35.settings import Settings
from sd35.telemetry.telemetry import Telemetry
from sd35.ui import PATH as UI_PATH

_DESCRIPTION = """A server for Stable Diffusion 3.5.

    curl -X POST http://127.0.0.1:8000/v1/txt2img -H 'content-type: application/json' \\
      -d '{"prompt": "a cat on a blue background"}' -o out.png

If the service has API keys, requests need one: `Authorization: Bearer sd35_...` or `X-Api-Key: sd35_...`. Health
checks, this description, the user interface and signed links need none.

Clients written for the image APIs of OpenAI, AUTOMATIC1111 or Stability work with the base URL of this server.

An error names each invalid field, the value received and the allowed values. Its format is `application/problem+json`
(RFC 9457). The routes of the three APIs above use the error formats of those APIs instead."""


def create_app(
    lifecycle: ServiceLifecycle,
    settings: Settings,
    keys: KeyStore | None = None,
    telemetry: Telemetry | None = None,
    ui: UiMount | None = None,
) -> FastAPI:
    """Create the application. The service opens when the application starts, and closes when it stops.

    Args:
        lifecycle: Loads the service.
        settings: The settings of the service.
        keys: The API keys. If None, anyone who can reach the server may use it.
        telemetry: Metrics and traces. If None, the application has its own metrics, and no traces.
        ui: The user interface. If None, the application has none.
    """
    telemetry = telemetry or Telemetry()
    telemetry.metrics.registry.register(MetricsCollector(lifecycle))
    app = FastAPIOffline(
        title="sd35",
        version=own_version(),
        description=_DESCRIPTION,
        redoc_url=None,
        lifespan=_lifespan(lifecycle, telemetry),
        redirect_slashes=False,
        telemetry=telemetry_config(telemetry.tracing),
    )
    app.state.lifecycle, app.state.telemetry, app.state.sessions = lifecycle, telemetry, Sessions()
    app.state.settings, app.state.started_s, app.state.ui = settings, time.monotonic(), ui or UiMount()
    app.state.image_parsing = asyncio.Semaphore(MAX_PARSED_IMAGES)
    app.state.received_images = BodyMemory(MAX_RECEIVED_BYTES, MAX_RECEIVED_BYTES_EACH)
    _add_routes(app, settings)
    _add_middleware(app, settings, keys, telemetry)
    app.add_exception_handler(Sd35Error, _on_error)  # handlers return the response to a request that raised the error
    app.add_exception_handler(ApiError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    return app


def _lifespan(
    lifecycle: ServiceLifecycle, telemetry: Telemetry
) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    """Return the application's lifespan, which opens the service, and closes the service and the telemetry."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        """Start to open the service. When the application stops, close the service and the telemetry."""
        lifecycle.start()
        loop_watch = asyncio.create_task(telemetry.metrics.measure_loop_lag())
        yield  # until the application stops
        await lifecycle.close()
        loop_watch.cancel()
        await asyncio.to_thread(telemetry.tracing.close)

    return lifespan


def _add_routes(app: FastAPI, settings: Settings) -> None:
    """Add the routes of the dialects, the service pages, the user interface and the metrics, and describe them."""
    for dialect in DIALECTS:
        for router in dialect.routers:
            app.include_router(router, dependencies=[Depends(refuse_unknown_parameters)])
    app.include_router(service_pages.router)
    app.include_router(ui_mount.router)
    app.mount(UI_PATH, app.state.ui)
    admin = [Depends(require_admin)] if settings.metrics_need_admin else []
    app.include_router(metrics.router, dependencies=[*admin, Depends(refuse_unknown_parameters)])
    describe_middleware(app)


def _add_middleware(app: FastAPI, settings: Settings, keys: KeyStore | None, telemetry: Telemetry) -> None:
    """Add the middleware, the innermost first."""
    quota = Quota(settings.requests_per_minute, settings.concurrency, settings.pixels_per_hour)
    authenticator = Authenticator(keys, RateLimiter(quota))
    app.add_middleware(
        AuthMiddleware, authenticator=authenticator, on_error=_on_error, body_timeout_s=settings.body_timeout_s
    )
    app.add_middleware(
        BrowserProtection,
        hosts=AllowedHosts(settings.allowed_hosts, settings.public_url),
        origins=AllowedOrigins(settings.cors_origins, settings.public_url),
        has_keys=authenticator.has_keys,
        on_error=_on_error,
    )
    if settings.cors_origins:  # outside BrowserProtection, so that pages of these origins can read its errors
        app.add_middleware(Cors, origins=settings.cors_origins, private_network=settings.cors_private_network)
    app.add_middleware(RequestLog)
    app.add_middleware(RequestMetrics, metrics=telemetry.metrics)
    if settings.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(settings.trusted_proxies))


async def _on_error(request: Request, error: Exception) -> Response:
    """Answer a request that raised one of this project's errors."""
    assert isinstance(error, ApiError | Sd35Error)
    return error_response(request.scope, error if isinstance(error, ApiError) else report_error(request, error))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    """Answer a request with an invalid path, query parameter or header. `read_json` validates bodies."""
    assert isinstance(error, RequestValidationError)
    errors = [
        FieldError(field=str(detail["loc"][1]), got=echo(detail.get("input")), allowed=str(detail["msg"]))
        for detail in error.errors()
    ]
    # Not `FieldError.sentence`: FastAPI's `msg` is a sentence, such as "Input should be less than or equal to 200".
    detail = "; ".join(f"{error.field}: got {error.got!r}; {error.allowed}" for error in errors)
    return error_response(request.scope, ApiError(422, detail, errors))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Answer a request for a path without a route (404), or with a method that the path does not have (405).

    `OPTIONS` of a path with a route gets 204 and the allowed methods.
    """
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed_methods(request)) or headers["Allow"]
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    detail = f"{request.method} {request.scope['path']}: {error.detail.lower()}; /docs lists all routes"
    return error_response(request.scope, ApiError(error.status_code, detail, headers=headers))


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes that match the path. Starlette's `Allow` covers the first route only."""
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    scopes = [(method, {**request.scope, "method": method}) for method in ALL_METHODS]
    return [method for method, scope in scopes if any(route.matches(scope)[0] is Match.FULL for route in routes)]
