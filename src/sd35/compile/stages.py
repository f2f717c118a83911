"""The stages of a compilation: which one runs and how far it is, and what each took."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[], None]


class Stages:
    """Seconds of each stage, in order; `on_progress` hears of a stage's name, of what is done and of all there is."""

    def __init__(self, on_progress: Callable[[str, int, int], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._on_progress = on_progress

    @contextmanager
    def stage(self, name: str, total: int = 1) -> Iterator[Advance]:
        """Time what happens inside; it calls what it gets for each of `total` equal shares."""
        began_s, done = time.perf_counter(), 0
        self._on_progress(name, 0, total)

        def advance() -> None:
            nonlocal done
            done += 1
            self._on_progress(name, done, total)

        yield advance
        if done < total:
            self._on_progress(name, total, total)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began_s
