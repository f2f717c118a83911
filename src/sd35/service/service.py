"""All that serves: the studio that makes pictures, the desk that keeps them, jobs, and what is stored."""

import asyncio
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import structlog

from sd35.content_filter import ContentFilter
from sd35.errors import JobEnded, StoreUnavailable
from sd35.generation.model import Model
from sd35.generation.model_pool import Studio
from sd35.generation.params import Naming, find_model
from sd35.generation.service import Desk, OnProgress, Outcome, Source, stored_outcome
from sd35.jobs.runner import JobRunner
from sd35.jobs.webhooks.webhooks import Webhooks
from sd35.storage.jobs import Job, Order, Status
from sd35.storage.retention import Retention
from sd35.storage.storage import Kept
from sd35.storage.sweeper import Sweeping
from sd35.telemetry.report import Telemetry
from sd35.threads import STORES

_SWEEP_S = 300.0
_REDIRECT_S = 300.0  # for a client to follow


@dataclass(frozen=True)
class Rules:
    """What the settings say of serving.

    `grace_s`: for what runs to end, when the service closes. `keep_s`: how long ended jobs are known, None for ever.
    """

    content_filter: ContentFilter
    naming: Naming
    has_metadata: bool = True
    redirects: bool = False
    keep_s: float | None = None
    grace_s: float = 60
    most_running: int = 32
    most_waiting: int = 10_000


class Service:
    """What the API calls. Where a method takes `sees`, it is an owner, or None for who sees all."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts it is composed of
        self,
        studio: Studio,
        kept: Kept,
        rules: Rules,
        retention: Retention,
        webhooks: Webhooks,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.studio, self.kept, self.rules, self.webhooks = studio, kept, rules, webhooks
        rules.naming.check(studio.models)
        self.telemetry = telemetry = telemetry or Telemetry()
        studio.engine.observe(telemetry.metering)
        webhooks.observe(telemetry.metering)
        kept.pictures.observe(telemetry.metering.damaged)
        self.desk = Desk(studio, kept.pictures, rules.content_filter, telemetry)
        self.jobs = JobRunner(self.desk, kept.stores.jobs, rules.most_running, rules.most_waiting, webhooks.wake)
        self._sweeping = Sweeping(retention, kept.stores, rules.keep_s)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_running(self) -> bool:
        """Whether pictures can be made."""
        return self.studio.engine.is_running

    @property
    def is_retention_paused(self) -> bool:
        """Whether nothing is removed for its age, since the clock cannot be believed."""
        return self._sweeping.is_paused

    def start(self) -> None:
        """Begin to work on jobs, and to swap what a standby stands in for; needs a running event loop."""
        self.jobs.start()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self.webhooks.run()), loop.create_task(self._sweep())]
        if self.studio.building:
            self.studio.building.start()

    async def close(self) -> None:
        """Accept nothing more; finish what was accepted, or hand back after the grace time what are jobs."""
        until_s = time.monotonic() + self.rules.grace_s
        if self.studio.building:
            await asyncio.to_thread(self.studio.building.stop)
        await self.jobs.close(self.rules.grace_s)
        await self.desk.landed(until_s - time.monotonic())  # also what has not come to the engine yet
        draining = asyncio.create_task(asyncio.to_thread(self.studio.engine.drain))
        await asyncio.wait([draining], timeout=max(0.0, until_s - time.monotonic()))
        if not draining.done():  # synchronous calls, which are answered that it closes
            await asyncio.to_thread(self.studio.engine.close)
        await draining
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.kept.close)

    def model(self, name: str | None) -> Model:
        """The model that a client of another service asks for, by name or alias. Raises UnknownModel."""
        models = self.studio.models
        return find_model(models, self.rules.naming.served(name, models))

    async def make(self, order: Order, client: Hashable, on_progress: OnProgress | None = None) -> Outcome:
        """A picture for one who waits, whose turn it is by `client`; of progress nothing is heard where it is a job.

        Raises what `Desk.make` and, with an idempotency key, `JobRunner.accept` raise.
        """
        if order.idempotency_key is not None:
            return await self._make_once(order)
        return await self.desk.make(order.request, Source(order.owner, client, order.priority), on_progress)

    async def _make_once(self, order: Order) -> Outcome:
        """The picture of a job that someone waits for: made now, or when the same idempotency key came before.

        Raises what `Desk.make` and `JobRunner.accept` raise.
        """
        accepted = await self.jobs.accept(order)
        job = await self.jobs.ended(accepted)
        if job.failure:
            raise JobEnded(job.failure.status, job.failure.detail)
        if job.made is None:
            raise JobEnded(409, f"the job of this idempotency key, {job.id}, was cancelled")
        png = await self.desk.threads.run(self.kept.pictures.read, job.made.digest)
        is_blurred = job.made.is_blurred
        outcome = None if png is None else stored_outcome(job.order.request, png, is_blurred=is_blurred)
        if outcome is None:
            return await self._remake(job, job.made.digest)
        return replace(outcome, was_cached=accepted.status.is_end or job.made.was_cached)

    async def _remake(self, job: Job, digest: str) -> Outcome:
        """Make the picture of a job that has ended again: its file is damaged or lost.

        Raises JobEnded where its owner removed it, and what `Desk.make` raises.
        """
        order = job.order
        if not await self.has_picture(digest, order.owner):
            raise JobEnded(410, f"the picture of this idempotency key, {digest}, was removed")
        source = Source(order.owner, order.owner or None, order.priority)
        return await self.desk.make(self.studio.renewed(order.request), source)

    async def places(self, jobs: Sequence[Job]) -> dict[str, int]:
        """How many jobs go before each queued one of these. Raises StoreUnavailable, as all below."""
        queued = [job.id for job in jobs if job.status is Status.QUEUED]
        return await STORES.run(lambda: {job_id: self.kept.stores.jobs.place(job_id) for job_id in queued})

    async def forget(self, job: Job, sees: str | None) -> None:
        """Remove a job that has ended, and its picture from its owner's; the file too, where it is nobody else's.

        The job goes last: where that fails, it can be asked for again.
        """
        if job.made:
            await self.disown(job.made.digest, job.order.owner)
        await STORES.run(self.kept.stores.jobs.delete, job.id, sees)

    async def has_picture(self, digest: str, sees: str | None) -> bool:
        """Whether there is one, and it is not another's only."""
        owners = await STORES.run(self.kept.stores.pictures.owners, digest)
        return bool(owners) if sees is None else sees in owners

    async def picture(self, digest: str, sees: str | None, *, may_redirect: bool = False) -> bytes | str | None:
        """A picture's PNG file; None where there is none, or it is another's.

        With `may_redirect`, the address at which the object store itself gives it for a while, if that is wanted and it
        can.
        """
        if not await self.has_picture(digest, sees):
            return None
        address = None
        if may_redirect and self.rules.redirects:
            address = await self.desk.threads.run(self.kept.pictures.sign, digest, _REDIRECT_S)
        return address or await self.desk.threads.run(self.kept.pictures.read, digest)

    async def disown(self, digest: str, owner: str) -> bool:
        """Remove a picture from an owner's, the file too where it is nobody else's; whether it was theirs."""
        return await self.desk.threads.run(self.kept.pictures.disown, digest, owner)

    async def _sweep(self) -> None:
        """Remove what is not to be kept, now and then."""
        while True:
            try:
                swept = await self.desk.threads.run(self._sweeping.sweep, time.time())
                if any(swept):
                    structlog.get_logger().info("swept", pictures=swept.images, jobs=swept.jobs)
            except StoreUnavailable as error:
                structlog.get_logger().error("sweeping waits for a store", reason=str(error))
            except Exception:  # noqa: BLE001  by our mistake; the disk must not fill up for it
                structlog.get_logger().exception("unexpected")
            await asyncio.sleep(_SWEEP_S)
