"""The mark of a busy machine, and what NVIDIA's library tells of a GPU that is made up."""

import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from sd35.bench.gpu import Gpus, GpuSample
from sd35.bench.machine import OthersUse, busy_of, family, this_machine
from sd35.bench.monitor import Watch
from sd35.bench.server import pid_at
from tests.bench.conftest import BUSY, QUIET

NOBODY = 2**30  # above any process's number


def test_a_machine_is_busy_where_others_take_more_than_a_tenth_of_it():
    """Before it was measured or on average while; a short burst is told, and does not count."""
    cores = busy_of(0.0, []).cores
    assert not busy_of(0.09 * cores, [0.0, 0.1 * cores]).is_busy
    assert busy_of(0.11 * cores, []).is_busy
    assert busy_of(0.0, [0.0, 0.3 * cores]).is_busy
    assert busy_of(0.0, [0.0] * 99 + [cores]).most_cores == cores
    assert BUSY.words.startswith("BUSY MACHINE: other processes used 0.01 cores before and 3.00 during")
    assert QUIET.words.startswith("quiet machine: other processes used 0.01 cores before and 0.02 during")


def test_own_work_is_not_others(monkeypatch: pytest.MonkeyPatch):
    """Of six seconds that two cores were busy in four, this process and its child took five."""
    looks = iter([(100.0, 50.0, 10.0), (104.0, 56.0, 15.0), (104.0, 56.0, 15.0)])
    monkeypatch.setattr(OthersUse, "_times", lambda _: next(looks))
    others = OthersUse()
    assert others.cores() == pytest.approx(0.25)
    assert others.cores() is None  # no time has passed


def test_children_are_family():
    """A server's workers count as the server."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert {os.getpid(), child.pid} <= {process.pid for process in family(os.getpid())}
        child.communicate()
    assert child.pid not in {process.pid for process in family(os.getpid())}
    assert family(child.pid) == []


def test_a_result_says_what_it_was_made_on():
    """Hardware, and versions of what computes."""
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory_bytes > 2**28
    assert {"sd35-fp8-mirror", "onnxruntime", "numpy"} <= machine.versions.keys()


class Nvml:
    """Two GPUs; one does not count energy unless `energies` says so. It stands in for nvidia-ml-py."""

    class NVMLError(Exception):
        """The library's own."""

    def __init__(self, energies: list[int | None], pids: tuple[int, ...] = (1, 2)) -> None:
        self.energies, self.pids = energies, pids

    def nvmlInit(self) -> None:  # noqa: N802  NVML's names
        """Nothing to do."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """How many."""
        return len(self.energies)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        """The index itself."""
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:  # noqa: N802
        """Ours, and somebody else's."""
        return [SimpleNamespace(pid=pid, usedGpuMemory=100 + handle if pid == 1 else 7) for pid in self.pids]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802  NVML's name
        """Of the whole device."""
        return SimpleNamespace(used=1000 + handle)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        """Millijoules."""
        energy = self.energies[handle]
        if energy is None:
            raise self.NVMLError
        return energy


@pytest.mark.parametrize(
    ("energies", "expected"),
    [([2500, 1500], GpuSample(201, 4.0)), ([2500, None], GpuSample(201, None)), ([], None)],
)
def test_a_gpus_memory_is_that_of_the_server(
    monkeypatch: pytest.MonkeyPatch, energies: list[int | None], expected: GpuSample | None
):
    """Of all GPUs together; energy only where all of them count it."""
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(energies))
    monkeypatch.setattr("sd35.bench.gpu.find_spec", lambda _: True)
    gpus = Gpus()
    assert gpus.sample([1, 3]) == expected
    assert (gpus.why_not is None) == bool(energies)


@pytest.mark.parametrize(("pids", "used_bytes"), [((), 2001), ((NOBODY,), 2001), ((os.getpid(),), 0)])
def test_where_no_process_of_here_is_listed_memory_is_the_devices_own(
    monkeypatch: pytest.MonkeyPatch, pids: tuple[int, ...], used_bytes: int
):
    """As in a container; where others of here are listed, the server just holds nothing."""
    monkeypatch.setitem(sys.modules, "pynvml", Nvml([None, None], pids))
    monkeypatch.setattr("sd35.bench.gpu.find_spec", lambda _: True)
    assert Gpus().sample([1]) == GpuSample(used_bytes, None)


def test_of_a_server_elsewhere_the_gpus_of_here_tell_nothing(monkeypatch: pytest.MonkeyPatch):
    """Neither memory nor energy."""
    monkeypatch.setitem(sys.modules, "pynvml", Nvml([2500]))
    monkeypatch.setattr("sd35.bench.gpu.find_spec", lambda _: True)
    gpus = Watch("http://192.0.2.1", None, None, 0.0).gpus
    assert gpus.why_not == "the server's process is not seen on this machine"
    assert gpus.sample([]) is None


@pytest.mark.parametrize(("url", "pid"), [("http://127.0.0.1", 80), ("https://127.0.0.1", 443), ("http://[::1]:9", 9)])
def test_a_server_is_looked_for_at_its_schemes_port(monkeypatch: pytest.MonkeyPatch, url: str, pid: int):
    """Where the address names none."""
    listening = [SimpleNamespace(pid=n, status=psutil.CONN_LISTEN, laddr=SimpleNamespace(port=n)) for n in (9, 80, 443)]
    monkeypatch.setattr(psutil, "net_connections", lambda _: listening)
    assert pid_at(url) == pid


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch):
    """And nothing is read."""
    monkeypatch.setattr("sd35.bench.gpu.find_spec", lambda _: None)
    gpus = Gpus()
    assert gpus.why_not == "nvidia-ml-py is not installed: pip install 'sd35-fp8-mirror[bench]'"
    assert gpus.sample([1]) is None
