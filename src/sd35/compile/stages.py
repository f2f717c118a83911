"""The stages of a compilation: progress and durations."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[], None]  # a function that reports one more finished step of a stage


class Stages:
    """Times the stages of a compilation, and reports their progress.

    Attributes:
        seconds: The duration of each stage by name. Durations of stages with the same name are added up.

    Args:
        on_progress: Called with a stage's name, the number of finished steps, and the total.
    """

    def __init__(self, on_progress: Callable[[str, int, int], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._on_progress = on_progress

    @contextmanager
    def stage(self, name: str, total: int = 1) -> Iterator[Advance]:
        """Time the `with` block as a stage. The block may call the yielded function after each of its `total` steps."""
        start_s, done = time.perf_counter(), 0
        self._on_progress(name, 0, total)

        def advance() -> None:
            nonlocal done
            done += 1
            self._on_progress(name, done, total)

        yield advance
        if done < total:  # for example, a result from the cache takes no steps
            self._on_progress(name, total, total)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start_s
