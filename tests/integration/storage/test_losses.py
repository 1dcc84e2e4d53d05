"""Which documents, lost with a candidate's index version, the answers of the stable release came from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from headway.clock import SystemClock, utc
from headway.config.indexes import IndexReference
from headway.ids import Kind
from headway.storage import versions
from headway.storage.database import Connection, Database
from headway.storage.losses import LostDocument, find_losses
from tests.asked import ask, found_application
from tests.lakes import CountingEmbedder

TRAVEL = LostDocument("travel.md", "Travel", "removed", 3)
PAY = LostDocument("pay.md", "Pay", "changed", 5)


@pytest.fixture
async def connection(database: Database) -> AsyncIterator[Connection]:
    async with database.connection() as opened:
        await found_application(opened, CountingEmbedder().embed)
        yield opened


async def test_documents_are_named_removed_ones_first(connection: Connection) -> None:
    await ask(connection, "when am I paid?", ["pay.md", "leave.md"], times=4)
    await ask(connection, "train?", ["travel.md", "pay.md"])
    await ask(connection, "trip?", ["travel.md", "laptop.md"], times=2)
    found = await find_losses(connection, 1)
    assert found is not None
    assert (found.before, found.after) == ("handbook@1", "handbook@2")
    assert (found.interactions, found.affected, found.removed, found.changed) == (7, 3, 1, 1)
    assert found.documents == (TRAVEL, PAY), "leave.md is the same, laptop.md is elsewhere"
    only = await find_losses(connection, 1, limit=1)
    assert only is not None
    assert (only.removed, only.changed, only.documents) == (1, 1, (TRAVEL,))


async def test_only_callers_answers_of_that_time_count(connection: Connection) -> None:
    await ask(connection, "long ago", ["travel.md"], ago="8 days")
    await ask(connection, "mirrored", ["travel.md"], kind=int(Kind.SHADOW))
    await ask(connection, "of the candidate", ["travel.md"], release=2)
    await ask(connection, "of another application", ["travel.md"], application=2)
    await ask(connection, "nothing found")
    await ask(connection, "not searched", retrieved=None)
    found = await find_losses(connection, 1)
    assert found is not None
    assert (found.interactions, found.affected, found.documents) == (0, 0, ())
    await ask(connection, "yesterday", ["travel.md"], ago="1 day")
    since = utc(SystemClock().unix_ms()) - timedelta(hours=2)
    for given, interactions in ((None, 1), (since, 0)):
        found = await find_losses(connection, 1, since=given)
        assert found is not None
        assert found.interactions == interactions
    await connection.execute("UPDATE rollout SET ended_at = now() - interval '2 days'")
    found = await find_losses(connection, 1)
    assert found is not None
    assert found.interactions == 0, "it ended before"


async def test_the_latest_interactions_are_looked_at(connection: Connection) -> None:
    await ask(connection, "earlier", ["travel.md"], times=3, ago="2 hours")
    await ask(connection, "later", ["leave.md"], times=2, ago="1 hour")
    found = await find_losses(connection, 1, most=3)
    assert found is not None
    assert (found.interactions, found.affected) == (3, 1)


async def test_what_a_document_shows_to_others_has_changed(connection: Connection) -> None:
    await ask(connection, "leave?", ["leave.md"])
    await connection.execute("UPDATE index_document SET groups = '{hr}' WHERE path = 'leave.md' AND version_id = 2")
    found = await find_losses(connection, 1)
    assert found is not None
    assert found.documents == (LostDocument("leave.md", "Leave", "changed", 1),)


async def test_where_nothing_can_be_said_nothing_is(database: Database, connection: Connection) -> None:
    await ask(connection, "train?", ["travel.md"], times=50)
    assert await find_losses(connection, 9) is None, "no such rollout"
    assert await find_losses(connection, 1) is not None
    await connection.execute("UPDATE release SET bundle = jsonb_set(bundle, '{retrieval,version}', '1') WHERE id = 2")
    assert await find_losses(connection, 1) is None, "the same version"
    await connection.execute("UPDATE release SET bundle = jsonb_set(bundle, '{retrieval}', 'null') WHERE id = 2")
    assert await find_losses(connection, 1) is None, "no version"


@pytest.mark.parametrize("number", [1, 2])
async def test_a_dropped_version_says_nothing(connection: Connection, number: int) -> None:
    await ask(connection, "train?", ["travel.md"])
    await connection.execute("UPDATE rollout SET ended_at = now()")
    await connection.execute("UPDATE application SET stable_release = NULL")
    await versions.drop(
        connection, await versions.find_version(connection, IndexReference("handbook", number)), author="ann"
    )
    assert await find_losses(connection, 1) is None
    await versions.sweep(connection)
    assert await find_losses(connection, 1) is None


async def test_too_slow_is_given_up_and_the_transaction_goes_on(connection: Connection) -> None:
    await connection.execute("SET LOCAL statement_timeout = '7s'")
    await ask(connection, "train?", ["travel.md"], times=20_000)
    assert await find_losses(connection, 1, seconds=0.001) is None
    assert await find_losses(connection, 1, most=10) is not None
    cursor = await connection.execute("SELECT current_setting('statement_timeout')")
    assert await cursor.fetchone() == ("7s",)
