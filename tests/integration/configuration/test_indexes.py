"""Releases that are grounded in an index: which version they mean, and what is refused."""

import pytest
from psycopg.types.json import Jsonb

from headway.errors import ConfigurationError
from headway.rollouts import applying
from headway.storage import applications, configuration
from headway.storage.database import Connection, Database
from tests.project import Project

INDEXES = "indexes:\n  handbook: {lake: file:./docs}\n"
NOW_MS = 1_790_000_000_000


async def publish(connection: Connection, index: str, number: int, state: str = "published") -> None:
    await connection.execute("INSERT INTO search_index (name) VALUES (%s) ON CONFLICT DO NOTHING", (index,))
    await connection.execute(
        "INSERT INTO index_version (index_id, number, state, spec, created_by)"
        " SELECT id, %s, %s, %s, 'ann' FROM search_index WHERE name = %s",
        (number, state, Jsonb({}), index),
    )


async def grounding(connection: Connection) -> list[tuple[str, int]]:
    """The index versions of all releases, oldest first."""
    releases = reversed(await applications.list_releases(connection))
    return [(release.bundle["retrieval"]["index"], release.bundle["retrieval"]["version"]) for release in releases]


async def test_a_version_that_is_not_published_is_refused(database: Database, project: Project) -> None:
    bare, third = (project.write(release=f", index: {name}", more=INDEXES) for name in ("handbook", "handbook@3"))
    async with database.connection() as connection:
        for file in (bare, third):
            with pytest.raises(ConfigurationError, match="the index handbook has no published version; `headway index"):
                await configuration.plan(connection, file)
        await publish(connection, "handbook", 1)
        await publish(connection, "handbook", 2)
        await publish(connection, "handbook", 3, "building")
        with pytest.raises(ConfigurationError) as caught:
            await configuration.apply(connection, third, author="ann")
    assert caught.value.message == (
        "applications.support.release.index: handbook@3 is not published; known are handbook@1, handbook@2;"
        " `headway index build handbook` makes one"
    )


async def test_a_bare_name_is_the_latest_version_and_then_stays(database: Database, project: Project) -> None:
    file = project.write(release=", index: handbook", more=INDEXES)
    async with database.connection() as connection:
        await publish(connection, "handbook", 1)
        await publish(connection, "handbook", 2)
        first = await configuration.apply(connection, file, author="ann")
        assert await grounding(connection) == [("handbook", 2)]
        again = await configuration.apply(connection, file, author="ann")
        assert (first.entry, again.entry, again.plan.is_empty) == (1, 0, True)
        entry = await configuration.current(connection)
        assert entry is not None
        release = entry.specification.applications["support"].release
        assert release.bundle.retrieval is not None
        assert (release.bundle.retrieval.label, release.name) == (
            "handbook@2",
            f"r-{release.bundle.content_hash()[:8]}",
        )
        await publish(connection, "handbook", 3)
        (change,) = (await configuration.plan(connection, file)).changes
        assert change.details[1:] == ("release.index: handbook@2 -> handbook@3",)
        await applying.apply(connection, file, author="ann", now_ms=NOW_MS)
        assert await grounding(connection) == [("handbook", 2), ("handbook", 3)]


async def test_naming_the_version_that_a_bare_name_means_changes_nothing(database: Database, project: Project) -> None:
    async with database.connection() as connection:
        await publish(connection, "handbook", 1)
        await configuration.apply(connection, project.write(release=", index: handbook", more=INDEXES), author="ann")
        named = project.write(release=", index: handbook@1", more=INDEXES)
        planned = await applying.plan(connection, named, NOW_MS)
    assert planned.configuration.changes == ()
    assert planned.configuration.text_only


async def test_a_version_that_is_being_applied_cannot_be_dropped(database: Database, project: Project) -> None:
    file = project.write(release=", index: handbook@1", more=INDEXES)
    async with database.connection() as connection:
        await publish(connection, "handbook", 1)
    async with database.connection() as applier, database.connection() as dropper:
        await configuration.apply(applier, file, author="ann")
        cursor = await dropper.execute("SELECT 1 FROM index_version FOR UPDATE SKIP LOCKED")
        assert await cursor.fetchone() is None
