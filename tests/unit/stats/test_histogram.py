"""Log-histogram bins, against the method's test vectors."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.stats import GAMMA, log_histogram_bin


@pytest.mark.parametrize(("x", "expected"), [(0.5, -35), (1.0, 0), (1.02, 1), (1.5, 21), (250.0, 279)])
def test_vectors(x: float, expected: int) -> None:
    assert log_histogram_bin(x, gamma=1.02) == expected


@given(st.floats(min_value=1e-5, max_value=1e12))
def test_a_bin_holds_its_values_within_two_percent(x: float) -> None:
    index = log_histogram_bin(x)
    assert GAMMA ** (index - 1) * (1 - 1e-9) <= x <= GAMMA**index * (1 + 1e-9)


@pytest.mark.parametrize("x", [0.0, -1.0, 1e-300])
def test_values_near_zero_share_the_lowest_bin(x: float) -> None:
    assert log_histogram_bin(x) == log_histogram_bin(1e-6) == math.ceil(math.log(1e-6) / math.log(GAMMA))


@pytest.mark.parametrize(("x", "gamma"), [(math.inf, 1.02), (math.nan, 1.02), (1.0, 1.0), (1.0, math.nan)])
def test_bad_input(x: float, gamma: float) -> None:
    with pytest.raises(ValueError, match="finite value and a gamma above 1"):
        log_histogram_bin(x, gamma)
