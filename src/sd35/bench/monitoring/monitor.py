"""Take samples of a server and of the machine during a measurement: memory, other processes, batches and GPUs."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Self

import httpx2
import psutil

from sd35.bench.frozen import Frozen
from sd35.bench.monitoring.gpu import Gpus
from sd35.bench.monitoring.machine import BackgroundUsage, process_tree
from sd35.bench.server import fetch_metrics, http_client

_SAMPLES_PER_SCRAPE = 4  # only every fourth sample fetches the metrics, because that costs the server milliseconds
_ROW_STEPS, _BATCHES = "sd35_engine_row_steps_total", "sd35_engine_batch_duration_seconds_count"
_BATCH_S = "sd35_engine_batch_duration_seconds_sum"
_IMAGES = "sd35_engine_images{"
_RESIDENT = "process_resident_memory_bytes"


class MonitorSample(Frozen):
    """The state at one moment. `time_s` counts from the start of the monitor. Unknown values are None."""

    time_s: float
    resident_bytes: int | None = None
    background_cores: float | None = None
    vram_bytes: int | None = None
    energy_j: float | None = None  # of all GPUs, since the driver was loaded
    rows_per_batch: float | None = None
    engine_share: float | None = None  # share of the time in which the engine computed a batch
    images: float | None = None  # in the engine: waiting or being generated


class Monitor(threading.Thread):
    """A thread that takes a sample every `interval_s` from `start` to `stop`, or within a `with` block.

    Args:
        url: Address of the server.
        pid: The server's process if it runs on this machine. If None, its memory comes from its own metrics.
        headers: Sent with requests for metrics. None if the server does not have this project's metrics.
        before_cores: Cores that other processes used before the measurement, for the report.
    """

    interval_s = 0.25

    def __init__(self, url: str, pid: int | None, headers: dict[str, str] | None, before_cores: float) -> None:
        super().__init__(daemon=True)
        self.samples: list[MonitorSample] = []
        self.before_cores = before_cores
        self.start_s = time.monotonic()
        self.gpus = Gpus(is_local=pid is not None)
        self._url, self._pid, self._headers = url, pid, headers
        self._background, self._stopped = BackgroundUsage(pid), threading.Event()
        self._scrape: tuple[float, Mapping[str, float]] = (0.0, {})

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self) -> None:
        """Take samples until `stop` is called."""
        with http_client(self._url, self._headers) as http:
            while not self._stopped.wait(self.interval_s):
                self.samples.append(self._sample(http))

    def stop(self) -> list[MonitorSample]:
        """Stop, and return all samples."""
        self._stopped.set()
        self.join()
        return self.samples

    def _sample(self, http: httpx2.Client) -> MonitorSample:
        """Take one sample."""
        processes = process_tree(self._pid) if self._pid else []
        background = self._background.cores()
        gpu = self.gpus.sample([process.pid for process in processes])
        is_scrape = self._headers is not None and len(self.samples) % _SAMPLES_PER_SCRAPE == 0
        reported = self._scrape_values(http) if is_scrape else {}
        reported_bytes = int(reported.pop("resident_bytes", 0))
        return MonitorSample(
            time_s=round(time.monotonic() - self.start_s, 3),
            resident_bytes=_resident_bytes(processes) or reported_bytes or None,
            background_cores=None if background is None else round(background, 3),
            vram_bytes=gpu.used_bytes if gpu else None,
            energy_j=gpu.energy_j if gpu else None,
            **reported,
        )

    def _scrape_values(self, http: httpx2.Client) -> dict[str, float]:
        """Fetch the metrics, and return the fields of a sample that they give, by name.

        Fields about batches cover the time since the last scrape. The dict is empty if there are no metrics.
        """
        (previous_s, before), now = self._scrape, fetch_metrics(http)
        now_s = time.monotonic()
        self._scrape = now_s, now
        if not now:
            return {}
        values = {"resident_bytes": now.get(_RESIDENT, 0.0)}
        values["images"] = sum(value for name, value in now.items() if name.startswith(_IMAGES))
        if _BATCHES not in before:
            return values
        batches = now[_BATCHES] - before[_BATCHES]
        if batches > 0:
            values["rows_per_batch"] = round((now[_ROW_STEPS] - before[_ROW_STEPS]) / batches, 3)
        values["engine_share"] = round(min(1.0, (now[_BATCH_S] - before[_BATCH_S]) / (now_s - previous_s)), 3)
        return values


def background_cores(seconds: float, server_pid: int | None = None) -> float:
    """Wait for some seconds. Returns the mean number of cores that other processes used meanwhile."""
    usage = BackgroundUsage(server_pid)
    time.sleep(seconds)
    return usage.cores() or 0.0


def occupancy(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Count the batches between two scrapes by occupancy. The keys are upper bounds of the share of rows in use."""
    prefix = "sd35_engine_batch_occupancy_ratio_bucket{"
    counts: dict[str, float] = {}
    below = 0.0
    for name in after:
        if name.startswith(prefix) and "+Inf" not in name:
            # A bucket of Prometheus also counts all smaller values, so the count of the bucket below is subtracted.
            cumulative = after[name] - before.get(name, 0.0)
            upper_bound = name.partition('le="')[2].partition('"')[0]
            counts[upper_bound] = cumulative - below
            below = cumulative
    return counts


def _resident_bytes(processes: Sequence[psutil.Process]) -> int:
    """Return the resident memory of all processes together. A page that several of them share counts several times."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += int(process.memory_info().rss)
    return total
