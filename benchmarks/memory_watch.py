"""Watch the memory of a process, and kill the process if it exceeds a limit. Linux only.

There are two measures. The resident memory is all physical memory of the process (VmHWM). Its own memory excludes pages
mapped from files. When memory runs short, the system can drop such pages, so limits apply to the own memory.

The monitor of `sd35.bench` samples a whole server a few times a second. This one reads only two files, so it can sample
every few milliseconds.
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
    """The peaks of the resident and of the own memory of a process."""

    resident_bytes: int
    own_bytes: int


class MemoryWatch(threading.Thread):
    """Samples the memory of a process from `start` to `stop`, and kills the process if it exceeds a limit.

    `reason` says why the process was killed. It is empty if it was not killed.

    Args:
        pid: ID of the process.
        interval_s: Time between two samples, in seconds.
        max_own_bytes: The process is killed if its own memory is larger. None is unlimited.
        min_free_bytes: The process is killed if the machine has less free memory. 0 is no limit.
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
        """Stop sampling, and return the peaks.

        Between samples, the system itself records the peak of the resident memory, but not that of the own memory.
        """
        self._stopped.set()
        self.join()
        return self._peaks

    def _sample(self) -> None:
        """Update the peaks, and kill the process if it exceeds a limit. Raises OSError if the process has ended."""
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
    """Return the fields in kB of a file such as /proc/meminfo, in bytes."""
    return {name: 1024 * int(size) for name, size in _LINE.findall(file.read_text(encoding="utf-8"))}
