"""HTTP transport that connects to public addresses only."""

import asyncio
from typing import Any

import httpx2

from sd35.jobs.webhooks.addresses import is_public
from sd35.jobs.webhooks.resolver import Resolver

_CONNECT_S = 5.0  # per address, TLS included; then the next address is tried


class PublicTransport(httpx2.AsyncHTTPTransport):
    """Looks up the host once, and connects to exactly the address that was checked.

    A second lookup could return another address (DNS rebinding). Connections are not kept alive: a request to another
    host at the same address must not reuse this one's connection.
    """

    def __init__(self, resolver: Resolver, *, allow_private: bool) -> None:
        super().__init__(limits=httpx2.Limits(max_keepalive_connections=0))
        self._resolver, self._allow_private = resolver, allow_private

    def lookup_of(self, url: str) -> "asyncio.Future[list[str]] | None":
        """Return the running lookup of the host of a URL, or None."""
        return self._resolver.running(httpx2.URL(url).raw_host.decode())

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request. Raises httpx2.TransportError, OSError."""
        host = request.url.raw_host.decode()
        addresses = await self._resolver.resolve(host)
        allowed = [address for address in addresses if self._allow_private or is_public(address)]
        failure: Exception = httpx2.ConnectError("it has no public address")
        # The certificate must match the name, not the address. The Host header is already set.
        request.extensions |= {"sni_hostname": host, "timeout": {"connect": _CONNECT_S}}
        for address in allowed:
            request.url = request.url.copy_with(host=address)
            try:
                return await self._send(request)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request to the address in its URL. Closes the connection if that fails or is cancelled.

        httpcore leaves the connection open if it is cancelled during a TLS handshake.
        """
        opened: list[Any] = []

        async def trace(event: str, info: dict[str, Any]) -> None:
            if event == "connection.connect_tcp.complete":
                opened.append(info["return_value"])

        request.extensions |= {"trace": trace}
        try:
            return await super().handle_async_request(request)
        except BaseException:
            for connection in opened:
                await connection.aclose()
            raise
