"""headway index search: what an operator types, and what is shown for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.commands import headway
from tests.project import Project

LEAVE = (
    "# Leave\n\nEverybody has 25 days of paid holiday a year.\n\n## Parents\n\nParents have 10 days more of leave.\n"
)
HIDDEN = "# Leave of the board\n\nThe board has 60 days of paid holiday a year.\n"
DRAFT = "---\nstatus: draft\nyear: 2023\n---\n# Old leave\n\nOnce there were 20 days of paid holiday a year.\n"


def search(*arguments: str) -> Any:
    return json.loads(headway("index", "search", *arguments, "--json").stdout)


def documents(*arguments: str) -> list[str]:
    return [passage["document"] for passage in search(*arguments)["passages"]]


@pytest.fixture
def project(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose index ``handbook`` is built and used by ``support``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADWAY_DATABASE_URL", database_url)
    monkeypatch.delenv("HEADWAY_CONFIG", raising=False)
    (tmp_path / "docs" / "board").mkdir(parents=True)
    (tmp_path / "docs" / "leave.md").write_text(LEAVE)
    (tmp_path / "docs" / "old.md").write_text(DRAFT)
    (tmp_path / "docs" / "board" / "leave.md").write_text(HIDDEN)
    made = Project(tmp_path)
    made.write(
        release=", index: handbook, top_k: 1, retrieval: {hybrid_weight: 0}",
        more='indexes:\n  handbook: {lake: file:./docs, labels: {"board/**": [board]}}\n',
    )
    headway("index", "build", "handbook")
    headway("apply", "--yes")
    return made


def test_passages_are_shown_with_what_their_scores_come_from(project: Project) -> None:
    shown = headway("index", "search", "handbook", "Everybody has how much holiday?", "--top-k", "2")
    lines = shown.stdout.splitlines()
    assert re.fullmatch(r" 1  0\.\d\d  Leave", lines[0])
    assert lines[1] == "    leave.md, passage 1"
    assert re.fullmatch(
        r"    by meaning: place \d, similarity 0\.\d\d · by words: place 1, \d+% of the query's", lines[2]
    )
    assert lines[3].startswith("    Everybody has 25 days of paid holiday a year.")
    assert re.match(r"handbook@1 · meaning 50%, words 50% · what everybody may see · \d+ ms", shown.stderr)
    assert "Parents" in headway("index", "search", "handbook@1", "leave of parents").stdout
    assert "Nothing found." in headway("index", "search", "handbook", "holiday", "--minimum-score", "1").stderr


def test_only_with_its_group_a_labelled_passage_is_found(project: Project) -> None:
    assert "board/leave.md" not in documents("handbook", "days of holiday of the board")
    assert "board/leave.md" not in documents("handbook", "days of holiday of the board", "--group", "hr")
    found = search("handbook", "days of holiday of the board", "--group", "hr", "--group", "board")
    assert found["passages"][0]["document"] == "board/leave.md"
    assert found["groups"] == ["board", "hr"]


def test_it_searches_as_an_application_does_unless_told_otherwise(project: Project) -> None:
    found = search("handbook", "paid holiday", "--application", "support")
    assert (found["retrieval"]["top_k"], found["retrieval"]["hybrid_weight"]) == (1, 0)
    assert [passage["similarity"] for passage in found["passages"]] == [None]
    more = search("handbook", "paid holiday", "--application", "support", "--hybrid-weight", "1", "-k", "9")
    assert len(more["passages"]) == 2
    assert more["passages"][0]["vector_rank"] == 1


def test_filters(project: Project) -> None:
    wanted: list[tuple[tuple[str, ...], list[str]]] = [
        (("status=draft",), ["old.md"]),
        (("year=2023",), ["old.md"]),
        (('year={"gte": 2024}',), []),
        (('{"status": {"not": "draft"}, "path": {"prefix": "le"}}',), ["leave.md"]),
        (("path=leave.md", "year=2023"), []),
    ]
    for filters, expected in wanted:
        options = [option for each in filters for option in ("--filter", each)]
        assert documents("handbook", "days of holiday", *options) == expected, filters


def test_what_is_wrong_is_told(project: Project) -> None:
    wrong: list[tuple[tuple[str, ...], str]] = [
        (("handbok", "x"), "no index called 'handbok' has a version; did you mean 'handbook'?"),
        (("handbook@9", "x"), "there is no handbook@9; the newest is handbook@1"),
        (("hand book", "x"), "'hand book': "),
        (("handbook", "  "), "query has 1 to 2000 characters"),
        (("handbook", "x" * 100_000), "query has 1 to 2000 characters"),
        (("handbook", "x", "--filter", "status"), "expected KEY=VALUE"),
        (("handbook", "x", "--filter", "{status"), "is no JSON object"),
        (("handbook", "x", "--filter", 'year={"near": 1}'), "--filter: year: 'near' is none of"),
        (("handbook", "x", "--group", "a,b"), "'a,b' is no name of a group"),
        (("handbook", "x", "--application", "suport"), "did you mean 'support'?"),
    ]
    for arguments, message in wrong:
        assert message in headway("index", "search", *arguments, status=1).stderr, arguments


def test_a_version_that_is_gone_says_so(project: Project) -> None:
    headway("index", "build", "handbook")
    headway("index", "drop", "handbook@2")
    told = headway("index", "search", "handbook@2", "x", status=1).stderr
    assert "handbook@2 was dropped: only published versions can be searched" in told
    assert documents("handbook", "holiday")  # the latest that is published
