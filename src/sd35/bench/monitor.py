"""Watches a server and the machine while it is measured, in a thread: memory, other processes' work, batches, GPU."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import httpx2
import psutil
from pydantic import BaseModel, ConfigDict

from sd35.bench.gpu import Gpus
from sd35.bench.machine import OthersUse, family
from sd35.bench.server import client, scraped

_SCRAPED_EVERY = 4  # looks: the service's metrics cost it some milliseconds
_ROW_STEPS, _BATCHES = "sd35_engine_row_steps_total", "sd35_engine_batch_duration_seconds_count"
_BATCH_S = "sd35_engine_batch_duration_seconds_sum"
_WAITING, _IN_ALL = 'sd35_engine_images{state="waiting"}', "sd35_engine_images{"
_RESIDENT = "process_resident_memory_bytes"


class Look(BaseModel):
    """One look. `at_s` is from the first on; what a server does not tell is None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_s: float
    resident_bytes: int | None = None
    others_cores: float | None = None
    vram_bytes: int | None = None
    energy_j: float | None = None  # of all GPUs, since the driver was loaded
    rows_per_batch: float | None = None
    engine_share: float | None = None  # of the time, in which a batch was computed
    images: float | None = None  # in the engine: waiting or being made


class Watch(threading.Thread):
    """Looks every `every_s` from `start` to `finish`.

    `pid`: of the server, if it runs here; else its memory is what its own metrics say. `headers`: with which it is
    asked for this project's metrics, None where it has none. `before_cores`: what others used before it began.
    """

    every_s = 0.25

    def __init__(self, url: str, pid: int | None, headers: dict[str, str] | None, before_cores: float) -> None:
        super().__init__(daemon=True)
        self.looks: list[Look] = []
        self.before_cores = before_cores
        self.began_s = time.monotonic()
        self.gpus = Gpus(is_here=pid is not None)
        self._url, self._pid, self._headers = url, pid, headers
        self._others, self._ended = OthersUse(pid), threading.Event()
        self._metrics: tuple[float, Mapping[str, float]] = (0.0, {})

    def run(self) -> None:
        """Until `finish`."""
        with client(self._url, self._headers) as asking:
            while not self._ended.wait(self.every_s):
                self.looks.append(self._look(asking))

    def finish(self) -> list[Look]:
        """All looks."""
        self._ended.set()
        self.join()
        return self.looks

    def _look(self, asking: httpx2.Client) -> Look:
        processes = family(self._pid) if self._pid else []
        others = self._others.cores()
        gpu = self.gpus.sample([process.pid for process in processes])
        told = self._told(asking) if self._headers is not None and len(self.looks) % _SCRAPED_EVERY == 0 else {}
        of_metrics = int(told.pop("resident_bytes", 0))
        return Look(
            at_s=round(time.monotonic() - self.began_s, 3),
            resident_bytes=_resident_bytes(processes) or of_metrics or None,
            others_cores=None if others is None else round(others, 3),
            vram_bytes=gpu.used_bytes if gpu else None,
            energy_j=gpu.energy_j if gpu else None,
            **told,
        )

    def _told(self, asking: httpx2.Client) -> dict[str, float]:
        """What the service's metrics say, since the last time."""
        (then_s, before), now = self._metrics, scraped(asking)
        now_s = time.monotonic()
        self._metrics = now_s, now
        if not now:
            return {}
        told = {"resident_bytes": now.get(_RESIDENT, 0.0)}
        told["images"] = sum(value for name, value in now.items() if name.startswith(_IN_ALL))
        if _BATCHES not in before:
            return told
        batches = now[_BATCHES] - before[_BATCHES]
        if batches > 0:
            told["rows_per_batch"] = round((now[_ROW_STEPS] - before[_ROW_STEPS]) / batches, 3)
        told["engine_share"] = round(min(1.0, (now[_BATCH_S] - before[_BATCH_S]) / (now_s - then_s)), 3)
        return told


def others_before(seconds: float, server_pid: int | None = None) -> float:
    """Cores that others use while nothing is measured yet."""
    others = OthersUse(server_pid)
    time.sleep(seconds)
    return others.cores() or 0.0


def occupancy(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Batches by the share of their rows that were taken: upper bound of the share, and how many, in this time."""
    prefix = "sd35_engine_batch_occupancy_ratio_bucket{"
    counts: dict[str, float] = {}
    below = 0.0
    for name in (name for name in after if name.startswith(prefix) and "+Inf" not in name):
        up_to = after[name] - before.get(name, 0.0)
        counts[name.partition('le="')[2].partition('"')[0]] = up_to - below
        below = up_to
    return counts


def _resident_bytes(processes: Sequence[psutil.Process]) -> int:
    """Of all together; what several of them share counts for each."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += int(process.memory_info().rss)
    return total
