"""Make memory plans from settings: determine the available memory and the work that must fit."""

from collections.abc import Sequence
from dataclasses import replace

from sd35.backends.options import DeviceKind, Offload
from sd35.backends.registry import BACKENDS, memory_of
from sd35.backends.spec import DEVICE_NAMES
from sd35.checkpoints.image_sizes import generated_size
from sd35.checkpoints.network_sizes import NetworkSizes
from sd35.errors import DoesNotFit, InvalidSetting
from sd35.host import HostMemory
from sd35.planning.footprint import Workload
from sd35.planning.plan import AvailableMemory, Placement, PlacementRequest, Plan, make_plan
from sd35.planning.report import plan_text
from sd35.settings import Settings


def available_memory(settings: Settings) -> AvailableMemory:
    """Return the memory of the device and of the host that this process can use. `vram` and `ram` override it.

    Imports the backend. Raises InvalidSetting, BackendUnavailable.
    """
    device, memory = memory_of(settings.backend, settings.device)
    host_bytes = settings.ram or _host_bytes()
    if device == "cpu":
        if settings.vram:
            raise InvalidSetting(
                f"vram: got {settings.vram}, but {settings.backend} computes on the CPU here; allowed: ram"
            )
        return AvailableMemory("cpu", host_bytes, host_bytes)
    return AvailableMemory("cuda", settings.vram or memory.free_bytes(), host_bytes)


def memory_with_vram(settings: Settings) -> AvailableMemory:
    """Return the memory of a machine, perhaps not this one, with `vram` on its CUDA device. Raises InvalidSetting."""
    assert settings.vram
    if "cuda" not in BACKENDS[settings.backend].devices or settings.device == "cpu":
        raise InvalidSetting(
            f"vram: got {settings.vram}, but {settings.backend} with the device {settings.device} uses no CUDA device;"
            " allowed: ram"
        )
    return AvailableMemory("cuda", settings.vram, settings.ram)


def plan_for(
    settings: Settings,
    checkpoint_sizes: Sequence[NetworkSizes],
    available: AvailableMemory,
    work: Workload | None = None,
) -> Plan:
    """Plan the memory of checkpoints that are served together with the settings' backend.

    `work` defaults to one image of the largest default size of the checkpoints. Raises InvalidSetting if the backend
    does not support the precision on the device.
    """
    precision = precision_of(settings, available.device)
    allowed = BACKENDS[settings.backend].devices[available.device].precisions
    if precision not in allowed:
        where = f"{settings.backend} on {DEVICE_NAMES[available.device]}"
        raise InvalidSetting(f"precision: got {precision!r}; allowed with {where}: {', '.join(allowed)}")
    offload: Offload | None = None if settings.offload == "auto" else settings.offload
    request = PlacementRequest(
        settings.backend,
        precision,
        work or _default_work(settings, checkpoint_sizes),
        offload,
        None if settings.tiled_decode == "auto" else settings.tiled_decode == "on",
    )
    return make_plan(checkpoint_sizes, request, available)


def placement_of(plan: Plan) -> Placement:
    """Return the chosen placement of a plan. Raises DoesNotFit, with the plan's tables, if nothing fits."""
    if plan.chosen is None:
        raise DoesNotFit(
            f"{_names(plan.checkpoint_sizes)} does not fit in memory; `sd35 plan` shows alternatives, such as another"
            f" --precision\n\n{plan_text(plan)}"
        )
    return plan.chosen


def check_fallback(settings: Settings, fallback: Settings, available: AvailableMemory) -> None:
    """Raise InvalidSetting if the fallback has the same profile, or computes on another kind of device.

    Imports the fallback's backend.
    """
    device = available_memory(fallback).device
    if device != available.device:
        allowed = f"a backend that computes on {available.device}, like {settings.backend}"
        raise InvalidSetting(f"fallback: got {settings.fallback!r}, which computes on {device}; allowed: {allowed}")
    profile = fallback.backend, precision_of(fallback, device)
    if profile == (settings.backend, precision_of(settings, device)):
        first = "/".join(profile)
        raise InvalidSetting(f"fallback: got {settings.fallback!r}; allowed: another backend or precision than {first}")


def place_fallback(fallback: Settings, checkpoint_sizes: Sequence[NetworkSizes], plan: Plan) -> Placement:
    """Place a fallback's networks in the memory that is left at the peak of `plan`.

    Raises DoesNotFit, with the tables of both plans, if nothing fits.
    """
    first, available = placement_of(plan), plan.available
    host_bytes = None if available.host_bytes is None else available.host_bytes - first.host_bytes
    rest = replace(available, device_bytes=available.device_bytes - first.needed_bytes, host_bytes=host_bytes)
    fallback_plan = plan_for(fallback, checkpoint_sizes, rest)
    if fallback_plan.chosen is None:
        tables = f"{plan_text(plan)}\n\nThe fallback, in the rest of the memory:\n\n{plan_text(fallback_plan)}"
        raise DoesNotFit(f"{_names(checkpoint_sizes)} does not fit in memory with a fallback\n\n{tables}")
    return fallback_plan.chosen


def precision_of(settings: Settings, device: DeviceKind) -> str:
    """Return the precision to compute in. `auto` means the backend's default on the device."""
    if settings.precision != "auto":
        return settings.precision
    return BACKENDS[settings.backend].devices[device].default_precision


def _names(checkpoint_sizes: Sequence[NetworkSizes]) -> str:
    return ", ".join(sizes.name for sizes in checkpoint_sizes)


def _default_work(settings: Settings, checkpoint_sizes: Sequence[NetworkSizes]) -> Workload:
    cards = [sizes.card for sizes in checkpoint_sizes]
    width_px, height_px = max(
        (
            generated_size(card.width, card.height, card, max(settings.max_pixels, card.width * card.height))
            for card in cards
        ),
        key=lambda size: size[0] * size[1],
    )
    return Workload(width_px, height_px, 2 if any(card.guidance_scale > 1 for card in cards) else 1)


def _host_bytes() -> int:
    memory = HostMemory()
    return memory.free_bytes() + memory.held_bytes()
