"""The demo's documents: where they come from, and what is shown of them."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

from headway.cli.demo import documents
from headway.cli.demo.documents import (
    INCLUDED,
    INDEX,
    LEFT_OUT,
    find_questions,
    lay_out,
    locate_manual,
    write_questions,
)
from headway.cli.demo.screen import Reading, Screen, Source, excerpt
from headway.cli.demo.site import Ports, Site
from headway.clock import ManualClock
from headway.config.load import load
from headway.retrieval.queries import read_queries

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_lake_is_the_manual_and_then_the_visitors_own(tmp_path: Path) -> None:
    lake = tmp_path / "documents"
    assert lay_out(lake) == len(PAGES)
    assert files(lake) == PAGES
    (lake / "glossary.md").write_text("# Mine")
    (lake / "README.md").unlink()
    assert lay_out(lake) == len(PAGES) - 1
    assert (lake / "glossary.md").read_text() == "# Mine"
    assert files(tmp_path) == {f"documents/{name}" for name in PAGES - {"README.md"}}


def test_the_wheel_brings_the_manual_to_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = "from hatchling.build import build_wheel; import sys; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    monkeypatch.setattr(documents, "_CHECKOUT", tmp_path)
    place = locate_manual().relative_to(ROOT / "src").as_posix()
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.removeprefix(f"{place}/") for name in names if name.startswith(place)} == PAGES


def test_an_answer_is_shown_with_what_it_cites() -> None:
    written = io.StringIO()
    screen = Screen(Console(file=written, width=100), ManualClock())
    source = Source("Tea", "drinks/tea.md", 0.42, "handbook@3", "Cups are white.\nTea is brewed for four minutes.")
    screen.quote(Reading("How long?", "Tea is\na film.", "Four minutes.", (source,)))
    screen.quote(Reading("Why?", "So.", "Nothing found.", ()))
    told = written.getvalue()
    for line in (
        "How long?",
        "  alone         Tea is a film.",
        "  grounded      Four minutes.",
        "[1] Tea  drinks/tea.md  ████░░░░░░ 0.42  handbook@3",
        "… Tea is brewed for four minutes.",
        "no passage fits: no model was asked",
    ):
        assert line in told


def test_an_excerpt_begins_where_the_answer_is() -> None:
    assert excerpt("One. Two is two. Three.", "it is two") == "… Two is two. Three."
    assert excerpt("One.\nTwo.", "nothing") == "One. Two."
    assert excerpt("", "nothing") == ""


def test_questions_are_of_what_the_index_holds_and_name_what_answers_them(tmp_path: Path) -> None:
    """Headings are the questions; the file of them is read by the comparison of index versions."""
    lake, file = tmp_path / "documents", tmp_path / "questions.jsonl"
    lay_out(lake)
    questions = find_questions(lake)
    assert questions["Run in production: Replicas"] == "howto/run-in-production.md"
    assert set(LEFT_OUT) < set(questions.values()) < PAGES
    lost = sum(document in LEFT_OUT for document in questions.values())
    assert 0.1 < lost / len(questions) < 0.5
    write_questions(file, questions)
    assert {(each.text, *(label.document for label in each.relevant)) for each in read_queries(file)} == set(
        questions.items()
    )


def test_the_configuration_names_the_subset(tmp_path: Path) -> None:
    site = Site(tmp_path, Ports(1, 2, 3, 4))
    for version, left_out in ((1, ()), (2, LEFT_OUT)):
        site.write_configuration("plain", version)
        specification = load(site.config).specification
        lake = specification.indexes[INDEX].lake
        assert (lake.url, lake.include, lake.exclude) == (f"file:{site.documents}", INCLUDED, left_out)
        for application, wanted in (("guide", 1), ("manual", version)):
            retrieval = specification.applications[application].release.bundle.retrieval
            assert retrieval is not None
            assert retrieval.label == f"{INDEX}@{wanted}"
