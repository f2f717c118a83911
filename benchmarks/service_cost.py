"""What the service costs beside a backend that costs nothing (`free_server.py`): per image, and requests a second."""

import asyncio
import re
import sys
import time
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import uvloop

from benchmarks.outcome import Bar, Outcome
from benchmarks.served import Server, scraped, served
from benchmarks.wire import Client

SIDE_PX, SMALL_PX, CONNECTIONS = 1024, 64, 8  # fewer than are let in
MOST_OWN_MS, LEAST_RPS, MOST_LAG_S = 15.0, 300.0, 0.05
_STAGE = re.compile(r"(\w+);dur=([\d.]+)")
_LAG = "sd35_event_loop_lag_seconds"
_MS = 1e3


def measure(checkpoint: Path, rounds: int, images: int = 100, small_s: float = 20) -> Outcome:
    """One server; as many `rounds` of small requests, of which the median counts."""
    command = [sys.executable, "-m", "benchmarks.free_server"]
    with served(command, {"SD35_CHECKPOINTS": str(checkpoint)}) as server:
        return uvloop.run(_measure(server, rounds, images, small_s))


async def _measure(server: Server, rounds: int, images: int, small_s: float) -> Outcome:
    seeds = count()
    async with Client(server.port) as client:
        await _small(client, seeds, small_s / 10)
        before = await scraped(client)
        large = [await _large(client, next(seeds)) for _ in range(images + 5)][5:]
        rps = [await _small(client, seeds, small_s) for _ in range(rounds)]
        late, longest = _late(before, await scraped(client))
    own_ms = [1000 * took_s - stages["png"] for took_s, stages, _ in large]
    stages = {name: median(stages[name] for _, stages, _ in large) for name in large[0][1]}
    rest = median(own_ms) - sum(took for name, took in stages.items() if name != "png")
    return Outcome(
        [
            Bar(f"an image of {SIDE_PX} px, beside writing PNG, p50", median(own_ms), "ms", "<=", MOST_OWN_MS),
            Bar(f"requests of {SMALL_PX} px a second", median(rps), "/s", ">=", LEAST_RPS),
            Bar("event loop, longest late by less than", longest, "s", "<=", MOST_LAG_S),
        ],
        [
            (
                f"{len(large)} images one after the other, 28 steps, guidance 4.5, {large[0][2] / 1e6:.1f} MB each;"
                f" p95 {quantiles(own_ms, n=20)[-1]:.1f} ms"
            ),
            "medians, ms: "
            + ", ".join(f"{name} {took:.1f}" for name, took in stages.items())
            + f"; the rest, HTTP among it, {rest:.1f}",
            (
                f"small ones: a step each, {CONNECTIONS} connections, {rounds} times {small_s:g} s;"
                f" {min(rps):.0f}-{max(rps):.0f}/s"
            ),
            f"event loop: {late} of its timers were late by more than {_MS * MOST_LAG_S:.0f} ms",
        ],
        {"large": [(took_s, stages) for took_s, stages, _ in large], "rps": rps},
    )


async def _large(client: Client, seed: int) -> tuple[float, dict[str, float], int]:
    """Seconds of an image, milliseconds of its stages, bytes."""
    body = {"prompt": "a cat", "width": SIDE_PX, "height": SIDE_PX, "seed": seed}
    answer = await client.ask("POST", "/v1/txt2img", body)
    assert answer.status == 200, answer.body
    stages = {name: float(took_ms) for name, took_ms in _STAGE.findall(answer.headers["server-timing"])}
    return answer.took_s, stages, len(answer.body)


async def _small(client: Client, seeds: "count[int]", seconds: float) -> float:
    """Images a second that come to clients that each ask for the next when they have one."""
    until_s, came = time.monotonic() + seconds, 0

    async def work() -> None:
        nonlocal came
        fixed: dict[str, Any] = {"prompt": "a cat", "width": SMALL_PX, "height": SMALL_PX, "steps": 1}
        while time.monotonic() < until_s:
            answer = await client.ask("POST", "/v1/txt2img", {**fixed, "seed": next(seeds)})
            assert answer.status == 200, answer.body
            came += time.monotonic() < until_s

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    return came / seconds


def _late(before: dict[str, float], after: dict[str, float]) -> tuple[int, float]:
    """How often the event loop was later than it may, and the least bound that it was never later than.

    Between two scrapes: what happens while a model is loaded is another matter.
    """
    counts = {
        float(found[1]): value - before[name]
        for name, value in after.items()
        if (found := re.fullmatch(_LAG + r'_bucket\{le="(.+)"\}', name))
    }
    total = max(counts.values())
    return int(total - counts[MOST_LAG_S]), min(bound for bound, value in counts.items() if value == total)
