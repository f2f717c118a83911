"""How `sd35 serve` behaves at five times its capacity: latency, refusals, memory, and clients that disconnect.

1. A closed loop (each client sends its next request after the last response) finds the capacity.
2. An open loop (requests arrive at a given rate) at 0.8 of the capacity is the baseline.
3. Another open loop at five times the capacity is the overload.
4. Some clients disconnect before their images are ready, while others wait for theirs.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import nan
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from benchmarks.outcome import Bar, Outcome
from benchmarks.processes import running
from sd35.bench.load.generator import LoadClient, RequestResult, arrivals, closed_loop, completion_rate, open_loop
from sd35.bench.load.workload import BenchRequest, mixed_workload
from sd35.bench.monitoring.monitor import Monitor
from sd35.bench.run import Target
from sd35.bench.server import fetch_metrics, http_client, serve_command
from sd35.bench.statistics import percentile
from sd35.request import STEPS

CLIENTS = 8
BASELINE, OVERLOAD = 0.8, 5.0  # rates of the open loops, relative to the capacity
MAX_P95_RATIO, MAX_REFUSAL_S, MAX_GROWTH, MAX_STEPS = 2.0, 1.0, 0.05, 2.0
LEAVING, STAYING = 4, 4  # clients that disconnect and that wait; their images fill one batch together
_MB = 1e6


@dataclass(frozen=True)
class Durations:
    """How long each part lasts, in seconds.

    Attributes:
        warm_up_s: Requests before the measurements.
        closed_s: The closed loop.
        baseline_s: The first open loop.
        overload_s: The second open loop.
        images: An open loop lasts longer if it would complete fewer images. On a slow machine, a minute has only about
            a hundred images, and their p95 varies by half from one minute to the next.
        steps: Steps of the images when clients disconnect.
    """

    warm_up_s: float = 10
    closed_s: float = 30
    baseline_s: float = 60
    overload_s: float = 60
    images: int = 400
    steps: int = STEPS[1]


class Measurements(NamedTuple):
    """What was measured.

    Attributes:
        capacity: Images a second of the closed loop.
        baseline: Results of the open loop below the capacity.
        overload: Results of the open loop above the capacity.
        resident_bytes: Memory of the server during the overload, one value for each sample.
        extra_steps: Mean number of steps of an image after its client disconnected.
        noticed_s: Seconds until the engine noticed that the clients had disconnected.
    """

    capacity: float
    baseline: list[RequestResult]
    overload: list[RequestResult]
    resident_bytes: list[int]
    extra_steps: float
    noticed_s: float


def measure(checkpoint: Path, rounds: int, durations: Durations | None = None) -> Outcome:
    """Measure once, because a run takes minutes. `rounds` is ignored."""
    del rounds
    with running(serve_command(["--ui", "off", "--checkpoint", str(checkpoint)])) as target:
        return _outcome(asyncio.run(_measure(target, durations or Durations())))


async def _measure(target: Target, durations: Durations) -> Measurements:
    """Send all load to the server, part by part, and return what was measured."""
    workload = mixed_workload()
    async with target.client() as client:
        await closed_loop(client, workload.requests("warm-up"), CLIENTS, durations.warm_up_s)
        start_s = monotonic()
        results = await closed_loop(client, workload.requests("closed"), CLIENTS, durations.closed_s)
        capacity = completion_rate(results, start_s, durations.closed_s, lambda _: 1.0)
        enough_s = durations.images / capacity  # time for `images` images at the capacity

        async def run_open(share: float, seconds: float) -> list[RequestResult]:
            """Send requests at a share of the capacity, for at least `seconds`."""
            # The server completes images at most at its capacity, also above it.
            length_s = max(seconds, enough_s / min(share, 1.0))
            schedule_s = arrivals(share * capacity, length_s, f"open/{share}")
            return await open_loop(client, workload.requests(f"open/{share}"), schedule_s)

        baseline = await run_open(BASELINE, durations.baseline_s)
        monitor = Monitor(target.server.url, target.server.pid, None, 0.0)
        monitor.start()
        overload = await run_open(OVERLOAD, durations.overload_s)
        resident_bytes = [sample.resident_bytes for sample in await asyncio.to_thread(monitor.stop)]
        extra_steps, noticed_s = await _disconnect(target, client, durations.steps)
    return Measurements(capacity, baseline, overload, [size for size in resident_bytes if size], extra_steps, noticed_s)


async def _disconnect(target: Target, client: LoadClient, steps: int) -> tuple[float, float]:
    """Let some clients disconnect after a quarter of their steps, while others wait.

    All images are in one batch, so they have the same number of finished steps when clients disconnect.

    Returns:
        The mean number of steps of an image after its client disconnected, and the seconds until the engine noticed.
    """
    seeds = count(1)
    images = LEAVING + STAYING

    def start_request() -> asyncio.Task[RequestResult]:
        # A new seed for each request, so that no image comes from the store.
        request = BenchRequest("long", "a cat on a blue background", 10**9 + next(seeds), steps=steps, guidance=0.0)
        return asyncio.create_task(client.send(request))

    with http_client(target.server.url) as http:

        async def metrics() -> dict[str, float]:
            return await asyncio.to_thread(fetch_metrics, http)

        before = _steps(await metrics())
        leaving = [start_request() for _ in range(LEAVING)]
        staying = [start_request() for _ in range(STAYING)]
        done = 0.0
        while done < steps / 4:
            done = (_steps(await metrics()) - before) / images
        for task in leaving:
            task.cancel()
        left_s = monotonic()
        while _in_engine(await metrics()) > STAYING:
            pass
        noticed_s = monotonic() - left_s
        results = await asyncio.gather(*staying)
        assert all(result.status == "completed" for result in results), results
        leaving_steps = _steps(await metrics()) - before - STAYING * steps
    return leaving_steps / LEAVING - done, noticed_s


def _steps(metrics: dict[str, float]) -> float:
    """Return the number of steps of all images so far."""
    return metrics["sd35_engine_steps_total"]


def _in_engine(metrics: dict[str, float]) -> float:
    """Return the number of images that the engine has accepted and not ended."""
    return sum(value for name, value in metrics.items() if name.startswith("sd35_engine_images{"))


def _outcome(measured: Measurements) -> Outcome:
    """Return the outcome of the measurements."""
    baseline_s, accepted_s = (_latencies_s(results, "completed") for results in (measured.baseline, measured.overload))
    refused_s = _latencies_s(measured.overload, "refused")
    others = [result for result in (*measured.baseline, *measured.overload) if not _is_image_or_429(result)]
    third = len(measured.resident_bytes) // 3
    first, last = (max(part) for part in (measured.resident_bytes[:third], measured.resident_bytes[-third:]))
    ratio = _percentile(accepted_s) / _percentile(baseline_s)
    return Outcome(
        [
            Bar("p95 of accepted requests at 5x capacity / at 0.8x", ratio, "x", "<=", MAX_P95_RATIO),
            Bar("slowest refusal", _percentile(refused_s, 100), "s", "<=", MAX_REFUSAL_S),
            Bar("responses that are neither an image nor 429", len(others), "", "<=", 0),
            Bar("memory growth, last third over first", last / first - 1, "", "<=", MAX_GROWTH),
            Bar("steps of an image after its client disconnected", measured.extra_steps, "", "<=", MAX_STEPS),
        ],
        [
            f"capacity: {measured.capacity:.2f} images/s of the mixed workload, {CLIENTS} clients in a closed loop",
            (
                f"0.8x: {len(measured.baseline)} requests, {len(measured.baseline) - len(baseline_s)} refused;"
                f" p50 {_percentile(baseline_s, 50):.2f} s, p95 {_percentile(baseline_s):.2f} s"
            ),
            (
                f"5x: {len(measured.overload)} requests, {len(accepted_s)} images, {len(refused_s)} refused;"
                f" p50 {_percentile(accepted_s, 50):.2f} s, p95 {_percentile(accepted_s):.2f} s"
            ),
            f"refusals: p50 {1000 * _percentile(refused_s, 50):.0f} ms, p99 {1000 * _percentile(refused_s, 99):.0f} ms",
            f"peak memory {first / _MB:.0f} MB in the first third of the overload, {last / _MB:.0f} MB in the last",
            f"{LEAVING} clients left, {STAYING} stayed: the engine noticed after {1000 * measured.noticed_s:.0f} ms",
        ],
        {**measured._asdict()},
    )


def _latencies_s(results: Sequence[RequestResult], status: str) -> list[float]:
    """Return the latencies of the results with a status, in seconds."""
    return [result.latency_s for result in results if result.status == status]


def _is_image_or_429(result: RequestResult) -> bool:
    return result.status == "completed" or result.message.startswith("429: ")


def _percentile(latencies_s: list[float], percent: float = 95) -> float:
    """Return a percentile of latencies in seconds. Returns NaN if there are none."""
    return percentile(latencies_s, percent) if latencies_s else nan
