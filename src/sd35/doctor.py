"""Examine the machine: its hardware, and which backends, checkpoints and directories can be used.

Loads no weights. Imports a runtime only to find out what `auto` would choose.
"""

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
    """Whether a backend, checkpoint or directory can be used. If not, `detail` says why and what to do."""

    name: str
    is_usable: bool
    detail: str


@dataclass(frozen=True)
class DoctorReport:
    """The state of the machine. `backend` and `fallback` are those of the settings."""

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
        """Whether the backend, the fallback (if any) and all checkpoints are usable."""
        needed = [finding for finding in self.backends if finding.name in {self.backend, self.fallback}]
        return bool(needed) and all(finding.is_usable for finding in (*needed, *self.checkpoints))


def examine(settings: Settings) -> DoctorReport:
    """Examine the machine, all backends, and the checkpoints and directories of the settings."""
    fallback = settings.fallback_settings.backend if settings.fallback_settings else None
    backends = dict.fromkeys((*BACKENDS, settings.backend, fallback or settings.backend))
    return DoctorReport(
        version=own_version(),
        python=platform.python_version(),
        system=platform.platform(),
        processor=processor(),
        cores=cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=gpus(),
        backends=[_finding(name, _backend) for name in backends],
        checkpoints=[_finding(name, partial(_checkpoint, settings)) for name in settings.checkpoints],
        directories=[_directory("cache", settings.cache_dir), _directory("data", settings.data_dir)],
        backend=settings.backend,
        fallback=fallback,
    )


def _finding(name: str, examine_one: Callable[[str], str]) -> Finding:
    try:
        return Finding(name, is_usable=True, detail=examine_one(name))
    except (BackendUnavailable, CheckpointError, InvalidSetting) as error:
        return Finding(name, is_usable=False, detail=str(error))


def _backend(name: str) -> str:
    check_available(name)
    return "available"


def _checkpoint(settings: Settings, name: str) -> str:
    if name == AUTO:
        return _auto(settings)
    checkpoint = open_named(name, settings)
    directory = checkpoint.graphs.directory if checkpoint.graphs else checkpoint.directory
    return f"{directory}, revision {checkpoint.revision[:12]}"


def _auto(settings: Settings) -> str:
    """Return what `auto` would choose, and why it passes over better models. Raises CheckpointError if none is left."""
    passed_over: list[str] = []
    for candidate in candidates(settings, available_memory(settings)):
        if candidate.obstacle is None:
            state = "on disk" if candidate.is_on_disk else "to be downloaded"
            return "; ".join([f"{candidate.name}, {state}", *passed_over])
        passed_over.append(f"{candidate.name}: {candidate.obstacle}")
    raise CheckpointError("; ".join(passed_over))


def _directory(name: str, path: Path) -> Finding:
    """Return whether a directory can be written to, or created if missing."""
    note = "" if existing_part(path) == path else " (will be created)"
    why = why_not_writable(path)
    return Finding(name, why is None, why or f"{path}{note}")


def gpus() -> list[str]:
    """Return the name, memory and driver of each NVIDIA GPU. Empty if nvidia-smi is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    try:
        result = subprocess.run([tool, *_GPU_QUERY], capture_output=True, text=True, timeout=_GPU_TIMEOUT_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in result.stdout.splitlines() if line.strip()]


def processor() -> str:
    """Return the processor's name as the operating system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
