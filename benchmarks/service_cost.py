"""The cost of the service itself, measured with a backend that computes nothing (`benchmarks.free_server`).

There are three figures: the time of a large image, the number of small images a second, and how long the event loop was
blocked.

Requests are sent with `http.client`. It takes a third of the processor time of `sd35.bench`'s load generator. The
client and the server share the machine, so a slower client would be the bottleneck at hundreds of requests a second.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import OK, HTTPConnection
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple
from urllib.parse import urlsplit

from benchmarks.outcome import Bar, Outcome
from benchmarks.processes import running
from sd35.bench.run import Target

SIDE_PX, SMALL_PX, CONNECTIONS = 1024, 64, 8  # fewer connections than the service admits
MAX_OWN_MS, MIN_RATE, MAX_LAG_S = 15.0, 300.0, 0.05
_WARM_UP_IMAGES = 5
_STAGE = re.compile(r"(\w+);dur=([\d.]+)")
_LAG_BUCKET = re.compile(r'sd35_event_loop_lag_seconds_bucket\{le="(.+)"\}')


class Sample(NamedTuple):
    """One image.

    Attributes:
        latency_s: Seconds from the request to the end of the response.
        stages_ms: Milliseconds of each stage on the server, by its name in the header `Server-Timing`.
        size_bytes: Size of the PNG file.
    """

    latency_s: float
    stages_ms: dict[str, float]
    size_bytes: int


def measure(checkpoint: Path, rounds: int, images: int = 100, small_s: float = 20) -> Outcome:
    """Request large images one after the other, then small images for `rounds` times `small_s` seconds."""
    command = [sys.executable, "-m", "benchmarks.free_server"]
    with running(command, {"SD35_CHECKPOINTS": str(checkpoint)}) as target:
        seeds = count()
        _small_rate(target, seeds, small_s / 10)  # a warm-up
        before = target.metrics()
        with _sender(target, SIDE_PX) as send:
            samples = [send(seed=next(seeds)) for _ in range(_WARM_UP_IMAGES + images)][_WARM_UP_IMAGES:]
        rates = [_small_rate(target, seeds, small_s) for _ in range(rounds)]
        late, lag_s = _event_loop_lag(before, target.metrics())
    return _outcome(samples, rates, late, lag_s, small_s)


def _outcome(samples: list[Sample], rates: list[float], late: int, lag_s: float, small_s: float) -> Outcome:
    """Return the outcome of the large images, and of the rounds of `small_s` seconds with small images.

    `late` and `lag_s` are the results of `_event_loop_lag`.
    """
    own_ms = [1000 * sample.latency_s - sample.stages_ms["png"] for sample in samples]
    stages_ms = {name: median(sample.stages_ms[name] for sample in samples) for name in samples[0].stages_ms}
    rest_ms = median(own_ms) - sum(stage_ms for name, stage_ms in stages_ms.items() if name != "png")
    return Outcome(
        [
            Bar(
                f"service time of a {SIDE_PX} px image without PNG encoding, p50",
                median(own_ms),
                "ms",
                "<=",
                MAX_OWN_MS,
            ),
            Bar(f"requests of {SMALL_PX} px a second", median(rates), "/s", ">=", MIN_RATE),
            Bar("event loop lag, upper bound", lag_s, "s", "<=", MAX_LAG_S),
        ],
        [
            (
                f"{len(samples)} images one after the other, 28 steps, guidance 4.5,"
                f" {samples[0].size_bytes / 1e6:.1f} MB each; p95 {quantiles(own_ms, n=20)[-1]:.1f} ms"
            ),
            "medians, ms: "
            + ", ".join(f"{name} {stage_ms:.1f}" for name, stage_ms in stages_ms.items())
            + f"; the rest, which includes HTTP, {rest_ms:.1f}",
            (
                f"small images: one step each, {CONNECTIONS} connections, {len(rates)} times {small_s:g} s;"
                f" {min(rates):.0f}-{max(rates):.0f}/s"
            ),
            f"event loop: {late} timers were more than {1000 * MAX_LAG_S:.0f} ms late",
        ],
        {"large": [(sample.latency_s, sample.stages_ms) for sample in samples], "rps": rates},
    )


def _small_rate(target: Target, seeds: Iterator[int], seconds: float) -> float:
    """Return how many small images a second `CONNECTIONS` clients get, if each always waits for its last image."""
    deadline_s = time.monotonic() + seconds

    def run_client() -> int:
        """Request images until the deadline, and return their number."""
        images = 0
        with _sender(target, SMALL_PX) as send:
            while time.monotonic() < deadline_s:
                send(seed=next(seeds), steps=1)
                images += time.monotonic() < deadline_s  # without the image that is ready too late
        return images

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        clients = [pool.submit(run_client) for _ in range(CONNECTIONS)]
        return sum(client.result() for client in clients) / seconds


@contextmanager
def _sender(target: Target, side_px: int) -> Iterator[Callable[..., Sample]]:
    """Open a connection, and yield a function that requests one square image over it."""
    with closing(HTTPConnection(urlsplit(target.server.url).netloc)) as connection:

        def send(**fields: int) -> Sample:
            body = json.dumps({"prompt": "a cat", "width": side_px, "height": side_px, **fields})
            start_s = time.perf_counter()
            connection.request("POST", "/v1/txt2img", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            latency_s = time.perf_counter() - start_s
            assert response.status == OK, content
            stages = _STAGE.findall(response.headers["Server-Timing"])
            return Sample(latency_s, {name: float(stage_ms) for name, stage_ms in stages}, len(content))

        yield send


def _event_loop_lag(before: dict[str, float], after: dict[str, float]) -> tuple[int, float]:
    """Return how many timers of the event loop were more than `MAX_LAG_S` late, and an upper bound of the lag.

    The bound is the smallest bucket of the histogram that contains all timers, in seconds. `before` and `after` are the
    server's metrics. Timers before `before` do not count, because loading a model blocks the event loop, too.
    """
    counts = {
        float(found[1]): value - before[name] for name, value in after.items() if (found := _LAG_BUCKET.fullmatch(name))
    }
    total = max(counts.values())
    return int(total - counts[MAX_LAG_S]), min(bound for bound, value in counts.items() if value == total)
