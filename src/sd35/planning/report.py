"""A plan as plain text, for terminals and error messages, and as JSON."""

from collections.abc import Iterable, Sequence
from typing import Any

from sd35.checkpoints.network_sizes import NETWORKS
from sd35.planning.plan import MARGIN, Placement, Plan

_GIB = 2**30


def plan_text(plan: Plan) -> str:
    """Describe the chosen placement, or else the one with the lowest peak; then list all placements."""
    shown = plan.chosen or min(plan.placements, key=lambda placement: placement.peak_bytes)
    return "\n".join(
        (_title(plan), "", *_weights(plan, shown), "", *_phases(shown), "", _verdict(plan), "", *_placements(plan))
    )


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the plan for programs; sizes are in bytes."""
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
    """Format a size: "12.0 GiB" or "53 MiB"."""
    return f"{size_bytes / _GIB:.1f} GiB" if size_bytes >= _GIB else f"{size_bytes / 2**20:.0f} MiB"


def _title(plan: Plan) -> str:
    work, available = plan.request.work, plan.available
    host = (
        f", and {size_text(available.host_bytes)} of the host's"
        if available.device == "cuda" and available.host_bytes
        else ""
    )
    names = ", ".join(sizes.name for sizes in plan.checkpoint_sizes)
    return (
        f"{names} in {plan.request.precision}, by {plan.request.backend} on"
        f" {'CUDA' if available.device == 'cuda' else 'the CPU'}, {work.width_px}x{work.height_px} px, {work.rows}"
        f" row{'s' * (work.rows > 1)} a step; {size_text(available.device_bytes)} of memory{host}"
    )


def _weights(plan: Plan, shown: Placement) -> list[str]:
    rows = [(name, size_text(plan.weights_bytes(name)), shown.locations[name]) for name in NETWORKS]
    return _table([("part", "weights", "lives"), *rows])


def _phases(shown: Placement) -> list[str]:
    return _table([("phase", "peak"), *((phase, size_text(peak)) for phase, peak in shown.peaks.items())])


def _verdict(plan: Plan) -> str:
    if (chosen := plan.chosen) is None:
        least = min(plan.placements, key=lambda placement: placement.peak_bytes)
        return f"Nothing fits: at the least, {_need(plan, least)}."
    return f"Fits as {chosen.name!r}: {_need(plan, chosen)}."


def _need(plan: Plan, placement: Placement) -> str:
    text = (
        f"{size_text(placement.peak_bytes)} at the peak, {size_text(placement.needed_bytes)} with a margin of"
        f" {MARGIN:.0%}, of {size_text(plan.available.device_bytes)}"
    )
    if placement.host_bytes:
        there = f", which has {size_text(plan.available.host_bytes)}" if plan.available.host_bytes is not None else ""
        text += f"; {size_text(placement.host_bytes)} of the host{there}"
    return text


def _placements(plan: Plan) -> list[str]:
    moved = "an image moves" if plan.available.device == "cuda" else "an image reads"
    header = ("offload", "peak", moved, "")
    rows = [
        (
            placement.name,
            size_text(placement.peak_bytes),
            size_text(placement.moved_bytes) if placement.moved_bytes else "nothing",
            "chosen" if placement is plan.chosen else "fits" if placement.fits(plan.available) else "does not fit",
        )
        for placement in plan.placements
    ]
    return _table([header, *rows])


def _table(rows: Sequence[Iterable[str]]) -> list[str]:
    """Align columns and underline the first row."""
    cells = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def _placement_json(plan: Plan, placement: Placement) -> dict[str, Any]:
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
