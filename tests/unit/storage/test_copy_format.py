"""Rows in PostgreSQL's binary COPY format: what cannot be stored is made storable."""

import struct

import pytest

from headway.domain.interaction import Interaction
from headway.storage.copy_format import COLUMNS, RowEncoder
from tests.interactions import make_interaction


def decode(rows: bytes) -> list[dict[str, bytes | None]]:
    assert rows.startswith(b"PGCOPY\n\xff\r\n\0" + bytes(8))
    position, found = 19, []
    while (fields := struct.unpack_from(">h", rows, position)[0]) != -1:
        position += 2
        assert fields == len(COLUMNS)
        row: dict[str, bytes | None] = {}
        for column in COLUMNS:
            (length,) = struct.unpack_from(">i", rows, position)
            position += 4
            row[column] = None if length < 0 else rows[position : position + length]
            position += max(0, length)
        found.append(row)
    assert position + 2 == len(rows)
    return found


def encode_one(interaction: Interaction) -> dict[str, bytes | None]:
    (row,) = decode(RowEncoder().encode([interaction]))
    return row


def test_values_are_where_their_columns_are() -> None:
    one = make_interaction(conversation="héllo", answer=b"answer", error="provider_error", release_error=True)
    row = encode_one(one)
    assert row["at"] == struct.pack(">q", one.unix_ms * 1000 - 946_684_800_000_000)
    assert (row["id"], row["unit"]) == (one.id, one.unit)
    assert (row["conversation"], row["answer"], row["error"]) == ("héllo".encode(), b"answer", b"provider_error")
    assert (row["release_error"], row["aborted"]) == (b"\1", b"\0")
    assert row["cost_usd"] == struct.pack(">d", 0.000_25)
    assert row["user_id"] is None


@pytest.mark.parametrize(
    ("body", "stored"),
    [
        (b"plain", b"plain"),
        ("grüße".encode(), "grüße".encode()),
        (b"a\0b", "a\ufffdb".encode()),
        (b"bad \xff\xfe", "bad \ufffd\ufffd".encode()),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd".encode()),
        (b"", b""),
        (None, None),
    ],
)
def test_bodies_become_text_that_postgresql_takes(body: bytes | None, stored: bytes | None) -> None:
    row = encode_one(make_interaction(request=body, answer=body))
    assert row["request"] == row["answer"] == stored


@pytest.mark.parametrize(
    ("text", "stored"),
    [("a\0b", "a\ufffdb"), ("lone \ud800 surrogate", "lone \ufffd surrogate"), ("\U0001f600", "\U0001f600")],
)
def test_names_become_text_that_postgresql_takes(text: str, stored: str) -> None:
    row = encode_one(
        make_interaction(conversation=text, user=text, provider_id=text, provider_model=text, deployment=text)
    )
    for column in ("conversation", "user_id", "provider_id", "provider_model", "deployment"):
        assert row[column] == stored.encode()


def test_numbers_that_do_not_fit_are_cut() -> None:
    row = encode_one(
        make_interaction(attempts=10**6, input_tokens=10**12, output_tokens=-5, cached_tokens=-(10**12), total_ms=1e300)
    )
    assert row["attempts"] == struct.pack(">h", 2**15 - 1)
    assert row["input_tokens"] == struct.pack(">i", 2**31 - 1)
    assert row["output_tokens"] == row["cached_tokens"] == struct.pack(">i", 0)
    assert row["total_ms"] == struct.pack(">f", 1e9)


def test_what_retrieval_did_is_where_its_columns_are() -> None:
    one = make_interaction(
        retrieval_ms=2.5,
        passages=2,
        context_tokens=300,
        retrieval_error="retrieval_failed",
        cited=True,
        retrieved=(7, -9),
    )
    row = encode_one(one)
    assert row["retrieval_ms"] == struct.pack(">f", 2.5)
    assert (row["passages"], row["context_tokens"]) == (struct.pack(">h", 2), struct.pack(">i", 300))
    assert (row["retrieval_error"], row["cited"]) == (b"retrieval_failed", b"\1")
    assert row["retrieved"] == struct.pack(">iiiiiiqiq", 1, 0, 20, 2, 1, 8, 7, 8, -9)
    nothing = encode_one(make_interaction(retrieval_ms=1.0, cited=False, retrieved=()))
    assert (nothing["cited"], nothing["retrieved"]) == (b"\0", struct.pack(">iii", 0, 0, 20))
    assert nothing["passages"] is nothing["context_tokens"] is nothing["retrieval_error"] is None
    none = encode_one(make_interaction())
    assert {none[column] for column in COLUMNS[-6:]} == {None}


def test_a_chunk_that_no_database_can_number_costs_no_interaction() -> None:
    row = encode_one(make_interaction(retrieval_ms=1e300, passages=10**6, context_tokens=10**12, retrieved=(2**70,)))
    assert row["passages"] == struct.pack(">h", 2**15 - 1)
    assert row["retrieved"] == struct.pack(">iiiiiiq", 1, 0, 20, 1, 1, 8, 2**63 - 1)


def test_the_memory_of_words_is_bounded() -> None:
    encoder = RowEncoder()
    batch = [make_interaction(provider_model=f"model-{number}") for number in range(2500)]
    rows = decode(encoder.encode(batch))
    assert [row["provider_model"] for row in rows] == [f"model-{number}".encode() for number in range(2500)]
    assert len(encoder._words) <= 1001
