"""Time and memory of loading a checkpoint, compared with reading its files and with Diffusers' `from_pretrained`.

Runs only when named, on a checkpoint with large weights: `sd35 synth sd3.5-medium -o build/medium`, then
`python -m benchmarks loading --checkpoint build/medium --rounds 2`.
"""

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.outcome import Bar, Outcome, spread
from benchmarks.processes import run_module

SIDES = ("bytes", "ours", "from_pretrained")


def measure(checkpoint: Path, rounds: int) -> Outcome:
    """Load with each side alternately, each time in a new process.

    Before each load, all files are read once, so that the system's file cache has them.
    """
    samples: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            run_module("benchmarks.load_once", "bytes", str(checkpoint))  # fills the file cache
            samples[side].append(run_module("benchmarks.load_once", side, str(checkpoint)))
    weights = samples["ours"][0]["weights_bytes"]
    times_s = {side: [sample["took_s"] for sample in of_side] for side, of_side in samples.items()}
    peak = {side: median(sample["peak_bytes"] for sample in of_side) for side, of_side in samples.items()}
    ratio = median(times_s["ours"]) / median(times_s["bytes"])
    return Outcome(
        [
            Bar("peak memory / the weights", peak["ours"] / weights, "x", "<=", 1.15),
            Bar("time until every page was touched / reading the bytes", ratio, "x", "<=", 1.3),
        ],
        [
            f"weights {weights / 1e9:.2f} GB, in the system's file cache before each sample if they fit",
            f"reading the bytes {spread(times_s['bytes'])}",
            f"ours {spread(times_s['ours'])}, peak {peak['ours'] / 1e9:.2f} GB",
            f"from_pretrained {spread(times_s['from_pretrained'])}, peak {peak['from_pretrained'] / 1e9:.2f} GB",
            "peak: peak physical memory of the process (VmHWM) with mapped pages and libraries",
        ],
        samples,
    )
