"""Progress of a job as a sequence of numbered events, so that a client can resume after it lost its connection.

The number of an event depends only on its content: 0 for queued, 1 for running, 1 + i after step i, and `END` for the
end. Numbers therefore have the same meaning after a restart, and no history of events has to be stored.
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
        preview: Renders a preview of the image. None if there is no preview.
        job: The job if it has ended, else None.
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
    """The latest event of a running job, for any number of listeners. For the event loop only.

    Attributes:
        previews: Whether a listener has requested previews.
        digest: Digest of the request that is being generated. None before the generation starts.
        latest: The latest event. None before the first event and after the end.
    """

    def __init__(self) -> None:
        self.previews = False
        self.digest: str | None = None
        self.latest: Event | None = None
        self._first: tuple[int, float] | None = None  # number and time of the first finished step
        self._changed = asyncio.Event()

    def begin(self, steps: int) -> None:
        """Publish that the job is running."""
        self._publish(Event(1, Status.RUNNING, steps=steps))

    def step(self, progress: ImageProgress) -> None:
        """Publish a finished step. The remaining time is estimated from the steps since the first one."""
        now_s = time.monotonic()
        if self._first is None or progress.step <= self._first[0]:
            self._first = progress.step, now_s
        done, since_s = progress.step - self._first[0], now_s - self._first[1]
        remaining_s = (progress.steps - progress.step) * since_s / done if done else None
        number = 1 + progress.step
        self._publish(Event(number, Status.RUNNING, 0, progress.step, progress.steps, remaining_s, progress.preview))

    def end(self) -> None:
        """Wake the listeners because the job has ended or was released. No more events follow."""
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
