"""The machine of a measurement: hardware, versions, commit, and the cores that other processes use."""

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

BUSY_SHARE = 0.1  # if other processes use a larger share of the cores, the machine counts as busy
_LIBRARIES = (
    "diffusers", "fastapi", "httpx2", "numpy", "onnxruntime", "openvino", "tensorrt-rtx-cu12", "torch", "torchao",
    "transformers", "uvicorn",
)  # fmt: skip
_GIT_TIMEOUT_S = 10


class Machine(Frozen):
    """Hardware and software.

    `commit` is the commit of the checkout, followed by + if files were changed, or None outside a checkout.
    """

    system: str
    processor: str
    cores: int
    memory_bytes: int
    gpus: tuple[str, ...]
    python: str
    versions: dict[str, str]
    commit: str | None

    def differences(self, other: "Machine") -> list[str]:
        """Describe each difference in hardware, operating system and Python, such as "cores (4 and 8)"."""
        pairs = (
            ("processor", self.processor, other.processor),
            ("cores", self.cores, other.cores),
            ("bytes of memory", self.memory_bytes, other.memory_bytes),
            ("GPUs", ", ".join(self.gpus) or "none", ", ".join(other.gpus) or "none"),
            ("operating system", self.system, other.system),
            ("Python", self.python, other.python),
        )
        return [f"{name} ({ours} and {theirs})" for name, ours, theirs in pairs if ours != theirs]


class BackgroundLoad(Frozen):
    """Cores used by other processes: the mean before and during the measurement, and the maximum of one sample.

    `cores` is the number of cores of the machine.
    """

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
        """The load as text. It begins with BUSY MACHINE if the machine was busy."""
        used = f"other processes used {self.before_cores:.2f} cores before and {self.during_cores:.2f} during the run"
        if self.is_busy:
            advice = "These figures mean little; measure again on a quiet machine"
            return f"BUSY MACHINE: {used}, of {self.cores} in total. {advice}"
        return f"quiet machine: {used}, of {self.cores} in total"


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
        self._previous = self._read_times()

    def cores(self) -> float | None:
        """Return the mean number of cores that other processes used since the last call.

        Returns None if the system's clock has not advanced.
        """
        time_before_s, busy_before_s, own_before_s = self._previous
        self._previous = time_s, busy_s, own_s = self._read_times()
        elapsed_s = time_s - time_before_s
        if elapsed_s <= 0:
            return None
        others_s = (busy_s - busy_before_s) - (own_s - own_before_s)
        return max(0.0, others_s / elapsed_s)

    def _read_times(self) -> tuple[float, float, float]:
        """Return seconds since the system started, busy seconds of all cores, and busy seconds of our own processes."""
        machine = psutil.cpu_times()
        # The time of virtual machines is also part of `user` and `nice`.
        guests_s = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)
        total_s = sum(machine) - guests_s
        idle_s = machine.idle + getattr(machine, "iowait", 0.0)
        own = {process.pid: process for pid in self._pids for process in process_tree(pid)}
        return total_s / (psutil.cpu_count() or 1), total_s - idle_s, sum(map(_processor_s, own.values()))


def background_load(before_cores: float, samples: Sequence[float]) -> BackgroundLoad:
    """Summarise the cores that other processes used before the measurement, and in samples during it."""
    return BackgroundLoad(
        before_cores=round(before_cores, 3),
        during_cores=round(sum(samples) / len(samples), 3) if samples else 0.0,
        peak_cores=round(max(samples, default=0.0), 3),
        cores=psutil.cpu_count() or 1,
    )


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants, or an empty list if the process has ended."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _processor_s(process: psutil.Process) -> float:
    """Return the processor seconds of a process and of its ended children, or 0 if they cannot be read."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        times = process.cpu_times()
        ended_children_s = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        return float(times.user + times.system + ended_children_s)
    return 0.0


def _versions() -> dict[str, str]:
    """Return the installed versions of this package and of its libraries, by name."""
    versions = {"sd35-fp8-mirror": version("sd35-fp8-mirror")}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _commit(folder: Path) -> str | None:
    """Return the commit of a directory's checkout, followed by + if files were changed. None if git knows none."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True)  # noqa: S603
        return done.stdout.strip() or None
    return None
