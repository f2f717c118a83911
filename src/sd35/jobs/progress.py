"""Progress of a job as a sequence of numbered events, so that a client can resume after it lost its connection.

The number of an event depends only on its content: 0 for queued, 1 for running, 1 + i after step i, and `END` when the
job has ended. Numbers therefore mean the same after a restart, and no history of events has to be stored.
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

END = 2 + STEPS[1]  # more than the number of any step: STEPS[1] is the largest allowed number of steps


@dataclass(frozen=True)
class Event:
    """A change of a job.

    Attributes:
        number: Number of the event.
        status: Status of the job.
        position: If the job is queued, the number of jobs ahead of it.
        done: If the job is running, the number of its finished steps.
        steps: If the job is running, the number of all its steps.
        remaining_s: Estimated time until the last step is finished, in seconds. None if unknown.
        preview: Returns the pixels of a preview of the image. None if there is no preview.
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
    """The latest event of a running job, for any number of listeners. Only for use in the event loop.

    Attributes:
        previews: Whether a listener has requested previews.
        digest: Digest of the request that is being generated. None before the generation starts.
        latest: The latest event. None before the first event and after the end.
    """

    def __init__(self) -> None:
        self.previews = False
        self.digest: str | None = None
        self.latest: Event | None = None
        self._first: tuple[int, float] | None = None  # number of the first finished step, and its time in seconds
        self._changed = asyncio.Event()  # set at the next event, then replaced

    def begin(self, steps: int) -> None:
        """Publish that the job is running."""
        self._publish(Event(1, Status.RUNNING, steps=steps))

    def step(self, progress: ImageProgress) -> None:
        """Publish a finished step. The remaining time is estimated from the steps since the first one."""
        now_s = time.monotonic()
        if self._first is None or progress.step <= self._first[0]:  # the first step, also of a second attempt
            self._first = progress.step, now_s
        done, since_s = progress.step - self._first[0], now_s - self._first[1]
        remaining_s = (progress.steps - progress.step) * since_s / done if done else None
        number = 1 + progress.step
        self._publish(Event(number, Status.RUNNING, 0, progress.step, progress.steps, remaining_s, progress.preview))

    def end(self) -> None:
        """Wake the listeners, because this process no longer runs the job. No more events follow."""
        self._publish(None)

    async def changed(self, timeout_s: float) -> None:
        """Wait until the next event, or for at most `timeout_s` seconds. Returns nothing: see `latest`."""
        changed = self._changed
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):  # before Python 3.12, wait_for may swallow a cancellation
                await changed.wait()

    def _publish(self, event: Event | None) -> None:
        """Set the latest event, and wake the listeners."""
        self.latest = event
        self._changed.set()
        self._changed = asyncio.Event()
