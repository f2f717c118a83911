"""From process start until images can be made: `sd35 serve` against a FastAPI file around the plain pipeline.

Both are started in turns, on a free port of this machine, and are ready when /readyz answers 200, which both do only
once a first image is drawn: the smallest, in one step. Processes are new each time; the files they read are in the
system's cache and their bytecode is compiled, for one start of each comes before the samples.
"""

import http.client
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.install_size import default_environment
from benchmarks.outcome import Bar, Outcome, spread
from benchmarks.processes import ROOT, clean_environment
from sd35.bench.server import free_port, stop_process

MOST_S = 2.5
MOST_SHARE = 1 / 3
_POLL_S = 0.01
_POLLS = 12_000  # two minutes and more


def measure(checkpoint: Path, rounds: int) -> Outcome:
    """`sd35 serve` as the default installation runs it, and the FastAPI file as uvicorn runs it, in turns."""
    command = str(default_environment() / "bin" / "sd35")
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds + 1):
        port = str(free_port())
        ours.append(time_to_ready([command, "serve", "--port", port, "--checkpoint", str(checkpoint)], port, {}))
        port = str(free_port())
        uvicorn = [sys.executable, "-m", "uvicorn", "benchmarks.plain_fastapi:app", "--port", port]
        theirs.append(time_to_ready(uvicorn, port, {"PLAIN_CHECKPOINT": str(checkpoint)}))
    first, ours, theirs = (ours[0], theirs[0]), ours[1:], theirs[1:]
    share = median(ours) / median(theirs)
    return Outcome(
        [
            Bar("sd35 serve, process start to ready", median(ours), "s", "<=", MOST_S),
            Bar("the same / FastAPI around the pipeline", share, "x", "<", MOST_SHARE),
        ],
        [
            f"{rounds} starts of each in turns; polled every {1000 * _POLL_S:.0f} ms; medians",
            f"sd35 serve {spread(ours)}",
            f"FastAPI around the pipeline {spread(theirs)}",
            f"the starts before these, which may have read from disk: {first[0]:.3f} s and {first[1]:.3f} s",
        ],
        {"sd35_serve_s": ours, "plain_fastapi_s": theirs, "first_s": first},
    )


def time_to_ready(command: list[str], port: str, variables: dict[str, str]) -> float:
    """Seconds from starting the command until /readyz answers 200; the process is ended after that."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        environment = {**clean_environment(), **variables}
        started_s = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            if wait_until_ready(int(port), process):
                return time.perf_counter() - started_s
        finally:
            stop_process(process)
        log.seek(0)
        raise SystemExit(f"{os.path.basename(command[0])} did not become ready; it said:\n{log.read()}")  # noqa: PTH119


def wait_until_ready(port: int, process: subprocess.Popen[Any]) -> bool:
    """Whether /readyz came to answer 200, or the process ended before, or two minutes did."""
    for _ in range(_POLLS):
        if is_ready(port):
            return True
        if process.poll() is not None:
            break
        time.sleep(_POLL_S)
    return False


def is_ready(port: int) -> bool:
    """Whether /readyz answers 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
