"""Sends the webhooks that are due. They lie in the job store, so that they outlive the process."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress

import httpx2
import structlog

from sd35.errors import StoreUnavailable
from sd35.metadata.record import own_version
from sd35.service.jobs.contract import HELD_S, Delivery, JobStore
from sd35.service.metering import WebhookEnd
from sd35.service.threads import STORES
from sd35.service.webhooks.signing import headers
from sd35.service.webhooks.transport import PublicTransport

Body = Callable[[str], bytes | None]
ATTEMPTS = 11  # with the waits below, the last is a day after the first
_FIRST_WAIT_S, _GROWTH, _LONGEST_WAIT_S, _JITTER = 5.0, 4.0, 6 * 3600.0, 0.25
_ATTEMPT_S = HELD_S / 4  # name, connection, and answer
_AT_ONCE = 16
_LOOK_S = 1.0


def wait_s(attempts: int, chance: float) -> float | None:
    """How long to wait after so many attempts; None to give up. `chance`, 0 to 1, keeps crowds apart."""
    if attempts >= ATTEMPTS:
        return None
    return min(_FIRST_WAIT_S * _GROWTH ** (attempts - 1), _LONGEST_WAIT_S) * (1 + _JITTER * (2 * chance - 1))


class Sender:
    """`body_of` gives, on a thread, the JSON that tells of a job; None where there is no such job any more."""

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
        self.tell: Callable[[WebhookEnd], None] = lambda _: None
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """A job has ended: look now."""
        self._wake.set()

    async def run(self) -> None:
        """Send what is due, until it is cancelled. What it was about to send then is due again in a minute."""
        try:
            while True:
                self._wake.clear()
                sent = 0
                try:
                    sent = await self.send_due()
                except StoreUnavailable as error:
                    structlog.get_logger().error("webhooks wait for the job store", reason=str(error))
                if sent < _AT_ONCE:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), _LOOK_S)
        finally:
            await self._transport.aclose()

    async def send_due(self) -> int:
        """Send what is due now; how many that were. Raises StoreUnavailable."""
        due = await STORES.run(self._store.due, self._clock(), _AT_ONCE)
        outcomes = await asyncio.gather(*map(self._deliver, due), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome
        return len(due)

    async def _deliver(self, delivery: Delivery) -> None:
        attempts = delivery.attempts + 1
        attempt = await self._attempt(delivery)
        if attempt is None:
            return
        trouble, is_gone = attempt
        log = structlog.get_logger().bind(job=delivery.job_id, attempts=attempts, reason=trouble)
        wait = None if is_gone else wait_s(attempts, random.random())  # noqa: S311  no secret
        if trouble and wait is not None:
            log.info("webhook failed", again_s=round(wait))
            self.tell("postponed")
            await STORES.run(self._store.postpone, delivery.job_id, self._clock() + wait)
            return
        if trouble:
            log.warning("webhook given up")
        self.tell("given_up" if trouble else "delivered")
        await STORES.run(self._store.delivered, delivery.job_id)

    async def _attempt(self, delivery: Delivery) -> tuple[str | None, bool] | None:
        """What went wrong, if it did, and whether the receiver wants no more; None where the job was deleted."""
        try:
            async with asyncio.timeout(_ATTEMPT_S):
                body = await STORES.run(self._body_of, delivery.job_id)
                if body is None:
                    return None
                status = await self._post(delivery, body)
        except TimeoutError:
            return f"no answer within {_ATTEMPT_S:g} s", False
        except StoreUnavailable:
            raise
        except (httpx2.TransportError, OSError) as error:
            return f"{type(error).__name__}: {error}", False
        except Exception as error:  # noqa: BLE001  by our mistake, which must not stop the others
            structlog.get_logger().exception("unexpected")
            return type(error).__name__, False
        return None if httpx2.codes.is_success(status) else f"status {status}", status == httpx2.codes.GONE

    async def _post(self, delivery: Delivery, body: bytes) -> int:
        """The status of the answer, of whose body no byte is read. A redirect is an answer like others."""
        fixed = {"Content-Type": "application/json", "User-Agent": f"sd35-fp8-mirror/{own_version()}"}
        signed = headers(self._secret, delivery.job_id, self._clock(), body)
        request = httpx2.Request("POST", delivery.url, headers={**fixed, **signed}, content=body)
        response = await self._transport.handle_async_request(request)
        await response.aclose()
        return response.status_code
