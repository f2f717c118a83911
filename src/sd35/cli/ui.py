"""`sd35 ui`: the page for people, as a process of its own that speaks to a service somewhere else."""

import contextlib
import socket
from collections.abc import AsyncIterator
from types import FrameType

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse

from sd35.api import ui_mount
from sd35.api.browsers import BrowserProtection
from sd35.api.dialects import error_response
from sd35.api.errors import ApiError
from sd35.api.hosts import AllowedHosts
from sd35.api.origins import AllowedOrigins
from sd35.api.output_streams import use_nonblocking_streams
from sd35.api.protocol import bounded
from sd35.api.request_log import RequestLog
from sd35.api.sockets import address_of, listen
from sd35.api.ui_mount import UiMount
from sd35.errors import InvalidSetting, Sd35Error
from sd35.settings import Settings
from sd35.telemetry.logs import configure_logs
from sd35.ui import PATH

_BODY_TIMEOUT_S = 30.0
_ANSWERING_S = 5  # for browsers to read their last answer


class _Server(uvicorn.Server):
    """uvicorn, whose end is not held up by the streams of open tabs."""

    def __init__(self, config: uvicorn.Config, page: UiMount) -> None:
        super().__init__(config)
        self._page = page

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  uvicorn's signature
        """End, and with exit code 0: uvicorn's own would end the process by the signal."""
        self.force_exit, self.should_exit = self.should_exit, True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the page's streams, and then what remains."""
        await self._page.close()
        await super().shutdown(sockets)


def ui(server: str, settings: Settings) -> None:
    """Serve the page of a service until a signal.

    Raises InvalidSetting where the extra `ui` is missing, or the port is taken.
    """
    if not ui_mount.is_installed():
        raise InvalidSetting("sd35 ui: got an installation without the page; allowed: one with the extra `ui`")
    use_nonblocking_streams()
    configure_logs("auto")
    listener = listen(settings.host, settings.port)
    from sd35.ui.app import UiApp

    page, place = UiApp(server, settings.cache_dir, _BODY_TIMEOUT_S, uses_proxies=True), UiMount()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await place.open(lambda: page)
        print(f"Ready: {address_of(listener)} (the page of {server})", flush=True)
        yield

    app = FastAPI(openapi_url=None, lifespan=lifespan)
    app.state.ui = place
    app.include_router(ui_mount.router)
    app.add_api_route("/docs", lambda: RedirectResponse(f"{server.rstrip('/')}/docs"))  # where the page's link leads
    app.mount(PATH, place)
    app.add_middleware(
        BrowserProtection,
        hosts=AllowedHosts(settings.allowed_hosts, settings.public_url),
        origins=AllowedOrigins((), settings.public_url),
        has_keys=_has_keys,
        on_error=_on_error,
    )
    app.add_middleware(RequestLog)
    config = uvicorn.Config(
        app,
        http=bounded(_BODY_TIMEOUT_S),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_ANSWERING_S,
    )
    _Server(config, place).run([listener])


async def _has_keys() -> bool:
    return False  # whether the service has any is unknown here


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, Sd35Error)
    return error_response(request.scope, ApiError.from_error(error))
