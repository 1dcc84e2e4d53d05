"""Search indexes over the API: what there is, what it holds, building, cancelling and dropping."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from headway.retrieval.building import resume
from headway.storage import builds, configuration, keys
from headway.storage.database import Database
from tests.integration.api.conftest import Control
from tests.lakes import build, make_tools, write_documents
from tests.project import Project

ADMIN = "/admin/v1"


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    folder = tmp_path / "lake"
    folder.mkdir()
    write_documents(folder, 4)
    (folder / "empty.md").write_bytes(b"")
    return folder


async def apply(database: Database, project: Project, lake: Path) -> None:
    file = project.write(more=f"indexes:\n  handbook: {{lake: 'file:{lake}', include: ['**/*.md']}}\n")
    async with database.connection() as connection:
        await configuration.apply(connection, file, author="ann")


async def post(control: Control, path: str, expected: int, **wish: Any) -> Any:
    status, body = await control.call("POST", ADMIN + path, json=wish)
    assert status == expected, body
    return body


async def test_what_a_version_holds(control: Control, lake: Path) -> None:
    await build(control.world.database, lake)
    listed = await control.get(f"{ADMIN}/index-versions", params={"index": "handbook", "state": "published"})
    shown = await control.get(f"{ADMIN}/indexes/handbook/versions/1")
    assert listed["items"] == [shown]
    assert (shown["label"], shown["state"], shown["used_by"]) == ("handbook@1", "published", [])
    assert (shown["manifest"]["documents"], shown["manifest"]["skipped"]) == (4, 1)
    assert shown["progress"]["chunks"] == shown["manifest"]["chunks"]
    assert shown["spec"]["index"]["lake"]["url"] == f"file:{lake}"
    path = f"{ADMIN}/indexes/handbook/versions/1/documents"
    (skipped,) = (await control.get(path, params={"state": "skipped"}))["items"]
    assert (skipped["path"], skipped["problem"]) == ("empty.md", "is empty")
    first = await control.get(path, params={"limit": 3})
    second = await control.get(path, params={"limit": 3, "cursor": first["next"]})
    assert [item["path"] for page in (first, second) for item in page["items"]] == [
        "empty.md",
        *(f"part0/doc0000{number}.md" for number in range(4)),
    ]
    assert (await control.get(f"{ADMIN}/indexes/handbook"))["spec"] is None


async def test_metadata_is_for_who_may_read_the_document(control: Control, lake: Path) -> None:
    await build(control.world.database, lake)
    async with control.world.database.connection() as connection:
        grant = keys.Grant("hr", ("view",), groups=("hr",))
        control.world.secrets["hr"] = (await keys.create(connection, grant, author="ann"))[1]
        await connection.execute(
            """UPDATE index_document SET metadata = '{"salary": 90000}',
                   groups = CASE WHEN path LIKE '%00001.md' THEN '{it,hr}' WHEN path LIKE '%00002.md' THEN '{it}'
                            ELSE '{}' END::text[] WHERE state = 'loaded'"""
        )
    await control.follow()
    path = f"{ADMIN}/indexes/handbook/versions/1/documents"
    for key, expected in (("viewer", {0, 3}), ("hr", {0, 1, 3}), ("operator", {0, 1, 2, 3})):
        status, page = await control.call("GET", path, key=key, params={"state": "loaded"})
        assert status == 200
        shown = {number for number, item in enumerate(page["items"]) if item["metadata"]}
        assert shown == expected
        assert len(page["items"]) == 4


async def test_differences_of_two_versions(control: Control, lake: Path) -> None:
    await build(control.world.database, lake)
    (lake / "part0" / "doc00003.md").unlink()
    await build(control.world.database, lake)
    found = await control.get(f"{ADMIN}/indexes/handbook/diff", params={"before": 1, "after": 2})
    assert found == {
        "before": "handbook@1",
        "after": "handbook@2",
        "added": 0,
        "changed": 0,
        "removed": 1,
        "items": [{"change": "removed", "path": "part0/doc00003.md", "title": "Document 3"}],
        "next": None,
    }


async def test_pages_go_by_paths_however_long_they_are(control: Control, lake: Path) -> None:
    await build(control.world.database, lake)
    long = "/".join("é" * 100 for _ in range(9))
    (lake / long).mkdir(parents=True)
    for number in range(3):
        (lake / long / f"{number}\n.md").write_text(f"# Added {number}\n\nText.")
    await build(control.world.database, lake)
    found = []
    params: dict[str, Any] = {"before": 1, "after": 2, "limit": 1}
    while params.get("cursor", "") is not None:
        page = await control.get(f"{ADMIN}/indexes/handbook/diff", params=params)
        assert (page["added"], page["changed"], page["removed"]) == (3, 0, 0)
        found += page["items"]
        params["cursor"] = page["next"]
    assert [item["path"] for item in found] == [f"{long}/{number}\n.md" for number in range(3)]
    assert {item["change"] for item in found} == {"added"}
    path = f"{ADMIN}/indexes/handbook/versions/2/documents"
    first = await control.get(path, params={"limit": 7})
    (last,) = (await control.get(path, params={"limit": 7, "cursor": first["next"]}))["items"]
    assert last["path"] == f"{long}/2\n.md"


async def test_a_version_is_built_in_the_background(control: Control, lake: Path, tmp_path: Path) -> None:
    database = control.world.database
    assert (await post(control, "/indexes/handbook/builds", 404))["code"] == "not_found"
    await apply(database, Project(tmp_path), lake)
    begun = await post(control, "/indexes/handbook/builds", 202)
    assert (begun["label"], begun["state"], begun["stage"]) == ("handbook@1", "building", "snapshot")
    assert begun["created_by"].startswith("operator")
    refused = await post(control, "/indexes/handbook/builds", 409)
    assert "handbook@1 is being built already" in refused["detail"]
    assert refused["code"] == "build_running"
    (index,) = (await control.get(f"{ADMIN}/indexes"))["items"]
    assert (index["name"], index["latest"], index["building"]["label"]) == ("handbook", None, "handbook@1")
    async with database.connection() as connection:
        (waiting,) = await builds.list_unfinished(connection)
    await resume(make_tools(database), waiting.version, tell=lambda _: None)
    index = await control.get(f"{ADMIN}/indexes/handbook")
    assert (index["latest"]["label"], index["building"]) == ("handbook@1", None)
    assert index["spec"]["lake"]["include"] == ["**/*.md"]


async def test_nothing_is_begun_that_nobody_can_build(
    control: Control, lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await apply(control.world.database, Project(tmp_path), lake)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, package=None: None if name == "fsspec" else find(name, package)
    )
    refused = await post(control, "/indexes/handbook/builds", 409)
    assert refused["code"] == "builds_off"
    assert "headway[knowledge]" in refused["detail"]
    assert (await control.get(f"{ADMIN}/index-versions"))["items"] == []


async def test_a_build_is_cancelled_and_a_version_dropped(control: Control, lake: Path, tmp_path: Path) -> None:
    await apply(control.world.database, Project(tmp_path), lake)
    assert (await post(control, "/indexes/handbook/cancel", 404, reason="x"))["param"] == "index"
    await post(control, "/indexes/handbook/builds", 202)
    cancelled = await post(control, "/indexes/handbook/cancel", 200, reason="wrong folder")
    assert (cancelled["state"], cancelled["problem"]) == ("cancelled", "wrong folder")
    await build(control.world.database, lake)
    status, dropped = await control.call("DELETE", f"{ADMIN}/indexes/handbook/versions/2")
    assert (status, dropped["state"]) == (200, "dropped")
    status, refused = await control.call("DELETE", f"{ADMIN}/indexes/handbook/versions/2")
    assert (status, refused["detail"]) == (409, "handbook@2 is dropped")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/indexes/handbook/builds"),
        ("POST", "/indexes/handbook/cancel"),
        ("DELETE", "/indexes/handbook/versions/1"),
    ],
)
async def test_changes_need_the_scope_admin(control: Control, method: str, path: str) -> None:
    status, body = await control.call(
        method, ADMIN + path, key="viewer", **({} if method == "DELETE" else {"json": {}})
    )
    assert (status, body["code"]) == (403, "insufficient_scope")


@pytest.mark.parametrize("path", ["/indexes/x", "/indexes/x/versions/1", "/indexes/x/versions/1/documents"])
async def test_what_is_not_there(control: Control, path: str) -> None:
    status, body = await control.call("GET", ADMIN + path)
    assert (status, body["code"], body["param"]) == (404, "not_found", "index")
