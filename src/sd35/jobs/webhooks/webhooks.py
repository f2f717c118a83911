"""Webhooks of the service: accepted and sent if there is a secret to sign them with, otherwise refused."""

from sd35.jobs.webhooks.resolver import Resolver
from sd35.jobs.webhooks.sender import Body, Sender
from sd35.jobs.webhooks.signing import secret_of
from sd35.jobs.webhooks.transport import PublicTransport
from sd35.jobs.webhooks.validation import check_url
from sd35.settings import Settings
from sd35.storage.jobs import JobStore
from sd35.telemetry.metrics import Metrics


class Webhooks:
    """Validates and sends webhooks. Raises InvalidSetting if the secret is invalid. `body_of`: see `Sender`."""

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
        """Raise InvalidRequest if a webhook cannot be sent to a URL. None means no webhook."""
        if url is not None:
            check_url(url, self._settings)

    def wake(self) -> None:
        """Look for due webhooks now, since a job has ended."""
        if self._sender:
            self._sender.wake()

    async def run(self) -> None:
        """Send due webhooks until cancelled."""
        if self._sender:
            await self._sender.run()
