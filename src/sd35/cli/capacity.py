"""`sd35 measure` and `sd35 simulate`: how many images a second, and how quickly, before anything is bought."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sd35.checkpoints.image_sizes import drawn_size
from sd35.cli.generate import progress_bar
from sd35.engine.local.measure import measure as measure_model
from sd35.engine.local.measure import row_counts
from sd35.engine.scheduling.simulation import Load, Report, simulate
from sd35.engine.scheduling.step_times import StepTimes
from sd35.errors import InvalidRequest, InvalidSetting
from sd35.settings import Settings
from sd35.startup import OF_FREE_MEMORY, limits_of, open_checkpoints, open_pipeline

_PERCENTILES = (50, 95, 99)


def measure(settings: Settings, sizes: Sequence[str], output: Path) -> None:
    """Time the first checkpoint of the settings and write the table. Raises InvalidSetting, InvalidRequest."""
    checkpoint = open_checkpoints(settings)[0]
    card = checkpoint.card
    asked = [_size(size) for size in sizes] or [(card.width, card.height)]
    sizes_px = list(dict.fromkeys(drawn_size(*size, card, settings.max_pixels) for size in asked))
    progress = progress_bar()
    with progress:
        loading = progress.add_task("loading the model", total=None)
        pipeline = open_pipeline(settings, checkpoint)
        progress.remove_task(loading)
        calls = 1 + len(sizes_px) * (len(row_counts(settings.max_batch_rows)) + 1)
        bar = progress.add_task("measuring", total=calls)
        times = measure_model(pipeline, sizes_px, settings.max_batch_rows, lambda: progress.advance(bar))
    times.write(output)
    for entry in times.shapes:
        best = min(entry.step_s, key=lambda rows: entry.step_s[rows] / rows)
        print(
            f"{output}: {entry.width_px}x{entry.height_px}: a step of 1 row takes {1000 * entry.step_s[1]:.1f} ms, "
            f"of {best} {1000 * entry.step_s[best]:.1f} ms; decoding {1000 * entry.decode_s:.1f} ms"
        )


def run_simulation(
    settings: Settings, table: Path, load_wanted: Load, sizes: Sequence[str], devices: int, *, as_json: bool
) -> None:
    """Print what a load would meet on so many devices as measured. Raises InvalidSetting."""
    if not (math.isfinite(load_wanted.rps) and load_wanted.rps > 0):
        raise InvalidSetting(f"--rps: got {load_wanted.rps}; allowed: a number above 0")
    times = StepTimes.read(table)
    load = _of_table(load_wanted, times, sizes)
    memory_bytes = settings.memory_mb * 10**6 or int(OF_FREE_MEMORY * times.memory_bytes)
    limits = limits_of(settings, memory_bytes)
    try:
        report = simulate(times, load, limits, devices)
    except InvalidRequest as error:
        raise InvalidSetting(f"--memory-mb: {error}") from error
    if as_json:
        print(json.dumps(_as_dict(report)))
    else:
        _show(report, load, devices)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise InvalidSetting(f"--size: got {text!r}; allowed: WIDTHxHEIGHT in pixels, such as 1024x1024")
    return int(width), int(height)


def _of_table(load: Load, times: StepTimes, sizes: Sequence[str]) -> Load:
    """The load with what was left open taken from the table: its sizes, and the model's defaults."""
    measured = {(entry.width_px, entry.height_px): entry for entry in times.shapes}
    asked = [_size(size) for size in sizes] or list(measured)
    if missing := [size for size in asked if size not in measured]:
        known = ", ".join("{}x{}".format(*size) for size in measured)
        raise InvalidSetting("--size: got {}x{}; the table has ".format(*missing[0]) + known)
    return replace(
        load,
        shapes=[measured[size] for size in asked],
        steps=load.steps or [times.steps],
        guidance=load.guidance or [times.guidance_scale],
    )


def _as_dict(report: Report) -> dict[str, object]:
    latency_s = {
        "all" if steps is None else str(steps): {
            f"p{percent}": round(report.percentile_s(percent, steps), 4) for percent in _PERCENTILES
        }
        for steps in _rows(report)
    }
    return {
        "latency_s": latency_s,
        "utilisation": round(report.utilisation, 4),
        "finished": report.finished,
        "refused": report.refused,
        "simulated_s": round(report.lasted_s, 3),
    }


def _rows(report: Report) -> list[int | None]:
    """All images, then those of each number of steps where there are several."""
    return [None, *sorted(report.latencies_s)] if len(report.latencies_s) > 1 else [None] * bool(report.finished)


def _show(report: Report, load: Load, devices: int) -> None:
    table = Table("images", *(f"p{percent}" for percent in _PERCENTILES), box=None)
    for steps in _rows(report):
        figures = (f"{report.percentile_s(percent, steps):.2f} s" for percent in _PERCENTILES)
        table.add_row("all" if steps is None else f"{steps} steps", *figures)
    console = Console(highlight=False)
    asked = report.finished + report.refused
    console.print(f"{asked} requests at {load.rps:g} a second on {devices} simulated device{'s' * (devices > 1)}")
    console.print(table)
    console.print(f"utilisation {report.utilisation:.0%}, refused {report.refused} ({report.refused / asked:.1%})")
