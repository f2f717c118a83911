"""How far a job is, as whoever follows it is told: numbered, so that who was cut off goes on where it was.

A number follows from what it says (0 queued, 1 running, 1 + i after step i, the last one ended), so that it means the
same after a restart, and nothing has to be kept of what was told.
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
    """What changed. `place` is of a queued job; `done` of `steps` and `left_s` of a running one."""

    number: int
    status: Status
    place: int = 0
    done: int = 0
    steps: int = 0
    left_s: float | None = None
    preview: Callable[[], Pixels] | None = None
    job: Job | None = None


class JobProgress:
    """The newest event of a job, for any number of followers. Only the event loop uses it.

    `previews`: some follower wants previews. `digest`: of the request that runs, once it does.
    """

    def __init__(self) -> None:
        self.previews = False
        self.digest: str | None = None
        self.latest: Event | None = None
        self._first: tuple[int, float] | None = None
        self._changed = asyncio.Event()

    def begin(self, steps: int) -> None:
        """It is running."""
        self._tell(Event(1, Status.RUNNING, steps=steps))

    def step(self, progress: ImageProgress) -> None:
        """A step was made. What is left follows from the steps since the first, which comes after the text."""
        now_s = time.monotonic()
        if self._first is None or progress.step <= self._first[0]:
            self._first = progress.step, now_s
        done, since_s = progress.step - self._first[0], now_s - self._first[1]
        left_s = (progress.steps - progress.step) * since_s / done if done else None
        number = 1 + progress.step
        self._tell(Event(number, Status.RUNNING, 0, progress.step, progress.steps, left_s, progress.preview))

    def end(self) -> None:
        """Nothing more comes: the job has ended, or was handed back."""
        self._tell(None)

    async def changed(self, timeout_s: float) -> None:
        """Wait for the next event, for at most `timeout_s`."""
        changed = self._changed
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):  # before Python 3.12, wait_for may swallow a cancellation
                await changed.wait()

    def _tell(self, event: Event | None) -> None:
        self.latest = event
        self._changed.set()
        self._changed = asyncio.Event()
