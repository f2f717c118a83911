"""Run jobs: claim them, generate their images, and record their results.

Several processes may share a job store. Each holds a lease on the jobs that it runs. Each running job has one asyncio
task. If the task ends before the job, because of a shutdown or a crash, the job is claimed again.
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
from sd35.telemetry.logs import log_errors
from sd35.threads import STORES

LEASE_S = 15.0
_POLL_S = 1.0  # interval to look for jobs that other processes have added or lost, and to count queued jobs
_STORE_RETRY_WAITS_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # between attempts to store an image
_RETRY_S = 5.0
_UNAVAILABLE = "the job store does not answer"


class JobRunner:
    """Accepts jobs, and runs several of them at once.

    Args:
        generation_service: Generates the images.
        store: Stores the jobs.
        max_running: Maximum number of jobs that this process runs at once.
        max_queued: Maximum number of queued jobs in the store.
        on_end: Called when a job no longer runs in this process.
    """

    def __init__(
        self,
        generation_service: GenerationService,
        store: JobStore,
        max_running: int,
        max_queued: int,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.generation_service, self.store, self._on_end = generation_service, store, on_end
        self._max_running, self._max_queued = max_running, max_queued
        self._holder = secrets.token_hex(8)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._progress: dict[str, JobProgress] = {}
        self._wake = asyncio.Event()
        self._counted = self._accepted_since_count = 0
        self._recount_at_s = 0.0
        self._is_closing = self._is_closed = False
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start running jobs. Needs a running event loop."""
        loop = asyncio.get_running_loop()
        self._loops = [loop.create_task(self._claim_jobs()), loop.create_task(self._renew_leases())]

    async def accept(self, spec: JobSpec) -> Job:
        """Add a job to the store, or return the owner's job with the same idempotency key.

        Raises Overloaded, NotReady, IdempotencyConflict, StoreUnavailable.
        """
        if self._is_closing:
            raise NotReady("closing", _RETRY_S)
        if await self._queued() >= self._max_queued:
            raise Overloaded(f"the job queue is full: {self._max_queued} jobs are waiting", _RETRY_S)
        job = await STORES.run(self.store.add, new_job(spec, time.time()))
        self._accepted_since_count += 1
        self._wake.set()
        return job

    async def cancel(self, job_id: str, owner: str | None) -> Job | None:
        """Cancel a job. If another process runs it, that process stops within a third of a lease."""
        job = await STORES.run(self.store.cancel, job_id, owner, time.time())
        if job and job.status is Status.CANCELLED:
            self._count(job, Status.CANCELLED)
            if job_id in self._running:
                self._running[job_id].cancel()
        return job

    async def wait(self, job: Job) -> Job:
        """Wait for a job to end and return its final state. Raises NotReady if it is deleted meanwhile."""
        async for event in self.events(job, END - 1):
            if event.job:
                return event.job
        raise NotReady("closing" if self._is_closing else "no longer running this job: it was deleted", _RETRY_S)

    async def events(self, job: Job, after: int, *, previews: bool = False) -> AsyncIterator[Event]:
        """Yield the events of a job with numbers above `after`, until it ends.

        With `previews`, later events of this job have previews, for all its listeners. Raises StoreUnavailable.
        """
        last, position = after, -1
        current: Job | None = job
        try:
            while current and not current.status.is_end and not self._is_closed:
                progress = self._progress.setdefault(job.id, JobProgress())
                if previews and not progress.previews:
                    progress.previews = True
                    if progress.digest:
                        self.generation_service.send_previews(progress.digest)
                if progress.latest and progress.latest.number > last:
                    last = progress.latest.number
                    yield progress.latest
                elif current.status is Status.QUEUED and last < 1:
                    before, position = position, await STORES.run(self.store.position, job.id)
                    if position != before:
                        yield Event(0, Status.QUEUED, position)
                await progress.changed(_POLL_S)
                if not progress.latest or progress.latest.number <= last:  # another process may run the job
                    current = await STORES.run(self.store.get, job.id, None)
        finally:
            if job.id not in self._running:
                self._progress.pop(job.id, None)
        if current and current.status.is_end and last < END:
            yield Event(END, current.status, job=current)

    async def close(self, shutdown_grace_s: float) -> None:
        """Stop claiming jobs, let running ones finish for at most `shutdown_grace_s`, and release the rest."""
        self._is_closing = True
        self._wake.set()
        running = list(self._running.values())
        if running:
            await asyncio.wait(running, timeout=shutdown_grace_s)
        for task in (*running, *self._loops):
            task.cancel()
        await asyncio.gather(*running, *self._loops, return_exceptions=True)
        self._is_closed = True
        for progress in self._progress.values():
            progress.end()
        with suppress(StoreUnavailable):
            released = await STORES.run(self.store.release, self._holder)
            if released:
                structlog.get_logger().info("unfinished jobs were queued again", jobs=released)

    async def _queued(self) -> int:
        """Return the number of queued jobs, up to a second old.

        Counting scans all jobs, so between counts only the jobs accepted here are added. If the queue then looks full,
        the store counts again, so that no job is refused because of an old count.
        """
        is_full = self._counted + self._accepted_since_count >= self._max_queued
        if is_full or time.monotonic() >= self._recount_at_s:
            self._recount_at_s = time.monotonic() + _POLL_S
            self._accepted_since_count = 0
            self._counted = (await STORES.run(self.store.counts))[Status.QUEUED]
        return self._counted + self._accepted_since_count

    async def _claim_jobs(self) -> None:
        while not self._is_closing:
            self._wake.clear()
            with log_errors(_UNAVAILABLE):
                await self._claim_once()
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):  # before Python 3.12, wait_for may swallow a cancellation
                    await self._wake.wait()

    async def _claim_once(self) -> None:
        free = self._max_running - len(self._running)
        if free <= 0:
            return
        claimed = await STORES.run(self.store.claim, self._holder, time.time(), LEASE_S, free)
        for job in claimed:
            progress = self._progress.setdefault(job.id, JobProgress())
            progress.begin(job.spec.request.steps)
            task = self._running[job.id] = asyncio.get_running_loop().create_task(self._run(job))
            task.add_done_callback(partial(self._remove, job.id))  # also called if it is cancelled before it begins

    def _remove(self, job_id: str, task: "asyncio.Task[None]") -> None:
        """Remove a task that has ended. If the job was lost and claimed again, it may already have a new task."""
        if self._running.get(job_id) is task:
            del self._running[job_id]
            self._progress.pop(job_id).end()
        self._wake.set()
        self._on_end()

    async def _renew_leases(self) -> None:
        """Renew all leases regularly, and stop jobs that were cancelled or taken by another process."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with log_errors(_UNAVAILABLE):
                held = await STORES.run(self.store.renew, self._holder, LEASE_S)
                for job_id, task in self._running.items():
                    if job_id not in held:
                        task.cancel()

    async def _run(self, job: Job) -> None:
        structlog.contextvars.bind_contextvars(job=job.id)
        with self.generation_service.telemetry.tracing.job(job.id):
            result = await self._result(job, self._progress[job.id])
            if isinstance(result, Failure):
                structlog.get_logger().warning("job failed", status=result.status, reason=result.detail)
            await self._end(job, result)

    async def _result(self, job: Job, progress: JobProgress) -> JobResult | Failure:
        try:
            image = await self._generate(job.spec, progress)
        except NotReady:
            raise asyncio.CancelledError from None  # the engine is closing; the job is claimed again later
        except Sd35Error as error:
            return Failure(error.status, str(error))
        except Exception as error:  # noqa: BLE001  a job that triggers a bug must not be retried forever
            structlog.get_logger().exception("unexpected")
            return Failure(500, f"unexpected error: {type(error).__name__}")
        if image.unstored:
            return Failure(image.unstored.status, str(image.unstored))
        return JobResult(image.request.digest, image.was_cached or image.was_shared, image.is_blurred)

    async def _generate(self, spec: JobSpec, progress: JobProgress) -> GenerationResult:
        requester = Requester(spec.owner, spec.owner or "jobs", spec.priority)
        while True:
            request = self.generation_service.pool.renewed(spec.request)
            try:
                progress.digest = request.digest
                image = await self.generation_service.generate(
                    request, requester, progress.step, previews=progress.previews
                )
            except Overloaded as error:  # the job was accepted before, so it waits for the engine
                await asyncio.sleep(error.retry_after_s)
            else:
                return await self._store(image, spec.owner)

    async def _store(self, image: GenerationResult, owner: str) -> GenerationResult:
        """Retry storing an image, if it is not stored yet."""
        for wait_s in _STORE_RETRY_WAITS_S:
            if image.unstored is None:
                break
            await asyncio.sleep(wait_s)
            image = await self.generation_service.store(image, owner)
        return image

    async def _end(self, job: Job, result: JobResult | Failure) -> None:
        """Record the result of a job. Retries until the store answers, so that the image is not generated again."""
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
