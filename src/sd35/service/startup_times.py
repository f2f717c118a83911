"""The durations of the phases of a start."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias

StartPhase: TypeAlias = Literal["import", "plan", "read", "place", "compile", "warm"]


class StartupTimes:
    """Seconds by phase.

    - "import": from the start of the process until the backend's libraries are imported.
    - "plan": finding checkpoints, downloading one for `auto`, planning memory.
    - "read": weights into memory. "place": weights onto the device.
    - "compile": graphs, with their weights if the runtime reads them while it compiles.
    - "warm": the first images.
    """

    def __init__(self, imported_s: float = 0.0) -> None:
        self.seconds: dict[str, float] = {"import": imported_s}

    @contextmanager
    def phase(self, name: StartPhase) -> Iterator[None]:
        """Add the time of the block to a phase."""
        began_s = time.perf_counter()
        yield
        self.add({name: time.perf_counter() - began_s})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add times that were measured elsewhere."""
        for name, more_s in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + more_s
