"""Percentiles and intervals, against NumPy and against what is written in textbooks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.bench.statistics import half_width, is_different, of_rounds, percentile, percentile_of_rounds
from tests.bench.conftest import figure

values = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)


@given(values=values, percent=st.sampled_from([50, 95, 99, 100]))
def test_a_percentile_is_numpys(values: list[float], percent: int):
    """The nearest rank, which NumPy calls the inverted distribution function: always a value that was seen."""
    assert percentile(values, percent) == np.percentile(values, percent, method="inverted_cdf")


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ([1.0, 2.0, 3.0], 4.303 / 3**0.5),  # t of 2 degrees of freedom, a standard deviation of 1
        ([4.0, 6.0], 12.706),  # of 1; a standard deviation of the square root of 2, over that of 2
        ([0.0, 1.0] * 50, 1.960 * 0.050252),  # of 99: the normal distribution's
    ],
)
def test_an_interval_is_students(sample: list[float], expected: float):
    """Worked out by hand from the table of t."""
    assert half_width(sample) == pytest.approx(expected, rel=1e-3)


def test_an_interval_holds_the_mean_in_95_of_100_runs():
    """Of 4,000 runs of four rounds each, drawn with a known mean."""
    runs = np.random.default_rng(1).normal(10, 2, (4000, 4))
    hits = [abs(np.mean(run) - 10) <= half_width(run.tolist()) for run in runs]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)


def test_one_round_tells_no_interval():
    """Nor does a percentile of which one round has seen something; of none there is no figure."""
    assert of_rounds([3.0]) == figure(3.0)
    assert percentile_of_rounds([[1.0, 2.0], []], 95) == figure(2.0)
    assert percentile_of_rounds([[], []], 95) is None


def test_a_percentile_is_of_all_rounds_together():
    """And its interval is that of the rounds' own."""
    found = percentile_of_rounds([[1.0], [2.0], [3.0] * 8], 50)
    assert found is not None
    assert (found.value, found.half_width) == (3.0, half_width([1.0, 2.0, 3.0]))


def test_figures_differ_where_their_intervals_do_not_overlap():
    """Whichever comes first; what has no interval tells nothing."""
    assert is_different(figure(1, 0.4), figure(2, 0.5)) is True
    assert is_different(figure(2, 0.5), figure(1, 0.6)) is False
    assert is_different(figure(1, 0.1), figure(2)) is None
