"""Interaction ids: what is written is read back, and nothing else is."""

import base64
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import InteractionIdError
from headway.ids import Arm, InteractionId, Kind, Signer, uuid7, uuid7_text

KEYS = {1: b"a" * 32, 2: b"b" * 32}
SIGNER = Signer(KEYS, 2, b"u" * 32)
URL_SAFE = re.compile(r"[A-Za-z0-9_-]{1,120}")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

numbers = st.integers(0, 2**32 - 1)
interactions = st.builds(
    InteractionId,
    kind=st.sampled_from(Kind),
    uuid=st.integers(0, 2**47).map(uuid7),
    application=numbers,
    release=numbers,
    rollout=numbers,
    stage=st.integers(0, 2**16 - 1),
    arm=st.sampled_from(Arm),
    choice=st.integers(0, 255),
    unit=st.binary(min_size=8, max_size=8),
    key=numbers,
)


def sample() -> InteractionId:
    return InteractionId(Kind.MANUAL, uuid7(1_790_000_000_123), 1, 2, 3, 4, Arm.CANDIDATE, 0, b"12345678", 9)


@given(interactions)
def test_what_is_issued_is_read_back(interaction: InteractionId) -> None:
    text = SIGNER.issue(interaction)
    assert URL_SAFE.fullmatch(text)
    assert SIGNER.read(text) == interaction


def test_an_id_tells_when_its_interaction_began() -> None:
    assert SIGNER.read(SIGNER.issue(sample())).unix_ms == 1_790_000_000_123


@given(interactions, st.integers(0, 200), st.sampled_from(ALPHABET))
def test_an_altered_character_is_noticed(interaction: InteractionId, position: int, character: str) -> None:
    text = SIGNER.issue(interaction)
    position %= len(text)
    altered = text[:position] + character + text[position + 1 :]
    if altered == text:
        return
    with pytest.raises(InteractionIdError):
        SIGNER.read(altered)


@given(interactions, st.data())
def test_an_altered_bit_is_noticed(interaction: InteractionId, data: st.DataObject) -> None:
    raw = bytearray(base64.urlsafe_b64decode(SIGNER.issue(interaction)[3:] + "="))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(InteractionIdError):
        SIGNER.read("hw_" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode())


def test_each_length_but_the_right_one_is_refused() -> None:
    text = SIGNER.issue(sample())
    for length in range(len(text)):
        with pytest.raises(InteractionIdError):
            SIGNER.read(text[:length])
    for more in ("=", "A", "\n", " ", "\0"):
        with pytest.raises(InteractionIdError):
            SIGNER.read(text + more)


def test_the_spare_bits_of_the_encoding_must_be_zero() -> None:
    text = SIGNER.issue(sample())
    last = ALPHABET.index(text[-1])
    others = [ALPHABET[last ^ bits] for bits in (1, 2, 3)]
    for other in others:
        again = text[:-1] + other
        assert base64.urlsafe_b64decode(again[3:] + "=") == base64.urlsafe_b64decode(text[3:] + "=")
        with pytest.raises(InteractionIdError):
            SIGNER.read(again)


@given(st.text() | st.text(ALPHABET, min_size=79, max_size=79).map("hw_".__add__) | st.text(min_size=82, max_size=82))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(InteractionIdError):
        SIGNER.read(text)


@pytest.mark.parametrize("other", [None, 5, b"hw_" + b"A" * 79, ["hw_"]])
def test_what_is_no_text_is_refused(other: object) -> None:
    with pytest.raises(InteractionIdError):
        SIGNER.read(other)


def test_an_id_signed_by_somebody_else_is_refused() -> None:
    forged = Signer({2: b"x" * 32}, 2, b"u" * 32).issue(sample())
    with pytest.raises(InteractionIdError, match="signature"):
        SIGNER.read(forged)


def test_old_keys_verify_until_they_are_retired() -> None:
    text = Signer(KEYS, 1, b"u" * 32).issue(sample())
    assert SIGNER.read(text) == sample()._replace(uuid=SIGNER.read(text).uuid)
    with pytest.raises(InteractionIdError, match="retired"):
        Signer({2: KEYS[2]}, 2, b"u" * 32).read(text)


def test_units_are_hashed_with_a_key() -> None:
    assert SIGNER.hash_unit("ann") == SIGNER.hash_unit("ann")
    assert len(SIGNER.hash_unit("ann")) == 8
    assert len({SIGNER.hash_unit(unit) for unit in ("ann", "Ann", "bob", "", "\ud800", "\0")}) == 6
    assert Signer(KEYS, 2, b"v" * 32).hash_unit("ann") != SIGNER.hash_unit("ann")


@given(st.integers(0, 2**48 - 1))
def test_uuids_are_of_version_7(unix_ms: int) -> None:
    value = uuid7(unix_ms)
    assert len(value) == 16
    assert int.from_bytes(value[:6], "big") == unix_ms
    assert value[6] >> 4 == 7
    assert value[8] >> 6 == 0b10


def test_uuids_differ_and_sort_by_time() -> None:
    assert len({uuid7(5) for _ in range(1000)}) == 1000
    assert uuid7(5) < uuid7(6) < uuid7(2**40)
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", uuid7_text(5))


def test_issuing_and_reading_are_cheap_enough_for_every_request() -> None:
    interaction, text = sample(), SIGNER.issue(sample())
    best = min(_seconds(lambda: SIGNER.read(text)) + _seconds(lambda: SIGNER.issue(interaction)) for _ in range(20))
    assert best < 100e-6  # measured: 7 us together; the bound is for a busy machine


def _seconds(call: object, times: int = 200) -> float:
    assert callable(call)
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times
