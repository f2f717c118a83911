"""Background load, and GPU samples from a fake of NVIDIA's library."""

import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from sd35.bench.monitoring.gpu import Gpus, GpuSample
from sd35.bench.monitoring.machine import BackgroundUsage, background_load, process_tree, this_machine
from sd35.bench.monitoring.monitor import Monitor
from sd35.bench.server import pid_at
from tests.bench.conftest import BUSY, QUIET

MISSING_PID = 2**30  # above any process id


def test_a_machine_is_busy_if_other_processes_use_more_than_a_tenth_of_it():
    """The mean counts, before and during the measurement. A short burst does not make the machine busy."""
    cores = background_load(0.0, []).cores
    assert not background_load(0.09 * cores, [0.0, 0.1 * cores]).is_busy
    assert background_load(0.11 * cores, []).is_busy
    assert background_load(0.0, [0.0, 0.3 * cores]).is_busy
    assert background_load(0.0, [0.0] * 99 + [cores]).peak_cores == cores
    assert BUSY.description.startswith("BUSY MACHINE: other processes used 0.01 cores before and 3.00 during")
    assert QUIET.description.startswith("quiet machine: other processes used 0.01 cores before and 0.02 during")


def test_own_processes_do_not_count_as_background(monkeypatch: pytest.MonkeyPatch):
    """Of six busy seconds in four seconds on two cores, five were of this process and its child."""
    times = iter([(100.0, 50.0, 10.0), (104.0, 56.0, 15.0), (104.0, 56.0, 15.0)])
    monkeypatch.setattr(BackgroundUsage, "_read_times", lambda _: next(times))
    others = BackgroundUsage()
    assert others.cores() == pytest.approx(0.25)
    assert others.cores() is None  # no time has passed


def test_a_process_tree_includes_children():
    """So the memory of a server includes its workers."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert {os.getpid(), child.pid} <= {process.pid for process in process_tree(os.getpid())}
        child.communicate()
    assert child.pid not in {process.pid for process in process_tree(os.getpid())}
    assert process_tree(child.pid) == []


def test_this_machine_is_described_with_library_versions():
    """The description also has cores and memory."""
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory_bytes > 2**28
    assert {"sd35-fp8-mirror", "onnxruntime", "numpy"} <= machine.versions.keys()


class Nvml:
    """A fake of nvidia-ml-py with one GPU for each of `energies`. A GPU with None does not report energy."""

    class NVMLError(Exception):
        """The error of the library."""

    def __init__(self, energies: list[int | None], pids: tuple[int, ...] = (1, 2)) -> None:
        self.energies, self.pids = energies, pids

    def nvmlInit(self) -> None:  # noqa: N802  NVML's names
        """Do nothing."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """Return the number of GPUs."""
        return len(self.energies)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        """Return the index as the handle."""
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:  # noqa: N802
        """Return the server's process and another one."""
        return [SimpleNamespace(pid=pid, usedGpuMemory=100 + handle if pid == 1 else 7) for pid in self.pids]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802  NVML's name
        """Return the used memory of the whole GPU."""
        return SimpleNamespace(used=1000 + handle)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        """Return the energy in millijoules."""
        energy = self.energies[handle]
        if energy is None:
            raise self.NVMLError
        return energy


@pytest.mark.parametrize(
    ("energies", "expected"),
    [([2500, 1500], GpuSample(201, 4.0)), ([2500, None], GpuSample(201, None)), ([], None)],
)
def test_gpu_memory_is_that_of_the_servers_processes(
    monkeypatch: pytest.MonkeyPatch, energies: list[int | None], expected: GpuSample | None
):
    """Memory is added up over all GPUs. Energy is known only if all of them report it."""
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(energies))
    monkeypatch.setattr("sd35.bench.monitoring.gpu.find_spec", lambda _: True)
    gpus = Gpus()
    assert gpus.sample([1, 3]) == expected
    assert (gpus.skip_reason is None) == bool(energies)


@pytest.mark.parametrize(("pids", "used_bytes"), [((), 2001), ((MISSING_PID,), 2001), ((os.getpid(),), 0)])
def test_gpu_memory_is_that_of_the_gpus_if_no_local_process_is_listed(
    monkeypatch: pytest.MonkeyPatch, pids: tuple[int, ...], used_bytes: int
):
    """So it is in a container. If other local processes are listed, the server uses no GPU memory."""
    monkeypatch.setitem(sys.modules, "pynvml", Nvml([None, None], pids))
    monkeypatch.setattr("sd35.bench.monitoring.gpu.find_spec", lambda _: True)
    assert Gpus().sample([1]) == GpuSample(used_bytes, None)


def test_local_gpus_are_not_sampled_for_a_remote_server(monkeypatch: pytest.MonkeyPatch):
    """The reason says that its process is not visible."""
    monkeypatch.setitem(sys.modules, "pynvml", Nvml([2500]))
    monkeypatch.setattr("sd35.bench.monitoring.gpu.find_spec", lambda _: True)
    gpus = Monitor("http://192.0.2.1", None, None, 0.0).gpus
    assert gpus.skip_reason == "the server's process is not visible on this machine"
    assert gpus.sample([]) is None


@pytest.mark.parametrize(("url", "pid"), [("http://127.0.0.1", 80), ("https://127.0.0.1", 443), ("http://[::1]:9", 9)])
def test_a_server_is_found_by_the_default_port_of_its_scheme(monkeypatch: pytest.MonkeyPatch, url: str, pid: int):
    """An explicit port takes precedence."""
    listening = [SimpleNamespace(pid=n, status=psutil.CONN_LISTEN, laddr=SimpleNamespace(port=n)) for n in (9, 80, 443)]
    monkeypatch.setattr(psutil, "net_connections", lambda _: listening)
    assert pid_at(url) == pid


def test_without_nvidia_ml_py_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    """Nothing is sampled."""
    monkeypatch.setattr("sd35.bench.monitoring.gpu.find_spec", lambda _: None)
    gpus = Gpus()
    assert gpus.skip_reason == "nvidia-ml-py is not installed; install it with: pip install 'sd35-fp8-mirror[bench]'"
    assert gpus.sample([1]) is None
