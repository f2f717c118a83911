"""Webhooks as the service has them: accepted and sent where there is a secret to sign them with, else refused."""

from sd35.jobs.webhooks.resolver import Resolver
from sd35.jobs.webhooks.sender import Body, Sender
from sd35.jobs.webhooks.signing import secret_of
from sd35.jobs.webhooks.transport import PublicTransport
from sd35.jobs.webhooks.validation import check_url
from sd35.settings import Settings
from sd35.storage.jobs import JobStore
from sd35.telemetry.metrics import Metrics


class Webhooks:
    """Raises InvalidSetting where the secret is none. `body_of` tells of a job, see Sender."""

    def __init__(self, settings: Settings, store: JobStore, body_of: Body) -> None:
        self._settings = settings
        self._sender: Sender | None = None
        if secret := secret_of(settings):
            transport = PublicTransport(Resolver(), allow_private=settings.webhook_allow_private)
            self._sender = Sender(store, body_of, secret, transport)

    def observe(self, metrics: Metrics) -> None:
        """Count what becomes of them from now on."""
        if self._sender:
            self._sender.tell = metrics.webhook_attempted

    def check(self, url: str | None) -> None:
        """Raises InvalidRequest where a job cannot be told of there."""
        if url is not None:
            check_url(url, self._settings)

    def wake(self) -> None:
        """A job has ended."""
        if self._sender:
            self._sender.wake()

    async def run(self) -> None:
        """Send what is due, until it is cancelled."""
        if self._sender:
            await self._sender.run()
