"""Folders as they are found in the wild: each odd file is handled as documented, and nothing else is lost."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import pytest

from headway.config.indexes import LakeSpec
from headway.storage.builds import Build
from headway.storage.database import Database
from tests.lakes import build, document, write_documents
from tests.unit.lake.files import encrypted, package, paragraphs, pdf, word

MIB = 2**20
NOT_UTF_8 = "its name cannot be a path: empty, . or .. between slashes, or not UTF-8"


async def outcomes(database: Database, built: Build) -> dict[str, str]:
    """What became of each document: its title, or why it was left out."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT path, coalesce(problem, 'loaded: ' || title) FROM index_document WHERE version_id = %s",
            (built.version,),
        )
        return dict(await cursor.fetchall())


async def texts(database: Database, built: Build, path: str) -> str:
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT c.text FROM index_chunk c JOIN index_document d ON d.id = c.document"
            " WHERE d.version_id = %s AND d.path = %s ORDER BY c.position",
            (built.version, path),
        )
        return "\n".join([text for (text,) in await cursor.fetchall()])


async def test_every_odd_file_is_handled_as_documented(database: Database, tmp_path: Path, proof: bool) -> None:
    write_documents(tmp_path, 40)
    sound = {
        "whole.pdf": pdf(["A page."], title="Whole"),
        "readable.pdf": encrypted(pdf(["Anybody reads this."], title="Readable"), ""),
        "large.pdf": pdf(["First page.", "Last page."], title="Large", padding=(200 if proof else 5) * MIB),
        "word.docx": word(),
        "latin.txt": "Übermaß an Größe – für 5 €".encode("cp1252"),
        "latin1.txt": "Übermaß\x81".encode("latin-1"),
        "people.csv": "name;town\nAnn;Übach\nBob;Köln\n".encode(),
        "notes.jsonl": b'{"title": "One", "text": "first"}\n{"text": "second"}\n',
        "new\nline.md": b"# New line\n\nIts name has two lines.",
        "tab\tand \x01.md": b"# Control\n\nIts name has control characters.",
        "-rf.md": b"# Dash\n\nIts name begins with a dash.",
        "LICENSE": b"No ending at all.",
    }
    odd = {
        "locked.pdf": (encrypted(pdf(["Secret."]), "password"), "is encrypted"),
        "scanned.pdf": (pdf([""]), "scanned"),
        "damaged.pdf": (pdf(["A page."])[:400], ""),
        "bomb.docx": (package(document=paragraphs("A" * 100_000_000)), "unpacked"),
        "sheet.xlsx": (package(document=b"<x/>"), "a .xlsx file is not read"),
        "program.bin": (bytes(range(256)) * 10, "is not text"),
        "matter.md": (b"---\na: [\n---\ntext", "front matter"),
        "broken.jsonl": (b'{"a": 1}\n{"a":\n', "line 2"),
        "empty.md": (b"", "is empty"),
        "blank.md": (b" \n\n", "is empty"),
    }
    for name, body in (sound | {name: body for name, (body, _) in odd.items()}).items():
        (tmp_path / name).write_bytes(body)
    (tmp_path / os.fsdecode(b"not\xffutf8.md")).write_bytes(b"text")
    (tmp_path / "empty folder").mkdir()
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "loop.md").symlink_to("loop.md")
    (tmp_path / "circle").symlink_to(".")
    (tmp_path / "outside.md").symlink_to("/etc/hostname")
    built = await build(database, tmp_path, lake=LakeSpec(f"file:{tmp_path}"))
    found = await outcomes(database, built)
    left_out = {path: problem for path, problem in found.items() if not problem.startswith("loaded: ")}
    for name, (_, part) in odd.items():
        assert part in left_out[name], (name, found[name])
    assert left_out.keys() - odd.keys() == {r"./not\udcffutf8.md", "pipe.md", "loop.md", "circle", "outside.md"}
    assert left_out[r"./not\udcffutf8.md"] == NOT_UTF_8
    assert left_out["pipe.md"] == "is not a file"
    assert left_out["circle"] == "is a link to a folder: those are not followed"
    assert "outside the lake" in left_out["outside.md"]
    assert sound.keys() <= found.keys()
    assert (built.progress.loaded, built.progress.skipped) == (40 + len(sound), len(left_out))
    assert found["new\nline.md"] == "loaded: New line"
    assert found["whole.pdf"] == "loaded: Whole"
    assert "Größe – für 5 €" in await texts(database, built, "latin.txt")
    assert "Übermaß" in await texts(database, built, "latin1.txt")
    assert "town: Köln" in await texts(database, built, "people.csv")
    assert await texts(database, built, "large.pdf") == "First page.\nLast page."
    assert "Rule 7-0 on holiday" in await texts(database, built, "part0/doc00007.md")
    again = await build(database, tmp_path, lake=LakeSpec(f"file:{tmp_path}"))
    assert (again.progress.embedded, again.progress.loaded) == (0, built.progress.loaded)


async def test_front_matter_is_kept_for_filters_and_citations(database: Database, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\ntitle: Leave\nteam: hr\ntags: [a, b]\nsince: 2026-01-31\n---\n" + document(1))
    built = await build(database, tmp_path)
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT d.title, d.metadata, c.metadata, d.modified, length(d.etag) > 10"
            " FROM index_document d JOIN index_chunk c ON c.document = d.id WHERE d.version_id = %s LIMIT 1",
            (built.version,),
        )
        ((title, metadata, of_chunk, modified, has_etag),) = await cursor.fetchall()
    assert (title, has_etag) == ("Leave", True)
    assert metadata == {"title": "Leave", "team": "hr", "tags": ["a", "b"], "since": "2026-01-31"}
    assert of_chunk == metadata | {"path": "a.md", "modified": modified}
    assert datetime.fromisoformat(modified).timestamp() == pytest.approx((tmp_path / "a.md").stat().st_mtime)
