"""The time of one image with the default backend, and with Diffusers' `StableDiffusion3Pipeline`.

The two sides run in separate processes that load once, and generate alternately. Each uses its library's default number
of threads. The time of an image is from the call until its pixels are in memory.
"""

from pathlib import Path

from benchmarks.interleaved import run_interleaved
from benchmarks.outcome import Bar, Outcome
from benchmarks.processes import Worker

STEPS, GUIDANCE, SIDE_PX = 28, 4.5, 128
MIN_RATIO = 1.5


def measure(checkpoint: Path, rounds: int) -> Outcome:
    """Time the two sides alternately, and compare their images, to show that they do the same work."""
    with Worker("onnx", checkpoint) as onnx, Worker("pipeline", checkpoint) as pipeline:
        sides = {"onnx": onnx.generate, "pipeline": pipeline.generate}
        samples = run_interleaved(sides, rounds, steps=STEPS, guidance=GUIDANCE, side_px=SIDE_PX)
    difference, idle = samples.difference("onnx", "pipeline"), samples.idle_share
    return Outcome(
        [Bar("plain pipeline's time / ours", samples.ratio("pipeline", "onnx"), "x", ">=", MIN_RATIO)],
        [
            f"{SIDE_PX} px, {STEPS} steps, guidance {GUIDANCE}, {rounds} images of each side, alternately; medians",
            *map(samples.describe, sides),
            f"ratio of single pairs {samples.pair_ratios('pipeline', 'onnx')}",
            f"the images differ by at most {difference} of 255; the side that waited used at most {idle:.1%} of a core",
        ],
        {**samples.numbers(), "max_difference": difference, "idle_share": idle},
    )
