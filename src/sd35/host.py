"""The resources of this machine: cores, and the memory that the system and a container leave to this process."""

import os
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

_IS_LINUX = sys.platform == "linux"
_PROCESS = Path("/proc/self")
_CGROUP = Path("/sys/fs/cgroup")


def process_age_s() -> float:
    """Return the seconds since this process started, with a resolution of 0.01 s.

    On systems other than Linux, return its CPU time instead.
    """
    if not _IS_LINUX:
        return time.process_time()
    # `starttime` of proc(5). The fields are counted from the ")" after the command, which may contain spaces.
    began_ticks = int((_PROCESS / "stat").read_text().rpartition(")")[2].split()[19])
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began_ticks / os.sysconf("SC_CLK_TCK"))


def cores() -> int:
    """Return the number of cores that this process may use, or of all cores if the system does not restrict it."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class HostMemory:
    """The memory of this process. Implements `sd35.backends.base.Memory`.

    On systems other than Linux, the sizes are estimates: `watch` cannot reset the peak there, so a peak that is lower
    than an earlier one is missed.
    """

    is_host = True

    def __init__(self) -> None:
        self._watched_from_bytes = 0

    def free_bytes(self) -> int:
        """Return the available memory of the system or of the container (cgroup v2), whichever is less.

        On systems other than Linux, return the size of all memory.
        """
        if not _IS_LINUX:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = [1024 * _read_numbers(Path("/proc/meminfo"))["MemAvailable:"]]
        with suppress(OSError, ValueError):  # there is no cgroup, or its limit is the word "max"
            cached = _read_numbers(_CGROUP / "memory.stat")
            # The kernel frees cached files when memory is needed.
            used = int((_CGROUP / "memory.current").read_text()) - cached["active_file"] - cached["inactive_file"]
            free.append(int((_CGROUP / "memory.max").read_text()) - used)
        return max(0, min(free))

    def held_bytes(self) -> int:
        """Return the resident memory of this process, or 0 on systems other than Linux."""
        return 1024 * _read_numbers(_PROCESS / "status").get("VmRSS:", 0) if _IS_LINUX else 0

    def watch(self) -> None:
        """Start measuring the peak: reset it to the current memory, if the system supports it."""
        with suppress(OSError):
            (_PROCESS / "clear_refs").write_text("5")  # proc(5): resets VmHWM
        self._watched_from_bytes = _peak_bytes()

    def peak_bytes(self) -> int:
        """Return how far the peak has risen since `watch`."""
        return _peak_bytes() - self._watched_from_bytes


def _peak_bytes() -> int:
    """Return the highest resident memory of this process since it started or since the last reset."""
    if _IS_LINUX:
        return 1024 * _read_numbers(_PROCESS / "status").get("VmHWM:", 0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _read_numbers(file: Path) -> dict[str, int]:
    """Return the numbers of lines such as "VmRSS: 1024 kB", by the first word ("VmRSS:"). Units are ignored.

    Lines of another form are ignored too.
    """
    lines = [line.split() for line in file.read_text().splitlines()]
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
