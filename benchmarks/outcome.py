"""What a benchmark found, and how it is printed and kept."""

import operator
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from statistics import median
from types import MappingProxyType
from typing import Any, Literal

from sd35.bench.monitoring.machine import BUSY_SHARE, this_machine

_HOLDS = MappingProxyType({">=": operator.ge, "<=": operator.le, "<": operator.lt})
_LOOK_S = 3


class CannotRun(Exception):  # noqa: N818  as this project's own errors
    """What was to be measured cannot run on this machine, and why."""


@dataclass(frozen=True)
class Bar:
    """A figure, and the limit it is held against."""

    what: str
    figure: float
    unit: str
    sense: Literal[">=", "<=", "<"]
    limit: float

    @property
    def is_met(self) -> bool:
        """Whether the figure keeps the limit."""
        return bool(_HOLDS[self.sense](self.figure, self.limit))


@dataclass(frozen=True)
class Outcome:
    """A benchmark's bars, in words what else it found, and every sample it took."""

    bars: Sequence[Bar]
    notes: Sequence[str]
    samples: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All of it, with each bar's verdict."""
        return {**asdict(self), "bars": [{**asdict(bar), "is_met": bar.is_met} for bar in self.bars]}


def spread(samples_s: Sequence[float]) -> str:
    """Median, and in brackets the least and the most: "0.512 s (0.498-0.533)"."""
    return f"{median(samples_s):.3f} s ({min(samples_s):.3f}-{max(samples_s):.3f})"


def table(outcomes: Mapping[str, Outcome]) -> str:
    """One line for each bar, then each benchmark's notes."""
    rows = [("benchmark", "what", "figure", "bar", "")]
    rows += [
        (
            name,
            bar.what,
            f"{bar.figure:.2f} {bar.unit}",
            f"{bar.sense} {bar.limit:.2f} {bar.unit}",
            "met" if bar.is_met else "MISSED",
        )
        for name, outcome in outcomes.items()
        for bar in outcome.bars
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths[:-1]))
    for name, outcome in outcomes.items():
        lines += ["", name, *(f"  {note}" for note in outcome.notes)]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures were taken on, and when; `load` is the cores that others used in the seconds before."""
    others, date, found = BackgroundUsage(), datetime.now(UTC).date().isoformat(), this_machine()
    time.sleep(_LOOK_S)
    load = round(others.cores() or 0.0, 2)
    return {"date": date, "load": load, "is_busy": load > BUSY_SHARE * found.cores, **found.model_dump(mode="json")}
