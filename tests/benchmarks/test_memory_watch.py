"""Watching the memory of a process: own memory, mapped files, and limits."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory_watch import MemoryWatch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")

MB = 10**6
ALLOCATE = "import sys; held = bytearray(300_000_000); print('held', flush=True); sys.stdin.read()"
MAP = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
sum(mapped[:: mmap.PAGESIZE])
print("held", flush=True)
sys.stdin.read()
"""


def started(*arguments: str) -> subprocess.Popen[str]:
    """Start a Python process that runs until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_mapped_pages_are_resident_but_not_own_memory(tmp_path: Path) -> None:
    """A mapped file does not count towards the limit."""
    file = tmp_path / "weights"
    file.write_bytes(b"w" * 300 * MB)
    with started(MAP, str(file)) as process:
        assert process.stdout
        watch = MemoryWatch(process.pid, max_own_bytes=200 * MB)
        process.stdout.readline()
        watch.start()
        peaks = watch.stop()
        process.communicate()
    assert peaks.own_bytes < 100 * MB < 300 * MB < peaks.resident_bytes
    assert (watch.reason, process.returncode) == ("", 0)


def test_a_process_over_the_limit_is_killed_with_a_reason() -> None:
    """The peak is still reported."""
    with started(ALLOCATE) as process:
        watch = MemoryWatch(process.pid, max_own_bytes=200 * MB)
        watch.start()
        process.wait()
        peaks = watch.stop()
    assert process.returncode == -signal.SIGKILL
    assert watch.reason == "it used more than 0.2 GiB of memory"
    assert 200 * MB < peaks.own_bytes < 400 * MB


def test_a_process_is_killed_if_the_machine_runs_short_of_memory() -> None:
    """The memory of the process itself does not matter."""
    with started("import sys; sys.stdin.read()") as process:
        watch = MemoryWatch(process.pid, min_free_bytes=2**60)
        watch.start()
        process.wait()
        watch.stop()
    assert process.returncode == -signal.SIGKILL
    assert "of memory were free on the machine" in watch.reason
