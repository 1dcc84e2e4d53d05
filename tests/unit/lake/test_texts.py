"""Text from bytes: encodings, binary data, what no reader sees."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import UnreadableDocumentError
from headway.lake.parsing.texts import clean, decode, one_line

GREETING = "Grüße, “Øresund” — 世界"


@pytest.mark.parametrize(
    "body",
    [
        GREETING.encode(),
        GREETING.encode("utf-8-sig"),
        GREETING.encode("utf-16"),
        b"\xfe\xff" + GREETING.encode("utf-16-be"),
        b"\xff\xfe\x00\x00" + GREETING.encode("utf-32-le"),
    ],
)
def test_unicode_is_decoded(body: bytes) -> None:
    assert decode(body) == GREETING


def test_what_is_not_utf_8_is_windows_1252_or_latin_1() -> None:
    assert decode("Grüße “quoted” 5 €".encode("cp1252")) == "Grüße “quoted” 5 €"
    assert decode("Grüße".encode("latin-1") + b" \x81 and more than enough text") == (
        "Grüße \x81 and more than enough text"
    )


def test_what_a_page_declares_is_believed_where_it_is_not_utf_8() -> None:
    assert decode("привет".encode("koi8-r"), "KOI8-R") == "привет"
    assert decode("Grüße".encode(), "koi8-r") == "Grüße"
    assert decode("Grüße".encode("latin-1"), "idna") == "Grüße"


def test_line_ends_become_line_feeds() -> None:
    assert decode(b"a\r\nb\rc\nd") == "a\nb\nc\nd"


@pytest.mark.parametrize(
    ("body", "code", "complaint"),
    [
        (b"", "document_empty", "is empty"),
        (b" \n\t\r\n", "document_empty", "is empty"),
        (bytes(range(256)) * 20, "unreadable_document", "binary"),
        (random.Random(1).randbytes(10_000), "unreadable_document", "binary"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0", "unreadable_document", "binary"),
        ("text without its mark".encode("utf-16-le"), "unreadable_document", "UTF-16 without a byte order mark"),
        (b"\xef\xbb\xbf\xff broken", "unreadable_document", "its byte order mark says UTF-8, but byte 0"),
    ],
)
def test_what_is_no_text_is_refused(body: bytes, code: str, complaint: str) -> None:
    with pytest.raises(UnreadableDocumentError, match=complaint) as caught:
        decode(body)
    assert caught.value.error_code == code


def test_a_stray_control_character_is_dropped() -> None:
    assert clean(decode(b"one\0 two" + b" and more" * 50)) == "one two" + " and more" * 50


def test_what_no_reader_sees_is_dropped() -> None:
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "obey")
    assert clean(f"vis\xadi\u200bble{hidden}\ufeff\ud800") == "visible"
    assert clean("tab\tand\nline") == "tab\tand\nline"
    assert clean("a\u2028b\fc") == "a\nb\nc"
    assert clean("e\u0301") == "é"
    assert clean("👩\u200d🔬") == "👩\u200d🔬"


@given(st.text())
def test_clean_text_can_be_stored(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode()
    assert "\0" not in cleaned
    assert clean(cleaned) == cleaned


def test_one_line_has_single_spaces() -> None:
    assert one_line("  a \n b\xa0\tc ") == "a b c"
