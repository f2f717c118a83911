"""One image on the default backend against the same image on plain `StableDiffusion3Pipeline`.

Each side is a process of its own, loaded once and warmed by one image. They draw in turns, never at once, each with
its library's default threads. An image's time is from the call to its pixels in memory.
"""

from pathlib import Path

from benchmarks.in_turns import draw_in_turns
from benchmarks.outcome import Bar, Outcome
from benchmarks.processes import Worker

STEPS, GUIDANCE, SIDE_PX = 28, 4.5, 128
LEAST_RATIO = 1.5


def measure(checkpoint: Path, rounds: int) -> Outcome:
    """Ours and theirs in turns; the images are compared too, so that both are known to do the same work."""
    with Worker("onnx", checkpoint) as onnx, Worker("pipeline", checkpoint) as pipeline:
        sides = {"onnx": onnx.draw, "pipeline": pipeline.draw}
        turns = draw_in_turns(sides, rounds, steps=STEPS, guidance=GUIDANCE, side_px=SIDE_PX)
    difference, idle = turns.difference("onnx", "pipeline"), turns.idle_share
    return Outcome(
        [Bar("plain pipeline's time / ours", turns.ratio("pipeline", "onnx"), "x", ">=", LEAST_RATIO)],
        [
            f"{SIDE_PX} px, {STEPS} steps, guidance {GUIDANCE}, {rounds} images of each side in turns; medians",
            *map(turns.described, sides),
            f"ratio of single pairs {turns.pairs('pipeline', 'onnx')}",
            f"the images differ by {difference} of 255 at most; the waiting side took {idle:.1%} of a core at most",
        ],
        {**turns.numbers(), "max_difference": difference, "idle_share": idle},
    )
