"""GPU memory of a server's processes, and GPU energy, read from NVIDIA's driver with nvidia-ml-py."""

from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, NamedTuple

import psutil


class GpuSample(NamedTuple):
    """Memory and energy of all GPUs together at one moment.

    `used_bytes` is the memory of the server's processes. In containers and on some shared machines, the driver does
    not list local processes. Then `used_bytes` is the memory that all processes use. `energy_j` is the energy since the
    driver was loaded, or None if a GPU does not measure it.
    """

    used_bytes: int
    energy_j: float | None


class Gpus:
    """All GPUs that NVIDIA's driver lists. `skip_reason` says why nothing can be read, or is None.

    `is_local` says whether the server's processes are visible on this machine. If not, the server may run on another
    machine, so this machine's GPUs are not read.
    """

    def __init__(self, *, is_local: bool = True) -> None:
        self.skip_reason: str | None = None
        self._handles: list[Any] = []
        if not is_local:
            self.skip_reason = "the server's process is not visible on this machine"
            return
        if find_spec("pynvml") is None:
            self.skip_reason = "nvidia-ml-py is not installed; install it with: pip install 'sd35-fp8-mirror[bench]'"
            return
        import pynvml

        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            self.skip_reason = f"NVIDIA's driver does not answer: {error}"
        else:
            if not self._handles:
                self.skip_reason = "NVIDIA's driver lists no GPU"

    def sample(self, pids: Iterable[int]) -> GpuSample | None:
        """Return the memory that the processes use on all GPUs, and the GPUs' energy. None if nothing can be read."""
        if self.skip_reason:
            return None
        used_bytes = self._used_bytes(set(pids))
        energies_j = [self._energy_j(handle) for handle in self._handles]
        known_j = [energy_j for energy_j in energies_j if energy_j is not None]
        return GpuSample(used_bytes, sum(known_j) if len(known_j) == len(energies_j) else None)

    def _used_bytes(self, pids: set[int]) -> int:
        """Return the GPU memory of processes. If the driver does not list local processes, returns that of all."""
        with suppress(self._nvml.NVMLError):
            processes = []
            for handle in self._handles:
                processes += self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            is_complete = all(process.usedGpuMemory is not None for process in processes)
            # In a container, the driver lists process ids of the host, which do not exist here.
            if is_complete and any(psutil.pid_exists(process.pid) for process in processes):
                return sum(process.usedGpuMemory for process in processes if process.pid in pids)
        return sum(int(self._nvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in self._handles)

    def _energy_j(self, handle: Any) -> float | None:  # noqa: ANN401  a type of NVML
        """Return the energy counter of a GPU in joules, or None if it cannot be read: GPUs before Volta have none."""
        with suppress(self._nvml.NVMLError):
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000  # from millijoules
        return None
