"""Retention: days go whole, rows of shorter-lived applications go one by one, writers never wait for long."""

import asyncio
from datetime import UTC, date, datetime, timedelta

from headway.ids import uuid7_text
from headway.storage import configuration, retention
from headway.storage.database import Connection, Database
from tests.project import Project

NOW = datetime(2026, 3, 20, 15, 30, tzinfo=UTC)
TODAY = NOW.date()


async def set_up(connection: Connection, project: Project) -> dict[str, int]:
    """Two applications: support keeps 30 days, sales keeps 5."""
    more = "  sales:\n    retention: 5d\n    release: {deployment: spare}\n"
    file = project.write(keys="    retention: 30d\n", more=more)
    await configuration.apply(connection, file, author="ann")
    cursor = await connection.execute("SELECT name, id FROM application")
    return dict(await cursor.fetchall())


async def record(connection: Connection, application: int, at: datetime, count: int = 1) -> None:
    await connection.execute("SELECT ensure_interaction_partition(%s)", (at.date(),))
    for _ in range(count):
        number = uuid7_text(int(at.timestamp() * 1000))
        await connection.execute(
            """
            INSERT INTO interaction (at, id, application, release, rollout, stage, arm, kind, unit, own_unit, key,
                conversation, operation, stream, status, release_error, aborted, refused, filtered, deployment,
                attempts, attempt_errors, fallback, total_ms, overhead_ms, queue_ms)
            VALUES (%s, %s, %s, 1, 0, 0, 0, 2, 'u', true, 1, 'c', 'chat', false, 200, false, false, false, false,
                'd', 1, 0, false, 1, 1, 0)
            """,
            (at, number, application),
        )
        await connection.execute(
            "INSERT INTO response_link (id, at, provider_id, deployment, conversation, unit_name)"
            " VALUES (%s, %s, 'resp', 'd', 'c', 'u')",
            (number, at),
        )


async def kept(connection: Connection, application: int) -> list[int]:
    """Ages in days of the interactions that are left."""
    cursor = await connection.execute(
        "SELECT at FROM interaction WHERE application = %s ORDER BY at DESC", (application,)
    )
    return [(NOW - at).days for (at,) in await cursor.fetchall()]


async def test_days_are_made_ahead(database: Database) -> None:
    async with database.connection() as connection:
        removed = await retention.enforce(connection, NOW)
        days = await retention.list_days(connection)
    assert sorted(days) == [TODAY + timedelta(days=ahead) for ahead in range(4)]
    assert removed == retention.Removed()


async def test_each_application_keeps_what_it_says(database: Database, project: Project) -> None:
    ages = [0, 4, 6, 29, 31, 60]
    async with database.connection() as connection:
        numbers = await set_up(connection, project)
        for age in ages:
            for number in numbers.values():
                await record(connection, number, NOW - timedelta(days=age, minutes=1))
        await connection.commit()
        removed = await retention.enforce(connection, NOW)
        assert await kept(connection, numbers["support"]) == [0, 4, 6, 29]
        assert await kept(connection, numbers["sales"]) == [0, 4]
        assert removed.partitions == tuple(
            f"interaction_{NOW - timedelta(days=age, minutes=1):%Y%m%d}" for age in (60, 31)
        )
        assert removed.interactions == 2
        cursor = await connection.execute("SELECT count(*) FROM response_link")
        assert await cursor.fetchone() == (6,)  # one per interaction that is left
        assert await retention.enforce(connection, NOW) == retention.Removed()


async def test_a_day_is_dropped_only_when_all_of_it_is_past(database: Database, project: Project) -> None:
    edge = datetime(2026, 2, 18, tzinfo=UTC)  # 30 days before today's midnight
    async with database.connection() as connection:
        numbers = await set_up(connection, project)
        await record(connection, numbers["support"], edge - timedelta(milliseconds=1))
        await record(connection, numbers["support"], edge)
        await connection.commit()
        removed = await retention.enforce(connection, NOW)
        assert removed.partitions == ("interaction_20260217",)
        assert date(2026, 2, 18) in await retention.list_days(connection)


async def test_rows_are_deleted_in_bounded_batches(database: Database, project: Project) -> None:
    total = 2 * retention.BATCH_ROWS + 1
    async with database.connection() as connection:
        numbers = await set_up(connection, project)
        await record(connection, numbers["sales"], NOW - timedelta(days=6))
        await connection.execute(
            "INSERT INTO interaction (at, id, application, release, rollout, stage, arm, kind, unit, own_unit, key,"
            " conversation, operation, stream, status, release_error, aborted, refused, filtered, deployment, attempts,"
            " attempt_errors, fallback, total_ms, overhead_ms, queue_ms) SELECT at, gen_random_uuid(), application,"
            " release, rollout, stage, arm, kind, unit, own_unit, key, conversation, operation, stream, status,"
            " release_error, aborted, refused, filtered, deployment, attempts, attempt_errors, fallback, total_ms,"
            " overhead_ms, queue_ms FROM interaction, generate_series(2, %s)",
            (total,),
        )
        await connection.commit()
        first = await retention.enforce(connection, NOW, most_batches=1)
        assert first.interactions == retention.BATCH_ROWS
        rest = await retention.enforce(connection, NOW)
        assert rest.interactions == total - retention.BATCH_ROWS
        assert await kept(connection, numbers["sales"]) == []


async def test_a_day_that_is_being_read_is_postponed_and_writers_go_on(database: Database, project: Project) -> None:
    async with database.connection() as connection:
        numbers = await set_up(connection, project)
        await record(connection, numbers["support"], NOW - timedelta(days=40))
    async with database.connection() as reader, database.connection() as connection:
        await reader.execute("SELECT count(*) FROM interaction")  # holds its locks until the transaction ends
        enforcing = asyncio.ensure_future(retention.enforce(connection, NOW))
        async with database.connection() as writer:
            await asyncio.wait_for(record(writer, numbers["support"], NOW), timeout=30)
        removed = await enforcing
        assert removed.partitions == ()
        assert removed.postponed == ("interaction_20260208",)
        await reader.rollback()
        again = await retention.enforce(connection, NOW)
        assert again.partitions == ("interaction_20260208",)


async def test_batch_keys_stay_as_long_as_a_batch_may_be_replayed(database: Database) -> None:
    async with database.connection() as connection:
        for hours in (1, 160, 170, 300):
            await connection.execute(
                "INSERT INTO recorder_batch (worker, sequence, at, interactions) VALUES (gen_random_uuid(), 1, %s, 1)",
                (NOW - timedelta(hours=hours),),
            )
        await connection.commit()
        assert (await retention.enforce(connection, NOW, spool_hours=200)).batches == 0
        assert (await retention.enforce(connection, NOW, spool_hours=72)).batches == 2


async def test_links_go_when_the_provider_has_forgotten_them(database: Database, project: Project) -> None:
    async with database.connection() as connection:
        await configuration.apply(connection, project.write(keys="    retention: 365d\n"), author="ann")
        for days in (29, 31):
            await connection.execute(
                "INSERT INTO response_link (id, at, provider_id, deployment, conversation, unit_name)"
                " VALUES (gen_random_uuid(), %s, 'resp', 'd', 'c', 'u')",
                (NOW - timedelta(days=days),),
            )
        await connection.commit()
        assert (await retention.enforce(connection, NOW)).links == 1


async def test_many_make_the_same_day_at_once_and_wait_for_no_reader(database: Database) -> None:
    async def make() -> None:
        async with database.connection() as connection:
            await connection.execute("SELECT ensure_interaction_partition(%s)", (TODAY,))

    async with database.connection() as reader:
        await reader.execute("SELECT count(*) FROM interaction")  # holds its lock until the transaction ends
        await asyncio.wait_for(asyncio.gather(*(make() for _ in range(6))), timeout=30)
    async with database.connection() as connection:
        assert list(await retention.list_days(connection)) == [TODAY]
        cursor = await connection.execute(
            "SELECT parent.relname FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid"
            " JOIN pg_class parent ON parent.oid = inhparent WHERE child.relname LIKE 'interaction_20260320_%'"
            " ORDER BY 1"
        )
        indexes = [name for (name,) in await cursor.fetchall()]
    assert indexes == ["interaction_conversation", "interaction_mirror_of", "interaction_pkey", "interaction_release"]
