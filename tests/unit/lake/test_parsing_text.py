"""Markdown, HTML, reStructuredText, text, CSV and JSONL: sections, titles, metadata; and what is refused."""

from __future__ import annotations

from textwrap import dedent

import msgspec
import pytest

from headway.errors import UnreadableDocumentError
from headway.lake.parsing.documents import parse
from headway.lake.parsing.parsed import Limits, Parsed


def read(path: str, text: str, limits: Limits | None = None) -> Parsed:
    return parse(path, dedent(text).encode(), limits)


def sections(parsed: Parsed) -> list[tuple[str, str]]:
    return [(" > ".join(section.headings), section.text) for section in parsed.sections]


def refusal(path: str, body: bytes, limits: Limits | None = None) -> tuple[str, str]:
    with pytest.raises(UnreadableDocumentError) as caught:
        parse(path, body, limits)
    return caught.value.error_code, caught.value.message


# --- Markdown ---


def test_markdown_keeps_code_and_tables_and_knows_headings_of_both_kinds() -> None:
    parsed = read(
        "hr/leave.md",
        """\
        ---
        title: Leave & absence
        since: 2024-05-01
        tags: [hr, {deep: 1.5}]
        draft: false
        ---
        Preface.

        # Leave *and* `absence` {#leave}

        <!-- nobody reads
        this -->

        ```sh
        # no heading
        ```

        | a | b |
        |---|---|
        | 1 | 2 |

        Sick leave
        ----------
        Call first.

        > # quoted, no heading

        ### Deep
        ## Holiday [link](https://example.com)
        Until March.
        """,
    )
    assert parsed.title == "Leave & absence"
    assert parsed.metadata == {
        "title": "Leave & absence",
        "since": "2024-05-01",
        "tags": ["hr", {"deep": 1.5}],
        "draft": False,
    }
    assert sections(parsed) == [
        ("", "Preface."),
        ("Leave and absence", "```sh\n# no heading\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |"),
        ("Leave and absence > Sick leave", "Call first.\n\n> # quoted, no heading"),
        ("Leave and absence > Sick leave > Deep", ""),
        ("Leave and absence > Holiday link", "Until March."),
    ]


@pytest.mark.parametrize(
    ("text", "title"),
    [("# Heading\n\ntext", "Heading"), ("text", "sick-leave"), ("---\ntitle: [1]\n---\n# Heading\ntext", "Heading")],
)
def test_a_title_comes_from_the_first_heading_or_the_name(text: str, title: str) -> None:
    assert read("hr/sick-leave.md", text).title == title


def test_lines_across_the_page_are_not_front_matter() -> None:
    assert sections(read("a.md", "---\n\ntext\n\n---\n\nmore")) == [("", "---\n\ntext\n\n---\n\nmore")]


@pytest.mark.parametrize(
    ("matter", "complaint"),
    [
        ("a: b: c", "line 2: mapping values"),
        ("a: &x [1]\nb: *x", "alias"),
        ("a: {{ template }}", "line 2"),
        ("date: 2024-99-99", "a value makes no sense"),
        ("a: " + "[" * 30_000, "not sound YAML"),
    ],
)
def test_front_matter_that_is_not_sound_is_refused(matter: str, complaint: str) -> None:
    code, message = refusal("a.md", f"---\n{matter}\n---\ntext".encode())
    assert code == "unreadable_document"
    assert complaint in message


def test_front_matter_becomes_plain_json() -> None:
    matter = "n: .inf\nbig: 123456789012345678901234567890\nat: 2024-01-02T03:04:05Z\n1: 2\nnested: {a: {b: [null]}}"
    metadata = read("a.md", f"---\n{matter}\n---\ntext").metadata
    assert metadata == {
        "n": "inf",
        "big": "123456789012345678901234567890",
        "at": "2024-01-02T03:04:05+00:00",
        "1": 2,
        "nested": {"a": {"b": [None]}},
    }
    assert msgspec.json.decode(msgspec.json.encode(metadata)) == metadata


def test_a_paragraph_set_as_a_heading_is_text() -> None:
    long = "word " * 100
    assert sections(read("a.md", f"# {long}\n\nmore")) == [("", f"{long.strip()}\n\nmore")]


# --- HTML ---

PAGE = """\
<!doctype html><html lang="en"><head><title>Leave – Example Corp</title>
<meta name="description" content="What is due"><meta name="author" content="A. Writer">
<style>p {}</style><script>alert(1)</script></head><body>
<header><a>Home</a></header><nav><ul><li>Menu</li></ul></nav>
<div><p>Not in main.</p></div>
<main><header><h1>Leave<a class="headerlink">¶</a></h1></header>
<p>What is&nbsp;due<br>to   you.<script>no()</script> And <b>mo</b>re.</p>
<ul><li>One<ul><li>inner</li></ul></li><li><p>Two</p></li></ul>
<ol><li>Three</ol>
<pre><code>x = 1
  y = ```</code></pre>
<h2>Pay</h2>
<table><caption>Rates</caption><tr><th>Days<th>Pay</tr><tr><td>1|2<td>all <i>of</i> it</table>
<p hidden>hidden</p><p aria-hidden="true">icon</p><form><p>Kept.</p><button>Send</button><input></form>
<aside>Aside.</aside><section><footer>Kept too.</footer></section>
</main><footer>Imprint</footer></body></html>"""


def test_html_gives_its_main_text_without_what_is_around_it() -> None:
    parsed = parse("leave.html", PAGE.encode())
    assert parsed.title == "Leave"
    assert parsed.metadata == {"description": "What is due", "author": "A. Writer", "language": "en"}
    assert sections(parsed) == [
        (
            "Leave",
            "What is due\nto you. And more.\n\n- One\n  - inner\n- Two\n- Three\n\n````\nx = 1\n  y = ```\n````",
        ),
        ("Leave > Pay", "Rates\n| Days | Pay |\n| 1\\|2 | all of it |\n\nKept.\n\nKept too."),
    ]


def test_html_without_a_main_element_gives_its_body() -> None:
    page = "<title>T</title><header>Site</header><h1>A</h1>one<p>two<footer>Imprint</footer>"
    assert sections(parse("a.htm", page.encode())) == [("A", "one\n\ntwo")]


def test_a_table_that_lays_out_a_page_is_text() -> None:
    page = "<table><tr><td><h1>A</h1><p>one<td><table><tr><td>1<td>2</table></table>"
    assert sections(parse("a.html", page.encode())) == [("A", "one\n\n| 1 | 2 |")]


def test_html_is_decoded_as_it_declares() -> None:
    page = '<meta charset="koi8-r"><p>привет</p>'
    assert sections(parse("a.html", page.encode("koi8-r"))) == [("", "привет")]


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 3_000 + "deep",
        "<table><tr><td>" * 1_000 + "deep",
        "<b>" * 500_000,
    ],
)
def test_html_that_is_nested_too_deeply_is_refused(page: str) -> None:
    assert refusal("a.html", page.encode()) == ("unreadable_document", "is nested too deeply")


@pytest.mark.parametrize("page", ["<p></p>", "<script>x</script>", "<!-- c -->", "<title>only</title>"])
def test_html_without_text_is_refused(page: str) -> None:
    assert refusal("a.html", page.encode()) == ("document_empty", "holds no text")


# --- reStructuredText ---


RST = """\
.. _target:
.. a comment
   of two lines

=======
Library
=======

Uses :mod:`json` and :ref:`that one <target>`.

----

Reading
=======
See::

    code()

      more()

Next.

.. code-block:: python
   :linenos:

   x = 1

.. note:: Be careful.

   Twice.

.. versionadded:: 3.2

.. function:: open(file)

   Opens :class:`~io.File`.

   >>> open(1)
   1

.. toctree::

   other

.. [1] A note.

Deeper
------

+---+---+
| a | b |
+---+---+

Writing
=======
Done::
"""


def test_rst_knows_headings_code_remarks_and_what_is_not_shown() -> None:
    parsed = parse("library.rst", RST.encode())
    assert parsed.title == "Library"
    assert sections(parsed) == [
        ("Library", "Uses json and that one."),
        (
            "Library > Reading",
            (
                "See:\n\n```\ncode()\n\n  more()\n```\n\nNext.\n\n```python\nx = 1\n```\n\n"
                "Note: Be careful.\n\nTwice.\n\n"
                "New in version 3.2:\n\nopen(file)\n\nOpens io.File.\n\n```\n>>> open(1)\n1\n```\n\n[1] A note."
            ),
        ),
        ("Library > Reading > Deeper", "+---+---+\n| a | b |\n+---+---+"),
        ("Library > Writing", "Done:"),
    ]


# --- text, CSV, JSONL, others ---


def test_text_is_one_section_whatever_its_ending() -> None:
    for path in ("notes.txt", "LICENSE", "x/y.log", "a.b.unknown"):
        assert sections(parse(path, b"one\r\n\r\ntwo")) == [("", "one\n\ntwo")]
    assert parse("x/LICENSE", b"text").title == "LICENSE"
    assert parse("notes.TXT", "Grüße €".encode("cp1252")).sections[0].text == "Grüße €"


def test_csv_gives_a_section_for_each_row() -> None:
    text = 'name;city;;note\nAnn;"Oslo; north";x;\n\n;;;\nBob;Rome;;"two\nlines";more\n'
    parsed = parse("people.csv", text.encode("utf-8-sig"))
    assert (parsed.title, parsed.metadata) == ("people", {"columns": ["name", "city", "", "note"]})
    assert sections(parsed) == [
        ("", "name: Ann\ncity: Oslo; north\ncolumn 3: x"),
        ("", "name: Bob\ncity: Rome\nnote: two\nlines\ncolumn 5: more"),
    ]
    assert sections(parse("a.tsv", b"a, b\tc\n1\t2")) == [("", "a, b: 1\nc: 2")]


def test_a_csv_that_is_not_sound_is_refused() -> None:
    code, message = refusal("a.csv", b'a,b\n"' + b"x" * 200_000)
    assert (code, message.partition(":")[0]) == ("unreadable_document", "line 2 is not sound CSV")
    assert refusal("a.csv", b"only,a,header\n") == ("document_empty", "holds no text")


def test_jsonl_gives_a_section_for_each_record() -> None:
    lines = [
        {"title": "Leave", "text": "What is\u2028due.", "id": 1},
        {"id": 2, "tags": ["a", {"b": None}], "deep": {"c": True, "d": ""}, "e": 1.5},
        "plain",
        {"title": "Untold", "n": 0},
    ]
    body = b"\n\n".join(msgspec.json.encode(line) for line in lines)
    assert sections(parse("faq.jsonl", body)) == [
        ("Leave", "What is\ndue."),
        ("", "id: 2\ntags[0]: a\ndeep.c: true\ne: 1.5"),
        ("", "plain"),
        ("Untold", "n: 0"),
    ]


def test_jsonl_that_is_not_sound_is_refused_by_its_line() -> None:
    assert refusal("a.jsonl", b'{"text": "a"}\n{"text": ')[1].startswith("line 2 is not sound JSON: ")
    assert refusal("a.jsonl", b"[" * 100_000) == ("unreadable_document", "line 1 is nested too deeply")


@pytest.mark.parametrize(
    ("path", "body", "code", "complaint"),
    [
        ("a.md", b"", "document_empty", "is empty"),
        ("a.md", b"# Only\n\n## headings", "document_empty", "holds no text"),
        ("a.xlsx", b"PK\x03\x04rest", "unreadable_document", "a .xlsx file is not read: save it as PDF, DOCX or text"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(100), "unreadable_document", "is not text: it holds binary data"),
    ],
)
def test_what_cannot_be_parsed_says_why(path: str, body: bytes, code: str, complaint: str) -> None:
    assert refusal(path, body) == (code, complaint)


def test_limits_refuse_the_whole_document() -> None:
    limits = Limits(body_bytes=1_000, characters=100, sections=3)
    assert refusal("a.txt", b"x" * 1_001, limits) == (
        "document_too_large",
        "has 1,001 bytes; at most 1,000 are read: split it",
    )
    assert refusal("a.txt", b"x" * 101, limits)[0] == "document_too_large"
    assert refusal("a.csv", b"a\n1\n2\n3\n4\n", limits) == (
        "document_too_large",
        "has more than 3 sections; at most 3 are read: split it",
    )
    # A long column name is written for each row, a long path for each value.
    assert refusal("a.csv", b"a" * 40 + b"\n1\n2\n3\n", limits)[0] == "document_too_large"
    assert parse("a.txt", b"x" * 100, limits).sections[0].text == "x" * 100
