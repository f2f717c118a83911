"""The machine of a measurement: hardware, versions, commit, and the load that other processes put on it."""

import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from sd35.bench.frozen import Frozen
from sd35.doctor import gpus, processor

BUSY_SHARE = 0.1  # if other processes use a larger share of the cores, the result is marked
_LIBRARIES = (
    "diffusers", "fastapi", "httpx2", "numpy", "onnxruntime", "openvino", "tensorrt-rtx-cu12", "torch", "torchao",
    "transformers", "uvicorn",
)  # fmt: skip
_GIT_TIMEOUT_S = 10


class Machine(Frozen):
    """Hardware and software. `commit` is the commit of the checkout, followed by + if files were changed."""

    system: str
    processor: str
    cores: int
    memory_bytes: int
    gpus: tuple[str, ...]
    python: str
    versions: dict[str, str]
    commit: str | None

    def differences(self, other: "Machine") -> list[str]:
        """Describe the differences of hardware, operating system and Python."""
        fields = ("processor", "cores", "memory_bytes", "gpus", "system", "python")
        pairs = ((field, getattr(self, field), getattr(other, field)) for field in fields)
        return [f"{field.removesuffix('_bytes')}: {one} and {two}" for field, one, two in pairs if one != two]


class BackgroundLoad(Frozen):
    """Cores used by other processes: the mean before and during the measurement, and the peak of one sample."""

    before_cores: float
    during_cores: float
    peak_cores: float
    cores: int

    @property
    def is_busy(self) -> bool:
        """Whether other processes used more than `BUSY_SHARE` of the cores, so that the figures mean little."""
        return max(self.before_cores, self.during_cores) > BUSY_SHARE * self.cores

    @property
    def description(self) -> str:
        """The load in one sentence. It begins with BUSY MACHINE if the machine was busy."""
        used = f"other processes used {self.before_cores:.2f} cores before and {self.during_cores:.2f} during the run"
        if self.is_busy:
            return f"BUSY MACHINE: {used}, of {self.cores}: these figures mean little, measure again on a quiet machine"
        return f"quiet machine: {used}, of {self.cores}"


def this_machine() -> Machine:
    """Describe this machine."""
    return Machine(
        system=platform.platform(),
        processor=processor(),
        cores=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        gpus=tuple(gpus()),
        python=platform.python_version(),
        versions=_versions(),
        commit=_commit(Path(__file__).parent),
    )


class BackgroundUsage:
    """Measures the processor time of all processes other than this one, the server, and their descendants."""

    def __init__(self, server_pid: int | None = None) -> None:
        self._pids = {os.getpid(), server_pid or os.getpid()}
        self._previous = self._times()

    def cores(self) -> float | None:
        """Return the cores that other processes used since the last call, or None if no time has passed."""
        previous = self._previous
        self._previous = time_s, busy_s, own_s = self._times()
        elapsed_s = time_s - previous[0]
        return max(0.0, (busy_s - previous[1] - (own_s - previous[2])) / elapsed_s) if elapsed_s > 0 else None

    def _times(self) -> tuple[float, float, float]:
        """Return elapsed seconds, busy seconds of all cores, and processor seconds of our own processes."""
        machine = psutil.cpu_times()
        guests_s = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)  # also in user and nice
        total_s = sum(machine) - guests_s
        idle_s = machine.idle + getattr(machine, "iowait", 0.0)
        own = {process.pid: process for pid in self._pids for process in process_tree(pid)}
        return total_s / (psutil.cpu_count() or 1), total_s - idle_s, sum(map(_processor_s, own.values()))


def background_load(before_cores: float, samples: Sequence[float]) -> BackgroundLoad:
    """Summarise samples of `BackgroundUsage.cores`."""
    return BackgroundLoad(
        before_cores=round(before_cores, 3),
        during_cores=round(sum(samples) / len(samples), 3) if samples else 0.0,
        peak_cores=round(max(samples, default=0.0), 3),
        cores=psutil.cpu_count() or 1,
    )


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants, or an empty list if it has ended."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _processor_s(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        times = process.cpu_times()
        ended = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)  # of ended children
        return float(times.user + times.system + ended)
    return 0.0


def _versions() -> dict[str, str]:
    found = {"sd35-fp8-mirror": version("sd35-fp8-mirror")}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _commit(folder: Path) -> str | None:
    """Describe the commit, or return None if the package is not in a checkout or git is missing."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True)  # noqa: S603
        return done.stdout.strip() or None
    return None
