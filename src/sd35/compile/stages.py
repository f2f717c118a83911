"""The stages of a compilation: progress and durations."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[], None]


class Stages:
    """Times the stages of a compilation. `on_progress` gets a stage's name, the steps done, and the total."""

    def __init__(self, on_progress: Callable[[str, int, int], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._on_progress = on_progress

    @contextmanager
    def stage(self, name: str, total: int = 1) -> Iterator[Advance]:
        """Time the body of a `with` statement. The body calls the yielded function after each of `total` steps."""
        start_s, done = time.perf_counter(), 0
        self._on_progress(name, 0, total)

        def advance() -> None:
            nonlocal done
            done += 1
            self._on_progress(name, done, total)

        yield advance
        if done < total:
            self._on_progress(name, total, total)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start_s
