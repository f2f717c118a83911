"""The HTTP server of `sd35 serve` and `sd35 ui`: its listening socket, uvicorn's settings, and its shutdown."""

import os
import socket

import uvicorn
from starlette.types import ASGIApp

from sd35.api.protocol import protocol_with_timeout
from sd35.api.ui_mount import UiMount
from sd35.errors import InvalidSetting


class UiServer(uvicorn.Server):
    """A uvicorn server whose shutdown does not wait for the event streams of the user interface's open tabs."""

    def __init__(self, config: uvicorn.Config, ui: UiMount) -> None:
        super().__init__(config)
        self._ui = ui

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the user interface, then wait until all requests are answered."""
        await self._ui.close()
        await super().shutdown(sockets)


def server_config(
    app: ASGIApp, body_timeout_s: float, shutdown_s: int, *, root_path: str = "", proxy_headers: bool = True
) -> uvicorn.Config:
    """Return uvicorn's settings.

    Args:
        app: The application.
        body_timeout_s: The seconds in which the head of a request must arrive. The application limits bodies itself.
        shutdown_s: The seconds that clients have to read their last response when the server stops.
        root_path: The path under which a reverse proxy serves the application.
        proxy_headers: Whether to trust the `X-Forwarded-...` headers of local clients.
    """
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol_with_timeout(body_timeout_s),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=proxy_headers,
        root_path=root_path,
        timeout_graceful_shutdown=shutdown_s,
    )


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that accepts connections. Raises InvalidSetting if the address is invalid or not available."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        host.encode("idna")  # checked first, because `create_server` leaks its socket if it cannot encode the host
    except UnicodeError as error:
        raise InvalidSetting(f"--host: got {host!a}; allowed: an address or a host name") from error
    try:
        return socket.create_server((host, port), family=family, backlog=2048)  # uvicorn's default backlog
    except OSError as error:
        # Unknown hosts have negative error numbers, which `os.strerror` does not know. `create_server` appends
        # "(while attempting to bind on address ...)" to the text of every error.
        text = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror)
        raise InvalidSetting(
            f"cannot listen on {host} port {port} ({text.partition(' (while ')[0]}); choose another --host or --port"
        ) from error


def address_of(listener: socket.socket) -> str:
    """Return the URL under which this machine reaches a listening socket.

    A socket that listens on all addresses, such as 0.0.0.0, is reached under the loopback address.
    """
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    name = f"[{host}]" if ":" in host else host  # URLs have IPv6 addresses in brackets
    return f"http://{name}:{port}"
