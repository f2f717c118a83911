"""The whole service: model pool, generation service, jobs and storage."""

import asyncio
import time
from collections.abc import Hashable, Sequence
from dataclasses import replace

import structlog

from sd35.engine.base import EngineStatus
from sd35.engine.model_info import ModelInfo
from sd35.errors import JobEnded
from sd35.generation.model_pool import ModelPool
from sd35.generation.params import find_model
from sd35.generation.service import GenerationResult, GenerationService, OnProgress, Requester, stored_result
from sd35.jobs.runner import JobRunner
from sd35.jobs.webhooks.webhooks import Webhooks
from sd35.service.policy import ServingPolicy
from sd35.storage.jobs import Job, JobSpec, Status
from sd35.storage.retention import Retention, Sweeper
from sd35.storage.storage import Storage
from sd35.telemetry.logs import log_errors
from sd35.telemetry.telemetry import Telemetry
from sd35.threads import STORES

_SWEEP_S = 300.0  # time between two deletions of expired images and jobs
_REDIRECT_S = 300.0  # validity of a signed URL: the time that a client has to follow the redirect


class Service:
    """The service behind the API.

    The argument `visible_to` of its methods is the owner whose images and jobs the caller may see. None means all.
    """

    def __init__(  # noqa: PLR0913, PLR0917  the parts it is composed of
        self,
        pool: ModelPool,
        storage: Storage,
        policy: ServingPolicy,
        retention: Retention,
        webhooks: Webhooks,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Connect the parts. Raises InvalidSetting if an alias of the policy names a model that is not served."""
        self.pool, self.storage, self.policy, self.webhooks = pool, storage, policy, webhooks
        policy.aliases.check(pool.models)
        self.telemetry = telemetry = telemetry or Telemetry()
        pool.engine.observe(telemetry.metrics)
        webhooks.observe(telemetry.metrics)
        storage.images.observe(telemetry.metrics.image_damaged)
        self.generation_service = GenerationService(pool, storage.images, policy.content_filter, telemetry)
        self.jobs = JobRunner(
            self.generation_service, storage.database.jobs, policy.max_running, policy.max_queued, webhooks.wake
        )
        self.sweeper = Sweeper(retention, storage.database, policy.retention_s)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_running(self) -> bool:
        """Whether images can be generated. False if the engine is closing or has failed."""
        return self.pool.engine.is_running

    @property
    def status(self) -> EngineStatus:
        """The engine's load, limits and counts."""
        return self.pool.engine.status()

    def start(self) -> None:
        """Start to run jobs, send webhooks, delete expired images and jobs, and build missing graphs or engines.

        Needs a running event loop.
        """
        self.jobs.start()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self.webhooks.run()), loop.create_task(self._sweep())]
        if self.pool.fallback_builder:
            self.pool.fallback_builder.start()

    async def close(self) -> None:
        """Accept no more work, wait at most `shutdown_grace_s` for running images, and close the storage.

        Unfinished jobs are queued again. Unfinished synchronous calls end with NotReady.
        """
        until_s = time.monotonic() + self.policy.shutdown_grace_s
        if self.pool.fallback_builder:
            await asyncio.to_thread(self.pool.fallback_builder.stop)
        await self.jobs.close(self.policy.shutdown_grace_s)
        # Includes images that have not reached the engine yet.
        await self.generation_service.wait_for_running(until_s - time.monotonic())
        draining = asyncio.create_task(asyncio.to_thread(self.pool.engine.drain))
        await asyncio.wait([draining], timeout=max(0.0, until_s - time.monotonic()))
        if not draining.done():
            await asyncio.to_thread(self.pool.engine.close)
        await draining
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.storage.close)

    def model(self, name: str | None) -> ModelInfo:
        """Return the model with this name or alias, or the first model for None. Raises UnknownModel if none has it."""
        models = self.pool.models
        return find_model(models, self.policy.aliases.served(name, models))

    async def generate(
        self, job_spec: JobSpec, client: Hashable, on_progress: OnProgress | None = None, *, previews: bool = False
    ) -> GenerationResult:
        """Generate an image while the caller waits, or return it from the cache.

        If `job_spec` has an idempotency key, the image is generated as a job, and `on_progress` is not called.

        Raises the errors of `GenerationService.generate`. With an idempotency key also those of `_generate_once`.
        """
        if job_spec.idempotency_key is not None:
            return await self._generate_once(job_spec)
        return await self.generation_service.generate(
            job_spec.request, Requester(job_spec.owner, client, job_spec.priority), on_progress, previews=previews
        )

    async def _generate_once(self, job_spec: JobSpec) -> GenerationResult:
        """Return the image of the job with this idempotency key. Create the job if it does not exist.

        Raises JobEnded if the job failed or was cancelled, or if its image was deleted, and the errors of
        `JobRunner.accept`, `JobRunner.wait` and `GenerationService.generate`.
        """
        accepted = await self.jobs.accept(job_spec)
        job = await self.jobs.wait(accepted)
        if failure := job.failure:
            raise JobEnded(failure.status, f"the job {job.id} failed ({failure.detail}); use a new idempotency key")
        if job.result is None:
            raise JobEnded(409, f"the job {job.id} was cancelled; use a new idempotency key")
        png = await self.generation_service.threads.run(self.storage.images.read, job.result.digest)
        result = None if png is None else stored_result(job.spec.request, png, is_blurred=job.result.is_blurred)
        if result is None:
            return await self._regenerate(job, job.result.digest)
        return replace(result, was_cached=accepted.status.is_end or job.result.was_cached)

    async def _regenerate(self, job: Job, digest: str) -> GenerationResult:
        """Generate the image of an ended job again, because its stored file is missing or cannot be read.

        Raises JobEnded if the image was deleted, by its owner or by retention, and the errors of `ModelPool.renewed`
        and `GenerationService.generate`.
        """
        job_spec = job.spec
        if not await self.has_image(digest, job_spec.owner):
            raise JobEnded(410, f"the image {digest} was deleted; use a new idempotency key")
        requester = Requester(job_spec.owner, job_spec.owner or None, job_spec.priority)
        return await self.generation_service.generate(self.pool.renewed(job_spec.request), requester)

    async def places(self, jobs: Sequence[Job]) -> dict[str, int]:
        """Return the number of jobs ahead of each queued job, by job ID. Jobs that are not queued are left out.

        Raises StoreUnavailable if a store does not answer, like the public methods below.
        """
        queued = [job.id for job in jobs if job.status is Status.QUEUED]
        return await STORES.run(lambda: {job_id: self.storage.database.jobs.position(job_id) for job_id in queued})

    async def forget(self, job: Job, visible_to: str | None) -> None:
        """Delete an ended job, and remove its owner from the image (see `disown`).

        The job is deleted last, so that the caller can try again if this method fails.
        """
        if job.result:
            await self.disown(job.result.digest, job.spec.owner)
        await STORES.run(self.storage.database.jobs.delete, job.id, visible_to)

    async def has_image(self, digest: str, visible_to: str | None) -> bool:
        """Return whether the image exists and the caller may see it."""
        owners = await STORES.run(self.storage.database.ownership.owners, digest)
        return bool(owners) if visible_to is None else visible_to in owners

    async def image(self, digest: str, visible_to: str | None, *, may_redirect: bool = False) -> bytes | str | None:
        """Return the bytes of an image's PNG file, or None if it is missing or the caller may not see it.

        With `may_redirect`, return a signed URL (str) instead if the policy and the image store allow redirects.
        """
        if not await self.has_image(digest, visible_to):
            return None
        signed_url = None
        if may_redirect and self.policy.redirects:
            signed_url = await self.generation_service.threads.run(self.storage.images.sign, digest, _REDIRECT_S)
        return signed_url or await self.generation_service.threads.run(self.storage.images.read, digest)

    async def disown(self, digest: str, owner: str) -> bool:
        """Remove an owner from an image. Delete the file if no owner is left. Return whether `owner` had the image."""
        return await self.generation_service.threads.run(self.storage.images.remove, digest, owner)

    async def _sweep(self) -> None:
        """Delete expired images and jobs every five minutes, until the task is cancelled."""
        while True:
            with log_errors("expired images and jobs were not removed: a store is unavailable; retrying later"):
                swept = await self.generation_service.threads.run(self.sweeper.sweep, time.time())
                if any(swept):
                    structlog.get_logger().info("removed expired images and jobs", images=swept.images, jobs=swept.jobs)
            await asyncio.sleep(_SWEEP_S)
