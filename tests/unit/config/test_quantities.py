"""Durations and shares: what is read is what was meant."""

import math
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.config.quantities import format_duration, format_share, parse_duration, parse_share

UNITS = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600), "d": Fraction(86400)}


@given(st.integers(0, 10**9 - 1), st.sampled_from(sorted(UNITS)))
def test_a_duration_is_its_number_times_its_unit(number: int, unit: str) -> None:
    assert parse_duration(f"{number}{unit}") == float(number * UNITS[unit])


@given(st.integers(0, 10**10))
def test_durations_survive_being_written(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9, rel=0)


@given(st.text(max_size=12))
def test_no_text_breaks_the_parsers(text: str) -> None:
    for parse in (parse_duration, parse_share):
        with suppress(ValueError):
            assert 0 <= parse(text) < math.inf


@pytest.mark.parametrize(
    "text", ["", "5", "s", "-5s", "5 s", "5S", "5sec", "1e3s", "5s5s", "nan", "٥s", "5s\n6s", ".5s"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a number and a unit"):
        parse_duration(text)


@given(st.integers(0, 10**6))
def test_percentages_and_fractions_mean_the_same(millionths: int) -> None:
    percent = f"{millionths / 10_000:.4f}%"
    assert parse_share(percent) == pytest.approx(millionths / 1e6, abs=1e-15)
    if millionths < 10**6:
        assert parse_share(f"{millionths / 1e6:.6f}") == pytest.approx(millionths / 1e6, abs=1e-15)


@given(st.floats(0, 1, allow_subnormal=False).map(lambda share: round(share, 7)))
def test_shares_survive_being_written(share: float) -> None:
    assert parse_share(format_share(share)) == share


@given(st.floats(0, 1), st.text(max_size=3))
def test_a_share_read_is_between_nothing_and_all(share: float, tail: str) -> None:
    for text in (f"{share}{tail}", f"{share * 100}%{tail}"):
        with suppress(ValueError):
            assert 0 <= parse_share(text) <= 1


@pytest.mark.parametrize(
    ("text", "share"),
    [("10%", 0.1), ("0.1", 0.1), (" 12.5 % ", 0.125), ("0%", 0), ("0", 0), ("100%", 1), ("0.001%", 1e-5)],
)
def test_shares_as_people_write_them(text: str, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1", "1 is not clear: write 1% or 100%"),
        ("10", "10 is not clear: write 10% or 100%"),
        ("1.0", "1.0 is not clear: write 1% or 100%"),
        ("250", "250 is not clear: write 100%"),
        ("101%", "at most 100%"),
        ("-1%", "a percentage such as 10%"),
        ("ten", "a percentage such as 10%"),
        ("0,1", "a percentage such as 10%"),
        ("nan", "a percentage such as 10%"),
        ("1e-2", "a percentage such as 10%"),
        ("%", "a percentage such as 10%"),
        ("", "a percentage such as 10%"),
    ],
)
def test_unclear_and_impossible_shares_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_share(text)
