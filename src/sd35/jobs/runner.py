"""Run jobs: claim them from the job store, generate their images, and store their results.

Several processes may share a job store. Each process holds a lease, a temporary claim, on the jobs that it runs, and
runs each of them in one asyncio task. If the task ends before the job, because of a shutdown or a crash, this or
another process claims the job again.
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

LEASE_S = 15.0  # how long a lease lasts if it is not renewed; see `JobStore.claim`
_POLL_S = 1.0  # interval to look for jobs that other processes have added or lost, and to count queued jobs
_STORE_RETRY_WAITS_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # between attempts to store an image
_RETRY_S = 5.0  # `Retry-After` of refused jobs, and the wait between attempts to store the end of a job
_UNAVAILABLE = "the job store does not answer"


class JobRunner:
    """Accepts jobs, and runs several of them at once.

    Args:
        generation_service: Generates the images.
        store: Stores the jobs.
        max_running: Maximum number of jobs that this process runs at once.
        max_queued: Maximum number of queued jobs in the store. If it is reached, no more jobs are accepted.
        on_end: Called whenever a job no longer runs in this process.
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
        self._holder = secrets.token_hex(8)  # the ID of this job runner as a holder of leases
        self._running: dict[str, asyncio.Task[None]] = {}  # by job ID, like `_progress`
        self._progress: dict[str, JobProgress] = {}
        self._wake = asyncio.Event()  # set to look for jobs now
        self._counted = self._accepted_since_count = 0  # see `_count_queued`
        self._recount_at_s = 0.0
        self._is_closing = self._is_closed = False
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to claim and run jobs. Must be called in a running event loop."""
        loop = asyncio.get_running_loop()
        self._loops = [loop.create_task(self._claim_jobs()), loop.create_task(self._renew_leases())]

    async def accept(self, spec: JobSpec) -> Job:
        """Add a job to the store and return it.

        If the owner already has a job with the same idempotency key, returns that job instead.

        Raises:
            NotReady: The service is closing.
            Overloaded: The queue is full.
            IdempotencyConflict: The job with the same idempotency key has another body.
            StoreUnavailable: The job store does not answer.
        """
        if self._is_closing:
            raise NotReady("closing", _RETRY_S)
        if await self._count_queued() >= self._max_queued:
            raise Overloaded(f"the job queue is full (maximum length: {self._max_queued})", _RETRY_S)
        job = await STORES.run(self.store.add, new_job(spec, time.time()))
        self._accepted_since_count += 1
        self._wake.set()
        return job

    async def cancel(self, job_id: str, owner: str | None) -> Job | None:
        """Cancel a job. Returns the job, or None if it is missing or belongs to another owner.

        A job that has ended stays as it is. If another process runs the job, that process notices when it next renews
        its leases. Raises StoreUnavailable if the job store does not answer.
        """
        job = await STORES.run(self.store.cancel, job_id, owner, time.time())
        if job and job.status is Status.CANCELLED:
            self._count_end(job, Status.CANCELLED)
            if job_id in self._running:
                self._running[job_id].cancel()
        return job

    async def wait(self, job: Job) -> Job:
        """Wait until a job has ended, and return its final state.

        Raises NotReady if the service closes or the job is deleted before it ends, and StoreUnavailable if the job
        store does not answer.
        """
        async for event in self.events(job, END - 1):  # only the event of the end
            if event.job:
                return event.job
        state = "closing" if self._is_closing else "no longer running this job, because it was deleted"
        raise NotReady(state, _RETRY_S)

    async def events(self, job: Job, after: int, *, previews: bool = False) -> AsyncIterator[Event]:
        """Yield the events of a job with numbers above `after`, until it ends, is deleted or the service closes.

        With `previews`, the following events of this job contain previews, for all its listeners. Raises
        StoreUnavailable if the job store does not answer.
        """
        last, position = after, -1  # the last yielded number and position
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
                    former_position, position = position, await STORES.run(self.store.position, job.id)
                    if position != former_position:
                        yield Event(0, Status.QUEUED, position)
                await progress.changed(_POLL_S)
                if not progress.latest or progress.latest.number <= last:
                    # No new event in this process. The job may have ended, or another process may run it.
                    current = await STORES.run(self.store.get, job.id, None)
        finally:
            if job.id not in self._running:
                self._progress.pop(job.id, None)
        if current and current.status.is_end and last < END:
            yield Event(END, current.status, job=current)

    async def close(self, shutdown_grace_s: float) -> None:
        """Stop claiming jobs, and wait at most `shutdown_grace_s` seconds for the running jobs to end.

        Then, cancel their tasks and queue the unfinished jobs again. Another process runs them, or this service after
        its next start.
        """
        self._is_closing = True
        self._wake.set()
        if running := list(self._running.values()):
            await asyncio.wait(running, timeout=shutdown_grace_s)
        for task in (*running, *self._loops):
            task.cancel()
        await asyncio.gather(*running, *self._loops, return_exceptions=True)
        self._is_closed = True
        for progress in self._progress.values():
            progress.end()
        with suppress(StoreUnavailable):  # without an answer of the store, the leases of the jobs expire
            if released := await STORES.run(self.store.release, self._holder):
                structlog.get_logger().info("unfinished jobs were queued again", jobs=released)

    async def _count_queued(self) -> int:
        """Return the number of queued jobs. The number may be up to `_POLL_S` seconds old.

        The store reads all jobs to count them. Between two counts, this adds the jobs that this process has accepted
        since the last one. If the queue then seems full, the store counts again, so that no job is refused because of
        an old count.
        """
        is_full = self._counted + self._accepted_since_count >= self._max_queued
        if is_full or time.monotonic() >= self._recount_at_s:
            self._recount_at_s = time.monotonic() + _POLL_S
            self._accepted_since_count = 0
            self._counted = (await STORES.run(self.store.counts))[Status.QUEUED]
        return self._counted + self._accepted_since_count

    async def _claim_jobs(self) -> None:
        """Claim jobs every `_POLL_S` seconds, and whenever `_wake` is set, until the service closes."""
        while not self._is_closing:
            self._wake.clear()
            with log_errors(_UNAVAILABLE):
                await self._claim_once()
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):  # before Python 3.12, wait_for may swallow a cancellation
                    await self._wake.wait()

    async def _claim_once(self) -> None:
        """Claim jobs until this process runs `max_running`, and start a task for each.

        After a failure of the engine, queue this process's jobs again instead, for the next start or another process.
        Raises StoreUnavailable if the job store does not answer.
        """
        if not self.generation_service.pool.engine.is_running:
            if not self._running:
                await STORES.run(self.store.release, self._holder)
            return
        free_slots = self._max_running - len(self._running)
        if free_slots <= 0:
            return
        claimed = await STORES.run(self.store.claim, self._holder, time.time(), LEASE_S, free_slots)
        for job in claimed:
            progress = self._progress.setdefault(job.id, JobProgress())
            progress.begin(job.spec.request.steps)
            task = self._running[job.id] = asyncio.get_running_loop().create_task(self._run_job(job))
            # A callback, not `finally` in the task: a task that is cancelled before it begins runs no code at all.
            task.add_done_callback(partial(self._remove_task, job.id))

    def _remove_task(self, job_id: str, task: "asyncio.Task[None]") -> None:
        """Remove the ended task of a job, and look for another job to run."""
        # If this process has lost the job and claimed it again, the job may already have a new task.
        if self._running.get(job_id) is task:
            del self._running[job_id]
            self._progress.pop(job_id).end()
        self._wake.set()
        self._on_end()

    async def _renew_leases(self) -> None:
        """Renew all leases every third of `LEASE_S`, until cancelled.

        Stops the tasks of jobs that this process no longer holds, because they were cancelled or because another
        process has claimed them.
        """
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with log_errors(_UNAVAILABLE):
                held = await STORES.run(self.store.renew, self._holder, LEASE_S)
                for job_id, task in self._running.items():
                    if job_id not in held:
                        task.cancel()

    async def _run_job(self, job: Job) -> None:
        """Generate the image of a job, and store the result."""
        structlog.contextvars.bind_contextvars(job=job.id)
        with self.generation_service.telemetry.tracing.job(job.id):
            result = await self._generate_result(job, self._progress[job.id])
            if isinstance(result, Failure):
                structlog.get_logger().warning("job failed", status=result.status, reason=result.detail)
            await self._end_job(job, result)

    async def _generate_result(self, job: Job, progress: JobProgress) -> JobResult | Failure:
        """Generate the image of a job. Returns the result of the job, or its failure.

        Raises CancelledError if the engine is not ready, for example because it is closing. The job stays unfinished,
        and `close` queues it again.
        """
        try:
            image = await self._generate(job.spec, progress)
        except NotReady:
            raise asyncio.CancelledError from None
        except Sd35Error as error:
            return Failure(error.status, str(error))
        except Exception as error:  # noqa: BLE001  a job that triggers a bug must not be retried forever
            structlog.get_logger().exception("unexpected error; please report it with this traceback")
            return Failure(500, f"unexpected error: {type(error).__name__}; find it in the server's log by job ID")
        if image.unstored:
            return Failure(image.unstored.status, str(image.unstored))
        return JobResult(image.request.digest, image.was_cached or image.was_shared, image.is_blurred)

    async def _generate(self, spec: JobSpec, progress: JobProgress) -> GenerationResult:
        """Generate and store the image of a job. Waits while the engine is full.

        Raises Sd35Error if the image cannot be generated. If it cannot be stored, the attribute `unstored` of the
        result is the error.
        """
        # Without API keys, the jobs of all clients count as one client in the engine's fair queue.
        requester = Requester(spec.owner, spec.owner or "jobs", spec.priority)
        while True:
            # The job may be older than the last start of the service, and the model's checkpoint may be another now.
            request = self.generation_service.pool.renewed(spec.request)
            try:
                progress.digest = request.digest
                image = await self.generation_service.generate(
                    request, requester, progress.step, previews=progress.previews
                )
            except Overloaded as error:  # the job is accepted already, so it waits until the engine has room
                await asyncio.sleep(error.retry_after_s)
            else:
                return await self._store_again(image, spec.owner)

    async def _store_again(self, image: GenerationResult, owner: str) -> GenerationResult:
        """Store an image that could not be stored: try for about a minute. Returns the result of the last attempt."""
        for wait_s in _STORE_RETRY_WAITS_S:
            if image.unstored is None:
                break
            await asyncio.sleep(wait_s)
            image = await self.generation_service.store(image, owner)
        return image

    async def _end_job(self, job: Job, result: JobResult | Failure) -> None:
        """Store the result of a job. Retries until the store answers, so that the image is not generated again."""
        while True:
            try:
                has_ended = await STORES.run(self.store.end, job.id, self._holder, time.time(), result)
            except StoreUnavailable:
                await asyncio.sleep(_RETRY_S)
            else:
                if has_ended:  # otherwise, this process no longer held the job
                    self._count_end(job, Status.SUCCEEDED if isinstance(result, JobResult) else Status.FAILED)
                return

    def _count_end(self, job: Job, status: Status) -> None:
        """Count the end of a job in the metrics, with the time since the job was accepted."""
        self.generation_service.telemetry.metrics.job_ended(status, max(0.0, time.time() - job.created_s))
