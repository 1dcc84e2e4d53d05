"""Index versions: which are in use, what differs, and what may be dropped."""

from pathlib import Path
from typing import Literal

import pytest

from headway.config.indexes import IndexReference
from headway.errors import ConflictError, NotFoundError
from headway.rollouts.manual import set_share
from headway.storage import builds, configuration, partitions, versions
from headway.storage.database import Connection, Database
from headway.storage.versions import DocumentChange, Version
from tests.lakes import build, document, specify, write_documents
from tests.project import Project


async def find(connection: Connection, number: int, index: str = "handbook") -> Version:
    return await versions.find_version(connection, IndexReference(index, number))


async def states(connection: Connection) -> dict[str, str]:
    return {version.label: version.state for version in await versions.list_versions(connection)}


async def publish(database: Database, folder: Path, project: Project, count: int) -> None:
    """Build so many versions, and serve the first."""
    write_documents(folder, 5)
    for _ in range(count):
        await build(database, folder)
    file = project.write(release=", index: handbook@1", more=f"indexes:\n  handbook: {{lake: 'file:{folder}'}}\n")
    async with database.connection() as connection:
        await configuration.apply(connection, file, author="ann")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "project").mkdir()
    return Project(tmp_path / "project")


async def test_versions_are_found_by_name(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 3)
    await build(database, tmp_path)
    await build(database, tmp_path, index="other")
    await build(database, tmp_path)
    async with database.connection() as connection:
        await builds.begin(connection, "handbook", specify(tmp_path), author="ann")
        assert list(await states(connection)) == ["handbook@3", "handbook@2", "other@1", "handbook@1"]
        building = await find(connection, 3)
        assert (building.label, building.state, building.manifest) == ("handbook@3", "building", None)
        assert (await find(connection, 1)).label == "handbook@1"
        latest = await find(connection, 0)
        assert (latest.label, latest.state, latest.used_by) == ("handbook@2", "published", ())
        assert latest.manifest is not None
        assert latest.manifest["documents"] == 3
        with pytest.raises(NotFoundError, match="there is no handbook@9; the newest is handbook@3"):
            await find(connection, 9)
        with pytest.raises(NotFoundError, match="no index called 'handbok' has a version; did you mean 'handbook'"):
            await find(connection, 1, "handbok")


async def test_differences_are_told_by_document(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 4)
    await build(database, tmp_path)
    (tmp_path / "part0" / "doc00000.md").unlink()
    (tmp_path / "part0" / "doc00001.md").write_text("# New title\n\nNew text.\n")
    (tmp_path / "part0" / "new.md").write_text(document(9))
    await build(database, tmp_path, labels=(("part0/doc00002.md", ("hr",)),))
    async with database.connection() as connection:
        one, two = await find(connection, 1), await find(connection, 2)
        assert await versions.compare(connection, one, one) == []
        assert await versions.compare(connection, one, two) == [
            DocumentChange("removed", "part0/doc00000.md", "Document 0"),
            DocumentChange("changed", "part0/doc00001.md", "New title"),
            DocumentChange("changed", "part0/doc00002.md", "Document 2"),
            DocumentChange("added", "part0/new.md", "Document 9"),
        ]


async def test_a_version_in_use_is_not_dropped(database: Database, tmp_path: Path, project: Project) -> None:
    await publish(database, tmp_path / "docs", project, 2)
    async with database.connection() as connection:
        used = await find(connection, 1)
        assert [use.partition(":")[0] for use in used.used_by] == ["support"]
        with pytest.raises(ConflictError, match="handbook@1 is in use by support: r-"):
            await versions.drop(connection, used, author="ann")
        spare = await find(connection, 2)
        await versions.drop(connection, spare, author="ann", reason="to make room")
        with pytest.raises(ConflictError, match="handbook@2 is dropped"):
            await versions.drop(connection, spare, author="ann")
        assert await partitions.exists(connection, spare.version)
        assert await versions.sweep(connection) == 1
        assert await versions.sweep(connection) == 0
        assert not await partitions.exists(connection, spare.version)
        assert await partitions.exists(connection, used.version)


async def test_a_waiting_candidate_and_both_sides_of_a_rollout_use_theirs(
    database: Database, tmp_path: Path, project: Project
) -> None:
    await publish(database, tmp_path / "docs", project, 3)
    lake = f"indexes:\n  handbook: {{lake: 'file:{tmp_path / 'docs'}'}}\n"
    async with database.connection() as connection:
        await configuration.apply(connection, project.write(release=", index: handbook@2", more=lake), author="ann")
        assert [bool((await find(connection, number)).used_by) for number in (1, 2, 3)] == [True, True, False]
        candidate = (await find(connection, 2)).used_by[0].partition(": ")[2]
        await set_share(connection, "support", candidate, 0.1, author="ann", reason="")
        await configuration.apply(connection, project.write(release=", index: handbook@3", more=lake), author="ann")
        assert [bool((await find(connection, number)).used_by) for number in (1, 2, 3)] == [True, True, True]
        await set_share(connection, "support", candidate, 0.0, author="ann", reason="")
        await configuration.apply(connection, project.write(release=", index: handbook@1", more=lake), author="ann")
        assert [bool((await find(connection, number)).used_by) for number in (1, 2, 3)] == [True, False, False]
        await versions.drop(connection, await find(connection, 2), author="ann")
        with pytest.raises(ConflictError, match="the release's index version handbook@2 was dropped"):
            await set_share(connection, "support", candidate, 0.1, author="ann", reason="")


async def test_old_versions_go_by_policy_and_those_in_use_stay(
    database: Database, tmp_path: Path, project: Project
) -> None:
    await publish(database, tmp_path / "docs", project, 2)
    for _ in range(3):
        await build(database, tmp_path / "docs", keep=2)
    async with database.connection() as connection:
        assert await states(connection) == {
            "handbook@5": "published",
            "handbook@4": "published",
            "handbook@3": "dropped",
            "handbook@2": "dropped",
            "handbook@1": "published",
        }
        assert await versions.sweep(connection) == 2


async def test_nothing_is_dropped_beside_a_build(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 3)
    await build(database, tmp_path)
    async with database.connection() as connection:
        await builds.begin(connection, "handbook", specify(tmp_path), author="ann")
        with pytest.raises(ConflictError, match="handbook@2 is being built, and may take over what handbook@1 holds"):
            await versions.drop(connection, await find(connection, 1), author="ann")
        with pytest.raises(ConflictError, match="handbook@2 is building; `headway index cancel handbook`"):
            await versions.drop(connection, await find(connection, 2), author="ann")


async def test_a_sweep_does_not_stand_in_the_way_of_searches(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 3)
    for _ in range(3):
        await build(database, tmp_path)
    async with database.connection() as connection:
        for number in (1, 2):
            await versions.drop(connection, await find(connection, number), author="ann")
    async with database.connection() as searching:
        await searching.execute("SELECT count(*) FROM index_chunk")  # a search that takes long
        async with database.connection() as connection:
            assert await versions.sweep(connection) == 0
    async with database.connection() as connection:
        assert await versions.sweep(connection) == 2


async def test_documents_of_failed_builds_are_forgotten_after_a_week(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 3)
    await build(database, tmp_path)
    ends: list[tuple[Literal["failed", "cancelled"], int]] = [("cancelled", 6), ("failed", 8)]
    async with database.connection() as connection:
        for ended, days in ends:
            begun = await builds.begin(connection, "handbook", specify(tmp_path), author="ann")
            await builds.save_documents(connection, begun.version, [], [("a.md", "is empty"), ("b.md", "is empty")])
            assert await builds.end(connection, begun, ended, "", author="ann")
            await connection.execute(
                "UPDATE index_version SET ended_at = now() - make_interval(days => %s) WHERE id = %s",
                (days, begun.version),
            )
        assert await versions.forget_documents(connection) == 2
        assert await versions.forget_documents(connection) == 0
        cursor = await connection.execute(
            "SELECT v.state, count(*) FROM index_document JOIN index_version v ON v.id = version_id GROUP BY v.state"
        )
        assert dict(await cursor.fetchall()) == {"published": 3, "cancelled": 2}


async def test_what_a_build_left_is_swept_once_nobody_builds_it(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 3)
    await build(database, tmp_path)
    async with database.connection() as connection:
        unfinished = await builds.begin(connection, "handbook", specify(tmp_path), author="ann")
        await partitions.create(connection, unfinished.version, 32)
        await builds.end(connection, unfinished, "cancelled", "", author="ann")
    async with database.connection() as holder, database.connection() as connection:
        await holder.set_autocommit(True)
        assert await builds.hold(holder, unfinished.version)
        assert await versions.sweep(connection) == 0
        await builds.let_go(holder)
        assert await versions.sweep(connection) == 1
