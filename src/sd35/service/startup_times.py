"""What a start takes, by phase, measured where it happens."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias

StartPhase: TypeAlias = Literal["import", "plan", "read", "place", "compile", "warm"]


class StartupTimes:
    """Seconds of each phase.

    "import": from the process's start, and the backend's libraries. "plan": finding checkpoints, fetching one for
    `auto`, the memory plan. "read" and "place": weights into memory, and to the device. "compile": graphs, with their
    weights where a runtime reads while it compiles. "warm": the first images.
    """

    def __init__(self, imported_s: float = 0.0) -> None:
        self.seconds: dict[str, float] = {"import": imported_s}

    @contextmanager
    def phase(self, name: StartPhase) -> Iterator[None]:
        """Count what happens inside."""
        began_s = time.perf_counter()
        yield
        self.add({name: time.perf_counter() - began_s})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count what was measured elsewhere."""
        for name, more_s in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + more_s
