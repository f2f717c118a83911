"""What NVIDIA's driver tells of a GPU, by nvidia-ml-py: memory of some processes, and energy. Not run on a GPU yet."""

from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, NamedTuple

import psutil


class GpuSample(NamedTuple):
    """At one moment, over all devices: bytes that processes hold, and joules since the driver was loaded.

    Where the driver does not tell bytes by process (as on some shared machines), or lists no process that is here (as
    in a container, to which it tells none, or by the host's numbers), they are the devices' own.
    """

    used_bytes: int
    energy_j: float | None


class Gpus:
    """All devices of NVIDIA's library. `why_not` says why there is nothing to be read, where that is so.

    `is_here`: whether the server's processes are seen; of one elsewhere, the GPUs of this machine tell nothing.
    """

    def __init__(self, *, is_here: bool = True) -> None:
        self.why_not: str | None = None
        self._handles: list[Any] = []
        if not is_here:
            self.why_not = "the server's process is not seen on this machine"
            return
        if find_spec("pynvml") is None:
            self.why_not = "nvidia-ml-py is not installed: pip install 'sd35-fp8-mirror[bench]'"
            return
        import pynvml

        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            self.why_not = f"NVIDIA's driver does not answer: {error}"
        else:
            if not self._handles:
                self.why_not = "NVIDIA's driver knows of no GPU"

    def sample(self, pids: Iterable[int]) -> GpuSample | None:
        """What these processes hold now; None where there is nothing to be read."""
        if self.why_not:
            return None
        used = self._used_bytes(set(pids))
        energies = [self._energy_j(handle) for handle in self._handles]
        known = [energy_j for energy_j in energies if energy_j is not None]
        return GpuSample(used, sum(known) if len(known) == len(energies) else None)

    def _used_bytes(self, pids: set[int]) -> int:
        with suppress(self._nvml.NVMLError):
            listed = [self._nvml.nvmlDeviceGetComputeRunningProcesses(handle) for handle in self._handles]
            processes = [each for of_device in listed for each in of_device]
            is_told = all(each.usedGpuMemory is not None for each in processes)
            if is_told and any(psutil.pid_exists(each.pid) for each in processes):
                return sum(each.usedGpuMemory for each in processes if each.pid in pids)
        return sum(int(self._nvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in self._handles)

    def _energy_j(self, handle: Any) -> float | None:  # noqa: ANN401  NVML's own
        """None on devices before Volta, which do not count it."""
        with suppress(self._nvml.NVMLError):
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
        return None
