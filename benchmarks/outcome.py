"""The outcome of a benchmark: its results with their limits, as a table and as JSON."""

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
_BEFORE_S = 3  # how long other processes are observed before the benchmarks, in seconds


class CannotRun(Exception):  # noqa: N818  named as this project's other errors
    """A measurement cannot run on this machine. The message says why."""


@dataclass(frozen=True)
class Bar:
    """A result, called figure, and its limit: `figure` must be `sense` (such as ">=") `limit`.

    `what` says what was measured. It identifies the bar in docs/figures.json and claims.toml. The figure and the limit
    are in `unit`; "x" means a ratio.
    """

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
    """The bars of a benchmark, notes with its other findings, and all samples for the JSON file."""

    bars: Sequence[Bar]
    notes: Sequence[str]
    samples: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as a JSON object. Each bar also says whether it is met."""
        return {**asdict(self), "bars": [{**asdict(bar), "is_met": bar.is_met} for bar in self.bars]}


def spread(samples_s: Sequence[float]) -> str:
    """Return the median, minimum and maximum of times as text: "0.512 s (0.498-0.533)"."""
    return f"{median(samples_s):.3f} s ({min(samples_s):.3f}-{max(samples_s):.3f})"


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Return a table with one line for each bar, then the notes of each benchmark."""
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
    """Observe the machine for a few seconds, and describe it as a JSON object.

    Its keys are the fields of `this_machine()`, the `date`, `load` (the number of cores that other processes use), and
    `is_busy` (whether that is too many for a measurement).
    """
    load, described = round(background_cores(_BEFORE_S), 2), this_machine()
    date, is_busy = datetime.now(UTC).date().isoformat(), load > BUSY_SHARE * described.cores
    return {"date": date, "load": load, "is_busy": is_busy, **described.model_dump(mode="json")}
