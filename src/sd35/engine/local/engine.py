"""The engine of this process. One thread denoises in batches, step by step. Another decodes at the same time.

Every image ends once: with its pixels, with its error, or cancelled. A failed or cancelled image does not affect the
rest of its batch. A request that several callers submit is generated once. After a numerical failure (values that are
not finite, or pixels of one colour), an image is retried once if the model is loaded in a wider precision.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog

from sd35.engine.base import (
    CLOSING_RETRY_S,
    PREVIEWS_PER_S,
    DeviceLimits,
    EngineStatus,
    GeneratedImage,
    Handle,
    Observer,
    OnProgress,
    Pixels,
    Work,
)
from sd35.engine.local.executor import BatchExecutor
from sd35.engine.local.generation import Generation, Waiter, as_sd35_error
from sd35.engine.local.pipeline import Pipeline
from sd35.engine.local.progress import learn_preview, report_progress
from sd35.engine.local.prompt_cache import EmbeddingCache
from sd35.engine.model_info import ModelInfo
from sd35.engine.scheduling.cost_model import CostModel
from sd35.engine.scheduling.scheduler import Scheduler
from sd35.errors import GenerationFailed, InvalidRequest, NotReady, NumericalFailure, NumericalFailureKind

Item = TypeVar("Item")


class LocalEngine:
    """An engine in this process. See `sd35.engine.base.Engine`. Its threads run until `drain` or `close`.

    If `reproducible`, every call of a backend has one prompt or image. Otherwise, the bytes of an image may depend on
    the other images of its batch, because runtimes add numbers in another order for another number of rows.
    """

    def __init__(
        self,
        pipelines: Sequence[Pipeline],
        limits: DeviceLimits,
        embeddings: EmbeddingCache,
        *,
        reproducible: bool = False,
        previews_per_s: float = PREVIEWS_PER_S,
    ) -> None:
        assert pipelines, "an engine needs a pipeline"
        self._pipelines = {pipeline.info.key: pipeline for pipeline in pipelines}
        self._limits, self._embeddings, self._previews_per_s = limits, embeddings, previews_per_s
        self._memory = pipelines[0].backend.memory
        self._failures: dict[NumericalFailureKind, int] = {"not_finite": 0, "uniform": 0}
        self._retried = 0
        self._executor = BatchExecutor(embeddings, reproducible=reproducible)
        self._costs = CostModel()
        self._scheduler: Scheduler[Generation] = Scheduler(limits, self._costs)
        self._generations: dict[str, Generation] = {}  # by submitted digest, while a caller waits
        self._waited_for: dict[Handle, Generation] = {}
        self._is_closing = self._has_failed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run_thread, args=(run,), name=name, daemon=True)
            for name, run in (("denoising", self._denoise_batches), ("decoding", self._decode_images))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """See `Engine.models`."""
        return tuple(pipeline.info for pipeline in self._pipelines.values())

    @property
    def is_running(self) -> bool:
        """See `Engine.is_running`."""
        return not self._is_closing

    def add(self, pipeline: Pipeline) -> None:
        """Add a pipeline while the engine runs."""
        with self._changed:
            self._pipelines = {**self._pipelines, pipeline.info.key: pipeline}  # `models` reads it without the lock

    def submit(self, work: Work, on_progress: OnProgress | None = None, *, previews: bool = False) -> Handle:
        """See `Engine.submit`."""
        handle, now_s = Handle(), time.monotonic()
        with self._changed:
            if self._has_failed:
                raise NotReady.after_engine_failure(CLOSING_RETRY_S)
            if self._is_closing:
                raise NotReady("closing", CLOSING_RETRY_S)
            generation = self._generations.get(work.request.digest)
            if generation is None:
                generation = self._accept(work, now_s)
            generation.waiters.append(Waiter(handle, on_progress, now_s, previews))
            self._waited_for[handle] = generation
        return handle

    def send_previews(self, handle: Handle) -> None:
        """See `Engine.send_previews`."""
        with self._changed:
            if generation := self._waited_for.get(handle):
                for waiter in generation.waiters:
                    waiter.previews |= waiter.handle is handle

    def cancel(self, handle: Handle) -> None:
        """See `Engine.cancel`."""
        with self._changed:
            if generation := self._waited_for.pop(handle, None):
                generation.waiters = [waiter for waiter in generation.waiters if waiter.handle is not handle]
                if not generation.waiters:
                    self._remove(generation)
        handle.future.cancel()

    def status(self) -> EngineStatus:
        """See `Engine.status`."""
        held_bytes, free_bytes = self._memory.held_bytes(), self._memory.free_bytes()
        with self._changed:
            waiting = sum(not generation.has_begun for generation in self._generations.values())
            return EngineStatus(
                waiting=waiting,
                running=len(self._generations) - waiting,
                backlog_s=self._scheduler.backlog_s,
                used_bytes=self._scheduler.used_bytes,
                limits=self._limits,
                is_host_memory=self._memory.is_host,
                held_bytes=held_bytes,
                free_bytes=free_bytes,
                prompt_cache_hits=self._embeddings.hits,
                prompt_cache_misses=self._embeddings.misses,
                prompt_cache_bytes=self._embeddings.used_bytes,
                numerical_failures=dict(self._failures),
                retried=self._retried,
            )

    def observe(self, observer: Observer) -> None:
        """See `Engine.observe`."""
        self._executor.observer = observer

    def drain(self) -> None:
        """See `Engine.drain`."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def close(self) -> None:
        """See `Engine.close`."""
        with self._changed:
            self._is_closing = True
            handles = list(self._waited_for)
        for handle in handles:
            self.cancel(handle)
        self.drain()

    def _accept(self, work: Work, now_s: float) -> Generation:
        """Queue new work. The lock must be held.

        Raises InvalidRequest if the model is not loaded or cannot generate the image, Overloaded if the queue is full.
        """
        key = work.request.model, work.request.profile
        pipeline = self._pipelines.get(key)
        if pipeline is None:
            loaded = " or ".join(f"{model} with the profile {profile}" for model, profile in self._pipelines)
            raise InvalidRequest("model", f"{key[0]} with the profile {key[1]}", loaded)
        pipeline.info.check(work.request, work.width_px, work.height_px)
        generation = Generation(work, pipeline)
        self._scheduler.add(generation, generation.item, now_s)
        self._generations[generation.submitted_digest] = generation
        self._changed.notify_all()
        return generation

    def _run_thread(self, run: Callable[[], None]) -> None:
        """Run a thread's function. If it raises, which is a bug, fail all images and refuse new ones."""
        try:
            run()
        except BaseException as error:  # noqa: BLE001  callers must not wait for a thread that has ended
            structlog.get_logger().exception("an engine thread failed; restart the service")
            with self._changed:
                self._is_closing = self._has_failed = True
                generations = list(self._generations.values())
            for generation in generations:
                message = f"an engine thread failed ({type(error).__name__}: {error}); restart the service"
                self._fail(generation, GenerationFailed(message))

    def _wait_for(self, take: Callable[[], Item | None]) -> Item | None:
        """Wait until `take` returns work, and return the work. Return None if the engine closes and no work is left."""
        with self._changed:
            while (item := take()) is None and not (self._is_closing and not len(self._scheduler)):
                self._changed.wait()
            return item

    def _denoise_batches(self) -> None:
        """Make the steps of one batch after the other until the engine is closed and empty, and learn their costs."""
        while batch := self._wait_for(self._scheduler.next_batch):
            shape, rows = batch.shape, batch.rows
            result = self._executor.step(batch.keys, measure=self._costs.wants_step_bytes(shape, rows))
            for generation, error in result.errors.items():
                self._fail_or_retry(generation, error)
            with self._changed:
                advanced = [generation for generation in batch.keys if generation not in result.errors]
                waiters = [(generation, waiter) for generation in advanced for waiter in generation.waiters]
            report_progress(waiters, self._previews_per_s)
            with self._changed:
                if result.took_s is not None and not result.errors:
                    self._costs.learn_step_time(shape, rows, result.took_s)
                if result.peak_bytes is not None:
                    self._costs.learn_step_bytes(shape, rows, result.peak_bytes)
                if result.was_split and advanced:
                    self._costs.learn_too_many_rows(shape, rows)
                denoised_s = time.monotonic()
                for generation in self._scheduler.finish():
                    generation.denoised_s = denoised_s
                self._changed.notify_all()

    def _decode_images(self) -> None:
        """Decode and deliver one image after the other until the engine is closed and empty, and learn their costs."""
        while generation := self._wait_for(self._scheduler.next_decode):
            shape, began_s = generation.shape, time.monotonic()
            generation.decoding_s = began_s
            measure = self._costs.wants_decode_bytes(shape)
            try:
                pixels, peak_bytes = self._executor.decode(generation, measure=measure)
            except Exception as error:  # noqa: BLE001  an error of a runtime ends this image, not the thread
                self._fail_or_retry(generation, error)
                pixels, peak_bytes = None, None
            took_s = time.monotonic() - began_s
            with self._changed:
                if peak_bytes is not None:
                    self._costs.learn_decode_bytes(shape, peak_bytes)
                if pixels is not None and not measure:  # a measured call is not typical: it is the first of its shape
                    self._costs.learn_decode_time(shape, took_s)
                self._scheduler.decoded()
                self._changed.notify_all()
            if pixels is not None:
                self._deliver(generation, pixels)
                learn_preview(generation, pixels)

    def _remove(self, generation: Generation) -> None:
        """Remove a generation for which no caller waits. The lock must be held."""
        del self._generations[generation.submitted_digest]
        if generation in self._scheduler:
            self._scheduler.cancel(generation)
            self._changed.notify_all()

    def _fail_or_retry(self, generation: Generation, error: Exception) -> None:
        """Retry a generation after a numerical failure if possible. Otherwise, give its callers the error."""
        if not isinstance(error, NumericalFailure) or not self._retry(generation, error):
            self._fail(generation, error)

    def _retry(self, generation: Generation, error: NumericalFailure) -> bool:
        """Count a numerical failure, and restart the generation in the model's widest precision if possible.

        Return whether it was restarted. It is not if no wider precision is loaded, or if no caller waits for it.
        """
        with self._changed:
            self._failures[error.kind] += 1
            retry = generation.retry_with(self._pipelines.values(), error)
            if retry is None or not generation.waiters:
                return False
            self._retried += 1
            self._scheduler.restart(generation, retry, generation.waiters[0].accepted_s, retry.shape)
            retry.waiters, generation.waiters = generation.waiters, []
            self._waited_for.update((waiter.handle, retry) for waiter in retry.waiters)
            self._generations[retry.submitted_digest] = retry
            self._changed.notify_all()
        structlog.get_logger().warning(
            "numerical failure; generating the image again in a wider precision",
            digest=retry.submitted_digest,
            happened=error.happened,
            profile=retry.work.request.profile,
        )
        return True

    def _take_waiters(self, generation: Generation) -> list[Waiter]:
        """Remove a generation that has ended. Return its waiters that were not cancelled, to set their results."""
        with self._changed:
            waiters, generation.waiters = generation.waiters, []
            for waiter in waiters:
                del self._waited_for[waiter.handle]
            if waiters:
                self._remove(generation)
        return [waiter for waiter in waiters if waiter.handle.future.set_running_or_notify_cancel()]

    def _fail(self, generation: Generation, error: Exception) -> None:
        """End a generation with an error."""
        for waiter in self._take_waiters(generation):
            waiter.handle.future.set_exception(as_sd35_error(error))

    def _deliver(self, generation: Generation, pixels: Pixels) -> None:
        """End a generation with its pixels."""
        ended_s = time.monotonic()
        for waiter in self._take_waiters(generation):
            stages = generation.stages(waiter.accepted_s, ended_s)
            waiter.handle.future.set_result(GeneratedImage(generation.work.request, pixels, stages))
