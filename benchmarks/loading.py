"""How much memory and time loading takes, against reading the bytes and against `from_pretrained`.

Measured only when it is named, on a checkpoint whose weights are large: `sd35 synth sd3.5-medium -o build/medium`, then
`python -m benchmarks loading --checkpoint build/medium --rounds 2`.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.outcome import Bar, Outcome, spread
from benchmarks.processes import ROOT, clean_environment

SIDES = ("bytes", "ours", "from_pretrained")


def measure(checkpoint: Path, rounds: int) -> Outcome:
    """Each side in a process of its own, in turns; before each, all files are read once, so that the cache is alike."""
    samples: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            _run("bytes", checkpoint)
            samples[side].append(_run(side, checkpoint))
    weights = samples["ours"][0]["weights_bytes"]
    took_s = {side: [sample["took_s"] for sample in found] for side, found in samples.items()}
    peak = {side: median(sample["peak_bytes"] for sample in found) for side, found in samples.items()}
    return Outcome(
        [
            Bar("peak memory / the weights", peak["ours"] / weights, "x", "<=", 1.15),
            Bar("until all was touched / reading the bytes", _ratio(took_s, "ours", "bytes"), "x", "<=", 1.3),
        ],
        [
            f"weights {weights / 1e9:.2f} GB, in the system's file cache before each sample where it holds them",
            f"reading the bytes {spread(took_s['bytes'])}",
            f"ours {spread(took_s['ours'])}, peak {peak['ours'] / 1e9:.2f} GB",
            f"from_pretrained {spread(took_s['from_pretrained'])}, peak {peak['from_pretrained'] / 1e9:.2f} GB",
            "peak: the most physical memory of the process (VmHWM), mapped pages and libraries included",
        ],
        samples,
    )


def _ratio(took_s: dict[str, list[float]], side: str, to: str) -> float:
    return median(took_s[side]) / median(took_s[to])


def _run(side: str, checkpoint: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.load_once", side, str(checkpoint)],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{side} ended with {done.returncode}; it said:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
