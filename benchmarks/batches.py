"""Generate images of several clients, and draw a chart of the batches: `python -m benchmarks.batches OUTPUT.svg`.

The chart is docs/images/batches.svg. It shows how images join and leave the batch at every step.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.engine.local.executor import BatchExecutor, StepResult
from sd35.engine.local.generation import Generation
from sd35.generation.params import GenerationParams
from sd35.settings import load_settings
from sd35.startup import open_model_pool


class Arrival(NamedTuple):
    """A request. It arrives after the `share` of the time that the first request would take alone."""

    share: float
    client: str
    steps: int
    guidance: float
    side_px: int


ARRIVALS = (
    Arrival(0.00, "A", 28, 4.5, 128),
    Arrival(0.05, "A", 28, 4.5, 128),
    Arrival(0.10, "A", 28, 0.0, 128),
    Arrival(0.15, "B", 12, 4.5, 128),
    Arrival(0.35, "C", 4, 4.5, 128),
    Arrival(0.40, "B", 12, 0.0, 96),
    Arrival(0.60, "A", 28, 4.5, 128),
    Arrival(0.65, "C", 4, 0.0, 128),
    Arrival(0.90, "C", 4, 4.5, 96),
    Arrival(1.10, "B", 12, 4.5, 128),
    Arrival(1.30, "C", 4, 0.0, 128),
)
COLOURS = {"A": "#4c72b0", "B": "#dd8452", "C": "#55a868"}
LABEL, LANE, WIDTH, TOP = 190, 22, 900, 46  # of the chart, in pixels


class Step(NamedTuple):
    """A step of a batch: its start and end in seconds, and the seeds of the images in the batch."""

    start_s: float
    end_s: float
    seeds: list[int]


def record() -> tuple[list[Step], list[float]]:
    """Generate the images of `ARRIVALS`. Returns the steps, and the arrival times of the requests in seconds.

    The seed of each image is its index in `ARRIVALS`. All times are of the monotonic clock.
    """
    with open_model_pool(load_settings(), [open_checkpoint(EMBEDDED)]) as pool:

        def submit(number: int) -> Callable[[], object]:
            """Submit a request, and return a function that waits for its image."""
            _, client, steps, guidance, side_px = ARRIVALS[number]
            params = GenerationParams("a cat", "", side_px, side_px, steps, guidance, number)
            return pool.submit(pool.resolve(params), client=client).future.result

        submit(0)()  # a warm-up
        began_s = time.monotonic()
        submit(1)()
        alone_s = time.monotonic() - began_s
        steps = _record_steps(pool.engine._executor)  # type: ignore[attr-defined]  # noqa: SLF001  not public
        arrivals_s, waits = [], []
        began_s = time.monotonic()
        for number, arrival in enumerate(ARRIVALS):
            time.sleep(max(0.0, began_s + arrival.share * alone_s - time.monotonic()))
            arrivals_s.append(time.monotonic())
            waits.append(submit(number))
        for wait in waits:
            wait()
        return steps, arrivals_s


def _record_steps(executor: BatchExecutor) -> list[Step]:
    """Wrap the method `step` of an executor. Returns a list to which each step is then added."""
    steps: list[Step] = []
    step = executor.step

    def step_and_record(generations: Sequence[Generation], *, measure: bool) -> StepResult:
        began_s = time.monotonic()
        result = step(generations, measure=measure)
        steps.append(Step(began_s, time.monotonic(), [generation.work.request.seed for generation in generations]))
        return result

    executor.step = step_and_record  # type: ignore[method-assign]
    return steps


def chart(steps: list[Step], arrivals_s: list[float]) -> str:
    """Return an SVG with time from left to right, a line for each image, and a block for each step of an image."""
    start_s, end_s = arrivals_s[0], max(step.end_s for step in steps)
    scale = (WIDTH - LABEL - 10) / (end_s - start_s)  # pixels per second
    height = TOP + LANE * len(ARRIVALS) + 10
    title = (
        f"{1000 * (end_s - start_s):.0f} ms of a real run on two CPU cores: {len(ARRIVALS)} images,"
        f" {sum(len(step.seeds) for step in steps)} image steps in {len(steps)} batches"
    )
    legend = "blocks above each other: one batch; thick: with guidance; dot: arrival; colour: client"
    box = f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}><rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="16">{title}</text><text x="10" y="32" fill="#555">{legend}</text>',
    ]
    for number, arrival in enumerate(ARRIVALS):
        middle = TOP + LANE * number + LANE // 2
        x = LABEL + scale * (arrivals_s[number] - start_s)
        kind = f"{arrival.steps} steps, {arrival.side_px} px{', guidance' if arrival.guidance > 1 else ''}"
        parts += [
            f'<text x="10" y="{middle + 4}">{arrival.client}: {kind}</text>',
            f'<line x1="{LABEL}" x2="{WIDTH - 10}" y1="{middle}" y2="{middle}" stroke="#eee"/>',
            f'<circle cx="{x:.1f}" cy="{middle}" r="3" fill="{COLOURS[arrival.client]}"/>',
        ]
    for step in steps:
        x, width = LABEL + scale * (step.start_s - start_s), scale * (step.end_s - step.start_s)
        for number in step.seeds:
            arrival = ARRIVALS[number]
            thick = 16 if arrival.guidance > 1 else 8  # two transformer rows, or one
            y = TOP + LANE * number + (LANE - thick) // 2
            size = f'x="{x:.1f}" y="{y}" width="{max(width - 0.6, 0.6):.1f}" height="{thick}"'
            parts.append(f'<rect {size} fill="{COLOURS[arrival.client]}"/>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Generate the images and write the chart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.parse_args().output.write_text(chart(*record()), encoding="utf-8")


if __name__ == "__main__":
    main()
