"""Progress of a job as a sequence of numbered events, so that a client that lost its connection can resume.

The number of an event follows from its content: 0 queued, 1 running, 1 + i after step i, and `END` at the end. Numbers
therefore mean the same after a restart, and no history of events is kept.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from sd35.engine.base import Pixels
from sd35.generation.service import ImageProgress
from sd35.request import STEPS
from sd35.storage.jobs import Job, Status

END = 2 + STEPS[1]


@dataclass(frozen=True)
class Event:
    """A change of a job.

    Attributes:
        number: Number of the event.
        status: Status of the job.
        position: Number of jobs ahead of a queued job.
        done: Number of finished steps of a running job.
        steps: Number of all steps of a running job.
        remaining_s: Estimated time to the last step, in seconds. None if unknown.
        preview: Renders a preview of the image, if there is one.
        job: The job, if it has ended.
    """

    number: int
    status: Status
    position: int = 0
    done: int = 0
    steps: int = 0
    remaining_s: float | None = None
    preview: Callable[[], Pixels] | None = None
    job: Job | None = None


class JobProgress:
    """The latest event of a running job, for any number of listeners. Only for the event loop.

    `previews`: a listener wants previews. `digest`: that of the request, once it is generated.
    """

    def __init__(self) -> None:
        self.previews = False
        self.digest: str | None = None
        self.latest: Event | None = None
        self._first: tuple[int, float] | None = None  # steps and time of the first progress
        self._changed = asyncio.Event()

    def begin(self, steps: int) -> None:
        """Publish that the job is running."""
        self._publish(Event(1, Status.RUNNING, steps=steps))

    def step(self, progress: ImageProgress) -> None:
        """Publish a finished step. Estimates the remaining time from the steps since the first one."""
        now_s = time.monotonic()
        if self._first is None or progress.step <= self._first[0]:
            self._first = progress.step, now_s
        done, since_s = progress.step - self._first[0], now_s - self._first[1]
        remaining_s = (progress.steps - progress.step) * since_s / done if done else None
        number = 1 + progress.step
        self._publish(Event(number, Status.RUNNING, 0, progress.step, progress.steps, remaining_s, progress.preview))

    def end(self) -> None:
        """Wake the listeners: the job has ended or was released, so no event follows here."""
        self._publish(None)

    async def changed(self, timeout_s: float) -> None:
        """Wait for the next event, for at most `timeout_s`."""
        changed = self._changed
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):  # before Python 3.12, wait_for may swallow a cancellation
                await changed.wait()

    def _publish(self, event: Event | None) -> None:
        self.latest = event
        self._changed.set()
        self._changed = asyncio.Event()
