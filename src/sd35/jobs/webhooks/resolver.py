"""DNS lookups on threads of their own."""

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

Lookup = Callable[[str], list[str]]


def look_up(host: str) -> list[str]:
    """Return the addresses of a host, preferred ones first. Blocks. Raises OSError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a part of the name is empty or too long
        raise OSError(f"{host} is not a host name: {error}") from error
    return [str(address[0]) for *_, address in found]


class Resolver:
    """Looks up hosts, each at most once at a time.

    A lookup cannot be interrupted: if the name server does not answer, its thread outlives the attempt that needs it.
    Lookups therefore use no shared thread pool, and their threads are daemons, which do not delay the exit of the
    process. The caller limits the number of threads by limiting the number of hosts, and by counting a host until
    `running` is done.
    """

    def __init__(self, lookup: Lookup = look_up) -> None:
        self._lookup = lookup
        self._running: dict[str, asyncio.Future[list[str]]] = {}

    def running(self, host: str) -> "asyncio.Future[list[str]] | None":
        """Return the running lookup of a host, perhaps of an attempt that has timed out, or None."""
        return self._running.get(host)

    async def resolve(self, host: str) -> list[str]:
        """Return the addresses of a host, preferred ones first. Raises OSError."""
        return await asyncio.shield(self._running.get(host) or self._start(host))

    def _start(self, host: str) -> "asyncio.Future[list[str]]":
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[str]] = loop.create_future()

        def run() -> None:
            addresses, failure = [], None
            try:
                addresses = self._lookup(host)
            except Exception as error:  # noqa: BLE001  raised again where the result is awaited
                failure = error
            with suppress(RuntimeError):  # the event loop was closed
                loop.call_soon_threadsafe(end, addresses, failure)

        def end(addresses: list[str], failure: Exception | None) -> None:
            del self._running[host]
            if failure is None:
                done.set_result(addresses)
            else:
                done.set_exception(failure)
                done.exception()  # marks it as retrieved, since nobody may be waiting any more

        threading.Thread(target=run, name="webhook lookup", daemon=True).start()
        self._running[host] = done
        return done
