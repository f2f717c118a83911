"""Whether a job's webhook can be taken on."""

import re
import socket
from contextlib import suppress

from sd35.errors import InvalidRequest
from sd35.service.webhooks.addresses import is_public
from sd35.settings import Settings

_CHARACTERS = 2000
_HOST = re.compile(r"[A-Za-z0-9_.:-]+")  # a name, in ASCII as name servers have it, or an address
_PORTS = range(1, 2**16)
_OUR_OWN = {"localhost", "local", "internal"}  # RFC 6761, RFC 6762, and what ICANN keeps for private use


def check_url(url: str, settings: Settings) -> None:
    """Raises InvalidRequest where it cannot be sent, as far as that shows without asking the network.

    Where a name leads is looked at when it is sent: until then, it may change.
    """
    if settings.webhook_secret is None:
        raise InvalidRequest(
            "webhook", url, "none, for this service has no secret to sign it with: SD35_WEBHOOK_SECRET"
        )
    schemes = ("https", "http") if settings.webhook_allow_private else ("https",)
    host = _host_of(url, schemes)
    if host is None or not (settings.webhook_allow_private or _may_be_public(host)):
        where = "an address" if settings.webhook_allow_private else "a public address"
        allowed = f"{' or '.join(schemes)}, to {where}, without user and password, up to {_CHARACTERS} characters"
        raise InvalidRequest("webhook", url, allowed)


def _host_of(url: str, schemes: tuple[str, ...]) -> str | None:
    import httpx2  # whose reading of it is the one that counts: it sends it

    if len(url) > _CHARACTERS:
        return None
    try:
        parsed = httpx2.URL(url)
        host = parsed.raw_host.decode()
    except (httpx2.InvalidURL, ValueError):
        return None
    is_sound = _HOST.fullmatch(host) and (parsed.port is None or parsed.port in _PORTS) and not parsed.userinfo
    return host if is_sound and parsed.scheme in schemes else None


def _may_be_public(host: str) -> bool:
    with suppress(OSError, UnicodeError):  # that it is no address: a name
        return all(
            is_public(str(place[0]))  # also 127.1 and 0x7f000001, which resolvers take
            for *_, place in socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
        )
    return host.rstrip(".").rpartition(".")[2].lower() not in _OUR_OWN
