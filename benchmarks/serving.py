"""Mixed load on `sd35 serve`, and on three servers without continuous batching.

- (a) FastAPI around Diffusers' pipeline (`benchmarks.plain_fastapi`)
- (b) the pipeline with LitServe's dynamic batching (`benchmarks.litserve_batching`)
- (c) this project's backend and embedding cache, without its scheduler (`benchmarks.one_at_a_time`)

In each round, the servers run one after the other. All use the checkpoint's own text length. The load is the default
workload of `sd35 bench`: a closed loop, in which each client sends its next request after the last response, then an
open loop, in which requests arrive at a given rate.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.outcome import Bar, Outcome
from benchmarks.processes import ProcessFailed, running
from sd35.bench.load.generator import RequestResult, arrivals, closed_loop, open_loop
from sd35.bench.load.workload import mixed_workload
from sd35.bench.run import Target
from sd35.bench.server import serve_command
from sd35.bench.statistics import percentile

REQUESTS, CLIENTS = 64, 8
OPEN_SHARE = 0.8  # rate of the open loop, relative to the images a second of the closed loop
SHORT = "4 steps"  # the name of a class of requests in the workload
PLAIN, LITSERVE, SINGLE, OURS, REPRODUCIBLE = "a: FastAPI", "b: LitServe", "c: one at a time", "sd35", "reproducible"


class Round(NamedTuple):
    """One round on one server: images a second of the closed loop, and the results of the closed and the open loop."""

    rate: float
    closed: list[RequestResult]
    opened: list[RequestResult]


def measure(checkpoint: Path, rounds: int) -> Outcome:
    """Send the same requests to all servers in each round. The figures are ratios of medians over the rounds."""
    rounds = min(rounds, 3)  # a round takes minutes
    variables = {"PLAIN_CHECKPOINT": str(checkpoint), "SD35_CHECKPOINTS": str(checkpoint)}
    measured: dict[str, list[Round]] = {name: [] for name in _commands()}
    for number in range(rounds):
        for name, command in _commands().items():
            with running(command, variables) as target:
                measured[name].append(asyncio.run(_run_round(target, number)))
    rate = {name: median(run.rate for run in runs) for name, runs in measured.items()}
    p95_s = {name: _latency_s(runs, 95) for name, runs in measured.items()}
    short_s = {name: _latency_s(runs, 95, SHORT) for name, runs in measured.items()}
    return Outcome(
        [
            Bar("images a second / (a)", rate[OURS] / rate[PLAIN], "x", ">=", 2.0),
            Bar("images a second / (b)", rate[OURS] / rate[LITSERVE], "x", ">=", 1.3),
            Bar("p95 latency / (a)", p95_s[OURS] / p95_s[PLAIN], "x", "<=", 0.5),
            Bar("p95 of 4-step images / (a)", short_s[OURS] / short_s[PLAIN], "x", "<=", 0.25),
            Bar("p95 of 4-step images / (c)", short_s[OURS] / short_s[SINGLE], "x", "<=", 0.5),
        ],
        [
            f"{CLIENTS} clients, {REQUESTS} requests, {rounds} rounds; medians",
            f"open loop at {OPEN_SHARE} of each server's own images a second",
            *(_describe(name, runs) for name, runs in measured.items()),
        ],
        dict(measured),
    )


async def _run_round(target: Target, number: int) -> Round:
    """Warm up, then run the closed loop, then the open loop at a share of the closed loop's rate."""
    workload = mixed_workload()
    async with target.client() as client:
        await closed_loop(client, islice(workload.requests("warm-up"), CLIENTS), CLIENTS)
        start_s = time.monotonic()
        closed = await closed_loop(client, islice(workload.requests(f"closed/{number}"), REQUESTS), CLIENTS)
        rate = REQUESTS / (time.monotonic() - start_s)
        schedule_s = arrivals(OPEN_SHARE * rate, REQUESTS / (OPEN_SHARE * rate), f"open/{number}")
        opened = await open_loop(client, workload.requests(f"open/{number}"), schedule_s)
    if failed := [result for result in (*closed, *opened) if result.status != "completed"]:
        raise ProcessFailed(f"{len(failed)} requests returned no image, such as {failed[0]}")
    return Round(rate, closed, opened)


def _latency_s(runs: Sequence[Round], percent: float, class_name: str | None = None) -> float:
    """Return a percentile of the latencies of the closed loop in seconds, as the median over the rounds.

    `class_name` selects the requests of one class. None selects all.
    """
    percentiles_s = []
    for run in runs:
        latencies_s = [result.latency_s for result in run.closed if class_name in {result.class_name, None}]
        percentiles_s.append(percentile(latencies_s, percent))
    return median(percentiles_s)


def _describe(name: str, runs: Sequence[Round]) -> str:
    """Return a line with the rates and latencies of a server."""
    open_p95_s = median(percentile([result.latency_s for result in run.opened], 95) for run in runs)
    return (
        f"{name:<17} {median(run.rate for run in runs):.2f} images/s, p50 {_latency_s(runs, 50):.2f} s,"
        f" p95 {_latency_s(runs, 95):.2f} s, p95 of 4 steps {_latency_s(runs, 95, SHORT):.2f} s;"
        f" open loop: p95 {open_p95_s:.2f} s"
    )


def _commands() -> dict[str, list[str]]:
    """Return the command that starts each server, by its name."""
    # The other servers refuse no request, so sd35 must not refuse requests of the open loop either.
    ours = serve_command(["--ui", "off", "--max-in-flight", str(REQUESTS)])
    return {
        PLAIN: [sys.executable, "-m", "uvicorn", "benchmarks.plain_fastapi:app"],
        LITSERVE: [sys.executable, "-m", "benchmarks.litserve_batching"],
        SINGLE: [sys.executable, "-m", "uvicorn", "benchmarks.one_at_a_time:app"],
        OURS: ours,
        REPRODUCIBLE: [*ours, "--reproducible"],
    }
