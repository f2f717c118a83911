"""All that serves: the studio that makes pictures, the desk that keeps them, jobs, and what is stored."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sd35.errors import JobEnded
from sd35.service.desk import Desk, Outcome, name_of, stored_outcome
from sd35.service.filters import ContentFilter
from sd35.service.jobs.contract import Job, Order, Status
from sd35.service.jobs.runner import JobRunner
from sd35.service.stores import Stores
from sd35.service.studio import Studio


@dataclass(frozen=True)
class Rules:
    """What the settings say of serving. `grace_s`: for what runs to end, when the service closes."""

    content_filter: ContentFilter
    has_metadata: bool = True
    grace_s: float = 60
    most_running: int = 32
    most_waiting: int = 10_000


class Service:
    """What the API calls. Where a method takes `sees`, it is an owner, or None for who sees all."""

    def __init__(self, studio: Studio, stores: Stores, rules: Rules) -> None:
        self.studio, self.stores, self.rules = studio, stores, rules
        self.desk = Desk(studio, stores.pictures, stores.index, rules.content_filter)
        self.jobs = JobRunner(self.desk, stores.jobs, rules.most_running, rules.most_waiting)

    @property
    def is_running(self) -> bool:
        """Whether pictures can be made."""
        return self.studio.engine.is_running

    def start(self) -> None:
        """Begin to work on jobs, and to swap what a standby stands in for; needs a running event loop."""
        self.jobs.start()
        if self.studio.building:
            self.studio.building.start()

    async def close(self) -> None:
        """Accept nothing more; finish what was accepted, or hand back after the grace time what are jobs."""
        until_s = time.monotonic() + self.rules.grace_s
        if self.studio.building:
            await asyncio.to_thread(self.studio.building.stop)
        await self.jobs.close(self.rules.grace_s)
        draining = asyncio.create_task(asyncio.to_thread(self.studio.engine.drain))
        await asyncio.wait([draining], timeout=until_s - time.monotonic())
        if not draining.done():  # synchronous calls, which are answered that it closes
            await asyncio.to_thread(self.studio.engine.close)
        await draining

    async def make_once(self, order: Order) -> Outcome:
        """The picture of a job that someone waits for: made now, or when the same idempotency key came before.

        Raises what `Desk.make` and `JobRunner.accept` raise.
        """
        job = await self.jobs.ended(await self.jobs.accept(order))
        if job.failure:
            raise JobEnded(job.failure.status, job.failure.detail)
        if job.made is None:
            raise JobEnded(409, f"the job of this idempotency key, {job.id}, was cancelled")
        name = name_of(job.made.digest, is_blurred=job.made.is_blurred)
        png = await asyncio.to_thread(self.stores.pictures.get, name)
        if png is None:
            raise JobEnded(410, f"the picture of this idempotency key, {job.made.digest}, was removed")
        return stored_outcome(job.order.request, png, is_blurred=job.made.is_blurred)

    async def stored_job(self, job_id: str, sees: str | None) -> Job | None:
        """One job. Raises StoreUnavailable, as all below."""
        return await asyncio.to_thread(self.stores.jobs.get, job_id, sees)

    async def stored_jobs(
        self, sees: str | None, statuses: Sequence[Status], before: int | None, most: int
    ) -> list[Job]:
        """The newest first; see `JobStore.page`."""
        return await asyncio.to_thread(self.stores.jobs.page, sees, statuses, before, most)

    async def places(self, jobs: Sequence[Job]) -> dict[str, int]:
        """How many jobs go before each queued one of these."""
        queued = [job.id for job in jobs if job.status is Status.QUEUED]
        return await asyncio.to_thread(lambda: {job_id: self.stores.jobs.place(job_id) for job_id in queued})

    async def forget(self, job: Job, sees: str | None) -> None:
        """Remove a job that has ended, and its picture from its owner's; the file too, where it is nobody else's."""
        await asyncio.to_thread(self.stores.jobs.delete, job.id, sees)
        if job.made:
            await self.disown(job.made.digest, job.order.owner)

    async def picture(self, digest: str, sees: str | None) -> bytes | None:
        """A picture's PNG file; None where there is none, or it is another's."""
        return await asyncio.to_thread(self._picture, digest, sees)

    async def disown(self, digest: str, owner: str) -> bool:
        """Remove a picture from an owner's; whether it was theirs."""
        return await asyncio.to_thread(self._disown, digest, owner)

    def _picture(self, digest: str, sees: str | None) -> bytes | None:
        if sees is not None and not self.stores.index.owns(digest, sees):
            return None
        names = (name_of(digest, is_blurred=is_blurred) for is_blurred in (False, True))
        return next((png for name in names if (png := self.stores.pictures.get(name)) is not None), None)

    def _disown(self, digest: str, owner: str) -> bool:
        if not self.stores.index.owns(digest, owner):
            return False
        if self.stores.index.remove(digest, owner):
            for is_blurred in (False, True):
                self.stores.pictures.delete(name_of(digest, is_blurred=is_blurred))
        return True
