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
    """Return the seconds since this process started, to 0.01 s on Linux; elsewhere its CPU time."""
    if not _IS_LINUX:
        return time.process_time()
    began_ticks = int((_PROCESS / "stat").read_text().rpartition(")")[2].split()[19])  # proc(5): starttime
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began_ticks / os.sysconf("SC_CLK_TCK"))


def cores() -> int:
    """Return the number of cores that this process may use, or all cores if the system does not tell."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class HostMemory:
    """See `sd35.backends.base.Memory`. Exact on Linux. Elsewhere, a peak is the highest of the whole process so far."""

    is_host = True

    def __init__(self) -> None:
        self._held_bytes = 0

    def free_bytes(self) -> int:
        """Return the available memory of the system, or the rest of a container's limit if less (cgroup v2)."""
        if not _IS_LINUX:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = [1024 * _numbers(Path("/proc/meminfo"))["MemAvailable:"]]
        with suppress(OSError, ValueError):  # there is no cgroup, or it has no limit ("max")
            cached = _numbers(_CGROUP / "memory.stat")
            used = int((_CGROUP / "memory.current").read_text()) - cached["active_file"] - cached["inactive_file"]
            free.append(int((_CGROUP / "memory.max").read_text()) - used)
        return max(0, min(free))

    def held_bytes(self) -> int:
        """Return the memory that this process holds now, or 0 if the system does not tell."""
        return 1024 * _numbers(_PROCESS / "status").get("VmRSS:", 0) if _IS_LINUX else 0

    def watch(self) -> None:
        """Reset the process's peak to its current memory, if the system supports it (proc(5), `clear_refs`)."""
        with suppress(OSError):
            (_PROCESS / "clear_refs").write_text("5")
        self._held_bytes = _peak_bytes()

    def peak_bytes(self) -> int:
        """Return the rise of the peak since `watch`."""
        return _peak_bytes() - self._held_bytes


def _peak_bytes() -> int:
    if _IS_LINUX:
        return 1024 * _numbers(_PROCESS / "status").get("VmHWM:", 0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _numbers(file: Path) -> dict[str, int]:
    """Return the numbers of a file's lines by name. Other lines, and units after a number, are ignored."""
    words = [line.split() for line in file.read_text().splitlines()]
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdecimal()}
