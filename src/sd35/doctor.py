"""What this machine has and what can run on it. Looks; loads no weights, and a runtime only to judge `auto`."""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sd35.backends.registry import BACKENDS, check_available
from sd35.errors import BackendUnavailable, CheckpointError, InvalidSetting
from sd35.host import cores
from sd35.images.record import own_version
from sd35.planning.auto import AUTO, candidates, open_named
from sd35.planning.fit import available_memory
from sd35.settings import Settings
from sd35.settings.directories import existing_part, why_not_writable

_GPU_QUERY = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
_GPU_TIMEOUT_S = 10


@dataclass(frozen=True)
class Finding:
    """Something that can be used, or why not and what to do."""

    name: str
    is_usable: bool
    detail: str


@dataclass(frozen=True)
class DoctorReport:
    """What was found. `can_serve`: the chosen backend, the fallback if there is one, and all checkpoints are usable."""

    version: str
    python: str
    system: str
    processor: str
    cores: int
    memory_bytes: int
    gpus: list[str]
    backends: list[Finding]
    checkpoints: list[Finding]
    directories: list[Finding]
    backend: str
    fallback: str | None

    @property
    def can_serve(self) -> bool:
        """Whether `sd35 serve` with these settings finds what it needs."""
        chosen = [finding for finding in self.backends if finding.name in {self.backend, self.fallback}]
        return bool(chosen) and all(finding.is_usable for finding in (*chosen, *self.checkpoints))


def examine(settings: Settings) -> DoctorReport:
    """Look at the machine and the settings' backend, checkpoints and directories."""
    fallback = settings.fallback_settings.backend if settings.fallback_settings else None
    named = dict.fromkeys((*BACKENDS, settings.backend, fallback or settings.backend))
    return DoctorReport(
        version=own_version(),
        python=platform.python_version(),
        system=platform.platform(),
        processor=processor(),
        cores=cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=gpus(),
        backends=[_finding(name, _backend) for name in named],
        checkpoints=[_finding(name, partial(_checkpoint, settings)) for name in settings.checkpoints],
        directories=[_directory("cache", settings.cache_dir), _directory("data", settings.data_dir)],
        backend=settings.backend,
        fallback=fallback,
    )


def _finding(name: str, look: Callable[[str], str]) -> Finding:
    try:
        return Finding(name, is_usable=True, detail=look(name))
    except (BackendUnavailable, CheckpointError, InvalidSetting) as error:
        return Finding(name, is_usable=False, detail=str(error))


def _backend(name: str) -> str:
    check_available(name)
    return "what it needs is here"


def _checkpoint(settings: Settings, name: str) -> str:
    if name == AUTO:
        return _auto(settings)
    found = open_named(name, settings)
    return f"{found.graphs.directory if found.graphs else found.directory}, revision {found.revision[:12]}"


def _auto(settings: Settings) -> str:
    """What `auto` would take, and why not what is better. Raises CheckpointError where there is none."""
    passed_over: list[str] = []
    for candidate in candidates(settings, available_memory(settings)):
        if candidate.obstacle is None:
            state = "on disk" if candidate.is_on_disk else "to be fetched"
            return "; ".join([f"{candidate.name}, {state}", *passed_over])
        passed_over.append(f"{candidate.name}: {candidate.obstacle}")
    raise CheckpointError("; ".join(passed_over))


def _directory(name: str, path: Path) -> Finding:
    """Usable where it can be written to, or made in what there is of it."""
    note = "" if existing_part(path) == path else " (does not exist yet)"
    why = why_not_writable(path)
    return Finding(name, why is None, why or f"{path}{note}")


def gpus() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU; empty where the driver's own tool is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    try:
        result = subprocess.run([tool, *_GPU_QUERY], capture_output=True, text=True, timeout=_GPU_TIMEOUT_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in result.stdout.splitlines() if line.strip()]


def processor() -> str:
    """The processor's name, as the system has it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
