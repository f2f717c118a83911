"""A device's engine: one thread that denoises in batches by step, one that decodes beside it.

Every image ends once: with its pixels, its own error, or cancelled. What fails or leaves does no harm to the rest of
its batch. Requests of one digest are one image, which all of them wait for. One whose values go bad is begun anew,
once, where the same model is there in a wider precision.
"""

import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import structlog

from sd35.engine.cost_model import CostModel
from sd35.engine.executor import BatchExecutor
from sd35.engine.generation import GeneratedImage, Generation, Handle, OnProgress, Pipeline, Pixels, Task
from sd35.engine.observer import Observer
from sd35.engine.prompt_cache import EmbeddingCache
from sd35.engine.scheduler import DeviceLimits, Scheduler, WorkItem
from sd35.errors import GenerationFailed, NotReady, NumericalFailure, NumericalFailureKind, Sd35Error
from sd35.tensors import to_numpy

Item = TypeVar("Item")

CLOSING_RETRY_S = 5.0


class Load(NamedTuple):
    """Images that wait for their first step, those that are on their way, and the seconds of work left in both.

    `used_bytes`: working memory that a step and a decoding have now.
    """

    waiting: int
    running: int
    backlog_s: float
    used_bytes: int


class Engine:
    """Makes images; pipelines are found by model and profile, and more can be added while it runs.

    `spoiled` counts images whose values went bad, by how, and `retried` those of them that were begun anew.

    With `reproducible`, every backend call holds one prompt or image, so that an image's bytes do not depend on its
    company: with another number of rows, a runtime may add up in another order.
    """

    def __init__(
        self,
        pipelines: Mapping[tuple[str, str], Pipeline],
        limits: DeviceLimits,
        embeddings: EmbeddingCache,
        *,
        reproducible: bool,
    ) -> None:
        self._painters = dict(pipelines)
        self.limits = limits
        self.numerical_failures: dict[NumericalFailureKind, int] = {"not_finite": 0, "uniform": 0}
        self.retried = 0
        self._calls = BatchExecutor(embeddings, reproducible=reproducible)
        self._costs = CostModel()
        self._scheduler: Scheduler[Generation] = Scheduler(limits, self._costs)
        self._generations: dict[str, Generation] = {}  # by digest, for as long as someone waits
        self._is_closing = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._guarded, args=(run,), name=name, daemon=True)
            for name, run in (("denoising", self._denoise), ("decoding", self._decode))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def load(self) -> Load:
        """What it has to do now."""
        with self._changed:
            scheduler = self._scheduler
            waiting = sum(not generation.has_begun for generation in self._generations.values())
            return Load(waiting, len(self._generations) - waiting, scheduler.backlog_s, scheduler.used_bytes)

    @property
    def is_running(self) -> bool:
        """Whether it accepts images: not after `drain` or `close`, nor after it broke."""
        return not self._is_closing

    def observe(self, observer: Observer) -> None:
        """Tell `observer`, and no other, of the work from now on."""
        self._calls.observer = observer

    def add(self, model: str, profile: str, pipeline: Pipeline) -> None:
        """From now on, make images of this model and profile too."""
        with self._changed:
            self._painters[model, profile] = pipeline

    def submit(
        self, task: Task, on_progress: OnProgress | None = None, *, client: Hashable = None, priority: int = 0
    ) -> Handle:
        """Accept an image, or join one of the same digest, which keeps its client and priority.

        Raises InvalidRequest for what can never be made here, Overloaded for not now, NotReady after `drain` or
        `close`.
        """
        now_s = time.monotonic()
        with self._changed:
            if self._is_closing:
                raise NotReady("closing", CLOSING_RETRY_S)
            generation = self._generations.get(task.request.digest)
            if generation is None:
                pipeline = self._painters[task.pipeline]
                pipeline.check(task)
                generation = Generation(task, pipeline)
                job = WorkItem(client, task.shape, task.request.steps, 2 if len(task.prompts) == 2 else 1, priority)
                self._scheduler.add(generation, job, now_s)
                self._generations[generation.asked] = generation
                self._changed.notify_all()
            handle = Handle(generation, on_progress, now_s)
            generation.handles.append(handle)
        return handle

    def cancel(self, handle: Handle) -> None:
        """End a wait; with the last one ends the image, before its next step. Once it ended, nothing."""
        with self._changed:
            generation = handle.generation
            if handle in generation.handles:
                generation.handles.remove(handle)
                if not generation.handles:
                    self._remove(generation)
        handle.future.cancel()

    def drain(self) -> None:
        """Accept nothing more, finish what was accepted, and end the threads."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def close(self) -> None:
        """Accept nothing more, cancel what was accepted, and end the threads."""
        with self._changed:
            self._is_closing = True
            handles = [handle for generation in self._generations.values() for handle in generation.handles]
        for handle in handles:
            self.cancel(handle)
        self.drain()

    def _guarded(self, run: Callable[[], None]) -> None:
        """Run a thread. Where it breaks, by our mistake, nobody waits for ever: all end, and no more is accepted."""
        try:
            run()
        except BaseException as error:  # noqa: BLE001  as said
            structlog.get_logger().exception("the engine broke")
            with self._changed:
                self._is_closing = True
                generations = list(self._generations.values())
            for generation in generations:
                self._fail(generation, GenerationFailed(f"the engine broke: {type(error).__name__}: {error}"))

    def _next(self, take: Callable[[], Item | None]) -> Item | None:
        """Wait for work; None when closing and no image is left."""
        with self._changed:
            while (item := take()) is None and not (self._is_closing and not len(self._scheduler)):
                self._changed.wait()
            return item

    def _denoise(self) -> None:
        while batch := self._next(self._scheduler.next_batch):
            shape, rows = batch.shape, batch.rows
            on_step_done = self._calls.step(batch.keys, measure=self._costs.wants_step_bytes(shape, rows))
            for generation, error in on_step_done.errors.items():
                self._fail_or_retry(generation, error)
            self._report([generation for generation in batch.keys if generation not in on_step_done.errors])
            with self._changed:
                if on_step_done.took_s is not None and not on_step_done.errors:
                    self._costs.learn_step_time(shape, rows, on_step_done.took_s)
                if on_step_done.peak_bytes is not None:
                    self._costs.learn_step_bytes(shape, rows, on_step_done.peak_bytes)
                if on_step_done.was_split and len(batch.keys) > len(on_step_done.errors):
                    self._costs.learn_too_many_rows(shape, rows)
                drawn_s = time.monotonic()
                for generation in self._scheduler.finish():
                    generation.drawn_s = drawn_s
                self._changed.notify_all()

    def _decode(self) -> None:
        while generation := self._next(self._scheduler.next_decode):
            shape, began_s = generation.task.shape, time.monotonic()
            generation.decoding_s = began_s
            measure = self._costs.wants_decode_bytes(shape)
            try:
                pixels, peak_bytes = self._calls.decode(generation, measure=measure)
            except Exception as error:  # noqa: BLE001  whatever a runtime raises is this image's end, not the thread's
                self._fail_or_retry(generation, error)
                pixels, peak_bytes = None, None
            took_s = time.monotonic() - began_s
            with self._changed:
                if peak_bytes is not None:
                    self._costs.learn_decode_bytes(shape, peak_bytes)
                if pixels is not None and not measure:
                    self._costs.learn_decode_time(shape, took_s)
                self._scheduler.decoded()
                self._changed.notify_all()
            if pixels is not None:
                self._deliver(generation, pixels)
                generation.pipeline.preview.learn(to_numpy(generation.latent), pixels)

    def _remove(self, generation: Generation) -> None:
        """Take out an image that nobody waits for any more; the lock is held."""
        del self._generations[generation.asked]
        if generation in self._scheduler:
            self._scheduler.cancel(generation)
            self._changed.notify_all()

    def _fail_or_retry(self, generation: Generation, error: Exception) -> None:
        if not isinstance(error, NumericalFailure) or not self._restart(generation, error):
            self._fail(generation, error)

    def _restart(self, generation: Generation, error: NumericalFailure) -> bool:
        """Count a spoiled image, and begin it anew in the widest precision there is; whether that could be done."""
        with self._changed:
            self.numerical_failures[error.kind] += 1
            again = generation.retry_with(self._painters, error)
            if again is None or not generation.handles:
                return False
            self.retried += 1
            self._scheduler.restart(generation, again, generation.handles[0].accepted_s, again.task.shape)
            again.handles, generation.handles = generation.handles, []
            for handle in again.handles:
                handle.generation = again
            self._generations[again.asked] = again
            self._changed.notify_all()
        log = structlog.get_logger()
        log.warning("image spoiled, made again", digest=again.asked, happened=error.happened, by=again.task.pipeline[1])
        return True

    def _release(self, generation: Generation) -> list[Handle]:
        """Those who wait for an image, which ends now."""
        with self._changed:
            handles, generation.handles = generation.handles, []
            if handles:
                self._remove(generation)
        return [handle for handle in handles if handle.future.set_running_or_notify_cancel()]

    def _fail(self, generation: Generation, error: Exception) -> None:
        for handle in self._release(generation):
            handle.future.set_exception(_own_error(error))

    def _deliver(self, generation: Generation, pixels: Pixels) -> None:
        ended_s = time.monotonic()
        for handle in self._release(generation):
            stages = generation.stages(handle.accepted_s, ended_s)
            handle.future.set_result(GeneratedImage(generation.task.request, pixels, stages))

    def _report(self, generations: Sequence[Generation]) -> None:
        with self._changed:
            told = [(handle.on_progress, generation) for generation in generations for handle in generation.handles]
        for listener, generation in told:
            if listener:
                try:
                    listener(generation.progress())
                except Exception:  # noqa: BLE001  a listener's mistake is nobody's image
                    structlog.get_logger().exception("a listener to an image's progress failed")


def _own_error(error: Exception) -> Sd35Error:
    if isinstance(error, Sd35Error):
        return error
    failure = GenerationFailed(f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
