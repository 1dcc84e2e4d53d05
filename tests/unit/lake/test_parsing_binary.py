"""PDF and DOCX, real ones: text, structure, and what cannot be read."""

from __future__ import annotations

import re

import pytest

from headway.errors import UnreadableDocumentError
from headway.lake.parsing.documents import parse
from headway.lake.parsing.parsed import Limits, Parsed
from tests.unit.lake.files import encrypted, package, paragraphs, pdf, word


def sections(parsed: Parsed) -> list[tuple[str, str]]:
    return [(" > ".join(section.headings), section.text) for section in parsed.sections]


def refusal(path: str, body: bytes, limits: Limits | None = None) -> tuple[str, str]:
    with pytest.raises(UnreadableDocumentError) as caught:
        parse(path, body, limits)
    return caught.value.error_code, caught.value.message


# --- PDF ---


def test_a_pdf_gives_its_pages() -> None:
    parsed = parse("report.pdf", pdf(["One (1).\nGrüße.", "", "Three."], title="Report"))
    assert (parsed.title, parsed.metadata) == ("Report", {"author": "A. Writer", "pages": 3})
    assert sections(parsed) == [("page 1", "One (1).\nGrüße."), ("page 3", "Three.")]


def test_bookmarks_are_headings_and_cut_pages_at_their_titles() -> None:
    pages = ["Cover", "1 Leave\nWhat is due.\n1.1 Sick leave\nCall first.", "Go home.\nHoliday - when?\nUntil March."]
    bookmarks = [("Leave", 1), ("Sick leave", 1), ("Holiday: when", 2), ("Not on the page", 2)]
    assert sections(parse("a.pdf", pdf(pages, bookmarks))) == [
        ("page 1", "Cover"),
        ("Leave > page 2", "1 Leave\nWhat is due."),
        ("Sick leave > page 2", "1.1 Sick leave\nCall first."),
        ("Sick leave > page 3", "Go home."),
        ("Holiday: when", ""),
        ("Not on the page > page 3", "Holiday - when?\nUntil March."),
    ]


def test_a_pdf_without_its_ending_is_known_by_its_first_bytes() -> None:
    assert sections(parse("download", pdf(["Text."]))) == [("page 1", "Text.")]


def test_an_encrypted_pdf_is_reported_and_one_that_forbids_changes_is_read() -> None:
    body = pdf(["Secret."])
    assert refusal("a.pdf", encrypted(body, "password")) == (
        "document_encrypted",
        "is encrypted: save it without a password",
    )
    assert sections(parse("a.pdf", encrypted(body, ""))) == [("page 1", "Secret.")]


def test_a_pdf_without_text_is_reported_as_scanned() -> None:
    code, message = refusal("scan.pdf", pdf(["", ""]))
    assert code == "document_empty"
    assert "2 pages: it seems to be scanned" in message


def test_a_pdf_with_too_many_pages_is_refused() -> None:
    assert refusal("a.pdf", pdf(["x"] * 4), Limits(pages=3)) == (
        "document_too_large",
        "has 4 pages; at most 3 are read: split it",
    )


@pytest.mark.parametrize("body", [b"%PDF-1.7\njunk", b"junk" * 100, pdf(["Text."])[:200]])
def test_a_damaged_pdf_is_refused(body: bytes) -> None:
    code, message = refusal("a.pdf", body)
    assert code == "unreadable_document"
    assert message.startswith("is no sound PDF: ")


def test_a_pdf_whose_table_of_contents_runs_in_a_circle_is_read() -> None:
    body = pdf(["Text."], [("One", 0), ("Two", 0)])
    first, second = (found.start() for found in re.finditer(rb"\d+ 0 obj\n<</Title\((?:One|Two)", body))
    number = int(re.match(rb"\d+", body[first:])[0])  # type: ignore[index]
    circular = body.replace(b"/Prev %d 0 R" % number, b"/Next %d 0 R" % number)
    assert first < second
    assert circular != body
    assert "".join(section.text for section in parse("a.pdf", circular).sections) == "Text."


# --- DOCX ---


def test_a_docx_gives_headings_lists_tables_and_what_was_inserted() -> None:
    parsed = parse("handbook.docx", word())
    assert parsed.title == "The Handbook"
    assert parsed.metadata["author"] == "A. Writer"
    table = "| Days | Pay |\n| 1 \\| 2 | all inner |"
    assert sections(parsed) == [
        ("The Handbook", "For everyone."),
        ("The Handbook > Leave", "How much is due."),
        ("The Handbook > Leave > Sick leave", f"- Call first.\n- Rest.\n\n{table}\n\nWas inserted\n\nIn a control."),
    ]


def test_headings_are_known_by_outline_level_and_by_the_style_they_are_based_on() -> None:
    namespace = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    styles = f"""<w:styles {namespace}>
        <w:style w:styleId="berschrift1"><w:name w:val="heading 1"/></w:style>
        <w:style w:styleId="Own"><w:name w:val="Own"/><w:basedOn w:val="berschrift1"/></w:style>
        <w:style w:styleId="Level"><w:name w:val="Level"/><w:pPr><w:outlineLvl w:val="1"/></w:pPr></w:style>
        <w:style w:styleId="Loop"><w:name w:val="Loop"/><w:basedOn w:val="Loop"/></w:style></w:styles>"""

    def styled(style: str, text: str) -> str:
        return f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'

    body = styled("Own", "First") + styled("Level", "Second") + styled("Loop", "a") + styled("None", "b<![CDATA[ &]]>")
    document = f"<w:document {namespace}><w:body>{body}</w:body></w:document>"
    parsed = parse("a.docx", package(document=document.encode(), styles=styles.encode()))
    assert sections(parsed) == [("First > Second", "a\n\nb &")]
    strict = document.replace(
        "http://schemas.openxmlformats.org/wordprocessingml/2006", "http://purl.oclc.org/ooxml/wordprocessingml"
    )
    assert sections(parse("a.docx", package(document=strict.encode()))) == [("", "First\n\nSecond\n\na\n\nb &")]


def test_a_docx_that_swells_is_refused_before_it_fills_the_memory() -> None:
    bomb = package(document=paragraphs("A" * 300_000_000))
    assert len(bomb) < 1_000_000
    code, message = refusal("bomb.docx", bomb)
    assert code == "document_too_large"
    assert "when word/document.xml is unpacked" in message
    # What holds no text is not unpacked at all.
    picture = package(document=paragraphs("Text."), picture=bytes(100_000_000))
    assert sections(parse("a.docx", picture)) == [("", "Text.")]


def test_entities_that_swell_are_refused() -> None:
    laughs = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
    document = b'<!DOCTYPE d [<!ENTITY l0 "ha">' + laughs.encode() + b"]>" + paragraphs("&l9;")
    code, message = refusal("a.docx", package(document=document))
    assert code == "unreadable_document"
    assert message.startswith("its part word/document.xml ")


@pytest.mark.parametrize(
    ("body", "code", "complaint"),
    [
        (b"\xd0\xcf\x11\xe0 and more", "document_encrypted", "is encrypted, or in Word's old format"),
        (b"PK\x03\x04 junk", "unreadable_document", "is no sound DOCX package"),
        (word()[:2000], "unreadable_document", "is no sound DOCX package"),
        (package(other=b"x"), "unreadable_document", "is no Word document"),
        (package(document=b"<w:document>"), "unreadable_document", "its part word/document.xml is not sound XML"),
        (package(document=paragraphs(" ")), "document_empty", "holds no text"),
        (package(document=b"<a>" * 10_000), "unreadable_document", "its part word/document.xml is not sound XML"),
    ],
)
def test_a_docx_that_cannot_be_read_says_why(body: bytes, code: str, complaint: str) -> None:
    found, message = refusal("a.docx", body)
    assert (found, message[: len(complaint)]) == (code, complaint)
