"""Whatever a file holds, parsing gives a sound document or a reason, in a bounded time."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import UnreadableDocumentError
from headway.lake.parsing.documents import parse
from headway.lake.parsing.parsed import Parsed
from headway.lake.parsing.texts import clean

ENDINGS = ["md", "html", "rst", "txt", "csv", "tsv", "jsonl", "docx", "none"]
PIECES = [
    *(
        "# ",
        "---\n",
        "===\n",
        "\n\n",
        "```\n",
        "| a | b |\n",
        "<p>",
        "</p>",
        "<table>",
        "<tr>",
        "<td>",
        "<li>",
        "<pre>",
    ),
    *(
        "<h1>",
        "<b ",
        ">",
        "<!--",
        "-->",
        ".. code::\n",
        "::\n",
        "   indented\n",
        ",",
        ";",
        '"',
        '{"a": ',
        "[",
        "]",
        "}",
    ),
    *("\t", "&amp;", "*", "`", "- ", "1. ", "> ", "\0", "\r\n", "\ufeff", "---\ntitle: x\n---\n"),
]
MARKUP = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=30).map(
    lambda pieces: "".join(pieces).encode("utf-8", "surrogatepass")
)


def check(path: str, body: bytes) -> None:
    try:
        parsed = parse(path, body)
    except UnreadableDocumentError:
        return
    assert parsed == msgspec.msgpack.decode(msgspec.msgpack.encode(parsed), type=Parsed)
    assert parsed.title == " ".join(clean(parsed.title).split())
    assert any(section.text for section in parsed.sections)
    for section in parsed.sections:
        assert section.text == clean(section.text)
        assert all(heading and heading == " ".join(heading.split()) for heading in section.headings)


@given(st.sampled_from(ENDINGS), st.one_of(MARKUP, st.binary(max_size=300)))
def test_any_bytes_give_a_sound_document_or_a_reason(ending: str, body: bytes) -> None:
    check(f"folder/file.{ending}", body)


LARGE = 50_000


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "body",
    [
        b"x" * (10 * LARGE),
        b"x\n" * LARGE,
        b"\n" * LARGE + b"x",
        b"> " * LARGE + b"x",
        b"[" * LARGE,
        b"<!--" * LARGE,
        b"<a " * LARGE,
        b"&amp;" * LARGE,
        b"`" * LARGE + b"\n" + b"`" * LARGE,
        b"# a\n" * (LARGE // 2),
        b"=\n" * LARGE,
        b" - " * LARGE,
        b".. a::\n" * (LARGE // 4),
        b"\n".join(b" " * depth + b"x::\n" for depth in range(300)),
        b'"' * LARGE,
        b"," * LARGE + b"\n" + b"1," * LARGE,
        b'{"a":' * 500 + b"1" + b"}" * 500,
        b" " * (10 * LARGE) + b"x",
    ],
    ids=lambda body: repr(body[:8]),
)
def test_large_and_odd_files_take_seconds_at_most(ending: str, body: bytes) -> None:
    begun = time.process_time()
    check(f"file.{ending}", body)
    assert time.process_time() - begun < 10
