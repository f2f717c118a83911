"""The durations of the phases of a start."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias

StartPhase: TypeAlias = Literal["import", "plan", "read", "place", "compile", "warm"]


class StartupTimes:
    """The seconds that each phase of a start took.

    - "import": from the start of the process until the backend's libraries are imported.
    - "plan": find checkpoints, download one for the checkpoint `auto`, and plan memory.
    - "read": read weights into memory.
    - "place": copy weights to the device.
    - "compile": compile graphs. Some runtimes also read the weights in this phase.
    - "warm": generate the first images.
    """

    def __init__(self, imported_s: float = 0.0) -> None:
        self.seconds: dict[str, float] = {"import": imported_s}

    @contextmanager
    def phase(self, name: StartPhase) -> Iterator[None]:
        """Add the duration of the `with` block to a phase."""
        began_s = time.perf_counter()
        yield
        self.add({name: time.perf_counter() - began_s})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add seconds by phase that were measured elsewhere."""
        for name, more_s in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + more_s
