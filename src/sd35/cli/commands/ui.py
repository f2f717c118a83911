"""The command `sd35 ui`."""

import contextlib
from collections.abc import AsyncIterator
from types import FrameType
from typing import Annotated
from urllib.parse import urlsplit

import typer
from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse

from sd35.api import ui_mount
from sd35.api.browsers import AllowedHosts, AllowedOrigins, BrowserProtection
from sd35.api.dialects import error_response
from sd35.api.errors import ApiError
from sd35.api.http_server import UiServer, address_of, listen, server_config
from sd35.api.output_streams import use_nonblocking_streams
from sd35.api.request_log import RequestLog
from sd35.api.ui_mount import UiMount
from sd35.cli.options import with_settings
from sd35.errors import InvalidSetting, Sd35Error
from sd35.settings import Settings
from sd35.settings.directories import check_writable
from sd35.settings.proxies import check_proxies, is_address
from sd35.telemetry.logs import configure_logs
from sd35.ui import PATH

_BODY_TIMEOUT_S = 30.0
_SHUTDOWN_S = 5  # for browsers to read their last response
app = typer.Typer()


class _Server(UiServer):
    """A server that stops with exit code 0 after SIGINT or SIGTERM."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  uvicorn's signature
        """Shut down, or end at once after a second signal.

        uvicorn's own handler would raise the signal again after the shutdown, and so end with another exit code.
        """
        self.force_exit, self.should_exit = self.should_exit, True


@app.command()
@with_settings("host", "port", "allowed_hosts", "public_url", "cache_dir")
def ui(
    *,
    server: Annotated[
        str, typer.Option(metavar="URL", help="Address of the service, such as https://images.example.com.")
    ],
    settings: Settings,
) -> None:
    """Serve only the user interface, for a service on another machine.

    `sd35 serve` has the same user interface. Use this command for a service that runs without a user interface.

    [bold]Examples[/bold]

      sd35 ui --server http://gpu.example:8000 --port 8001
    """
    _check_server(server)
    check_proxies()
    check_writable("cache_dir", settings.cache_dir)
    if not ui_mount.is_installed():
        raise InvalidSetting("the user interface is not installed; install it with: pip install 'sd35-fp8-mirror[ui]'")
    use_nonblocking_streams()
    configure_logs("auto")
    listener = listen(settings.host, settings.port)
    mount = UiMount()
    app = _create_app(server, settings, mount, address_of(listener))
    _Server(server_config(app, _BODY_TIMEOUT_S, _SHUTDOWN_S), mount).run([listener])


def _check_server(server: str) -> None:
    """Raise InvalidSetting if the address is invalid, or has a query, a fragment or a password.

    Every visitor can see the address, so it must not have a password.
    """
    address = urlsplit(server) if is_address(server, ("http", "https")) else None
    if address is None or address.query or address.fragment or "@" in address.netloc:
        raise InvalidSetting(
            f"--server: got {server!r}; allowed: an http or https address without a password or query, such as"
            " http://127.0.0.1:8000"
        )


def _create_app(server: str, settings: Settings, mount: UiMount, address: str) -> FastAPI:
    """Create the app: the user interface for the service `server`, reachable at `address`."""
    from sd35.ui.app import UiApp  # imports Gradio

    page = UiApp(server, settings.cache_dir, _BODY_TIMEOUT_S, uses_proxies=True)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await mount.open(lambda: page)
        print(f"Ready: {address} (user interface for {server}). Stop with Ctrl-C.", flush=True)
        yield

    api = FastAPI(openapi_url=None, lifespan=lifespan)
    api.state.ui = mount
    api.include_router(ui_mount.router)
    api.add_api_route("/docs", lambda: RedirectResponse(f"{server.rstrip('/')}/docs"))  # the page links to it
    api.mount(PATH, mount)
    api.add_middleware(
        BrowserProtection,
        hosts=AllowedHosts(settings.allowed_hosts, settings.public_url),
        origins=AllowedOrigins((), settings.public_url),
        has_keys=_has_keys,
        on_error=_on_error,
    )
    api.add_middleware(RequestLog)
    return api


async def _has_keys() -> bool:
    return False  # only the service knows; False makes `BrowserProtection` check every request


async def _on_error(request: Request, error: Exception) -> Response:
    """Return the response to a request that `BrowserProtection` refuses."""
    assert isinstance(error, Sd35Error)
    return error_response(request.scope, ApiError.from_error(error))
