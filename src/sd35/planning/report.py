"""A plan as a table of plain text, for a terminal and for an error; and as JSON."""

from collections.abc import Iterable, Sequence
from typing import Any

from sd35.checkpoints.network_sizes import NETWORKS
from sd35.planning.plan import MARGIN, Placement, Plan

_GIB = 2**30


def plan_text(plan: Plan) -> str:
    """Parts and phases of what was chosen, or of what comes nearest; the verdict; and every other way."""
    shown = plan.chosen or min(plan.placements, key=lambda placement: placement.peak_bytes)
    return "\n".join(
        (_asked(plan), "", *_parts(plan, shown), "", *_phases(shown), "", _verdict(plan), "", *_ways(plan))
    )


def plan_json(plan: Plan) -> dict[str, Any]:
    """The same for a program; sizes in bytes."""
    work, room = plan.wanted.work, plan.room
    return {
        "checkpoints": [network_sizes.name for network_sizes in plan.all_network_sizes],
        "backend": plan.wanted.backend,
        "precision": plan.wanted.precision,
        "device": room.device,
        "device_bytes": room.device_bytes,
        "host_bytes": room.host_bytes,
        "width": work.width_px,
        "height": work.height_px,
        "rows": work.rows,
        "weights_bytes": {name: plan.weights_bytes(name) for name in NETWORKS},
        "chosen": _way_json(plan, plan.chosen) if plan.chosen else None,
        "ways": [_way_json(plan, placement) for placement in plan.placements],
    }


def size_text(size_bytes: int) -> str:
    """As "12.0 GiB", or "53 MiB"."""
    return f"{size_bytes / _GIB:.1f} GiB" if size_bytes >= _GIB else f"{size_bytes / 2**20:.0f} MiB"


def way_of(placement: Placement) -> str:
    """The settings that name it: "model, tiled"."""
    return placement.offload + (", tiled" if placement.tiled_decode else "")


def _asked(plan: Plan) -> str:
    work, room = plan.wanted.work, plan.room
    host = f", and {size_text(room.host_bytes)} of the host's" if room.device == "cuda" and room.host_bytes else ""
    names = ", ".join(network_sizes.name for network_sizes in plan.all_network_sizes)
    return (
        f"{names} in {plan.wanted.precision}, by {plan.wanted.backend} on"
        f" {'CUDA' if room.device == 'cuda' else 'the CPU'}, {work.width_px}x{work.height_px} px, {work.rows}"
        f" row{'s' * (work.rows > 1)} a step; {size_text(room.device_bytes)} of memory{host}"
    )


def _parts(plan: Plan, shown: Placement) -> list[str]:
    rows = [(name, size_text(plan.weights_bytes(name)), shown.homes[name]) for name in NETWORKS]
    return _table([("part", "weights", "lives"), *rows])


def _phases(shown: Placement) -> list[str]:
    return _table([("phase", "peak"), *((phase, size_text(peak)) for phase, peak in shown.peaks.items())])


def _verdict(plan: Plan) -> str:
    if (chosen := plan.chosen) is None:
        least = min(plan.placements, key=lambda placement: placement.peak_bytes)
        return f"Nothing fits: at the least, {_need(plan, least)}."
    return f"Fits as {way_of(chosen)!r}: {_need(plan, chosen)}."


def _need(plan: Plan, placement: Placement) -> str:
    text = (
        f"{size_text(placement.peak_bytes)} at the peak, {size_text(placement.needed_bytes)} with a margin of"
        f" {MARGIN:.0%}, of {size_text(plan.room.device_bytes)}"
    )
    if placement.host_bytes:
        there = f", which has {size_text(plan.room.host_bytes)}" if plan.room.host_bytes is not None else ""
        text += f"; {size_text(placement.host_bytes)} of the host{there}"
    return text


def _ways(plan: Plan) -> list[str]:
    moved = "an image moves" if plan.room.device == "cuda" else "an image reads"
    header = ("offload", "peak", moved, "")
    rows = [
        (
            way_of(placement),
            size_text(placement.peak_bytes),
            size_text(placement.moved_bytes) if placement.moved_bytes else "nothing",
            "chosen" if placement is plan.chosen else "fits" if placement.fits(plan.room) else "does not fit",
        )
        for placement in plan.placements
    ]
    return _table([header, *rows])


def _table(rows: Sequence[Iterable[str]]) -> list[str]:
    """Columns as wide as their widest cell, with a line below the first row."""
    cells = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def _way_json(plan: Plan, placement: Placement) -> dict[str, Any]:
    return {
        "offload": placement.offload,
        "tiled_decode": placement.tiled_decode,
        "homes": placement.homes,
        "peaks": placement.peaks,
        "peak_bytes": placement.peak_bytes,
        "host_bytes": placement.host_bytes,
        "moved_bytes": placement.moved_bytes,
        "fits": placement.fits(plan.room),
    }
