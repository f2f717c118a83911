"""A stage's memory is watched: what is its own is told from mapped files, and too much of it ends the process."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.watch import Watch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system's figures are read from /proc")

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
    """A process that holds what it holds until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_mapped_pages_are_resident_and_not_its_own(tmp_path: Path) -> None:
    """A file that is mapped and read counts in the one peak and not in the other, and against no limit."""
    file = tmp_path / "weights"
    file.write_bytes(b"w" * 300 * MB)
    with started(MAP, str(file)) as process:
        assert process.stdout
        watch = Watch(process.pid, most_own_bytes=200 * MB)
        process.stdout.readline()
        watch.start()
        peaks = watch.finish()
        process.communicate()
    assert peaks.own_bytes < 100 * MB < 300 * MB < peaks.resident_bytes
    assert (watch.reason, process.returncode) == ("", 0)


def test_what_takes_too_much_is_ended_with_the_reason() -> None:
    """Memory of its own above the limit kills it; the peak says how far it came."""
    with started(ALLOCATE) as process:
        watch = Watch(process.pid, most_own_bytes=200 * MB)
        watch.start()
        process.wait()
        peaks = watch.finish()
    assert process.returncode == -signal.SIGKILL
    assert watch.reason == "it took more than 0.2 GiB of memory of its own"
    assert 200 * MB < peaks.own_bytes < 400 * MB


def test_a_machine_that_runs_short_ends_it() -> None:
    """Where less of the machine's memory is free than has to be, the process is ended, however little it has."""
    with started("import sys; sys.stdin.read()") as process:
        watch = Watch(process.pid, least_free_bytes=2**60)
        watch.start()
        process.wait()
        watch.finish()
    assert process.returncode == -signal.SIGKILL
    assert "were left of the machine's memory" in watch.reason
