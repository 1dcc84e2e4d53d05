"""Assignment: uniform, sticky, and a growing share moves nobody back."""

import string

from hypothesis import given
from hypothesis import strategies as st

from headway.domain.assignment import fingerprint, is_candidate, position

salts = st.binary(min_size=1, max_size=64)
units = st.text(st.characters(), max_size=40)  # lone surrogates included
shares = st.floats(0, 1)


@given(salts, units)
def test_a_unit_has_one_place(salt: bytes, unit: str) -> None:
    assert 0 <= position(salt, unit) < 1
    assert position(salt, unit) == position(salt, unit)


@given(salts, units, shares, shares)
def test_growing_the_share_never_moves_a_unit_back(salt: bytes, unit: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    if is_candidate(salt, unit, small):
        assert is_candidate(salt, unit, large)


@given(salts, units)
def test_no_share_is_nobody_and_the_whole_share_is_everybody(salt: bytes, unit: str) -> None:
    assert not is_candidate(salt, unit, 0.0)
    assert is_candidate(salt, unit, 1.0)


def test_places_are_uniform() -> None:
    count, bins = 40_000, 50
    filled = [0] * bins
    for number in range(count):
        filled[int(position(b"salt", f"conversation-{number}") * bins)] += 1
    expected = count / bins
    chi_squared = sum((found - expected) ** 2 / expected for found in filled)
    assert chi_squared < 98  # 49 degrees of freedom: once in 25,000 salts


def test_a_share_is_met() -> None:
    for share in (0.01, 0.1, 0.5):
        chosen = sum(is_candidate(b"salt", f"user {number}", share) for number in range(50_000))
        assert abs(chosen / 50_000 - share) < 5 * (share * (1 - share) / 50_000) ** 0.5


def test_another_salt_is_another_draw() -> None:
    names = [f"u{number}" for number in range(20_000)]
    both = sum(is_candidate(b"one", name, 0.5) and is_candidate(b"two", name, 0.5) for name in names)
    assert abs(both / len(names) - 0.25) < 0.02


def test_a_fingerprint_is_stable_and_short() -> None:
    first = fingerprint(b"k" * 32, 1, "ann", b'"hello"')
    assert first == fingerprint(b"k" * 32, 1, "ann", b'"hello"')
    assert first.startswith("fp-")
    assert len(first) == 35
    assert set(first[3:]) <= set(string.hexdigits.lower())


def test_whatever_goes_into_a_fingerprint_changes_it() -> None:
    made = {
        fingerprint(b"k" * 32, 1, "ann", b'"hello"'),
        fingerprint(b"l" * 32, 1, "ann", b'"hello"'),
        fingerprint(b"k" * 32, 2, "ann", b'"hello"'),
        fingerprint(b"k" * 32, 1, "bob", b'"hello"'),
        fingerprint(b"k" * 32, 1, "", b'"hello"'),
        fingerprint(b"k" * 32, 1, "ann", b'"hello" '),
    }
    assert len(made) == 6


@given(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))
def test_user_and_message_are_kept_apart(user: str, message: str, other_user: str, other_message: str) -> None:
    same = (user, message) == (other_user, other_message)
    one = fingerprint(b"k", 1, user, message.encode())
    other = fingerprint(b"k", 1, other_user, other_message.encode())
    assert (one == other) == same
