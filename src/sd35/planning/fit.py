"""From settings to a plan: what computes, what memory there is, and what an image of the defaults needs of it."""

from collections.abc import Sequence
from dataclasses import replace

from sd35.backends.options import DeviceKind, Offload
from sd35.backends.registry import memory_of
from sd35.checkpoints.image_sizes import drawn_size
from sd35.checkpoints.network_sizes import NetworkSizes
from sd35.errors import DoesNotFit, InvalidSetting
from sd35.host import HostMemory
from sd35.planning.footprint import RUNTIMES, Workload
from sd35.planning.plan import AvailableMemory, Placement, PlacementRequest, Plan, make_plan
from sd35.planning.report import plan_text
from sd35.settings import Settings


def available_memory(settings: Settings) -> AvailableMemory:
    """The memory that this process can have: what it holds, and what is free, unless the settings name less or more.

    Imports the backend. Raises InvalidSetting, BackendUnavailable.
    """
    device, memory = memory_of(settings.backend, settings.device)
    host_bytes = settings.ram or _of_host()
    if device == "cpu":
        if settings.vram:
            raise InvalidSetting("vram: it is of a CUDA device, and here a CPU computes; allowed: ram")
        return AvailableMemory("cpu", host_bytes, host_bytes)
    return AvailableMemory("cuda", settings.vram or memory.free_bytes(), host_bytes)


def memory_with_vram(settings: Settings) -> AvailableMemory:
    """The memory of a machine with a CUDA device of `vram`, which need not be this one. Raises InvalidSetting."""
    assert settings.vram
    if (settings.backend, "cuda") not in RUNTIMES or settings.device == "cpu":
        raise InvalidSetting(
            f"vram: it is of a CUDA device, and {settings.backend} on {settings.device} uses none; allowed: ram"
        )
    return AvailableMemory("cuda", settings.vram, settings.ram)


def plan_for(
    settings: Settings, all_network_sizes: Sequence[NetworkSizes], room: AvailableMemory, work: Workload | None = None
) -> Plan:
    """The plan; `work` is by default an image of the largest of the checkpoints' own defaults, alone."""
    precision = precision_of(settings, room.device)
    if precision not in (allowed := RUNTIMES[settings.backend, room.device].precisions):
        where = f"{settings.backend} on {'a CPU' if room.device == 'cpu' else 'CUDA'}"
        raise InvalidSetting(f"precision: got {precision!r}; allowed by {where}: {', '.join(allowed)}")
    offload: Offload | None = None if settings.offload == "auto" else settings.offload
    wanted = PlacementRequest(
        settings.backend,
        precision,
        work or _default_work(settings, all_network_sizes),
        offload,
        None if settings.tiled_decode == "auto" else settings.tiled_decode == "on",
    )
    return make_plan(all_network_sizes, wanted, room)


def placement_of(plan: Plan) -> Placement:
    """What a plan chose. Raises DoesNotFit, with the table, where that is nothing."""
    if plan.chosen is None:
        raise DoesNotFit(
            f"{', '.join(each.name for each in plan.all_network_sizes)} cannot be placed here\n\n{plan_text(plan)}"
        )
    return plan.chosen


def check_fallback(settings: Settings, fallback: Settings, room: AvailableMemory) -> None:
    """Imports the fallback's backend. Raises InvalidSetting where it is no other, or not of `room`'s device."""
    kind = available_memory(fallback).device
    if kind != room.device:
        allowed = f"a backend that computes where {settings.backend} does: {room.device}"
        raise InvalidSetting(f"fallback: got {settings.fallback!r}, which computes on: {kind}; allowed: {allowed}")
    named = fallback.backend, precision_of(fallback, kind)
    if named == (settings.backend, precision_of(settings, kind)):
        raise InvalidSetting(f"fallback: got {settings.fallback!r}; allowed: what the first is not")


def place_beside(fallback: Settings, all_network_sizes: Sequence[NetworkSizes], plan: Plan) -> Placement:
    """Where a fallback's networks live: in the memory that `plan`, which comes first, leaves even at its peak.

    Raises DoesNotFit, with both tables, where that is nowhere.
    """
    first, room = placement_of(plan), plan.room
    host_bytes = None if room.host_bytes is None else room.host_bytes - first.host_bytes
    rest = replace(room, device_bytes=room.device_bytes - first.needed_bytes, host_bytes=host_bytes)
    beside = plan_for(fallback, all_network_sizes, rest)
    if beside.chosen is None:
        names = ", ".join(each.name for each in all_network_sizes)
        tables = f"{plan_text(plan)}\n\nand beside it:\n\n{plan_text(beside)}"
        raise DoesNotFit(f"{names} cannot be placed here with a fallback\n\n{tables}")
    return beside.chosen


def precision_of(settings: Settings, device: DeviceKind) -> str:
    """The precision that a backend computes in, where it is left to it."""
    if settings.precision != "auto":
        return settings.precision
    return "float32" if device == "cpu" else "bfloat16"


def _default_work(settings: Settings, all_network_sizes: Sequence[NetworkSizes]) -> Workload:
    cards = [network_sizes.card for network_sizes in all_network_sizes]
    width_px, height_px = max(
        (
            drawn_size(card.width, card.height, card, max(settings.max_pixels, card.width * card.height))
            for card in cards
        ),
        key=lambda size: size[0] * size[1],
    )
    return Workload(width_px, height_px, 2 if any(card.guidance_scale > 1 for card in cards) else 1)


def _of_host() -> int:
    memory = HostMemory()
    return memory.free_bytes() + memory.held_bytes()
