"""Checks the webhook that a job asks for."""

import re
import socket
from contextlib import suppress

from sd35.errors import InvalidRequest
from sd35.jobs.webhooks.addresses import is_public
from sd35.settings import Settings

_CHARACTERS = 2000
_HOST = re.compile(r"[A-Za-z0-9_.:-]+")  # a name in ASCII, or an address
_PORTS = range(1, 2**16)
_OUR_OWN = {"localhost", "local", "internal"}  # RFC 6761, RFC 6762, and ICANN's name for private use


def check_url(url: str, settings: Settings) -> None:
    """Raise InvalidRequest if a webhook cannot be sent, as far as that shows without using the network.

    The addresses of a name are checked each time a webhook is sent, since they may change until then.
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
    import httpx2  # the sender's own parser, so that both mean the same host

    if len(url) > _CHARACTERS:
        return None
    try:
        parsed = httpx2.URL(url)
        host = parsed.raw_host.decode()
        host.encode("idna")  # raises if a part of the name is empty or longer than 63 characters
    except (httpx2.InvalidURL, ValueError):
        return None
    is_sound = _HOST.fullmatch(host) and (parsed.port is None or parsed.port in _PORTS) and not parsed.userinfo
    return host if is_sound and parsed.scheme in schemes else None


def _may_be_public(host: str) -> bool:
    with suppress(OSError):  # it is a name, not an address
        return all(
            is_public(str(address[0]))  # also 127.1 and 0x7f000001, which resolvers accept
            for *_, address in socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
        )
    return host.rstrip(".").rpartition(".")[2].lower() not in _OUR_OWN
