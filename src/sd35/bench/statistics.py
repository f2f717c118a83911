"""Percentiles, and 95 % confidence intervals from Student's t over the rounds of a run."""

from collections.abc import Sequence
from math import ceil, sqrt
from statistics import fmean, stdev

from sd35.bench.frozen import Frozen

# 0.975 quantiles for 1, 2, ... degrees of freedom: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL = 1.960  # the same quantile for infinitely many degrees of freedom, used above 30


class Estimate(Frozen):
    """A value and the half-width of its 95 % confidence interval, which is None if there was only one round."""

    value: float
    half_width: float | None = None


def estimate(values: Sequence[float], value: float | None = None) -> Estimate:
    """Estimate a quantity from one value per round.

    The estimate is the mean of `values`, or `value` if given. The interval comes from the spread of `values`.
    """
    centre = fmean(values) if value is None else value
    return Estimate(value=centre, half_width=half_width(values) if len(values) > 1 else None)


def half_width(values: Sequence[float]) -> float:
    """Return the half-width of the 95 % confidence interval of the mean of at least two values."""
    freedom = len(values) - 1
    quantile = _T[freedom - 1] if freedom <= len(_T) else _NORMAL
    return quantile * stdev(values) / sqrt(len(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile by the nearest-rank method, so that the result is always one of the values."""
    ordered = sorted(values)
    return ordered[max(0, ceil(percent / 100 * len(ordered)) - 1)]


def percentile_of_rounds(rounds: Sequence[Sequence[float]], percent: float) -> Estimate | None:
    """Return a percentile over all rounds together, or None if no round has values.

    The interval comes from the percentile of each round.
    """
    filled = [values for values in rounds if values]
    if not filled:
        return None
    overall = percentile([value for values in filled for value in values], percent)
    return estimate([percentile(values, percent) for values in filled], overall)


def differ(one: Estimate, other: Estimate) -> bool | None:
    """Return whether two confidence intervals do not overlap, or None if one of them is unknown."""
    if one.half_width is None or other.half_width is None:
        return None
    return abs(one.value - other.value) > one.half_width + other.half_width
