"""Watches the memory of a process until it ends, and can enforce a limit. Linux only.

`resident` is its peak physical memory (VmHWM). `own` excludes pages mapped from files, which the system can drop when
memory runs short, so limits apply to it. The monitor of
`sd35.bench` samples a whole server a few times a second; this one reads only two files, so it can follow peaks of a few
milliseconds.
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
    """The peak of each kind of memory."""

    resident_bytes: int
    own_bytes: int


class MemoryWatch(threading.Thread):
    """Samples a process from `start` to `stop`, and kills it if it exceeds a limit.

    `max_own_bytes` is the limit of its own memory, if not None. `min_free_bytes` is the least free memory of the
    machine. `reason` says why the process was killed, or is empty.
    """

    def __init__(
        self, pid: int, *, interval_s: float = 0.005, max_own_bytes: int | None = None, min_free_bytes: int = 0
    ) -> None:
        super().__init__(daemon=True)
        self.reason = ""
        self._pid, self._interval_s = pid, interval_s
        self._max_own_bytes, self._min_free_bytes = max_own_bytes, min_free_bytes
        self._status, self._stopped = Path(f"/proc/{pid}/status"), threading.Event()
        self._peaks = Peaks(0, 0)

    def run(self) -> None:
        """Take samples until `stop` is called."""
        while True:
            with suppress(OSError):  # the process has ended
                self._sample()
            if self._stopped.wait(self._interval_s):
                return

    def stop(self) -> Peaks:
        """Stop, and return the peaks. The resident peak is exact up to the last sample."""
        self._stopped.set()
        self.join()
        return self._peaks

    def _sample(self) -> None:
        values = _read_bytes(self._status)
        own = values.get("RssAnon", 0) + values.get("RssShmem", 0)
        self._peaks = Peaks(max(self._peaks.resident_bytes, values.get("VmHWM", 0)), max(self._peaks.own_bytes, own))
        if self.reason:
            return
        if self._max_own_bytes and own > self._max_own_bytes:
            self._kill(f"it used more than {self._max_own_bytes / 2**30:.1f} GiB of memory")
        elif self._min_free_bytes:
            free = _read_bytes(Path("/proc/meminfo"))["MemAvailable"]
            if free < self._min_free_bytes:
                self._kill(f"only {free / 2**30:.1f} GiB of memory were free on the machine; it used {own / 2**30:.1f}")

    def _kill(self, reason: str) -> None:
        self.reason = reason
        os.kill(self._pid, signal.SIGKILL)


def _read_bytes(file: Path) -> dict[str, int]:
    return {name: 1024 * int(size) for name, size in _LINE.findall(file.read_text(encoding="utf-8"))}
