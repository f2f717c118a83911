"""Figures with what chance leaves open: percentiles, and intervals of Student's t over the rounds of a run."""

from collections.abc import Sequence
from math import ceil, sqrt
from statistics import fmean, stdev

from pydantic import BaseModel, ConfigDict

PERCENTILES = (50, 95, 99)
# The 0.975 quantiles for 1, 2, ... degrees of freedom: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL = 1.960


class Figure(BaseModel):
    """A value, and how far to each side its 95 % confidence interval reaches; None where one round tells nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    half_width: float | None = None


def of_rounds(values: Sequence[float], value: float | None = None) -> Figure:
    """The mean of the rounds' values, or another `value` for them, with the interval of Student's t over the rounds."""
    centre = fmean(values) if value is None else value
    return Figure(value=centre, half_width=half_width(values) if len(values) > 1 else None)


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % confidence interval of a mean, for at least two values."""
    freedom = len(values) - 1
    return (_T[freedom - 1] if freedom <= len(_T) else _NORMAL) * stdev(values) / sqrt(len(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of the values that so many percent do not exceed: the nearest rank, so one that was really seen."""
    ordered = sorted(values)
    return ordered[max(0, ceil(percent / 100 * len(ordered)) - 1)]


def percentile_of_rounds(rounds: Sequence[Sequence[float]], percent: float) -> Figure | None:
    """The percentile over all rounds together, with the interval of the rounds' own; None where nothing was seen."""
    seen = [values for values in rounds if values]
    if not seen:
        return None
    together = percentile([value for values in seen for value in values], percent)
    return of_rounds([percentile(values, percent) for values in seen], together)


def is_different(one: Figure, other: Figure) -> bool | None:
    """Whether two intervals do not overlap; None where one of them is not known."""
    if one.half_width is None or other.half_width is None:
        return None
    return abs(one.value - other.value) > one.half_width + other.half_width
