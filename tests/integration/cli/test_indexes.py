"""headway index: what an operator types, and what is shown for it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from headway.config.load import load
from headway.config.spec import specify_version
from headway.providers import azure_search
from headway.storage import builds
from headway.storage.builds import Build
from headway.storage.database import Database
from headway.testing import refusing_port
from tests.commands import headway, listed
from tests.lakes import write_documents
from tests.project import Project


@pytest.fixture
def project(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project folder with documents beside it, and nothing applied."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADWAY_DATABASE_URL", database_url)
    monkeypatch.delenv("HEADWAY_CONFIG", raising=False)
    write_documents(tmp_path / "docs", 6)
    (tmp_path / "docs" / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    return Project(tmp_path)


def ground(project: Project, index: str = "handbook", **keys: str) -> None:
    more = "".join(f", {key}: {value}" for key, value in keys.items())
    project.write(release=f", index: {index}", more=f"indexes:\n  handbook: {{lake: file:./docs{more}}}\n")


def test_from_a_folder_to_a_release_that_is_grounded_in_it(project: Project) -> None:
    ground(project)
    assert "sound: 2 deployments, 1 application, 1 index" in headway("check").stdout
    refused = headway("apply", "--yes", status=1)
    assert "the index handbook has no published version; `headway index build handbook` makes one" in refused.stderr
    built = headway("index", "build", "handbook")
    assert re.match(r"handbook@1 is published: 6 documents, \d+ chunks \(\d+ embedded\), in \d", built.stdout)
    assert "1 document left out: `headway index show handbook@1` tells why" in built.stderr
    assert [line for line in built.stderr.splitlines() if line.startswith("handbook@1: ")] == [
        f"handbook@1: {stage}" for stage in ("snapshot", "load", "index", "verify")
    ]
    headway("apply", "--yes")
    (version,) = listed("index", "list")
    assert (version["label"], version["state"]) == ("handbook@1", "published")
    assert version["used_by"][0].startswith("support: r-")
    shown = headway("index", "show", "handbook").stdout
    assert "6 of 7, 1 left out" in shown
    assert re.search(r"^broken.pdf: .+", shown, re.MULTILINE)


def test_names_of_files_do_not_steer_the_terminal(project: Project) -> None:
    (project.folder / "docs" / "new\nline \x1b[31m.md").write_text("")
    ground(project)
    headway("index", "build", "handbook")
    assert (
        "\nnew\N{SYMBOL FOR NEWLINE}line \N{REPLACEMENT CHARACTER}[31m.md: is empty\n"
        in headway("index", "show", "handbook").stdout
    )


def test_a_rebuild_is_compared_and_the_old_version_dropped(project: Project) -> None:
    ground(project)
    headway("index", "build", "handbook")
    (project.folder / "docs" / "part0" / "doc00001.md").write_text("# Document 1\n\nAnother text.\n")
    (project.folder / "docs" / "part0" / "doc00002.md").unlink()
    again = headway("index", "build", "handbook")
    assert re.search(r"handbook@2 is published: 5 documents, \d+ chunks \(1 embedded, \d+ reused\)", again.stdout)
    compared = headway("index", "diff", "handbook@1", "handbook@2").stdout
    assert compared.splitlines() == [
        "~ part0/doc00001.md Document 1",
        "- part0/doc00002.md Document 2",
        "0 added, 1 changed, 1 removed",
    ]
    assert [item["change"] for item in listed("index", "diff", "handbook@1", "handbook")["items"]] == [
        "changed",
        "removed",
    ]
    assert "No differences." in headway("index", "diff", "handbook@2", "handbook@2").stderr
    assert headway("index", "drop", "handbook@1").stdout == "handbook@1 is dropped.\n"
    assert [row["state"] for row in listed("index", "list", "handbook")] == ["published", "dropped"]
    headway("apply", "--yes")
    assert "handbook@2 is in use by support: r-" in headway("index", "drop", "handbook@2", status=1).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "handbok"), "headway.yaml has no index called 'handbok'; did you mean 'handbook'?"),
        (("show", "handbook"), "no index called 'handbook' has a version; `headway index build handbook` makes one"),
        (("show", "handbook@x"), "'handbook@x': expected the name of an index, or of one of its versions"),
        (("cancel", "handbook"), "no version of handbook is being built"),
        (("drop", "handbook"), "say which version of handbook, as handbook@2"),
    ],
)
def test_what_is_wrong_is_told(project: Project, arguments: tuple[str, ...], message: str) -> None:
    ground(project)
    assert message in headway("index", *arguments, status=1).stderr


def test_an_empty_folder_and_a_wrong_one(project: Project) -> None:
    ground(project, include='["*.md"]')
    assert "no file of file:" in headway("index", "build", "handbook", status=1).stderr
    project.write(more="indexes:\n  handbook: {lake: file:./nowhere}\n")
    told = headway("index", "build", "handbook", status=1).stderr
    assert re.search(r"there is no file:/.*/nowhere\n", told)
    assert "goes on from where it was" not in told
    assert [row["state"] for row in listed("index", "list")] == ["failed", "failed"]


def test_a_build_that_waits_says_how_it_goes_on(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure_search, "_LOOK_SECONDS", 0.0)
    monkeypatch.setenv("SEARCH_KEY", "admin-key")
    with refusing_port() as port:
        service = f'{{endpoint: "http://127.0.0.1:{port}", api_key: env:SEARCH_KEY}}'
        ground(project, azure_ai_search=service)
        told = " ".join(headway("index", "build", "handbook", status=1).stderr.split())
    assert "the search service cannot be reached" in told
    assert told.endswith(
        "; `headway index build handbook` goes on from where it was, `headway index cancel handbook` gives it up"
    )
    (waiting,) = listed("index", "list")
    assert (waiting["state"], waiting["stage"]) == ("building", "snapshot")
    assert headway("index", "cancel", "handbook").stdout == "handbook@1 is cancelled.\n"


def test_what_is_applied_is_built_where_there_is_no_file(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write(more="indexes:\n  handbook: {lake: file:./docs}\n")
    headway("apply", "--yes")
    project.file.rename(project.folder / "elsewhere.yaml")
    assert listed("index", "build", "handbook")["state"] == "published"
    assert listed("index", "build", "handbook", "--file", "elsewhere.yaml")["label"] == "handbook@2"
    assert (
        headway("index", "build", "handbook", "--file", "missing.yaml", status=1).stderr.strip().endswith("not exist")
    )


def test_a_build_that_another_process_has_is_refused(project: Project, database_url: str) -> None:
    ground(project)
    project.write(more="indexes:\n  handbook: {lake: file:./docs}\n")
    headway("apply", "--yes")
    specification = specify_version(load(project.file).specification, "handbook")

    async def begin(holder: Database) -> Build:
        async with holder.connection() as connection:
            return await builds.begin(connection, "handbook", specification, author="operator")

    async def run() -> None:
        holder = Database(database_url)
        await holder.open()
        try:
            build = await begin(holder)
            async with holder.connection() as connection:
                await connection.set_autocommit(True)
                assert await builds.hold(connection, build.version)  # as the control plane does
                told = (await asyncio.to_thread(headway, "index", "build", "handbook", status=1)).stderr
                assert "handbook@1 is being built (snapshot, begun by operator)" in told
                assert "`headway index cancel handbook` gives it up" in told
                await builds.let_go(connection)
        finally:
            await holder.close()

    asyncio.run(run())
    # Nobody has it any more: the command goes on with what was begun.
    assert listed("index", "build", "handbook")["label"] == "handbook@1"
