"""The listening socket of a server, and its address for this machine."""

import os
import socket

from sd35.errors import InvalidSetting


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that accepts connections. Raises InvalidSetting if that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        host.encode("idna")  # as Python does; `create_server` leaks its socket if this fails
    except UnicodeError as error:
        raise InvalidSetting(f"--host: got {host!a}; allowed: an address or a host name") from error
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise InvalidSetting(f"cannot listen on {host} port {port}: {reason}; see --host, --port") from error


def address_of(listener: socket.socket) -> str:
    """Return the URL under which this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{name}:{port}"
