"""Send HTTP requests only to allowed addresses: by default, public ones. Each DNS lookup has its own thread."""

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx2

from sd35.jobs.webhooks.addresses import is_public

Lookup = Callable[[str], list[str]]
_CONNECT_S = 5.0  # maximum time to connect to an address, including TLS, before the next address is tried


def look_up(host: str) -> list[str]:
    """Return the IP addresses of a host, the preferred address first. Blocks. Raises OSError if the host has none."""
    try:
        results = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a part of the name is empty or too long
        raise OSError(f"{host} is not a host name: {error}") from error
    return [str(address[0]) for *_, address in results]


class Resolver:
    """Looks up hosts in DNS. Each host has at most one lookup at a time.

    A lookup cannot be interrupted. If the name server does not answer, the thread of the lookup outlives the attempt to
    send the webhook. Therefore, lookups do not use a shared thread pool, which would run out of threads. Their threads
    are daemons, so they do not delay the exit of the process.

    Each lookup has its own thread, so the caller must limit the number of lookups at a time. A lookup may outlast the
    call of `resolve` that started it: see `running`.

    Args:
        lookup: Returns the IP addresses of a host, like `look_up`.
    """

    def __init__(self, lookup: Lookup = look_up) -> None:
        self._lookup = lookup
        self._running: dict[str, asyncio.Future[list[str]]] = {}

    def running(self, host: str) -> "asyncio.Future[list[str]] | None":
        """Return the lookup of a host if it is running, else None. The attempt that began it may have timed out."""
        return self._running.get(host)

    async def resolve(self, host: str) -> list[str]:
        """Return the addresses of a host, the preferred address first. Raises OSError if the host has none."""
        # If the caller is cancelled, the shield lets the lookup continue for other callers.
        return await asyncio.shield(self._running.get(host) or self._start(host))

    def _start(self, host: str) -> "asyncio.Future[list[str]]":
        """Start the lookup of a host on a new thread. Returns a future for the addresses of the host."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[str]] = loop.create_future()

        def look_up_on_thread() -> None:
            addresses, failure = [], None
            try:
                addresses = self._lookup(host)
            except Exception as error:  # noqa: BLE001  raised again where the result is awaited
                failure = error
            with suppress(RuntimeError):  # the event loop may be closed by now
                loop.call_soon_threadsafe(set_result, addresses, failure)

        def set_result(addresses: list[str], failure: Exception | None) -> None:
            del self._running[host]
            if failure is None:
                done.set_result(addresses)
            else:
                done.set_exception(failure)
                done.exception()  # asyncio would log an exception that nobody retrieves, and nobody may be waiting

        threading.Thread(target=look_up_on_thread, name="webhook lookup", daemon=True).start()
        self._running[host] = done
        return done


class PublicTransport(httpx2.AsyncHTTPTransport):
    """HTTP transport that looks up the host itself, and connects only to an address that it has checked.

    If the HTTP client looked up the host again, it could get another address (DNS rebinding). Connections are not kept
    alive, so that a request to another host at the same address does not reuse them.

    Args:
        resolver: Looks up hosts.
        allow_private: Whether connections to private addresses are allowed, too.
    """

    def __init__(self, resolver: Resolver, *, allow_private: bool) -> None:
        super().__init__(limits=httpx2.Limits(max_keepalive_connections=0))
        self._resolver, self._allow_private = resolver, allow_private

    def lookup_of(self, url: str) -> "asyncio.Future[list[str]] | None":
        """Return the running DNS lookup for the host of a URL, or None."""
        return self._resolver.running(httpx2.URL(url).raw_host.decode())

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request to the first allowed address of its host that accepts a connection.

        Raises httpx2.TransportError if there is none or the request fails, and OSError if the host cannot be looked up.
        """
        host = request.url.raw_host.decode()
        addresses = await self._resolver.resolve(host)
        allowed = [address for address in addresses if self._allow_private or is_public(address)]
        # Raised if `allowed` is empty.
        failure: Exception = httpx2.ConnectError("the host has no public address, and webhook_allow_private is off")
        # Below, the address replaces the name in the URL. The server's certificate must still match the name. The Host
        # header is already set.
        request.extensions |= {"sni_hostname": host, "timeout": {"connect": _CONNECT_S}}
        for address in allowed:
            request.url = request.url.copy_with(host=address)
            try:
                return await self._send(request)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request to the address in its URL. If that fails or is cancelled, close the connection.

        httpcore leaves the connection open if it is cancelled during a TLS handshake.
        """
        opened: list[Any] = []

        async def trace(event: str, info: dict[str, Any]) -> None:  # httpcore calls this for each event
            if event == "connection.connect_tcp.complete":
                opened.append(info["return_value"])

        request.extensions |= {"trace": trace}
        try:
            return await super().handle_async_request(request)
        except BaseException:
            for connection in opened:
                await connection.aclose()
            raise
