"""Looking up the addresses of hosts, on threads of its own."""

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

Lookup = Callable[[str], list[str]]


def look_up(host: str) -> list[str]:
    """Return the addresses of a host, the preferred one first. Blocks. Raises OSError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a part of the name is empty or too long
        raise OSError(f"{host} is not a host name: {error}") from error
    return [str(address[0]) for *_, address in found]


class Resolver:
    """Looks up one host at most once at a time.

    A lookup cannot be interrupted: a name server that does not answer holds its thread longer than the attempt that
    asked. So lookups use none of the event loop's default threads, which read keys and jobs, and their threads are
    daemons, which do not delay the end of the process. Whoever limits the number of hosts in use, and counts a host
    until `running` is done, limits the number of threads.
    """

    def __init__(self, lookup: Lookup = look_up) -> None:
        self._lookup = lookup
        self._running: dict[str, asyncio.Future[list[str]]] = {}

    def running(self, host: str) -> "asyncio.Future[list[str]] | None":
        """Return the lookup of a host that still runs, perhaps for an attempt that timed out."""
        return self._running.get(host)

    async def resolve(self, host: str) -> list[str]:
        """Return the addresses of a host, the preferred one first. Raises OSError."""
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
            with suppress(RuntimeError):  # the event loop was closed meanwhile
                loop.call_soon_threadsafe(end, addresses, failure)

        def end(addresses: list[str], failure: Exception | None) -> None:
            del self._running[host]
            if failure is None:
                done.set_result(addresses)
            else:
                done.set_exception(failure)
                done.exception()  # marks it as seen: nobody may be waiting for it any more

        threading.Thread(target=run, name="webhook lookup", daemon=True).start()
        self._running[host] = done
        return done
