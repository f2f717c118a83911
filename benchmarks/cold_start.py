"""Time from process start to ready: `sd35 serve` compared with FastAPI around the plain pipeline.

The two servers are started alternately. A server is ready when /readyz answers 200. Before that, it generates its
smallest image in one step. The first start of each server does not count: it fills the system's file cache and compiles
bytecode.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.install_size import default_environment
from benchmarks.outcome import Bar, Outcome, spread
from benchmarks.processes import running

MAX_S = 2.5  # of `sd35 serve`
MAX_SHARE = 1 / 3  # of the time of the FastAPI server


def measure(checkpoint: Path, rounds: int) -> Outcome:
    """Start `sd35 serve` of the default installation, and `benchmarks.plain_fastapi` with Uvicorn, alternately."""
    sd35 = [str(default_environment() / "bin" / "sd35"), "serve", "--checkpoint", str(checkpoint)]
    plain = [sys.executable, "-m", "uvicorn", "benchmarks.plain_fastapi:app"]
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds + 1):
        ours.append(_seconds_to_ready(sd35, {}))
        theirs.append(_seconds_to_ready(plain, {"PLAIN_CHECKPOINT": str(checkpoint)}))
    first, ours, theirs = (ours[0], theirs[0]), ours[1:], theirs[1:]  # the first starts do not count
    share = median(ours) / median(theirs)
    return Outcome(
        [
            Bar("sd35 serve, process start to ready", median(ours), "s", "<=", MAX_S),
            Bar("the same / FastAPI around the pipeline", share, "x", "<", MAX_SHARE),
        ],
        [
            f"{rounds} alternate starts of each; medians",
            f"sd35 serve {spread(ours)}",
            f"FastAPI around the pipeline {spread(theirs)}",
            f"the first starts, which may have read from disk and do not count: {first[0]:.3f} s and {first[1]:.3f} s",
        ],
        {"sd35_serve_s": ours, "plain_fastapi_s": theirs, "first_s": first},
    )


def _seconds_to_ready(command: Sequence[str], variables: dict[str, str]) -> float:
    """Start a server, wait until it is ready and stop it. Returns the seconds from its start until it was ready."""
    with running(command, variables) as target:
        assert target.server.ready_s is not None
        return target.server.ready_s
