"""`sd35 plan`: where each part would live, and the peak that follows."""

import json
import sys

from sd35.backends.registry import BACKENDS
from sd35.errors import CheckpointError, InvalidSetting
from sd35.planning.auto import AUTO, BEST_FIRST, candidates, network_sizes_of, with_capable_backend
from sd35.planning.fit import available_memory, memory_with_vram, plan_for
from sd35.planning.footprint import Workload
from sd35.planning.plan import AvailableMemory, Plan
from sd35.planning.report import plan_json, plan_text, size_text
from sd35.request import SIZE_MULTIPLE_PX
from sd35.settings import Settings


def plan(settings: Settings, width: int | None, height: int | None, rows: int | None, *, as_json: bool) -> None:
    """Print the plan; exit with 1 where nothing fits. Raises InvalidSetting, CheckpointError, BackendUnavailable."""
    names = [name for name in settings.checkpoints if name != AUTO]
    settings = with_capable_backend(settings, [network_sizes_of(name, settings) for name in names])
    room = memory_with_vram(settings) if settings.vram else available_memory(settings)
    if AUTO in settings.checkpoints:
        names = [_auto(settings, room) if name == AUTO else name for name in settings.checkpoints]
    all_network_sizes = [network_sizes_of(name, settings) for name in names]
    found = plan_for(settings, all_network_sizes, room)
    if width or height or rows:
        found = plan_for(settings, all_network_sizes, room, _work(found.request.work, width, height, rows))
    if as_json:
        print(json.dumps(plan_json(found), indent=2))
    else:
        others = _others(settings, found)
        print("\n".join([plan_text(found), *([""] if others else []), *others]))
    if found.chosen is None:
        sys.exit(1)


def _auto(settings: Settings, room: AvailableMemory) -> str:
    """What `auto` would take. Raises CheckpointError where that is none."""
    passed_over = []
    for candidate in candidates(settings, room):
        if candidate.obstacle is None:
            return candidate.name
        passed_over.append(f"{candidate.name}: {candidate.obstacle}")
    raise CheckpointError(f"{AUTO} finds none: {'; '.join(passed_over)}")


def _work(work: Workload, width: int | None, height: int | None, rows: int | None) -> Workload:
    for name, side in (("--width", width), ("--height", height)):
        if side is not None and (side <= 0 or side % SIZE_MULTIPLE_PX):
            raise InvalidSetting(f"{name}: got {side}; allowed: multiples of {SIZE_MULTIPLE_PX}")
    return Workload(width or work.width_px, height or work.height_px, rows or work.rows)


def _others(settings: Settings, found: Plan) -> list[str]:
    """What else could be named: less precision, another model. What is named is never replaced."""
    named = [network_sizes.name for network_sizes in found.checkpoint_sizes]
    others = []
    for precision in BACKENDS[settings.backend].narrower.get(found.request.precision, ()):
        narrower = settings.model_copy(update={"precision": precision})
        others.append(
            (f"in {precision}", plan_for(narrower, found.checkpoint_sizes, found.available, found.request.work))
        )
    for name in BEST_FIRST if {*named} & {*BEST_FIRST} else ():
        if name not in named:
            network_sizes = network_sizes_of(name, settings)
            others.append(
                (f"{name} in its place", plan_for(settings, [network_sizes], found.available, found.request.work))
            )
    return [f"{what}: {_outcome(plan)}" for what, plan in others]


def _outcome(plan: Plan) -> str:
    if plan.chosen is None:
        return "does not fit"
    return f"fits as {plan.chosen.name!r}, {size_text(plan.chosen.peak_bytes)} at the peak"
