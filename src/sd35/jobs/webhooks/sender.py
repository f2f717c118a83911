"""Sends the webhooks that are due. They are kept in the job store, so that they outlive the process."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import httpx2
import structlog

from sd35.errors import StoreUnavailable
from sd35.images.record import own_version
from sd35.jobs.webhooks.concurrency import InFlight
from sd35.jobs.webhooks.signing import headers
from sd35.jobs.webhooks.transport import PublicTransport
from sd35.storage.jobs import WEBHOOK_LEASE_S, Delivery, JobStore, Receiver
from sd35.telemetry.metrics import WebhookResult
from sd35.threads import STORES

Body = Callable[[str], bytes | None]
ATTEMPTS = 11  # with the waits below, the last is a day after the first
_FIRST_WAIT_S, _GROWTH, _LONGEST_WAIT_S, _JITTER = 5.0, 4.0, 6 * 3600.0, 0.25
_ATTEMPT_S = WEBHOOK_LEASE_S / 4  # for the name, the connection, and the answer
_SLOW_S = _ATTEMPT_S / 3  # a host that takes longer gets few places until it is faster
_LOOK_S = 1.0  # how often to look without being woken
_REST_S = 0.05  # at least, after a look; as long as the look took, if that is longer


def wait_s(attempts: int, chance: float) -> float | None:
    """Return how long to wait after a number of attempts; None to give up.

    `chance`, 0 to 1, spreads the waits of webhooks that failed together.
    """
    if attempts >= ATTEMPTS:
        return None
    return min(_FIRST_WAIT_S * _GROWTH ** (attempts - 1), _LONGEST_WAIT_S) * (1 + _JITTER * (2 * chance - 1))


@dataclass(frozen=True)
class _Attempt:
    """How an attempt went. `failure`: why it failed, else None. `is_gone`: the receiver wants no more."""

    failure: str | None = None
    is_gone: bool = False


class Sender:
    """Sends webhooks. `body_of` is called on a thread and gives a job's JSON; None if the job was deleted."""

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
        self.tell: Callable[[WebhookResult], None] = lambda _: None
        self._in_flight = InFlight()
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look for due webhooks now, since a job has ended."""
        self._wake.set()

    async def run(self) -> None:
        """Send what is due until cancelled. What is in flight then is due again when it is no longer held."""
        try:
            async with asyncio.TaskGroup() as sending:
                while True:
                    self._wake.clear()
                    began_s = time.monotonic()
                    await self._log_errors(self.start_due(sending))
                    await asyncio.sleep(max(_REST_S, time.monotonic() - began_s))
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_S):  # before Python 3.12, wait_for may swallow a cancellation
                            await self._wake.wait()
        finally:
            await self._transport.aclose()

    async def start_due(self, sending: asyncio.TaskGroup) -> None:
        """Start to send the due webhooks that have a place, each in a task of its own. Raises StoreUnavailable."""
        if self._in_flight.is_full:
            return
        if not (chosen := await STORES.run(self._choose, self._in_flight.copy())):
            return
        for delivery in await STORES.run(self._store.claim_webhooks, self._clock(), chosen):
            self._in_flight.start(delivery.receiver)
            sending.create_task(self._send(delivery))

    def _choose(self, in_flight: InFlight) -> Mapping[Receiver, int]:
        """Look for due webhooks, and choose which to start. Runs on a thread: it takes a while if very many wait."""
        return in_flight.choose(self._store.due_webhooks(self._clock()))

    async def _send(self, delivery: Delivery) -> None:
        """Send one webhook, and give its place to another when nothing of it runs any more. Does not raise."""
        try:
            await self._log_errors(self._deliver(delivery))
            if lookup := self._transport.lookup_of(delivery.url):  # it was not over when the attempt timed out
                await asyncio.wait([lookup])
        finally:
            self._in_flight.end(delivery.receiver)
            self._wake.set()

    async def _deliver(self, delivery: Delivery) -> None:
        """Try once to deliver a webhook, and store what came of it. Raises StoreUnavailable."""
        body = await STORES.run(self._body_of, delivery.job_id)
        if body is None:
            return
        attempt = await self._attempt(delivery, body)
        attempts = delivery.attempts + 1
        log = structlog.get_logger().bind(job=delivery.job_id, attempts=attempts, reason=attempt.failure)
        wait = None if attempt.is_gone else wait_s(attempts, random.random())  # noqa: S311  no secret
        if attempt.failure and wait is not None:
            await STORES.run(self._store.postpone_webhook, delivery.job_id, self._clock() + wait)
            log.info("webhook failed", again_s=round(wait))
            self.tell("postponed")
            return
        await STORES.run(self._store.finish_webhook, delivery.job_id)
        if attempt.failure:
            log.warning("webhook given up")
        self.tell("given_up" if attempt.failure else "delivered")

    async def _attempt(self, delivery: Delivery, body: bytes) -> _Attempt:
        """Post a webhook within `_ATTEMPT_S`, and note whether its receiver was slow."""
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(_ATTEMPT_S):
                status = await self._post(delivery, body)
        except TimeoutError:
            return _Attempt(f"no answer within {_ATTEMPT_S:g} s")
        except (httpx2.TransportError, OSError) as error:
            return _Attempt(f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001  a mistake of ours: the webhook is postponed, and others go on
            structlog.get_logger().exception("unexpected")
            return _Attempt(type(error).__name__)
        finally:
            self._in_flight.note_speed(delivery.receiver.host, is_slow=time.monotonic() - began_s >= _SLOW_S)
        failure = None if httpx2.codes.is_success(status) else f"status {status}"
        return _Attempt(failure, is_gone=status == httpx2.codes.GONE)

    async def _post(self, delivery: Delivery, body: bytes) -> int:
        """Return the status of the answer, whose body is not read. A redirect is an answer like any other."""
        fixed = {"Content-Type": "application/json", "User-Agent": f"sd35-fp8-mirror/{own_version()}"}
        signed = headers(self._secret, delivery.job_id, self._clock(), body)
        request = httpx2.Request("POST", delivery.url, headers={**fixed, **signed}, content=body)
        response = await self._transport.handle_async_request(request)
        await response.aclose()
        return response.status_code

    async def _log_errors(self, work: Awaitable[None]) -> None:
        """Await work whose errors must not stop other webhooks: log them."""
        try:
            await work
        except StoreUnavailable as error:
            structlog.get_logger().error("webhooks wait for the job store", reason=str(error))
        except Exception:  # noqa: BLE001  a mistake of ours
            structlog.get_logger().exception("unexpected")
