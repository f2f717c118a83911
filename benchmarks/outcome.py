"""The outcome of a benchmark, as a table and as JSON."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from statistics import median
from types import MappingProxyType
from typing import Any, Literal

from sd35.bench.monitoring.machine import BUSY_SHARE, this_machine
from sd35.bench.monitoring.monitor import background_cores

_OPERATORS = MappingProxyType({">=": operator.ge, "<=": operator.le, "<": operator.lt})
_BEFORE_S = 3  # time for which other processes are observed


class CannotRun(Exception):  # noqa: N818  named as this project's other errors
    """A measurement cannot run on this machine. The message says why."""


@dataclass(frozen=True)
class Bar:
    """A figure and its limit."""

    what: str
    figure: float
    unit: str
    sense: Literal[">=", "<=", "<"]
    limit: float

    @property
    def is_met(self) -> bool:
        """Whether the figure is within the limit."""
        return bool(_OPERATORS[self.sense](self.figure, self.limit))


@dataclass(frozen=True)
class Outcome:
    """The bars of a benchmark, notes on its other findings, and all samples."""

    bars: Sequence[Bar]
    notes: Sequence[str]
    samples: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as a JSON object, which says for each bar whether it is met."""
        return {**asdict(self), "bars": [{**asdict(bar), "is_met": bar.is_met} for bar in self.bars]}


def spread(samples_s: Sequence[float]) -> str:
    """Format the median with minimum and maximum: "0.512 s (0.498-0.533)"."""
    return f"{median(samples_s):.3f} s ({min(samples_s):.3f}-{max(samples_s):.3f})"


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Format one line for each bar, then the notes of each benchmark."""
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
    """Describe the machine and the date. `load` is the number of cores that other processes used just before."""
    load, found = round(background_cores(_BEFORE_S), 2), this_machine()
    date = datetime.now(UTC).date().isoformat()
    return {"date": date, "load": load, "is_busy": load > BUSY_SHARE * found.cores, **found.model_dump(mode="json")}
