"""Five times what `sd35 serve` can do, for a minute: who is let in is served as ever, who is not learns it at once.

First its capacity, in a closed loop; then 0.8 of that in an open loop, which is what the rest is held against; then
five times as much. Last, clients that hang up in the middle of their images, while others wait for theirs.
"""

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.outcome import Bar, Outcome
from benchmarks.served import Resident, Server, scraped, sd35_serve, served
from benchmarks.wire import Client, Connection
from benchmarks.workload import CLIENTS, requests
from sd35.bench.statistics import percentile
from sd35.request import STEPS

USUAL, OVERLOAD = 0.8, 5.0
MOST_P95, MOST_REFUSAL_S, MOST_GROWTH, MOST_STEPS = 2.0, 1.0, 0.05, 2.0
LEAVING, STAYING = 4, 4  # together, without guidance, the rows of one step
_OK, _TOO_MANY = 200, 429
_MB = 1e6


@dataclass(frozen=True)
class Durations:
    """Seconds of each part, and the steps of the images that clients hang up on.

    The two parts whose p95 are compared last until `images` are to be expected, because the p95 of the hundred that a
    slow machine makes in a minute differs by half from one minute to the next.
    """

    warm_s: float = 10
    closed_s: float = 30
    usual_s: float = 60
    overload_s: float = 60
    images: int = 400
    steps: int = STEPS[1]


class Asked(NamedTuple):
    """A request: when it was sent, the answer's status, and the seconds to its last byte."""

    at_s: float
    status: int
    took_s: float


@dataclass
class Seen:
    """What was measured."""

    capacity_rps: float = 0.0
    usual: list[Asked] = field(default_factory=list)
    overload: list[Asked] = field(default_factory=list)
    resident: list[tuple[float, int]] = field(default_factory=list)  # of the overload
    steps_after: float = 0.0
    gone_s: float = 0.0


def measure(checkpoint: Path, rounds: int, durations: Durations | None = None) -> Outcome:
    """One run, whatever the `rounds`: it takes minutes."""
    del rounds
    with served(sd35_serve(checkpoint)) as server:
        seen = asyncio.run(_run(server, durations or Durations()))
    return _outcome(seen)


async def _run(server: Server, durations: Durations) -> Seen:
    wanted, seen = _endless(), Seen()
    async with Client(server.port) as client:
        await _closed_loop(client, wanted, durations.warm_s)
        images = await _closed_loop(client, wanted, durations.closed_s)
        seen.capacity_rps = images / durations.closed_s
        enough_s = durations.images / seen.capacity_rps
        usual_s, overload_s = max(durations.usual_s, enough_s / USUAL), max(durations.overload_s, enough_s)
        seen.usual = await _open_loop(client, wanted, USUAL * seen.capacity_rps, usual_s)
        resident = Resident(server.process)
        resident.start()
        seen.overload = await _open_loop(client, wanted, OVERLOAD * seen.capacity_rps, overload_s)
        resident.stop()
        seen.resident = resident.samples
        seen.steps_after, seen.gone_s = await _hang_up(client, durations.steps)
    return seen


def _endless() -> Iterator[dict[str, Any]]:
    """Requests of the mixed load, no two of which are the same image."""
    return (request for seed in count(1) for request in requests(seed))


async def _closed_loop(client: Client, wanted: Iterator[dict[str, Any]], seconds: float) -> int:
    """How many images came in time to clients that each ask for the next when they have one."""
    until_s, came = time.monotonic() + seconds, 0

    async def work() -> None:
        nonlocal came
        while time.monotonic() < until_s:
            answer = await client.ask("POST", "/v1/txt2img", next(wanted))
            assert answer.status == _OK, answer
            came += time.monotonic() < until_s

    await asyncio.gather(*(work() for _ in range(CLIENTS)))
    return came


async def _open_loop(client: Client, wanted: Iterator[dict[str, Any]], rps: float, seconds: float) -> list[Asked]:
    """Requests at random moments, `rps` a second in the mean, whatever has been answered."""
    chance, began_s, at_s = random.Random(rps), time.monotonic(), 0.0
    asked: list[asyncio.Task[Asked]] = []

    async def ask(request: dict[str, Any]) -> Asked:
        sent_s = time.monotonic()
        answer = await client.ask("POST", "/v1/txt2img", request)
        return Asked(sent_s - began_s, answer.status, answer.took_s)

    while (at_s := at_s + chance.expovariate(rps)) < seconds:
        await asyncio.sleep(began_s + at_s - time.monotonic())
        asked.append(asyncio.create_task(ask(next(wanted))))
    return await asyncio.gather(*asked)


async def _hang_up(client: Client, steps: int) -> tuple[float, float]:
    """Steps that an image went on for after its client hung up, in the mean; seconds until the engine knew.

    All are in one batch with those who stay, so that each has as many steps behind it.
    """
    before = await scraped(client)
    seeds = count(10**9)
    request = {"prompt": "a cat on a blue background", "steps": steps, "guidance_scale": 0.0}
    leaving = [await Connection.to(client.port) for _ in range(LEAVING)]
    for connection in leaving:
        connection.send("POST", "/v1/txt2img", {**request, "seed": next(seeds)})
    staying = [
        asyncio.create_task(client.ask("POST", "/v1/txt2img", {**request, "seed": next(seeds)})) for _ in range(STAYING)
    ]
    done = 0.0
    while done < steps / 4:
        metrics = await scraped(client)
        done = (_steps(metrics) - _steps(before)) / (LEAVING + STAYING)
    for connection in leaving:
        connection.leave()
    left_s = time.monotonic()
    while _in_engine(await scraped(client)) > STAYING:
        pass
    gone_s = time.monotonic() - left_s
    answers = await asyncio.gather(*staying)
    assert all(answer.status == _OK for answer in answers), answers
    made = _steps(await scraped(client)) - _steps(before) - STAYING * steps
    return made / LEAVING - done, gone_s


def _steps(metrics: dict[str, float]) -> float:
    return metrics["sd35_engine_steps_total"]


def _in_engine(metrics: dict[str, float]) -> float:
    return sum(value for name, value in metrics.items() if name.startswith("sd35_engine_images{"))


def _outcome(seen: Seen) -> Outcome:
    usual_s = sorted(asked.took_s for asked in seen.usual if asked.status == _OK)
    admitted_s = sorted(asked.took_s for asked in seen.overload if asked.status == _OK)
    refused_s = sorted(asked.took_s for asked in seen.overload if asked.status == _TOO_MANY)
    other = [asked for asked in (*seen.usual, *seen.overload) if asked.status not in {_OK, _TOO_MANY}]
    third = len(seen.resident) // 3
    first, last = (max(bytes_ for _, bytes_ in part) for part in (seen.resident[:third], seen.resident[-third:]))
    return Outcome(
        [
            Bar("p95 of who is let in at 5 times capacity / at 0.8", _p(admitted_s) / _p(usual_s), "x", "<=", MOST_P95),
            Bar("a refusal, the slowest", _p(refused_s, 100), "s", "<=", MOST_REFUSAL_S),
            Bar("answers that are neither image nor 429", len(other), "", "<=", 0),
            Bar("growth of memory, last third over first", last / first - 1, "", "<=", MOST_GROWTH),
            Bar("steps of an image after its client hung up", seen.steps_after, "", "<=", MOST_STEPS),
        ],
        [
            f"capacity: {seen.capacity_rps:.2f} images/s of the mixed load, {CLIENTS} clients in a closed loop",
            (
                f"0.8: {len(seen.usual)} requests, {len(seen.usual) - len(usual_s)} refused;"
                f" p50 {_p(usual_s, 50):.2f} s, p95 {_p(usual_s):.2f} s"
            ),
            (
                f"5.0: {len(seen.overload)} requests, {len(admitted_s)} images, {len(refused_s)} refused;"
                f" p50 {_p(admitted_s, 50):.2f} s, p95 {_p(admitted_s):.2f} s"
            ),
            f"refusals: p50 {1000 * _p(refused_s, 50):.0f} ms, p99 {1000 * _p(refused_s, 99):.0f} ms",
            f"resident at most {first / _MB:.0f} MB in the first third of it, {last / _MB:.0f} MB in the last",
            f"{LEAVING} hung up, {STAYING} stayed: the engine knew after {1000 * seen.gone_s:.0f} ms",
        ],
        {"usual": seen.usual, "overload": seen.overload, "resident": seen.resident},
    )


def _p(sorted_s: list[float], percent: float = 95) -> float:
    """Seconds that so many percent took at most."""
    return percentile(sorted_s, percent) if sorted_s else nan
