"""The application: routes, how errors are answered, and a lifespan that opens and closes the model pool."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import ALL_METHODS
from starlette.routing import Match, Mount
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from sd35.access.authenticate import Authenticator
from sd35.access.keys import KeyStore, Quota
from sd35.access.rate_limits import RateLimiter
from sd35.api import metrics, service_pages, ui_mount
from sd35.api.auth import AuthMiddleware, require_admin
from sd35.api.browsers import BrowserProtection
from sd35.api.cors import Cors
from sd35.api.dialects import DIALECTS, refusal
from sd35.api.dialects.automatic1111 import MOST_DESCRIBED, MOST_HELD_BYTES, MOST_HELD_BYTES_EACH
from sd35.api.hosts import AllowedHosts
from sd35.api.metrics import Metered
from sd35.api.openapi import describe
from sd35.api.origins import AllowedOrigins
from sd35.api.query import refuse_unknown
from sd35.api.refusals import ApiError, FieldError, noted, shown
from sd35.api.request_log import RequestLog, telemetry_of
from sd35.api.sessions import Sessions
from sd35.api.ui_mount import Front
from sd35.body_limits import BodyMemory
from sd35.errors import Sd35Error
from sd35.images.record import own_version
from sd35.service.lifecycle import ServiceLifecycle
from sd35.service.metrics_collector import MetricsCollector
from sd35.settings import Settings
from sd35.telemetry.telemetry import Telemetry
from sd35.ui import PATH

_DESCRIPTION = """Stable Diffusion 3.5 as a service.

    curl -X POST http://127.0.0.1:8000/v1/txt2img -H 'content-type: application/json' \\
      -d '{"prompt": "a cat on a blue background"}' -o out.png

Where there are API keys, each request needs one: `Authorization: Bearer sd35_...` or `X-Api-Key: sd35_...`.

Clients of OpenAI's, AUTOMATIC1111's and Stability's image APIs work with this base URL in place of theirs.

Errors are `application/problem+json` (RFC 9457) and name the field, what came and what is allowed."""


def create_app(
    lifecycle: ServiceLifecycle,
    settings: Settings,
    keys: KeyStore | None = None,
    telemetry: Telemetry | None = None,
    page: Front | None = None,
) -> FastAPI:
    """The app around a model pool that its lifespan opens and closes.

    Without `keys`, it is open to whoever reaches it. Without `page`, it has none for people.
    """
    telemetry = telemetry or Telemetry()
    telemetry.metrics.registry.register(MetricsCollector(lifecycle))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        lifecycle.start()
        watching = asyncio.create_task(telemetry.metrics.measure_loop_lag())
        yield
        await lifecycle.close()
        watching.cancel()
        await asyncio.to_thread(telemetry.tracing.close)

    app = FastAPIOffline(
        title="sd35",
        version=own_version(),
        description=_DESCRIPTION,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry=telemetry_of(telemetry.tracing),
    )
    app.state.lifecycle, app.state.telemetry, app.state.sessions = lifecycle, telemetry, Sessions()
    app.state.settings, app.state.started_s, app.state.ui = settings, time.monotonic(), page or Front()
    app.state.describing = asyncio.Semaphore(MOST_DESCRIBED)
    app.state.held_images = BodyMemory(MOST_HELD_BYTES, MOST_HELD_BYTES_EACH)
    for dialect in DIALECTS:
        for router in dialect.routers:
            app.include_router(router, dependencies=[Depends(refuse_unknown)])
    app.include_router(service_pages.router)
    app.include_router(ui_mount.router)
    app.mount(PATH, app.state.ui)
    allowed = [Depends(require_admin)] if settings.metrics_need_admin else []
    app.include_router(metrics.router, dependencies=[*allowed, Depends(refuse_unknown)])
    describe(app)
    _surround(app, settings, keys, telemetry)
    app.add_exception_handler(Sd35Error, _on_own_error)
    app.add_exception_handler(ApiError, _on_refused)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    return app


def _surround(app: FastAPI, settings: Settings, keys: KeyStore | None, telemetry: Telemetry) -> None:
    """The middleware, from the innermost out."""
    quota = Quota(settings.requests_per_minute, settings.concurrency, settings.pixels_per_hour)
    ring = Authenticator(keys, RateLimiter(quota))
    app.add_middleware(AuthMiddleware, ring=ring, refuse=_on_own_error, body_timeout_s=settings.body_timeout_s)
    app.add_middleware(
        BrowserProtection,
        hosts=AllowedHosts(settings.allowed_hosts, settings.public_url),
        origins=AllowedOrigins(settings.cors_origins, settings.public_url),
        has_keys=ring.has_keys,
        refuse=_on_own_error,
    )
    if settings.cors_origins:  # outside, so that pages of these origins can read what the protection refuses
        app.add_middleware(Cors, origins=settings.cors_origins, private_network=settings.cors_private_network)
    app.add_middleware(RequestLog)
    app.add_middleware(Metered, metrics=telemetry.metrics)
    if settings.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(settings.trusted_proxies))


async def _on_own_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, Sd35Error)
    return refusal(request.scope, noted(request, error))


async def _on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return refusal(request.scope, error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    """A parameter of the address or the headers, which FastAPI reads; bodies are read by `read_json`."""
    assert isinstance(error, RequestValidationError)
    wrong = [
        FieldError(field=str(detail["loc"][1]), got=shown(detail.get("input")), allowed=str(detail["msg"]))
        for detail in error.errors()
    ]
    detail = "; ".join(f"{each.field}: got {each.got!r}; {each.allowed}" for each in wrong)
    return refusal(request.scope, ApiError(422, detail, wrong))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request)) or headers["Allow"]
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    detail = f"{request.method} {request.scope['path']}: {error.detail.lower()}; what there is: /docs"
    return refusal(request.scope, ApiError(error.status_code, detail, headers=headers))


def _methods(request: Request) -> list[str]:
    """What a path can be asked for, by any route: Starlette names the methods of the first one alone."""
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    asked = [(method, {**request.scope, "method": method}) for method in ALL_METHODS]
    return [method for method, scope in asked if any(route.matches(scope)[0] is Match.FULL for route in routes)]
