"""Send due webhooks, and try again later if that fails. The job store keeps them, so they survive a restart."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import httpx2
import structlog

from sd35.images.record import own_version
from sd35.jobs.webhooks.concurrency import InFlight
from sd35.jobs.webhooks.signing import headers
from sd35.jobs.webhooks.transport import PublicTransport
from sd35.storage.jobs import WEBHOOK_LEASE_S, Delivery, JobStore, Receiver
from sd35.telemetry.logs import log_errors
from sd35.telemetry.metrics import WebhookResult
from sd35.threads import STORES

Body = Callable[[str], bytes | None]  # returns the JSON of a job by its ID, or None if the job was deleted
ATTEMPTS = 11  # with the waits below, the last attempt is about 26 hours after the first
_FIRST_WAIT_S, _GROWTH, _MAX_WAIT_S, _JITTER = 5.0, 4.0, 6 * 3600.0, 0.25
_ATTEMPT_S = WEBHOOK_LEASE_S / 4  # timeout of an attempt: DNS lookup, connection, and response
_SLOW_S = _ATTEMPT_S / 3  # a host whose last attempt took longer is slow: see `concurrency`
_POLL_S = 1.0  # interval to look for due webhooks, unless `wake` is called
_UNAVAILABLE = "webhooks wait: the job store does not answer"
_REST_S = 0.05  # minimum pause after looking for due webhooks


def wait_s(attempts: int, jitter: float) -> float | None:
    """Return how long to wait before the next attempt, in seconds. Returns None if no attempt is left.

    The first wait is about 5 s. Each following wait is four times as long, up to about 6 h.

    Args:
        attempts: Number of failed attempts so far.
        jitter: Random number from 0 to 1. It changes the wait by up to a quarter, so that webhooks that failed at the
            same time are not sent again at the same time.
    """
    if attempts >= ATTEMPTS:
        return None
    return min(_FIRST_WAIT_S * _GROWTH ** (attempts - 1), _MAX_WAIT_S) * (1 + _JITTER * (2 * jitter - 1))


@dataclass(frozen=True)
class _Attempt:
    """Result of an attempt to send a webhook.

    Attributes:
        failure: Why the attempt failed. None if the webhook was delivered.
        is_gone: Whether the receiver answered 410: it does not want this webhook.
    """

    failure: str | None = None
    is_gone: bool = False


class Sender:
    """Sends due webhooks, several at a time.

    Args:
        store: The job store with the webhooks.
        body_of: Returns the JSON of a job. Called on a thread.
        secret: Key of the signatures.
        transport: Sends the HTTP requests.
        clock: Returns the time in seconds since 1970.
    """

    def __init__(
        self,
        store: JobStore,
        body_of: Body,
        secret: bytes,
        transport: PublicTransport,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._body_of, self._secret = store, body_of, secret
        self._transport, self._clock = transport, clock
        self.on_result: Callable[[WebhookResult], None] = lambda _: None
        self._in_flight = InFlight()
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look for due webhooks now, because a job has ended."""
        self._wake.set()

    async def run(self) -> None:
        """Send due webhooks until cancelled.

        Webhooks that are being sent when this is cancelled become due again when their lease expires.
        """
        try:
            async with asyncio.TaskGroup() as sending:
                while True:
                    self._wake.clear()
                    began_s = time.monotonic()
                    with log_errors(_UNAVAILABLE):
                        await self.start_due(sending)
                    # The pause is as long as looking took, so that a slow store is busy at most half of the time.
                    await asyncio.sleep(max(_REST_S, time.monotonic() - began_s))
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_POLL_S):  # before Python 3.12, wait_for may swallow a cancellation
                            await self._wake.wait()
        finally:
            await self._transport.aclose()

    async def start_due(self, sending: asyncio.TaskGroup) -> None:
        """Claim the due webhooks that get a slot, and start a task in `sending` for each.

        Raises StoreUnavailable if the job store does not answer.
        """
        if self._in_flight.is_full:
            return
        if chosen := await STORES.run(self._choose, self._in_flight.copy()):
            for delivery in await STORES.run(self._store.claim_webhooks, self._clock(), chosen):
                self._in_flight.start(delivery.receiver)
                sending.create_task(self._send(delivery))

    def _choose(self, in_flight: InFlight) -> Mapping[Receiver, int]:
        """Return the number of webhooks to start for each receiver.

        Runs on a thread, because it is slow if very many webhooks are due.
        """
        return in_flight.choose(self._store.due_webhooks(self._clock()))

    async def _send(self, delivery: Delivery) -> None:
        """Try to deliver a webhook, and free its slot when the attempt and its DNS lookup have ended.

        Raises no error, because an error in one task of the group would cancel all others.
        """
        try:
            with log_errors(_UNAVAILABLE):
                await self._deliver(delivery)
            if lookup := self._transport.lookup_of(delivery.url):
                # The attempt has timed out, but its DNS lookup is still running.
                await asyncio.wait([lookup])
        finally:
            self._in_flight.end(delivery.receiver)
            self._wake.set()

    async def _deliver(self, delivery: Delivery) -> None:
        """Try once to deliver a webhook, and store and log the result.

        Raises StoreUnavailable if the job store does not answer.
        """
        body = await STORES.run(self._body_of, delivery.job_id)
        if body is None:  # the job was deleted, and its webhook with it
            return
        attempt = await self._attempt(delivery, body)
        attempts = delivery.attempts + 1
        log = structlog.get_logger().bind(job=delivery.job_id, attempts=attempts, reason=attempt.failure)
        retry_s = None if attempt.is_gone else wait_s(attempts, random.random())  # noqa: S311  not used for security
        if attempt.failure and retry_s is not None:
            await STORES.run(self._store.postpone_webhook, delivery.job_id, self._clock() + retry_s)
            log.info("webhook failed", retry_s=round(retry_s))
            self.on_result("postponed")
            return
        await STORES.run(self._store.finish_webhook, delivery.job_id)
        if attempt.failure:
            log.warning("webhook given up")
        self.on_result("given_up" if attempt.failure else "delivered")

    async def _attempt(self, delivery: Delivery, body: bytes) -> _Attempt:
        """Send a webhook with a timeout, and return the result. Remembers whether the host was slow."""
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(_ATTEMPT_S):
                status = await self._post(delivery, body)
        except TimeoutError:
            return _Attempt(f"no answer within {_ATTEMPT_S:g} s")
        except (httpx2.TransportError, OSError) as error:
            return _Attempt(f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001  a bug here must not stop other webhooks
            structlog.get_logger().exception("unexpected error; please report it with this traceback")
            return _Attempt(type(error).__name__)
        finally:
            self._in_flight.note_speed(delivery.receiver.host, is_slow=time.monotonic() - began_s >= _SLOW_S)
        failure = None if httpx2.codes.is_success(status) else f"status {status}"
        return _Attempt(failure, is_gone=status == httpx2.codes.GONE)

    async def _post(self, delivery: Delivery, body: bytes) -> int:
        """Send a webhook and return the HTTP status of the response. Does not read its body, or follow redirects."""
        fixed = {"Content-Type": "application/json", "User-Agent": f"sd35-fp8-mirror/{own_version()}"}
        signed = headers(self._secret, delivery.job_id, self._clock(), body)
        request = httpx2.Request("POST", delivery.url, headers={**fixed, **signed}, content=body)
        response = await self._transport.handle_async_request(request)
        await response.aclose()
        return response.status_code
