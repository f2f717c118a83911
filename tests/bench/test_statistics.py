"""Percentiles and intervals, compared with NumPy and with textbook values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.bench.statistics import differ, estimate, half_width, percentile, percentile_of_rounds
from tests.bench.conftest import estimate_of

values = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)


@given(values=values, percent=st.sampled_from([50, 95, 99, 100]))
def test_a_percentile_equals_numpys_inverted_cdf(values: list[float], percent: int):
    """The nearest-rank method always returns one of the values."""
    assert percentile(values, percent) == np.percentile(values, percent, method="inverted_cdf")


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ([1.0, 2.0, 3.0], 4.303 / 3**0.5),  # t of 2 degrees of freedom; the standard deviation is 1
        ([4.0, 6.0], 12.706),  # t of 1 degree; the standard deviation, sqrt(2), over sqrt(2)
        ([0.0, 1.0] * 50, 1.960 * 0.050252),  # 99 degrees: the normal distribution
    ],
)
def test_a_half_width_follows_students_t(sample: list[float], expected: float):
    """The expected values are computed by hand from the table of t."""
    assert half_width(sample) == pytest.approx(expected, rel=1e-3)


def test_95_percent_of_intervals_contain_the_mean():
    """This is the share over 4,000 runs of four rounds with a known mean."""
    runs = np.random.default_rng(1).normal(10, 2, (4000, 4))
    hits = [abs(np.mean(run) - 10) <= half_width(run.tolist()) for run in runs]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)


def test_one_round_gives_no_interval():
    """A percentile with values in only one round has none either. Without values there is no estimate."""
    assert estimate([3.0]) == estimate_of(3.0)
    assert percentile_of_rounds([[1.0, 2.0], []], 95) == estimate_of(2.0)
    assert percentile_of_rounds([[], []], 95) is None


def test_a_percentile_is_taken_over_all_rounds_together():
    """The interval comes from the percentiles of the single rounds."""
    found = percentile_of_rounds([[1.0], [2.0], [3.0] * 8], 50)
    assert found is not None
    assert (found.value, found.half_width) == (3.0, half_width([1.0, 2.0, 3.0]))


def test_estimates_differ_if_their_intervals_do_not_overlap():
    """The order does not matter. Without an interval, the answer is None."""
    assert differ(estimate_of(1, 0.4), estimate_of(2, 0.5)) is True
    assert differ(estimate_of(2, 0.5), estimate_of(1, 0.6)) is False
    assert differ(estimate_of(1, 0.1), estimate_of(2)) is None
