"""A mixed load on `sd35 serve`, against three servers that do not batch by step. Each runs alone, in turns.

(a) FastAPI around the plain pipeline; (b) the pipeline behind LitServe's dynamic batching; (c) this project's own
backend and embedding cache without its scheduler. All read the checkpoint's own text length.
"""

import sys
from pathlib import Path
from statistics import median

from benchmarks.outcome import Bar, Outcome
from benchmarks.served import served
from benchmarks.workload import CLIENTS, REQUESTS, Answered, closed_loop, open_loop, percentile_s, requests

OPEN_SHARE = 0.8  # of the images a second that the closed loop reached
PLAIN, LITSERVE, SINGLE, OURS, REPRODUCIBLE = "a: FastAPI", "b: LitServe", "c: one at a time", "sd35", "reproducible"


def measure(checkpoint: Path, rounds: int) -> Outcome:
    """All servers on the same requests, round by round; ratios of medians over the rounds."""
    rounds = min(rounds, 3)  # a round takes minutes
    commands = _commands()
    variables = {"PLAIN_CHECKPOINT": str(checkpoint), "SD35_CHECKPOINTS": str(checkpoint)}
    closed: dict[str, list[tuple[list[Answered], float]]] = {name: [] for name in commands}
    opened: dict[str, list[list[Answered]]] = {name: [] for name in closed}
    for number in range(rounds):
        for name, runs in closed.items():
            with served(commands[name], variables) as (port, _):
                closed_loop(port, requests(seed=1000)[:CLIENTS])  # warms up sizes and batches
                answers, took_s = closed_loop(port, requests(seed=2 * number))
                runs.append((answers, took_s))
                rps = OPEN_SHARE * REQUESTS / took_s
                opened[name].append(open_loop(port, requests(seed=2 * number + 1), rps, seed=number))
    rate = {name: median(REQUESTS / took_s for _, took_s in runs) for name, runs in closed.items()}
    p95 = {name: median(percentile_s(answers, 95) for answers, _ in runs) for name, runs in closed.items()}
    short = {name: median(percentile_s(answers, 95, 4) for answers, _ in runs) for name, runs in closed.items()}
    return Outcome(
        [
            Bar("images a second / (a)", rate[OURS] / rate[PLAIN], "x", ">=", 2.0),
            Bar("images a second / (b)", rate[OURS] / rate[LITSERVE], "x", ">=", 1.3),
            Bar("p95 latency / (a)", p95[OURS] / p95[PLAIN], "x", "<=", 0.5),
            Bar("p95 of 4-step images / (a)", short[OURS] / short[PLAIN], "x", "<=", 0.25),
            Bar("p95 of 4-step images / (c)", short[OURS] / short[SINGLE], "x", "<=", 0.5),
        ],
        [
            f"{CLIENTS} clients, {REQUESTS} requests, {rounds} rounds; medians",
            f"open loop at {OPEN_SHARE} of the images a second that each server itself reached",
            *(_described(name, closed[name], opened[name]) for name in closed),
        ],
        {
            "closed": {
                name: [{"took_s": took_s, "answers": answers} for answers, took_s in runs]
                for name, runs in closed.items()
            },
            "open": opened,
        },
    )


def _described(name: str, closed: list[tuple[list[Answered], float]], opened: list[list[Answered]]) -> str:
    def of(percent: float, steps: int | None = None) -> str:
        return f"{median(percentile_s(answers, percent, steps) for answers, _ in closed):.2f} s"

    rate = median(REQUESTS / took_s for _, took_s in closed)
    open_p95_s = median(percentile_s(answers, 95) for answers in opened)
    return (
        f"{name:<17} {rate:.2f} images/s, p50 {of(50)}, p95 {of(95)}, p95 of 4 steps {of(95, 4)};"
        f" open loop: p95 {open_p95_s:.2f} s"
    )


def _commands() -> dict[str, list[str]]:
    python, sd35 = sys.executable, str(Path(sys.executable).with_name("sd35"))
    # The others refuse nothing, so neither do these: out of the box they would, when all come at once.
    ours = [sd35, "serve", "--ui", "off", "--max-in-flight", str(REQUESTS)]
    return {
        PLAIN: [python, "-m", "uvicorn", "benchmarks.plain_fastapi:app"],
        LITSERVE: [python, "-m", "benchmarks.litserve_batching"],
        SINGLE: [python, "-m", "uvicorn", "benchmarks.one_at_a_time:app"],
        OURS: ours,
        REPRODUCIBLE: [*ours, "--reproducible"],
    }
