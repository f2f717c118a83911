"""HTTP to public addresses only."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import httpx2

from sd35.service.webhooks.addresses import is_public

Resolve = Callable[[str, int], Awaitable[list[str]]]
_PORTS = {"http": 80, "https": 443}


async def resolve(host: str, port: int) -> list[str]:
    """The addresses that a name leads to, the best first. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(place[0]) for *_, place in found]


class PublicTransport(httpx2.AsyncHTTPTransport):
    """Looks a name up once, and connects to that very address if it is public.

    A name that is looked at and then looked up again by whoever connects may lead elsewhere the second time (DNS
    rebinding). No connection is kept: another name of the same address is not to come by this one's.
    """

    def __init__(self, *, allow_private: bool, resolve: Resolve = resolve) -> None:
        super().__init__(limits=httpx2.Limits(max_keepalive_connections=0))
        self._allow_private, self._resolve = allow_private, resolve

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send it. Raises httpx2.TransportError, OSError."""
        host = request.url.raw_host.decode()
        addresses = await self._resolve(host, request.url.port or _PORTS[request.url.scheme])
        taken = [address for address in addresses if self._allow_private or is_public(address)]
        trouble: Exception = httpx2.ConnectError("it leads to no public address")
        request.extensions |= {"sni_hostname": host}  # whose certificate it has to be; the Host header is set already
        for address in taken:
            request.url = request.url.copy_with(host=address)
            try:
                return await super().handle_async_request(request)
            except httpx2.ConnectError as error:
                trouble = error
        raise trouble
