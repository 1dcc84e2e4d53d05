"""Documents as tests need them: PDF and DOCX, whole, encrypted, swollen."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

import docx
import pypdf
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls


def pdf(pages: Sequence[str], bookmarks: Sequence[tuple[str, int]] = (), title: str = "", padding: int = 0) -> bytes:
    """A PDF with these lines on its pages, bookmarks to page numbers from 0, and bytes that no page shows."""
    count = len(pages)
    objects = [
        b"<</Type/Catalog/Pages 2 0 R/Outlines 5 0 R>>",
        b"<</Type/Pages/Count %d/Kids[%s]>>" % (count, b" ".join(b"%d 0 R" % (6 + 2 * n) for n in range(count))),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
        b"<</Title(%s)/Author(A. Writer)>>" % title.encode(),
    ]
    first = 6 + 2 * count
    last = first + len(bookmarks) - 1
    linked = b"/First %d 0 R/Last %d 0 R" % (first, last) if bookmarks else b""
    objects.append(b"<</Type/Outlines%s/Count %d>>" % (linked, len(bookmarks)))
    for number, text in enumerate(pages):
        lines = b"".join(b"(%s) Tj T*\n" % _escaped(line) for line in text.split("\n"))
        drawn = b"BT /F1 10 Tf 12 TL 50 800 Td\n" + lines + b"ET"
        objects.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</Font<</F1 3 0 R>>>>/Contents %d 0 R>>"
            % (7 + 2 * number)
        )
        objects.append(b"<</Length %d>>stream\n%s\nendstream" % (len(drawn), drawn))
    for number, (name, page) in enumerate(bookmarks):
        near = b"/Prev %d 0 R" % (first + number - 1) if number else b""
        near += b"/Next %d 0 R" % (first + number + 1) if first + number < last else b""
        target = b"[%d 0 R/Fit]" % (6 + 2 * page)
        objects.append(b"<</Title(%s)/Parent 5 0 R%s/Dest%s>>" % (_escaped(name), near, target))
    if padding:
        objects.append(b"<</Length %d>>stream\n%s\nendstream" % (padding, b"\x55" * padding))
    return _file(objects)


def _file(objects: Sequence[bytes]) -> bytes:
    out = io.BytesIO()
    out.write(b"%PDF-1.7\n")
    places = []
    for number, content in enumerate(objects, start=1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, content))
    table = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(b"trailer\n<</Size %d/Root 1 0 R/Info 4 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, table))
    return out.getvalue()


def _escaped(text: str) -> bytes:
    return text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)").encode("cp1252")


def encrypted(body: bytes, user: str, owner: str = "owner") -> bytes:
    """The same PDF, encrypted; with an empty user password anybody may read it."""
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(body))
    writer.encrypt(user, owner, algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def word() -> bytes:
    """A Word document with all that a parser has to know."""
    document = docx.Document()
    document.core_properties.author = "A. Writer"
    document.core_properties.title = "From the properties"
    document.add_paragraph("The Handbook", style="Title")
    document.add_paragraph("For everyone.")
    document.add_heading("Leave", level=1)
    document.add_paragraph("How much is due.")
    document.add_heading("Sick leave", level=2)
    document.add_paragraph("Call first.", style="List Bullet")
    document.add_paragraph("Rest.", style="List Bullet")
    table = document.add_table(rows=2, cols=2)
    for row, cells in zip(table.rows, (("Days", "Pay"), ("1 | 2", "all")), strict=True):
        for cell, text in zip(row.cells, cells, strict=True):
            cell.text = text
    inner = table.rows[1].cells[1].add_table(rows=1, cols=1)
    inner.rows[0].cells[0].text = "inner"
    tracked = document.add_paragraph("Was ")
    for xml in (
        f"<w:ins {nsdecls('w')}><w:r><w:t>inserted</w:t></w:r></w:ins>",
        f"<w:del {nsdecls('w')}><w:r><w:delText>deleted</w:delText></w:r></w:del>",
        f"<w:moveFrom {nsdecls('w')}><w:r><w:t>moved</w:t></w:r></w:moveFrom>",
    ):
        tracked._p.append(parse_xml(xml))
    control = (
        f"<w:sdt {nsdecls('w')}><w:sdtContent><w:p><w:r><w:t>In a control.</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    )
    document.element.body.insert(-1, parse_xml(control))
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def package(**parts: bytes) -> bytes:
    """A DOCX of these parts: ``document``, ``styles`` in the folder word."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(f"word/{name}.xml", content)
    return out.getvalue()


def paragraphs(*texts: str) -> bytes:
    """The main part of a DOCX with these paragraphs."""
    body = "".join(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in texts)
    return f"<w:document {nsdecls('w')}><w:body>{body}</w:body></w:document>".encode()
