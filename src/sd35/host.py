"""What a backend that computes on the processor has: cores, and the memory that system and container leave to it."""

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
    """Seconds since this process was started, where the system can tell, to a hundredth; else those it computed."""
    if not _IS_LINUX:
        return time.process_time()
    began_ticks = int((_PROCESS / "stat").read_text().rpartition(")")[2].split()[19])  # proc(5): starttime
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began_ticks / os.sysconf("SC_CLK_TCK"))


def cores() -> int:
    """The cores this process may use, where the system can tell; a runtime's own count would pin threads to cores."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class HostMemory:
    """See `sd35.backends.base.Memory`. Exact on Linux; elsewhere a peak is the highest the process ever had."""

    is_host = True

    def __init__(self) -> None:
        self._held_bytes = 0

    def free_bytes(self) -> int:
        """The least of what the system has available and a container's limit leaves (cgroup v2)."""
        if not _IS_LINUX:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = [1024 * _numbers(Path("/proc/meminfo"))["MemAvailable:"]]
        with suppress(OSError, ValueError):  # there is no cgroup, or it has no limit ("max")
            cached = _numbers(_CGROUP / "memory.stat")
            used = int((_CGROUP / "memory.current").read_text()) - cached["active_file"] - cached["inactive_file"]
            free.append(int((_CGROUP / "memory.max").read_text()) - used)
        return max(0, min(free))

    def held_bytes(self) -> int:
        """What this process holds now; 0 where the system cannot tell."""
        return 1024 * _numbers(_PROCESS / "status").get("VmRSS:", 0) if _IS_LINUX else 0

    def watch(self) -> None:
        """Set the process's peak back to what it holds now, where the system can (proc(5), `clear_refs`)."""
        with suppress(OSError):
            (_PROCESS / "clear_refs").write_text("5")
        self._held_bytes = _peak_bytes()

    def peak_bytes(self) -> int:
        """The peak's rise since `watch`."""
        return _peak_bytes() - self._held_bytes


def _peak_bytes() -> int:
    if _IS_LINUX:
        return 1024 * _numbers(_PROCESS / "status").get("VmHWM:", 0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _numbers(file: Path) -> dict[str, int]:
    """The lines of a file that are a name and a number, and perhaps a unit."""
    words = [line.split() for line in file.read_text().splitlines()]
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdecimal()}
