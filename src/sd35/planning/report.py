"""Format a plan as text, for terminals and error messages, or as JSON."""

from collections.abc import Iterable, Sequence
from typing import Any

from sd35.checkpoints.network_sizes import NETWORKS
from sd35.planning.plan import MARGIN, Placement, Plan

_GIB = 2**30


def plan_text(plan: Plan) -> str:
    """Describe the chosen placement, or the smallest if none fits, and list all placements."""
    shown = plan.chosen or min(plan.placements, key=lambda placement: placement.peak_bytes)
    weights, peaks, placements = _weights_table(plan, shown), _peaks_table(shown), _placements_table(plan)
    return "\n".join([_title(plan), "", *weights, "", *peaks, "", _verdict(plan), "", *placements])


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON values. Sizes are in bytes."""
    work, available = plan.request.work, plan.available
    return {
        "checkpoints": [sizes.name for sizes in plan.checkpoint_sizes],
        "backend": plan.request.backend,
        "precision": plan.request.precision,
        "device": available.device,
        "device_bytes": available.device_bytes,
        "host_bytes": available.host_bytes,
        "width": work.width_px,
        "height": work.height_px,
        "rows": work.rows,
        "weights_bytes": {name: plan.weights_bytes(name) for name in NETWORKS},
        "chosen": _placement_json(plan, plan.chosen) if plan.chosen else None,
        "placements": [_placement_json(plan, placement) for placement in plan.placements],
    }


def size_text(size_bytes: int) -> str:
    """Format a size, such as "12.0 GiB" or "53 MiB"."""
    return f"{size_bytes / _GIB:.1f} GiB" if size_bytes >= _GIB else f"{size_bytes / 2**20:.0f} MiB"


def _title(plan: Plan) -> str:
    """Return two lines: the checkpoints and the backend, then the work and the available memory."""
    work, available = plan.request.work, plan.available
    is_cuda = available.device == "cuda"
    host = f" and {size_text(available.host_bytes)} of host memory" if is_cuda and available.host_bytes else ""
    names = ", ".join(sizes.name for sizes in plan.checkpoint_sizes)
    return (
        f"{names} in {plan.request.precision} with the {plan.request.backend} backend on"
        f" {'CUDA' if is_cuda else 'the CPU'}\n"
        f"{work.width_px}x{work.height_px} pixels, batch of {work.rows} row{'s' * (work.rows > 1)},"
        f" {size_text(available.device_bytes)} of memory{host} available"
    )


def _weights_table(plan: Plan, shown: Placement) -> list[str]:
    """Return the lines of a table of the networks' sizes, and their locations in the placement `shown`."""
    rows = [(name, size_text(plan.weights_bytes(name)), shown.locations[name]) for name in NETWORKS]
    return _align([("network", "weights", "placement"), *rows])


def _peaks_table(shown: Placement) -> list[str]:
    """Return the lines of a table of the peak memory in each phase."""
    rows = [(phase, size_text(peak_bytes)) for phase, peak_bytes in shown.peaks.items()]
    return _align([("phase", "peak"), *rows])


def _verdict(plan: Plan) -> str:
    """Return a sentence: whether the plan fits, and the memory of the chosen or the smallest placement."""
    if (chosen := plan.chosen) is None:
        least = min(plan.placements, key=lambda placement: placement.peak_bytes)
        return f"Does not fit. The smallest placement is offload {least.name!r}: {_needed_memory(plan, least)}."
    return f"Fits with offload {chosen.name!r}: {_needed_memory(plan, chosen)}."


def _needed_memory(plan: Plan, placement: Placement) -> str:
    """Describe the memory that a placement needs, and how much is available."""
    text = (
        f"{size_text(placement.peak_bytes)} at the peak, {size_text(placement.needed_bytes)} with a margin of"
        f" {MARGIN:.0%}, of {size_text(plan.available.device_bytes)}"
    )
    if placement.host_bytes:
        of_host = "" if plan.available.host_bytes is None else f", of {size_text(plan.available.host_bytes)}"
        text += f"; {size_text(placement.host_bytes)} of host memory{of_host}"
    return text


def _placements_table(plan: Plan) -> list[str]:
    """Return the lines of a table of all placements: the peak, the bytes moved per image, and whether it fits."""
    moved = "moved per image" if plan.available.device == "cuda" else "read per image"
    header = ("offload", "peak", moved, "")
    rows = [
        (
            placement.name,
            size_text(placement.peak_bytes),
            size_text(placement.moved_bytes) if placement.moved_bytes else "nothing",
            _state(plan, placement),
        )
        for placement in plan.placements
    ]
    return _align([header, *rows])


def _state(plan: Plan, placement: Placement) -> str:
    """Return whether a placement is chosen, fits, or does not fit."""
    if placement is plan.chosen:
        return "chosen"
    return "fits" if placement.fits(plan.available) else "does not fit"


def _align(rows: Sequence[Iterable[str]]) -> list[str]:
    """Return the rows of a table as lines with aligned columns. The first row is underlined."""
    cells = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def _placement_json(plan: Plan, placement: Placement) -> dict[str, Any]:
    """Return a placement of a plan as JSON values. Sizes are in bytes."""
    return {
        "offload": placement.offload,
        "tiled_decode": placement.tiled_decode,
        "locations": placement.locations,
        "peaks": placement.peaks,
        "peak_bytes": placement.peak_bytes,
        "host_bytes": placement.host_bytes,
        "moved_bytes": placement.moved_bytes,
        "fits": placement.fits(plan.available),
    }
