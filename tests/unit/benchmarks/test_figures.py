import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.figures import Figure, median_difference, median_ratio, percentile


@pytest.mark.parametrize(
    ("percent", "expected"), [(1, 1), (50, 50), (50.5, 51), (99, 99), (99.1, 100), (100, 100), (0.001, 1)]
)
def test_percentiles_of_one_to_a_hundred(percent: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.1, 100))
def test_a_percentile_is_the_smallest_value_that_covers_its_share(values: list[float], percent: float) -> None:
    found = percentile(values, percent)
    needed = math.ceil(len(values) * percent / 100)
    assert sum(value <= found for value in values) >= needed
    assert sum(value < found for value in values) < needed


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no data"):
        percentile([], 50)
    with pytest.raises(ValueError, match="above 0"):
        percentile([1.0], 0)


def test_ratios_and_differences_are_taken_round_by_round() -> None:
    # A machine that is half as fast in one round spoils neither: both sides were measured in it.
    assert median_ratio([200, 400, 200], [50, 100, 50]) == 4
    assert median_difference([3, 13, 3], [1, 11, 1]) == 2
    with pytest.raises(ValueError, match="zip"):
        median_ratio([1, 2], [1])


def test_a_bar_is_an_upper_limit() -> None:
    assert Figure("cost", "CPU", "headway", 5.0, "x", 5.0).passed is True
    assert Figure("cost", "CPU", "headway", 5.01, "x", 5.0).passed is False
    assert Figure("cost", "CPU", "envoy", 5.01, "x").passed is None
