"""The one thread of a device: it takes the next picture, makes it step by step, and hands out progress and the result.

A picture that fails or is cancelled ends alone; the thread goes on with the next.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from typing import NamedTuple, TypeAlias

from sd35.engine.fifo import Fifo
from sd35.engine.painter import Painter, Pixels, Task
from sd35.errors import NotReady, PictureFailed, Sd35Error

OnStep: TypeAlias = Callable[[int], None]
"""Called on the device's thread after each step, with how many are done; it must be quick and must not raise."""

_CLOSING_RETRY_S = 5.0


class Painted(NamedTuple):
    """A finished picture: its pixels at the drawn size, how long it waited, and how long it took."""

    pixels: Pixels
    waited_s: float
    took_s: float


class Ticket:
    """A picture that was accepted. `future` ends with `Painted`, PictureFailed or CancelledError, exactly once."""

    def __init__(self, task: Task, on_step: OnStep | None, accepted_s: float) -> None:
        self.task = task
        self.on_step = on_step
        self.accepted_s = accepted_s
        self.future: Future[Painted] = Future()
        self.is_cancelled = False


class Engine:
    """Makes pictures, one at a time, in the order they came. `painters` are found by the model's name."""

    def __init__(self, painters: Mapping[str, Painter], max_waiting: int) -> None:
        self._painters = painters
        self._queue: Fifo[Ticket] = Fifo(max_waiting)
        self._running: Ticket | None = None
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def submit(self, task: Task, on_step: OnStep | None = None) -> Ticket:
        """Accept a picture. Raises Overloaded where the queue is full, NotReady after `drain` or `close`."""
        assert task.request.model in self._painters, task.request.model
        with self._changed:
            if self._is_closing:
                raise NotReady("closing", _CLOSING_RETRY_S)
            ticket = Ticket(task, on_step, time.monotonic())
            self._queue.add(ticket)
            self._changed.notify_all()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a picture: at once where it waits, before its next step where it is made. Once it ended, nothing."""
        with self._changed:
            ticket.is_cancelled = True
            waited = self._queue.cancel(ticket)
        if waited:
            ticket.future.cancel()

    def drain(self) -> None:
        """Accept nothing more, finish what was accepted, and end the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()

    def close(self) -> None:
        """Accept nothing more, cancel what was accepted, and end the thread."""
        with self._changed:
            self._is_closing = True
            unfinished = [self._running] if self._running else []
            while ticket := self._queue.next():
                unfinished.append(ticket)
            for ticket in unfinished:
                ticket.is_cancelled = True
            self._changed.notify_all()
        for ticket in unfinished:
            ticket.future.cancel()  # of no effect on the one being made, which sees `is_cancelled`
        self._thread.join()

    def _run(self) -> None:
        while ticket := self._take():
            if ticket.future.set_running_or_notify_cancel():
                self._make(ticket)

    def _take(self) -> Ticket | None:
        """Wait for the next picture; None when closing and none is left."""
        with self._changed:
            self._running = None
            self._changed.wait_for(lambda: len(self._queue) or self._is_closing)
            self._running = self._queue.next()
            return self._running

    def _make(self, ticket: Ticket) -> None:
        started_s = time.monotonic()
        try:
            pixels = self._paint(ticket)
        except (CancelledError, Sd35Error) as error:
            ticket.future.set_exception(error)
        except Exception as error:  # noqa: BLE001  whatever a runtime raises is this picture's failure, not the thread's
            failure = PictureFailed(f"{type(error).__name__}: {error}")
            failure.__cause__ = error
            ticket.future.set_exception(failure)
        else:
            took_s = time.monotonic() - started_s
            with self._changed:
                self._queue.finish(took_s)
            ticket.future.set_result(Painted(pixels, started_s - ticket.accepted_s, took_s))

    def _paint(self, ticket: Ticket) -> Pixels:
        steps = self._painters[ticket.task.request.model].paint(ticket.task)
        while not ticket.is_cancelled:
            try:
                done = next(steps)
            except StopIteration as end:
                pixels: Pixels = end.value
                return pixels
            if ticket.on_step:
                ticket.on_step(done)
        raise CancelledError
