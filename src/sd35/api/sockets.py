"""Where a server listens, and how it is reached from this machine."""

import os
import socket

from sd35.errors import InvalidSetting


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections. Raises InvalidSetting where that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        host.encode("idna")  # as Python does; `create_server` forgets its socket where this fails
    except UnicodeError as error:
        raise InvalidSetting(f"--host: got {host!a}; allowed: an address, or the name of one") from error
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise InvalidSetting(f"cannot listen on {host} port {port}: {reason}; see --host, --port") from error


def address_of(listener: socket.socket) -> str:
    """Where it is, for who is on this machine."""
    host, port = listener.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{name}:{port}"
