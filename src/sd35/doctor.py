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
    """The state of the machine. `backend` and `fallback` are the names of the backends that the settings select."""

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
        """Whether the backend, the fallback (if any) and all checkpoints are usable.

        Directories do not count, because you can choose others.
        """
        needed = [finding for finding in self.backends if finding.name in {self.backend, self.fallback}]
        return bool(needed) and all(finding.is_usable for finding in (*needed, *self.checkpoints))


def examine(settings: Settings) -> DoctorReport:
    """Examine the machine, all backends, and the checkpoints and directories of the settings."""
    fallback = settings.fallback_settings.backend if settings.fallback_settings else None
    backends = dict.fromkeys((*BACKENDS, settings.backend, fallback or settings.backend))  # settings may name others
    return DoctorReport(
        version=own_version(),
        python=platform.python_version(),
        system=platform.platform(),
        processor=processor(),
        cores=cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=gpus(),
        backends=[_make_finding(name, _describe_backend) for name in backends],
        checkpoints=[_make_finding(name, partial(_describe_checkpoint, settings)) for name in settings.checkpoints],
        directories=[_check_directory("cache", settings.cache_dir), _check_directory("data", settings.data_dir)],
        backend=settings.backend,
        fallback=fallback,
    )


def _make_finding(name: str, describe: Callable[[str], str]) -> Finding:
    """Return a finding with the description of a backend or checkpoint, or with the error that prevents its use."""
    try:
        return Finding(name, is_usable=True, detail=describe(name))
    except (BackendUnavailable, CheckpointError, InvalidSetting) as error:
        return Finding(name, is_usable=False, detail=str(error))


def _describe_backend(name: str) -> str:
    """Return "available". Raises InvalidSetting, BackendUnavailable if the backend cannot run here."""
    check_available(name)
    return "available"


def _describe_checkpoint(settings: Settings, name: str) -> str:
    """Return the directory and the revision of a checkpoint. Raises CheckpointError if it cannot be opened."""
    if name == AUTO:
        return _describe_auto(settings)
    checkpoint = open_named(name, settings)
    directory = checkpoint.graphs.directory if checkpoint.graphs else checkpoint.directory
    return f"{directory}, revision {checkpoint.revision[:12]}"


def _describe_auto(settings: Settings) -> str:
    """Return the checkpoint that `auto` would choose, and why it passes over better ones.

    Raises CheckpointError, with all reasons, if `auto` would choose none. Internal: `_make_finding` catches it.
    """
    passed_over: list[str] = []
    for candidate in candidates(settings, available_memory(settings)):
        if candidate.obstacle is None:
            state = "on disk" if candidate.is_on_disk else "to be downloaded"
            return "; ".join([f"{candidate.name}, {state}", *passed_over])
        passed_over.append(f"{candidate.name}: {candidate.obstacle}")
    raise CheckpointError("; ".join(passed_over))


def _check_directory(name: str, path: Path) -> Finding:
    """Return a finding: whether a directory can be written to, or created if missing."""
    note = "" if existing_part(path) == path else " (will be created)"
    why = why_not_writable(path)
    return Finding(name, why is None, why or f"{path}{note}")


def gpus() -> list[str]:
    """Return "NAME, MEMORY, DRIVER VERSION" of each NVIDIA GPU, or an empty list if nvidia-smi is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    try:
        result = subprocess.run([tool, *_GPU_QUERY], capture_output=True, text=True, timeout=_GPU_TIMEOUT_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in result.stdout.splitlines() if line.strip()]


def processor() -> str:
    """Return the processor's name, or its architecture if the operating system does not report a name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
