"""Runs jobs: claims them as the engine has room, generates their images, and records how they ended.

Several processes may share a store: each holds what it works on by a lease. A job that runs here is one task; what ends
that task without ending the job, a shutdown or a crash, leaves the job to be claimed again.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial

import structlog

from sd35.errors import NotReady, Overloaded, Sd35Error, StoreUnavailable
from sd35.generation.service import GenerationResult, GenerationService, Requester
from sd35.jobs.progress import END, Event, JobProgress
from sd35.storage.jobs import Failure, Job, JobResult, JobSpec, JobStore, Status, new_job
from sd35.threads import STORES

LEASE_S = 15.0
_LOOK_S = 1.0  # for jobs of other processes, and leases that are over
_STORE_TRIES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # waits, for an image store that does not answer
_RETRY_S = 5.0


class JobRunner:
    """Accepts jobs and works on up to `most_running` of them at once; `most_waiting` may be queued in the store.

    `on_end` hears of each that ends here.
    """

    def __init__(
        self,
        generation_service: GenerationService,
        store: JobStore,
        most_running: int,
        most_waiting: int,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.generation_service, self.store, self._on_end = generation_service, store, on_end
        self._most_running, self._most_waiting = most_running, most_waiting
        self._holder = secrets.token_hex(8)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._followed: dict[str, JobProgress] = {}
        self._wake = asyncio.Event()
        self._counted = self._accepted = 0
        self._count_again_s = 0.0
        self._is_closing = self._is_closed = False
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to work; needs a running event loop."""
        loop = asyncio.get_running_loop()
        self._loops = [loop.create_task(self._claim()), loop.create_task(self._keep())]

    async def accept(self, job_spec: JobSpec) -> Job:
        """A new job, or the owner's of the same idempotency key.

        Raises Overloaded, NotReady, IdempotencyConflict, StoreUnavailable.
        """
        if self._is_closing:
            raise NotReady("closing", _RETRY_S)
        if await self._waiting() >= self._most_waiting:
            raise Overloaded(f"{self._most_waiting} jobs wait, as many as may", _RETRY_S)
        job = await STORES.run(self.store.add, new_job(job_spec, time.time()))
        self._accepted += 1
        self._wake.set()
        return job

    async def cancel(self, job_id: str, owner: str | None) -> Job | None:
        """End a job, wherever it runs: elsewhere, within a lease's third."""
        job = await STORES.run(self.store.cancel, job_id, owner, time.time())
        if job and job.status is Status.CANCELLED:
            self._count(job, Status.CANCELLED)
            if job_id in self._running:
                self._running[job_id].cancel()
        return job

    async def ended(self, job: Job) -> Job:
        """A job when it has ended. Raises NotReady where it is deleted meanwhile."""
        async for event in self.events(job, END - 1):
            if event.job:
                return event.job
        raise NotReady("closing" if self._is_closing else "without this job, which was deleted", _RETRY_S)

    async def events(self, job: Job, after: int, *, previews: bool = False) -> AsyncIterator[Event]:
        """Yield a job's events to its end, beginning with the first that has a number above `after`."""
        told, place = after, -1
        found: Job | None = job
        try:
            while found and not found.status.is_end and not self._is_closed:
                follow = self._followed.setdefault(job.id, JobProgress())
                if previews and not follow.previews:
                    follow.previews = True
                    if follow.digest:
                        self.generation_service.send_previews(follow.digest)
                if follow.latest and follow.latest.number > told:
                    told = follow.latest.number
                    yield follow.latest
                elif found.status is Status.QUEUED and told < 1:
                    before, place = place, await STORES.run(self.store.position, job.id)
                    if place != before:
                        yield Event(0, Status.QUEUED, place)
                await follow.changed(_LOOK_S)
                if not follow.latest or follow.latest.number <= told:  # nothing new here: elsewhere, perhaps
                    found = await STORES.run(self.store.get, job.id, None)
        finally:
            if job.id not in self._running:
                self._followed.pop(job.id, None)
        if found and found.status.is_end and told < END:
            yield Event(END, found.status, job=found)

    async def close(self, shutdown_grace_s: float) -> None:
        """Claim nothing more, finish what runs within the grace time, and hand back the rest."""
        self._is_closing = True
        self._wake.set()
        running = list(self._running.values())
        if running:
            await asyncio.wait(running, timeout=shutdown_grace_s)
        for task in (*running, *self._loops):
            task.cancel()
        await asyncio.gather(*running, *self._loops, return_exceptions=True)
        self._is_closed = True
        for follow in self._followed.values():
            follow.end()
        with suppress(StoreUnavailable):
            handed_back = await STORES.run(self.store.release, self._holder)
            if handed_back:
                structlog.get_logger().info("jobs handed back", jobs=handed_back)

    async def _waiting(self) -> int:
        """How many jobs wait: counted anew after a second, and before any is refused, for that looks at all jobs."""
        is_full = self._counted + self._accepted >= self._most_waiting
        if is_full or time.monotonic() >= self._count_again_s:
            self._count_again_s = time.monotonic() + _LOOK_S
            self._accepted = 0
            self._counted = (await STORES.run(self.store.counts))[Status.QUEUED]
        return self._counted + self._accepted

    async def _claim(self) -> None:
        while not self._is_closing:
            self._wake.clear()
            try:
                await self._claim_once()
            except StoreUnavailable as error:
                structlog.get_logger().error("the job store does not answer", reason=str(error))
            except Exception:  # noqa: BLE001  by our mistake; the jobs that wait must not wait for ever
                structlog.get_logger().exception("unexpected")
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):  # before Python 3.12, wait_for may swallow a cancellation
                    await self._wake.wait()

    async def _claim_once(self) -> None:
        free = self._most_running - len(self._running)
        if free <= 0:
            return
        claimed = await STORES.run(self.store.claim, self._holder, time.time(), LEASE_S, free)
        for job in claimed:
            follow = self._followed.setdefault(job.id, JobProgress())
            follow.begin(job.spec.request.steps)
            task = self._running[job.id] = asyncio.get_running_loop().create_task(self._run(job))
            task.add_done_callback(partial(self._left, job.id))  # also of one that is cancelled before it begins

    def _left(self, job_id: str, task: "asyncio.Task[None]") -> None:
        """A job does not run here any more, unless it was lost and claimed anew."""
        if self._running.get(job_id) is task:
            del self._running[job_id]
            self._followed.pop(job_id).end()
        self._wake.set()
        self._on_end()

    async def _keep(self) -> None:
        """Renew leases; what was cancelled or taken elsewhere stops here."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            try:
                kept = await STORES.run(self.store.renew, self._holder, LEASE_S)
            except StoreUnavailable as error:
                structlog.get_logger().error("the job store does not answer", reason=str(error))
                continue
            except Exception:  # noqa: BLE001  by our mistake; leases must be renewed all the same
                structlog.get_logger().exception("unexpected")
                continue
            for job_id, task in self._running.items():
                if job_id not in kept:
                    task.cancel()

    async def _run(self, job: Job) -> None:
        structlog.contextvars.bind_contextvars(job=job.id)
        with self.generation_service.telemetry.tracing.job(job.id):
            result = await self._result(job, self._followed[job.id])
            if isinstance(result, Failure):
                structlog.get_logger().warning("job failed", status=result.status, reason=result.detail)
            await self._end(job, result)

    async def _result(self, job: Job, follow: JobProgress) -> JobResult | Failure:
        try:
            outcome = await self._made(job.spec, follow)
        except NotReady:
            raise asyncio.CancelledError from None  # the engine closes: another process, or the next start, goes on
        except Sd35Error as error:
            return Failure(error.status, str(error))
        except Exception as error:  # noqa: BLE001  by our mistake; the job must not be tried for ever
            structlog.get_logger().exception("unexpected")
            return Failure(500, f"an error that was not foreseen: {type(error).__name__}")
        if outcome.unstored:
            return Failure(outcome.unstored.status, str(outcome.unstored))
        return JobResult(outcome.request.digest, outcome.was_cached or outcome.was_shared, outcome.is_blurred)

    async def _made(self, job_spec: JobSpec, follow: JobProgress) -> GenerationResult:
        source = Requester(job_spec.owner, job_spec.owner or "jobs", job_spec.priority)
        while True:
            request = self.generation_service.pool.renewed(job_spec.request)
            try:
                follow.digest = request.digest
                outcome = await self.generation_service.generate(request, source, follow.step, previews=follow.previews)
            except Overloaded as error:  # it was accepted: it waits for its turn
                await asyncio.sleep(error.retry_after_s)
            else:
                return await self._stored(outcome, job_spec.owner)

    async def _stored(self, outcome: GenerationResult, owner: str) -> GenerationResult:
        """The outcome, in the store if that can be."""
        for wait_s in _STORE_TRIES_S:
            if outcome.unstored is None:
                break
            await asyncio.sleep(wait_s)
            outcome = await self.generation_service.store(outcome, owner)
        return outcome

    async def _end(self, job: Job, result: JobResult | Failure) -> None:
        """Say so in the store, however long that does not answer: else the image is made again."""
        while True:
            try:
                await STORES.run(self.store.end, job.id, self._holder, time.time(), result)
            except StoreUnavailable:
                await asyncio.sleep(_RETRY_S)
            else:
                self._count(job, Status.SUCCEEDED if isinstance(result, JobResult) else Status.FAILED)
                return

    def _count(self, job: Job, status: Status) -> None:
        self.generation_service.telemetry.metrics.job_ended(status, max(0.0, time.time() - job.created_s))
