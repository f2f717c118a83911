"""Webhooks of the service: check the URLs that clients send, and send the webhooks.

Webhooks are refused if the setting `webhook_secret`, which signs them, is not set.
"""

import re
import socket
from contextlib import suppress

import httpx2

from sd35.errors import InvalidRequest
from sd35.jobs.webhooks.addresses import is_public
from sd35.jobs.webhooks.sender import Body, Sender
from sd35.jobs.webhooks.signing import secret_of
from sd35.jobs.webhooks.transport import PublicTransport, Resolver
from sd35.settings import Settings
from sd35.storage.jobs import JobStore
from sd35.telemetry.metrics import Metrics

_MAX_CHARACTERS = 2000
_HOST = re.compile(r"[A-Za-z0-9_.:-]+")  # a name in ASCII, or an IP address
_PORTS = range(1, 2**16)
_PRIVATE_DOMAINS = {"localhost", "local", "internal"}  # RFC 6761, RFC 6762, and ICANN's name for private use


class Webhooks:
    """Checks URLs of webhooks, and sends webhooks. Without a secret, does not send any.

    Raises InvalidSetting if the setting `webhook_secret` is not a valid secret.

    Args:
        settings: Settings of the service, with `webhook_secret` and `webhook_allow_private`.
        store: The job store with the webhooks.
        body_of: Returns the JSON of a job by its ID; see `Sender`.
    """

    def __init__(self, settings: Settings, store: JobStore, body_of: Body) -> None:
        self._settings = settings
        self._sender: Sender | None = None
        if secret := secret_of(settings):
            transport = PublicTransport(Resolver(), allow_private=settings.webhook_allow_private)
            self._sender = Sender(store, body_of, secret, transport)

    def observe(self, metrics: Metrics) -> None:
        """Count the results of webhooks from now on."""
        if self._sender:
            self._sender.on_result = metrics.webhook_attempted

    def check(self, url: str | None) -> None:
        """Raise InvalidRequest if no webhook can be sent to a URL. None means that the job has no webhook."""
        if url is not None:
            check_url(url, self._settings)

    def wake(self) -> None:
        """Look for due webhooks now, because a job has ended."""
        if self._sender:
            self._sender.wake()

    async def run(self) -> None:
        """Send due webhooks until cancelled."""
        if self._sender:
            await self._sender.run()


def check_url(url: str, settings: Settings) -> None:
    """Raise InvalidRequest if no webhook can be sent to a URL. Does not use the network.

    The addresses of a host name may change, so they are checked whenever a webhook is sent.
    """
    if settings.webhook_secret is None:
        raise InvalidRequest("webhook", url, "no webhook, because the operator has not set SD35_WEBHOOK_SECRET")
    schemes = ("https", "http") if settings.webhook_allow_private else ("https",)
    host = _host_of(url, schemes)
    if host is None or not (settings.webhook_allow_private or _may_be_public(host)):
        hosts = "hosts" if settings.webhook_allow_private else "hosts with a public address"
        allowed = (
            f"{' or '.join(schemes)} URLs to {hosts}, without user and password, up to {_MAX_CHARACTERS} characters"
        )
        raise InvalidRequest("webhook", url, allowed)


def _host_of(url: str, schemes: tuple[str, ...]) -> str | None:
    """Return the host of a URL, or None if the URL is malformed or not allowed for webhooks."""
    if len(url) > _MAX_CHARACTERS:
        return None
    try:
        parsed = httpx2.URL(url)  # the parser that the sender uses, so that both agree on the host
        host = parsed.raw_host.decode()
        host.encode("idna")  # raises if a part of the name is empty or longer than 63 characters
    except (httpx2.InvalidURL, ValueError):
        return None
    is_valid = _HOST.fullmatch(host) and (parsed.port is None or parsed.port in _PORTS) and not parsed.userinfo
    return host if is_valid and parsed.scheme in schemes else None


def _may_be_public(host: str) -> bool:
    """Return whether a host is a public address, or a name outside the domains for private use. Does not look it up."""
    with suppress(OSError):  # `getaddrinfo` raises it for a name
        return all(
            is_public(str(address[0]))  # including forms such as 127.1 and 0x7f000001, which resolvers accept
            for *_, address in socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
        )
    return host.rstrip(".").rpartition(".")[2].lower() not in _PRIVATE_DOMAINS
