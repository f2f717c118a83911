"""The application: routes, how errors are answered, and a lifespan that opens and closes the studio."""

import contextlib
import time
from collections.abc import AsyncIterator

import structlog
from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from sd35.api import metrics, service_pages, txt2img
from sd35.api.observe import RequestLog
from sd35.api.problems import RequestRefused, problem_of, problem_response
from sd35.errors import PictureFailed, Sd35Error
from sd35.service.opening import Opening
from sd35.service.record import own_version

_DESCRIPTION = """Stable Diffusion 3.5 as a service.

    curl -X POST http://127.0.0.1:8000/v1/txt2img -H 'content-type: application/json' \\
      -d '{"prompt": "a cat on a blue background"}' -o out.png

Errors are `application/problem+json` (RFC 9457) and name the field, what came and what is allowed."""


def create_app(opening: Opening) -> FastAPI:
    """The app around a studio that its lifespan opens and closes."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        opening.start()
        yield
        await opening.close()

    app = FastAPIOffline(
        title="sd35",
        version=own_version(),
        description=_DESCRIPTION,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.opening = opening
    app.state.started_s = time.monotonic()
    app.include_router(txt2img.router)
    app.include_router(service_pages.router)
    app.include_router(metrics.router)
    app.add_middleware(RequestLog)
    app.add_exception_handler(Sd35Error, _on_own_error)
    app.add_exception_handler(RequestRefused, _on_refused)
    app.add_exception_handler(HTTPException, _on_http_error)
    return app


async def _on_own_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, Sd35Error)
    if isinstance(error, PictureFailed):
        structlog.get_logger().error("picture failed", exc_info=error)
    return problem_of(error, request.state.request_id)


async def _on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)
    return problem_response(error.status, error.detail, request.state.request_id, error.errors, error.headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {request.url.path}: {error.detail.lower()}; what there is: /docs"
    return problem_response(error.status_code, detail, request.state.request_id, headers=error.headers)
