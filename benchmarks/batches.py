"""Draw the images of each step of a real run: `python -m benchmarks.batches docs/images/batches.svg`."""

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
    """A request at a share of the time that the first request takes alone."""

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
LABEL, LANE, WIDTH, TOP = 190, 22, 900, 46  # of the drawing, in pixels


class Step(NamedTuple):
    """The start and end of a step, and the seeds of its images."""

    start_s: float
    end_s: float
    seeds: list[int]


def run() -> tuple[list[Step], list[float]]:
    """Return the steps of a real run, and the arrival times. The seeds are the indices of `ARRIVALS`."""
    with open_model_pool(load_settings(), [open_checkpoint(EMBEDDED)]) as pool:

        def submit(number: int) -> Callable[[], object]:
            of = ARRIVALS[number]
            wanted = GenerationParams("a cat", "", of.side_px, of.side_px, of.steps, of.guidance, number)
            return pool.submit(pool.resolve(wanted), client=of.client).future.result

        submit(0)()
        began_s = time.monotonic()
        submit(1)()
        alone_s = time.monotonic() - began_s
        seen = _note_steps(pool.engine._executor)  # type: ignore[attr-defined]  # noqa: SLF001  nothing else has a record
        came_s, waits = [], []
        began_s = time.monotonic()
        for number, arrival in enumerate(ARRIVALS):
            time.sleep(max(0.0, began_s + arrival.share * alone_s - time.monotonic()))
            came_s.append(time.monotonic())
            waits.append(submit(number))
        for wait in waits:
            wait()
        return seen, came_s


def _note_steps(calls: BatchExecutor) -> list[Step]:
    seen: list[Step] = []
    step = calls.step

    def noted(generations: Sequence[Generation], *, measure: bool) -> StepResult:
        began_s = time.monotonic()
        stepped = step(generations, measure=measure)
        seen.append(Step(began_s, time.monotonic(), [generation.work.request.seed for generation in generations]))
        return stepped

    calls.step = noted  # type: ignore[method-assign]
    return seen


def drawing(steps: list[Step], came_s: list[float]) -> str:
    """Draw an SVG: time to the right, a line for each image, a block for each of its steps."""
    start_s, end_s = came_s[0], max(step.end_s for step in steps)
    scale = (WIDTH - LABEL - 10) / (end_s - start_s)
    height = TOP + LANE * len(ARRIVALS) + 10
    title = (
        f"{1000 * (end_s - start_s):.0f} ms of a real run on two CPU cores: {len(ARRIVALS)} images,"
        f" {sum(len(step.seeds) for step in steps)} steps of images in {len(steps)} calls"
    )
    legend = "blocks above each other share a call; thick: with guidance; dot: arrival; colours: clients"
    box = f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}><rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="16">{title}</text><text x="10" y="32" fill="#555">{legend}</text>',
    ]
    for number, arrival in enumerate(ARRIVALS):
        middle = TOP + LANE * number + LANE // 2
        x = LABEL + scale * (came_s[number] - start_s)
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
    """Run and write the drawing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.parse_args().output.write_text(drawing(*run()), encoding="utf-8")


if __name__ == "__main__":
    main()
