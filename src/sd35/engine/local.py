"""A device's engine: one thread that denoises in batches by step, one that decodes beside it.

Every picture ends once: with its pixels, its own error, or cancelled. What fails or leaves does no harm to the rest of
its batch. Requests of one digest are one picture, which all of them wait for. One whose values go bad is begun anew,
once, where the same model is there in a wider precision.
"""

import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import structlog

from sd35.engine.cost_model import Costs
from sd35.engine.executor import Calls
from sd35.engine.generation import OnProgress, Painted, Painter, Picture, Pixels, Task, Ticket
from sd35.engine.observer import Observer
from sd35.engine.prompt_cache import EmbeddingCache
from sd35.engine.scheduler import Job, Limits, Scheduler
from sd35.errors import NotReady, PictureFailed, PictureSpoiled, Sd35Error, Spoiling
from sd35.tensors import to_numpy

Item = TypeVar("Item")

CLOSING_RETRY_S = 5.0


class Load(NamedTuple):
    """Pictures that wait for their first step, those that are on their way, and the seconds of work left in both.

    `used_bytes`: working memory that a step and a decoding have now.
    """

    waiting: int
    running: int
    backlog_s: float
    used_bytes: int


class Engine:
    """Makes pictures; painters are found by model and profile, and more can be added while it runs.

    `spoiled` counts pictures whose values went bad, by how, and `retried` those of them that were begun anew.

    With `reproducible`, every backend call holds one prompt or picture, so that a picture's bytes do not depend on its
    company: with another number of rows, a runtime may add up in another order.
    """

    def __init__(
        self,
        painters: Mapping[tuple[str, str], Painter],
        limits: Limits,
        embeddings: EmbeddingCache,
        *,
        reproducible: bool,
    ) -> None:
        self._painters = dict(painters)
        self.limits = limits
        self.spoiled: dict[Spoiling, int] = {"not_finite": 0, "uniform": 0}
        self.retried = 0
        self._calls = Calls(embeddings, reproducible=reproducible)
        self._costs = Costs()
        self._scheduler: Scheduler[Picture] = Scheduler(limits, self._costs)
        self._pictures: dict[str, Picture] = {}  # by digest, for as long as someone waits
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
            waiting = sum(not picture.has_begun for picture in self._pictures.values())
            return Load(waiting, len(self._pictures) - waiting, scheduler.backlog_s, scheduler.used_bytes)

    @property
    def is_running(self) -> bool:
        """Whether it accepts pictures: not after `drain` or `close`, nor after it broke."""
        return not self._is_closing

    def observe(self, observer: Observer) -> None:
        """Tell `observer`, and no other, of the work from now on."""
        self._calls.observer = observer

    def add(self, model: str, profile: str, painter: Painter) -> None:
        """From now on, make pictures of this model and profile too."""
        with self._changed:
            self._painters[model, profile] = painter

    def submit(
        self, task: Task, on_progress: OnProgress | None = None, *, client: Hashable = None, priority: int = 0
    ) -> Ticket:
        """Accept a picture, or join one of the same digest, which keeps its client and priority.

        Raises InvalidRequest for what can never be made here, Overloaded for not now, NotReady after `drain` or
        `close`.
        """
        now_s = time.monotonic()
        with self._changed:
            if self._is_closing:
                raise NotReady("closing", CLOSING_RETRY_S)
            picture = self._pictures.get(task.request.digest)
            if picture is None:
                painter = self._painters[task.painter]
                painter.check(task)
                picture = Picture(task, painter)
                job = Job(client, task.shape, task.request.steps, 2 if len(task.prompts) == 2 else 1, priority)
                self._scheduler.add(picture, job, now_s)
                self._pictures[picture.asked] = picture
                self._changed.notify_all()
            ticket = Ticket(picture, on_progress, now_s)
            picture.tickets.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a wait; with the last one ends the picture, before its next step. Once it ended, nothing."""
        with self._changed:
            picture = ticket.picture
            if ticket in picture.tickets:
                picture.tickets.remove(ticket)
                if not picture.tickets:
                    self._remove(picture)
        ticket.future.cancel()

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
            tickets = [ticket for picture in self._pictures.values() for ticket in picture.tickets]
        for ticket in tickets:
            self.cancel(ticket)
        self.drain()

    def _guarded(self, run: Callable[[], None]) -> None:
        """Run a thread. Where it breaks, by our mistake, nobody waits for ever: all end, and no more is accepted."""
        try:
            run()
        except BaseException as error:  # noqa: BLE001  as said
            structlog.get_logger().exception("the engine broke")
            with self._changed:
                self._is_closing = True
                pictures = list(self._pictures.values())
            for picture in pictures:
                self._fail(picture, PictureFailed(f"the engine broke: {type(error).__name__}: {error}"))

    def _next(self, take: Callable[[], Item | None]) -> Item | None:
        """Wait for work; None when closing and no picture is left."""
        with self._changed:
            while (item := take()) is None and not (self._is_closing and not len(self._scheduler)):
                self._changed.wait()
            return item

    def _denoise(self) -> None:
        while batch := self._next(self._scheduler.next_batch):
            shape, rows = batch.shape, batch.rows
            stepped = self._calls.step(batch.keys, measure=self._costs.wants_step_bytes(shape, rows))
            for picture, error in stepped.errors.items():
                self._fail_or_retry(picture, error)
            self._report([picture for picture in batch.keys if picture not in stepped.errors])
            with self._changed:
                if stepped.took_s is not None and not stepped.errors:
                    self._costs.learn_step_time(shape, rows, stepped.took_s)
                if stepped.peak_bytes is not None:
                    self._costs.learn_step_bytes(shape, rows, stepped.peak_bytes)
                if stepped.was_split and len(batch.keys) > len(stepped.errors):
                    self._costs.learn_too_many_rows(shape, rows)
                drawn_s = time.monotonic()
                for picture in self._scheduler.finish():
                    picture.drawn_s = drawn_s
                self._changed.notify_all()

    def _decode(self) -> None:
        while picture := self._next(self._scheduler.next_decode):
            shape, began_s = picture.task.shape, time.monotonic()
            picture.decoding_s = began_s
            measure = self._costs.wants_decode_bytes(shape)
            try:
                pixels, peak_bytes = self._calls.decode(picture, measure=measure)
            except Exception as error:  # noqa: BLE001  whatever a runtime raises is this picture's end, not the thread's
                self._fail_or_retry(picture, error)
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
                self._deliver(picture, pixels)
                picture.painter.preview.learn(to_numpy(picture.latent), pixels)

    def _remove(self, picture: Picture) -> None:
        """Take out a picture that nobody waits for any more; the lock is held."""
        del self._pictures[picture.asked]
        if picture in self._scheduler:
            self._scheduler.cancel(picture)
            self._changed.notify_all()

    def _fail_or_retry(self, picture: Picture, error: Exception) -> None:
        if not isinstance(error, PictureSpoiled) or not self._begin_anew(picture, error):
            self._fail(picture, error)

    def _begin_anew(self, picture: Picture, error: PictureSpoiled) -> bool:
        """Count a spoiled picture, and begin it anew in the widest precision there is; whether that could be done."""
        with self._changed:
            self.spoiled[error.kind] += 1
            again = picture.again(self._painters, error)
            if again is None or not picture.tickets:
                return False
            self.retried += 1
            self._scheduler.begin_anew(picture, again, picture.tickets[0].accepted_s, again.task.shape)
            again.tickets, picture.tickets = picture.tickets, []
            for ticket in again.tickets:
                ticket.picture = again
            self._pictures[again.asked] = again
            self._changed.notify_all()
        log = structlog.get_logger()
        log.warning(
            "picture spoiled, made again", digest=again.asked, happened=error.happened, by=again.task.painter[1]
        )
        return True

    def _release(self, picture: Picture) -> list[Ticket]:
        """Those who wait for a picture, which ends now."""
        with self._changed:
            tickets, picture.tickets = picture.tickets, []
            if tickets:
                self._remove(picture)
        return [ticket for ticket in tickets if ticket.future.set_running_or_notify_cancel()]

    def _fail(self, picture: Picture, error: Exception) -> None:
        for ticket in self._release(picture):
            ticket.future.set_exception(_own_error(error))

    def _deliver(self, picture: Picture, pixels: Pixels) -> None:
        ended_s = time.monotonic()
        for ticket in self._release(picture):
            stages = picture.stages(ticket.accepted_s, ended_s)
            ticket.future.set_result(Painted(picture.task.request, pixels, stages))

    def _report(self, pictures: Sequence[Picture]) -> None:
        with self._changed:
            told = [(ticket.on_progress, picture) for picture in pictures for ticket in picture.tickets]
        for listener, picture in told:
            if listener:
                try:
                    listener(picture.progress())
                except Exception:  # noqa: BLE001  a listener's mistake is nobody's picture
                    structlog.get_logger().exception("a listener to a picture's progress failed")


def _own_error(error: Exception) -> Sd35Error:
    if isinstance(error, Sd35Error):
        return error
    failure = PictureFailed(f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
