"""What a figure was taken on: hardware, versions, commit, and whether other work took part of the machine meanwhile."""

import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from sd35.doctor import gpus, processor

BUSY_SHARE = 0.1  # of the cores, taken by others: more, and a figure is marked
_LIBRARIES = (
    "diffusers", "fastapi", "httpx2", "numpy", "onnxruntime", "openvino", "tensorrt-rtx-cu12", "torch", "torchao",
    "transformers", "uvicorn",
)  # fmt: skip
_GIT_TIMEOUT_S = 10
_FROZEN = ConfigDict(frozen=True, extra="forbid")


class Machine(BaseModel):
    """Hardware and software. `commit` is that of the checkout the package lies in, with a + where files differ."""

    model_config = _FROZEN

    system: str
    processor: str
    cores: int
    memory_bytes: int
    gpus: tuple[str, ...]
    python: str
    versions: dict[str, str]
    commit: str | None

    def differences(self, other: "Machine") -> list[str]:
        """What of the hardware and of its system is not the same, in words."""
        fields = ("processor", "cores", "memory_bytes", "gpus", "system", "python")
        pairs = ((field, getattr(self, field), getattr(other, field)) for field in fields)
        return [f"{field.removesuffix('_bytes')}: {one} and {two}" for field, one, two in pairs if one != two]


class Busy(BaseModel):
    """Cores that other processes used, on average before and while it was measured, and at most in one second."""

    model_config = _FROZEN

    before_cores: float
    during_cores: float
    most_cores: float
    cores: int

    @property
    def is_busy(self) -> bool:
        """Whether others took so much of the machine that the figures mean little."""
        return max(self.before_cores, self.during_cores) > BUSY_SHARE * self.cores

    @property
    def words(self) -> str:
        """The mark, or that there is none."""
        used = f"other processes used {self.before_cores:.2f} cores before and {self.during_cores:.2f} during the run"
        if self.is_busy:
            return f"BUSY MACHINE: {used}, of {self.cores}: these figures mean little, measure again on a quiet one"
        return f"quiet machine: {used}, of {self.cores}"


def this_machine() -> Machine:
    """What is here."""
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


class OthersUse:
    """Processor time that the machine spends on others than this process, a server, and all below both."""

    def __init__(self, server_pid: int | None = None) -> None:
        self._pids = {os.getpid(), server_pid or os.getpid()}
        self._before = self._times()

    def cores(self) -> float | None:
        """Cores that others used since the last call; None where no time has passed."""
        before = self._before
        self._before = at_s, busy_s, own_s = self._times()
        passed_s = at_s - before[0]
        return max(0.0, (busy_s - before[1] - (own_s - before[2])) / passed_s) if passed_s > 0 else None

    def _times(self) -> tuple[float, float, float]:
        """The seconds that passed; the cores' busy ones; those of this process, the server and all below."""
        of_machine = psutil.cpu_times()
        guests_s = getattr(of_machine, "guest", 0.0) + getattr(of_machine, "guest_nice", 0.0)  # in user's and nice's
        all_s = sum(of_machine) - guests_s
        idle_s = of_machine.idle + getattr(of_machine, "iowait", 0.0)
        own = {process.pid: process for pid in self._pids for process in family(pid)}
        return all_s / (psutil.cpu_count() or 1), all_s - idle_s, sum(map(_seconds, own.values()))


def busy_of(before_cores: float, samples: Sequence[float]) -> Busy:
    """The mark, from what was seen."""
    return Busy(
        before_cores=round(before_cores, 3),
        during_cores=round(sum(samples) / len(samples), 3) if samples else 0.0,
        most_cores=round(max(samples, default=0.0), 3),
        cores=psutil.cpu_count() or 1,
    )


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it; none where it has ended."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _seconds(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        times = process.cpu_times()
        ended = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)  # its children that ended
        return float(times.user + times.system + ended)
    return 0.0


def _versions() -> dict[str, str]:
    found = {"sd35-fp8-mirror": version("sd35-fp8-mirror")}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _commit(folder: Path) -> str | None:
    """None where the package is installed and no checkout, or git is not there."""
    with suppress(OSError, subprocess.SubprocessError):
        asked = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True)  # noqa: S603
        return answer.stdout.strip() or None
    return None
