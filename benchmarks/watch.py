"""A process's memory, read again and again until it ends; Linux only.

`resident` is all physical memory it holds (VmHWM). `own` is that without pages mapped from files, which the system
takes back whenever memory runs short: what a limit has to be held against.
"""

import os
import re
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_LINE = re.compile(r"(\w+):\s+(\d+) kB")


class Peaks(NamedTuple):
    """The most memory of each kind at once."""

    resident_bytes: int
    own_bytes: int


class Watch(threading.Thread):
    """Watches a process until `finish`; kills it where its own memory exceeds the limit or the machine runs short.

    `reason` says why it was killed, if it was. Without limits it only looks.
    """

    def __init__(
        self, pid: int, *, every_s: float = 0.005, most_own_bytes: int | None = None, least_free_bytes: int = 0
    ) -> None:
        super().__init__(daemon=True)
        self.reason = ""
        self._pid, self._every_s = pid, every_s
        self._most_own, self._least_free = most_own_bytes, least_free_bytes
        self._status, self._ended = Path(f"/proc/{pid}/status"), threading.Event()
        self._peaks = Peaks(0, 0)

    def run(self) -> None:
        """Until `finish`."""
        while True:
            with suppress(OSError):  # it has ended
                self._look()
            if self._ended.wait(self._every_s):
                return

    def finish(self) -> Peaks:
        """The highest peaks. The peak of all resident memory is exact up to the last look."""
        self._ended.set()
        self.join()
        return self._peaks

    def _look(self) -> None:
        found = _kilobytes(self._status)
        own = 1024 * (found.get("RssAnon", 0) + found.get("RssShmem", 0))
        self._peaks = Peaks(max(self._peaks[0], 1024 * found.get("VmHWM", 0)), max(self._peaks[1], own))
        if self.reason:
            return
        if self._most_own and own > self._most_own:
            self._kill(f"it took more than {self._most_own / 2**30:.1f} GiB of memory of its own")
        elif self._least_free and (free := 1024 * _kilobytes(Path("/proc/meminfo"))["MemAvailable"]) < self._least_free:
            self._kill(f"it had {own / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB were left of the machine's memory")

    def _kill(self, reason: str) -> None:
        self.reason = reason
        os.kill(self._pid, signal.SIGKILL)


def _kilobytes(file: Path) -> dict[str, int]:
    return {name: int(size) for name, size in _LINE.findall(file.read_text(encoding="utf-8"))}
