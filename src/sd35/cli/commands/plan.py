"""The command `sd35 plan`."""

import json
import sys
from typing import Annotated

import typer

from sd35.backends.registry import BACKENDS
from sd35.cli.options import CHECKPOINT, AsJson, with_settings
from sd35.errors import CheckpointError, InvalidSetting
from sd35.planning.auto import (
    AUTO,
    BEST_FIRST,
    candidates,
    network_sizes_of,
    no_candidate_message,
    with_capable_backend,
)
from sd35.planning.fit import available_memory, memory_with_vram, plan_for
from sd35.planning.footprint import Workload
from sd35.planning.plan import AvailableMemory, Plan
from sd35.planning.report import plan_json, plan_text, size_text
from sd35.request import SIZE_MULTIPLE_PX
from sd35.settings import Settings

app = typer.Typer()


@app.command()
@with_settings(
    *(*CHECKPOINT, "offline", "backend", "precision", "device", "offload", "tiled_decode", "vram", "ram", "max_pixels")
)
def plan(
    *,
    width: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Image width in pixels, a multiple of 16.", show_default="the model's"),
    ] = None,
    height: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Image height in pixels, a multiple of 16.", show_default="the model's"),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            metavar="ROWS", min=1, help="Size of the batch, in transformer rows.", show_default="the rows of one image"
        ),
    ] = None,
    as_json: AsJson = False,
    settings: Settings,
) -> None:
    """Show how a checkpoint fits in memory: where its networks go, the peak, and the alternatives.

    Needs neither the weights nor the GPU: --vram plans for a CUDA device with that much memory. Without --backend,
    plans for a backend that can run the checkpoint on the device, which may not be the default of `serve`. Exits with
    1 if nothing fits; `serve` would not start.

    [bold]Examples[/bold]

      sd35 plan --checkpoint sd3.5-large --vram 12GiB
      sd35 plan --checkpoint sd3.5-medium --ram 24GiB --precision bfloat16 --json
    """
    names = [name for name in settings.checkpoints if name != AUTO]
    settings = with_capable_backend(settings, [network_sizes_of(name, settings) for name in names])
    memory = memory_with_vram(settings) if settings.vram else available_memory(settings)
    if AUTO in settings.checkpoints:
        names = [_choose_auto(settings, memory) if name == AUTO else name for name in settings.checkpoints]
    all_network_sizes = [network_sizes_of(name, settings) for name in names]
    result = plan_for(settings, all_network_sizes, memory)
    if width or height or rows:
        work = _workload(result.request.work, width, height, rows)
        result = plan_for(settings, all_network_sizes, memory, work)
    if as_json:
        print(json.dumps(plan_json(result), indent=2))
    else:
        alternatives = _alternatives(settings, result)
        print("\n".join([plan_text(result), *([""] if alternatives else []), *alternatives]))
    if result.chosen is None:
        sys.exit(1)


def _choose_auto(settings: Settings, memory: AvailableMemory) -> str:
    """Return the name of the checkpoint that `auto` would choose. Raises CheckpointError if it would choose none."""
    rejected = []
    for candidate in candidates(settings, memory):
        if candidate.obstacle is None:
            return candidate.name
        rejected.append(f"{candidate.name}: {candidate.obstacle}")
    raise CheckpointError(no_candidate_message("--checkpoint", rejected))


def _workload(work: Workload, width: int | None, height: int | None, rows: int | None) -> Workload:
    """Return `work` with the given width, height and rows. Raises InvalidSetting for an invalid width or height."""
    for name, side in (("--width", width), ("--height", height)):
        if side is not None and (side <= 0 or side % SIZE_MULTIPLE_PX):
            raise InvalidSetting(f"{name}: got {side}; allowed: positive multiples of {SIZE_MULTIPLE_PX}")
    return Workload(width or work.width_px, height or work.height_px, rows or work.rows)


def _alternatives(settings: Settings, plan: Plan) -> list[str]:
    """Return a line for each narrower precision and each other SD3.5 model: whether it fits, and its peak memory."""
    work, plans = plan.request.work, []
    for precision in BACKENDS[settings.backend].narrower.get(plan.request.precision, ()):
        narrower = settings.model_copy(update={"precision": precision})
        plans.append((f"in {precision}", plan_for(narrower, plan.checkpoint_sizes, plan.available, work)))
    names = [network_sizes.name for network_sizes in plan.checkpoint_sizes]
    for name in BEST_FIRST if {*names} & {*BEST_FIRST} else ():
        if name not in names:
            network_sizes = network_sizes_of(name, settings)
            plans.append((f"{name} instead", plan_for(settings, [network_sizes], plan.available, work)))
    return [f"{change}: {_describe_fit(alternative)}" for change, alternative in plans]


def _describe_fit(plan: Plan) -> str:
    if plan.chosen is None:
        return "does not fit"
    return f"fits with offload {plan.chosen.name!r}, {size_text(plan.chosen.peak_bytes)} at the peak"
