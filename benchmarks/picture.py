"""One picture on the default backend against the same picture on plain `StableDiffusion3Pipeline`.

Each side is a process of its own, loaded once and warmed by one picture. They draw in turns, never at once, each with
its library's default threads. A picture's time is from the call to its pixels in memory.
"""

import base64
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.outcome import Bar, Outcome, spread
from benchmarks.processes import Worker

STEPS, GUIDANCE, SIDE_PX = 28, 4.5, 128
LEAST_RATIO = 1.5
_PARTS = (("encode", "encode_s"), ("step", "step_s"), ("decode", "decode_s"))


def measure(checkpoint: Path, rounds: int) -> Outcome:
    """Ours and theirs in turns; the pictures are compared too, so that both are known to do the same work."""
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    with Worker("onnx", checkpoint) as onnx, Worker("pipeline", checkpoint) as pipeline:
        for seed in range(rounds + 1):
            asked = {"seed": seed, "steps": STEPS, "guidance": GUIDANCE, "side_px": SIDE_PX}
            ours.append(onnx.draw(**asked))
            theirs.append(pipeline.draw(**asked))
    difference = max(_difference(one, other) for one, other in zip(ours, theirs, strict=True))
    idle = max(_idle_share(ours, theirs), _idle_share(theirs, ours))
    ours, theirs = ours[1:], theirs[1:]  # without the warm-up
    ratio = _median(theirs, "total_s") / _median(ours, "total_s")
    pairs = [other["total_s"] / one["total_s"] for one, other in zip(ours, theirs, strict=True)]
    notes = [
        f"{SIDE_PX} px, {STEPS} steps, guidance {GUIDANCE}, {rounds} pictures of each side in turns; medians",
        *(_described(name, samples) for name, samples in (("onnx", ours), ("pipeline", theirs))),
        f"ratio of single pairs {min(pairs):.2f}-{max(pairs):.2f}",
        f"the pictures differ by {difference} of 255 at most; the waiting side took {idle:.1%} of a core at most",
    ]
    return Outcome(
        [Bar("plain pipeline's time / ours", ratio, "x", ">=", LEAST_RATIO)],
        notes,
        {"ours": _numbers(ours), "pipeline": _numbers(theirs), "max_difference": difference, "idle_share": idle},
    )


def _described(name: str, samples: list[dict[str, Any]]) -> str:
    parts = ", ".join(f"{part} {1000 * _median(samples, key):.1f} ms" for part, key in _PARTS)
    peak = samples[-1]["peak_bytes"] / 1e6
    return f"{name:<9}{spread([sample['total_s'] for sample in samples])}: {parts}; peak memory {peak:.0f} MB"


def _median(samples: list[dict[str, Any]], key: str) -> float:
    return median(sample[key] for sample in samples)


def _numbers(samples: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{key: value for key, value in sample.items() if key != "pixels"} for sample in samples]


def _difference(one: dict[str, Any], other: dict[str, Any]) -> int:
    """The largest difference of two pictures at any pixel, of 255."""
    arrays = [np.frombuffer(base64.b64decode(each["pixels"]), np.uint8).astype(np.int16) for each in (one, other)]
    return int(np.abs(arrays[0] - arrays[1]).max())


def _idle_share(waiting: list[dict[str, Any]], drawing: list[dict[str, Any]]) -> float:
    """The most of a core that one side took between two of its pictures, while the other drew."""
    pauses = zip(waiting, waiting[1:], drawing, strict=False)
    return max(
        ((after["cpu_before_s"] - before["cpu_after_s"]) / other["total_s"] for before, after, other in pauses),
        default=0.0,
    )
