"""The command `sd35 simulate`."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sd35.cli.options import AsJson, parse_size, with_settings
from sd35.engine.scheduling.simulation import Load, Report
from sd35.engine.scheduling.simulation import simulate as run_simulation
from sd35.engine.scheduling.step_times import ShapeTimes, StepTimes
from sd35.errors import InvalidRequest, InvalidSetting
from sd35.settings import Settings
from sd35.startup import FREE_MEMORY_SHARE, limits_of

_PERCENTILES = (50, 95, 99)
app = typer.Typer()


@app.command()
@with_settings("max_in_flight", "max_wait_s", "max_batch_rows", "memory_mb")
def simulate(
    *,
    rps: Annotated[
        float, typer.Option(metavar="RATE", help="Average rate of requests per second. They arrive at random times.")
    ],
    step_times: Annotated[Path, typer.Option(metavar="FILE", help="File that `sd35 measure` wrote.")],
    devices: Annotated[int, typer.Option(metavar="COUNT", min=1, max=10_000, help="Number of devices.")] = 1,
    requests: Annotated[int, typer.Option(metavar="COUNT", min=1, max=10_000_000, help="Number of requests.")] = 10_000,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            metavar="COUNT",
            min=1,
            max=150,
            help="Number of steps. If repeated, each request picks one at random.",
            show_default="the model's",
        ),
    ] = None,
    guidance_scale: Annotated[
        list[float] | None,
        typer.Option(
            metavar="SCALE",
            min=0,
            max=30,
            help="Guidance scale. If repeated, each request picks one at random.",
            show_default="the model's",
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="Image size. If repeated, each request picks one at random.",
            show_default="all measured sizes",
        ),
    ] = None,
    clients: Annotated[
        int, typer.Option(metavar="COUNT", min=1, help="Number of clients that send the requests.")
    ] = 100,
    seed: Annotated[int, typer.Option(metavar="SEED", help="Random seed: the same seed gives the same result.")] = 0,
    as_json: AsJson = False,
    settings: Settings,
) -> None:
    """Predict latency, utilisation and refused requests from measured step times.

    Runs the real scheduler on simulated devices. The latency of an image is the time from its request to its decoded
    pixels. With several devices, each request goes to the least busy of a few random ones.

    [bold]Examples[/bold]

      sd35 simulate --rps 3 --step-times step-times.json
      sd35 simulate --rps 900 --step-times h100.json --devices 1000 --steps 4 --steps 28 --json
    """
    if not (math.isfinite(rps) and rps > 0):
        raise InvalidSetting(f"--rps: got {rps}; allowed: a number above 0")
    times = StepTimes.read(step_times)
    shapes = _find_measured(times, size or ())
    guidance = guidance_scale or [times.guidance_scale]
    load = Load(rps, requests, steps or [times.steps], guidance, shapes, clients, seed)
    memory_bytes = settings.memory_mb * 10**6 or int(FREE_MEMORY_SHARE * times.memory_bytes)
    try:
        report = run_simulation(times, load, limits_of(settings, memory_bytes), devices)
    except InvalidRequest as error:
        raise InvalidSetting(f"{error}. Raise --memory-mb, or choose smaller sizes with --size") from error
    if as_json:
        print(json.dumps(_as_dict(report)))
    else:
        _show(report, load, devices)


def _find_measured(times: StepTimes, sizes: Sequence[str]) -> list[ShapeTimes]:
    """Return the measured times of the given sizes, or of all measured sizes if none is given.

    Raises InvalidSetting for a size that was not measured.
    """
    measured = {(shape.width_px, shape.height_px): shape for shape in times.shapes}
    requested = [parse_size(text) for text in sizes] or list(measured)
    for width_px, height_px in requested:
        if (width_px, height_px) not in measured:
            allowed = ", ".join(f"{shape.width_px}x{shape.height_px}" for shape in times.shapes)
            raise InvalidSetting(
                f"--size: got {width_px}x{height_px}, which is not in the file of --step-times; allowed: {allowed}"
            )
    return [measured[size] for size in requested]


def _as_dict(report: Report) -> dict[str, object]:
    """Return a report for --json. `latency_s` has percentiles of all images, and of each number of steps."""
    latency_s = {
        "all" if steps is None else str(steps): {
            f"p{percent}": round(report.percentile_s(percent, steps), 4) for percent in _PERCENTILES
        }
        for steps in _step_counts(report)
    }
    return {
        "latency_s": latency_s,
        "utilisation": round(report.utilisation, 4),
        "finished": report.finished,
        "refused": report.refused,
        "simulated_s": round(report.lasted_s, 3),
    }


def _step_counts(report: Report) -> list[int | None]:
    """Return the step count of each row in the table of latencies. None stands for all images.

    Each step count has a row if there are several. Without finished images, there are no rows.
    """
    if not report.finished:
        return []
    return [None, *(sorted(report.latencies_s) if len(report.latencies_s) > 1 else ())]


def _show(report: Report, load: Load, devices: int) -> None:
    """Print the latencies by number of steps, the utilisation of the devices and the refused requests."""
    table = Table("images", *(f"p{percent}" for percent in _PERCENTILES), box=None, pad_edge=False)
    for steps in _step_counts(report):
        figures = (f"{report.percentile_s(percent, steps):.2f} s" for percent in _PERCENTILES)
        table.add_row("all" if steps is None else f"{steps} steps", *figures)
    console = Console(highlight=False)
    requests = report.finished + report.refused
    amounts = f"{requests} request{'s' * (requests > 1)}, {load.rps:g} per second"
    console.print(f"{amounts}, on {devices} simulated device{'s' * (devices > 1)}")
    console.print(table)
    console.print(f"utilisation {report.utilisation:.0%}; refused {report.refused} ({report.refused / requests:.1%})")
