"""Snapshots: numbered, complete, pruned; Headway's own keys made once."""

import asyncio

from headway.ids import InteractionId, uuid7
from headway.storage import configuration, keys, routing
from headway.storage.database import Database
from headway.storage.keys import Grant
from tests.project import Project


async def test_there_is_none_at_first(database: Database) -> None:
    async with database.connection() as connection:
        assert await routing.latest(connection) is None


async def test_signing_keys_are_made_once_and_stay(database: Database) -> None:
    async with database.connection() as connection:
        await routing.publish(connection)
        first = await routing.latest(connection)
        await routing.publish(connection)
        second = await routing.latest(connection)
    assert first is not None
    assert second is not None
    assert second.number > first.number
    assert second.signing == first.signing
    assert len(first.signing.unit_key) == len(first.signing.keys[first.signing.active]) == 32


async def test_the_first_publishers_at_once_agree_on_the_signing_keys(database: Database) -> None:
    async def publish() -> int:
        async with database.connection() as connection:
            return await routing.publish(connection)

    numbers = await asyncio.gather(*(publish() for _ in range(8)))
    assert len(set(numbers)) == 8
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT count(*) FROM signing_key")
        assert await cursor.fetchone() == (2,)
        cursor = await connection.execute(
            "SELECT count(DISTINCT convert_from(body, 'UTF8')::jsonb->'signing') FROM routing_snapshot"
        )
        assert await cursor.fetchone() == (1,)


async def test_old_ids_verify_after_a_rotation(database: Database) -> None:
    async with database.connection() as connection:
        await routing.publish(connection)
        before = await routing.latest(connection)
        assert before is not None
        interaction = InteractionId(2, uuid7(1_790_000_000_000), 1, 1, 0, 0, 0, 0, b"unitunit", 1)
        issued = before.signing.signer().issue(interaction)
        number = await routing.rotate_signing_key(connection, author="ann")
        after = await routing.latest(connection)
    assert after is not None
    assert after.signing.active == number != before.signing.active
    assert after.signing.signer().read(issued) == interaction
    assert after.signing.signer().issue(interaction) != issued
    assert after.signing.unit_key == before.signing.unit_key


async def test_only_newer_snapshots_are_read(database: Database) -> None:
    async with database.connection() as connection:
        number = await routing.publish(connection)
        assert await routing.latest(connection, after=number) is None
        newer = await routing.publish(connection)
        found = await routing.latest(connection, after=number)
    assert found is not None
    assert found.number == newer


async def test_old_snapshots_are_pruned(database: Database) -> None:
    async with database.connection() as connection:
        numbers = [await routing.publish(connection) for _ in range(routing.KEPT_SNAPSHOTS + 5)]
        cursor = await connection.execute("SELECT count(*), max(number) FROM routing_snapshot")
        assert await cursor.fetchone() == (routing.KEPT_SNAPSHOTS, numbers[-1])


async def test_a_snapshot_that_is_rolled_back_leaves_nothing(database: Database) -> None:
    async with database.connection() as connection:
        await keys.create(connection, Grant("kept"), author="ann")
    async with database.connection() as connection:
        await keys.create(connection, Grant("lost"), author="ann")
        await connection.rollback()
    async with database.connection() as connection:
        snapshot = await routing.latest(connection)
        assert snapshot is not None
        assert [key.name for key in snapshot.keys.values()] == ["kept"]
        assert await routing.publish(connection) > snapshot.number


async def test_the_newest_releases_are_routed_and_always_the_stable_one(database: Database, project: Project) -> None:
    async with database.connection() as connection:
        await configuration.apply(connection, project.write("first"), author="ann")
        await connection.execute(
            "INSERT INTO release (application_id, name, content_hash, bundle, deployments, created_by)"
            " SELECT application_id, 'r-' || n, 'hash ' || n, bundle, deployments, created_by"
            " FROM release, generate_series(1, %s) AS n",
            (routing.ROUTED_RELEASES + 50,),
        )
        await routing.publish(connection)
        snapshot = await routing.latest(connection)
    assert snapshot is not None
    route = snapshot.applications["support"]
    assert route.stable in snapshot.releases
    assert len(snapshot.releases) == routing.ROUTED_RELEASES + 1
    assert route.releases[f"r-{routing.ROUTED_RELEASES + 50}"] in snapshot.releases
    assert set(route.releases.values()) == set(snapshot.releases)
