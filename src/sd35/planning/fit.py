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
from sd35.planning.report import plan_text, size_text
from sd35.settings import Settings


def available_memory(settings: Settings) -> AvailableMemory:
    """Return the memory of the device and of the host that this process can use. `vram` and `ram` override it.

    Imports the backend. Raises InvalidSetting if `vram` is set for a CPU or the backend or device does not exist,
    BackendUnavailable if the backend cannot run here.
    """
    device, memory = memory_of(settings.backend, settings.device)
    host_bytes = settings.ram or _host_bytes()
    if device == "cpu":
        if settings.vram:
            raise InvalidSetting(
                f"vram: got {size_text(settings.vram)}, but {settings.backend} computes on a CPU here; set ram instead"
            )
        return AvailableMemory("cpu", host_bytes, host_bytes)
    return AvailableMemory("cuda", settings.vram or memory.free_bytes(), host_bytes)


def memory_with_vram(settings: Settings) -> AvailableMemory:
    """Return the memory of any machine with a CUDA device of size `vram`, which must be set.

    Raises InvalidSetting if the backend and the setting `device` do not compute on CUDA.
    """
    assert settings.vram
    if "cuda" not in BACKENDS[settings.backend].devices or settings.device == "cpu":
        raise InvalidSetting(
            f"vram: got {size_text(settings.vram)}, but {settings.backend} with the device {settings.device} uses no"
            " CUDA device; set ram instead of vram, or choose another backend or device"
        )
    return AvailableMemory("cuda", settings.vram, settings.ram)


def plan_for(
    settings: Settings,
    checkpoint_sizes: Sequence[NetworkSizes],
    available: AvailableMemory,
    work: Workload | None = None,
) -> Plan:
    """Plan the memory of checkpoints that are served together in the backend of the settings.

    `work` defaults to one image of the largest default size of the checkpoints. Raises InvalidSetting if the backend
    does not support the precision on the device.
    """
    precision = precision_of(settings, available.device)
    allowed = BACKENDS[settings.backend].devices[available.device].precisions
    if precision not in allowed:
        where = f"{settings.backend} on {DEVICE_NAMES[available.device]}"
        raise InvalidSetting(f"precision: got {precision!r}; allowed with {where}: {', '.join(allowed)}")
    offload: Offload | None = None if settings.offload == "auto" else settings.offload
    tiled_decode = {"auto": None, "on": True, "off": False}[settings.tiled_decode]
    work = work or _default_work(settings, checkpoint_sizes)
    request = PlacementRequest(settings.backend, precision, work, offload, tiled_decode)
    return make_plan(checkpoint_sizes, request, available)


def placement_of(plan: Plan) -> Placement:
    """Return the chosen placement of a plan. Raises DoesNotFit, with the plan's tables, if no placement fits."""
    if plan.chosen is None:
        raise DoesNotFit(
            f"{_do_not_fit(plan.checkpoint_sizes)}; `sd35 plan` shows alternatives, such as another --precision"
            f"\n\n{plan_text(plan)}"
        )
    return plan.chosen


def check_fallback(settings: Settings, fallback: Settings, available: AvailableMemory) -> None:
    """Raise InvalidSetting if the fallback computes on another kind of device, or exactly as the backend does.

    `fallback` has the settings of the fallback, and `available` the memory of the backend's device. Imports the
    fallback's backend.
    """
    device = available_memory(fallback).device
    own = f"{settings.backend}/{precision_of(settings, available.device)}"
    if device != available.device:
        reason = (
            f"computes on {DEVICE_NAMES[device]}, but the backend {settings.backend} computes on"
            f" {DEVICE_NAMES[available.device]}"
        )
    elif own == f"{fallback.backend}/{precision_of(fallback, device)}":
        reason = f"computes in {own} as the backend does"
    else:
        return
    allowed = ", ".join(other_fallbacks(available.device, own))
    raise InvalidSetting(f"fallback: got {settings.fallback!r}, which {reason}; allowed: {allowed}")


def other_fallbacks(device: DeviceKind, *refused: str) -> list[str]:
    """Return the values of the setting `fallback` for a kind of device, such as "onnx/float32", except `refused`."""
    fallbacks = [
        f"{name}/{precision}"
        for name, spec in BACKENDS.items()
        if device in spec.devices
        for precision in spec.devices[device].precisions
    ]
    return [fallback for fallback in fallbacks if fallback not in refused]


def place_fallback(fallback: Settings, checkpoint_sizes: Sequence[NetworkSizes], plan: Plan) -> Placement:
    """Place a fallback's networks in the memory that is left at the peak of `plan`, which is for the backend.

    Raises DoesNotFit, with the tables of both plans, if the fallback does not fit.
    """
    first, available = placement_of(plan), plan.available
    host_bytes = None if available.host_bytes is None else available.host_bytes - first.host_bytes
    remaining = replace(available, device_bytes=available.device_bytes - first.needed_bytes, host_bytes=host_bytes)
    fallback_plan = plan_for(fallback, checkpoint_sizes, remaining)
    if fallback_plan.chosen is None:
        tables = f"{plan_text(plan)}\n\nThe fallback, in the rest of the memory:\n\n{plan_text(fallback_plan)}"
        raise DoesNotFit(
            f"{_do_not_fit(checkpoint_sizes)} with a fallback; leave out --fallback, or choose precisions that"
            " need less memory, with --precision (such as fp8) or in --fallback (BACKEND/PRECISION)"
            f"\n\n{tables}"
        )
    return fallback_plan.chosen


def precision_of(settings: Settings, device: DeviceKind) -> str:
    """Return the precision to compute in. For `auto`, return the default precision of the backend on the device."""
    if settings.precision != "auto":
        return settings.precision
    return BACKENDS[settings.backend].devices[device].default_precision


def _do_not_fit(checkpoint_sizes: Sequence[NetworkSizes]) -> str:
    """Return the beginning of an error: "NAME does not fit in memory"."""
    names = ", ".join(sizes.name for sizes in checkpoint_sizes)
    return f"{names} {'does' if len(checkpoint_sizes) == 1 else 'do'} not fit in memory"


def _default_work(settings: Settings, checkpoint_sizes: Sequence[NetworkSizes]) -> Workload:
    """Return the work of one image of the largest default size, with two rows if a model uses guidance by default."""
    cards = [sizes.card for sizes in checkpoint_sizes]
    sizes_px = [
        generated_size(card.width, card.height, card, max(settings.max_pixels, card.width * card.height))
        for card in cards
    ]
    width_px, height_px = max(sizes_px, key=lambda size_px: size_px[0] * size_px[1])
    return Workload(width_px, height_px, 2 if any(card.guidance_scale > 1 for card in cards) else 1)


def _host_bytes() -> int:
    """Return the memory of the host that this process can use, including the memory that it already holds."""
    memory = HostMemory()
    return memory.free_bytes() + memory.held_bytes()
