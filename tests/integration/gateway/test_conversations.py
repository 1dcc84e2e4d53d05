"""Stored responses: a later turn finds the earlier one on any worker, also after the database was away."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headway.clock import SystemClock
from headway.errors import NotFoundError, StorageError
from headway.gateway.conversations import Conversations
from headway.ids import uuid7
from headway.storage.database import Database
from headway.storage.links import ResponseLink
from headway.storage.spool import Spool
from tests.integration.feedback.conftest import Relay
from tests.routes import NOW_MS


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    opened = Spool(tmp_path, SystemClock(), max_bytes=1_000_000, max_age_seconds=None, drop_oldest=True)
    yield opened
    await opened.close()


@pytest.fixture
def worker(database: Database, spool: Spool) -> Conversations:
    return Conversations(database, spool)


@pytest.fixture
def other_worker(database: Database, spool: Spool) -> Conversations:
    return Conversations(database, spool)


def link(**changes: str) -> ResponseLink:
    values = {"provider_id": "resp_1", "deployment": "main", "conversation": "søren's", "unit": "ann", **changes}
    return ResponseLink(id=uuid7(NOW_MS), **values)


async def test_a_link_is_found_by_every_worker_at_once(worker: Conversations, other_worker: Conversations) -> None:
    kept = link()
    await worker.keep(kept)
    assert await worker.find(kept.id) == kept
    assert await other_worker.find(kept.id) == kept


async def test_keeping_it_twice_is_harmless(worker: Conversations, other_worker: Conversations) -> None:
    kept = link()
    await worker.keep(kept)
    await other_worker.keep(kept)
    assert await other_worker.find(kept.id) == kept


async def test_an_unknown_one_is_not_found(worker: Conversations) -> None:
    with pytest.raises(NotFoundError, match="not stored, or past retention") as caught:
        await worker.find(uuid7(NOW_MS))
    assert caught.value.error_code == "previous_response_not_found"


async def test_while_the_database_is_away_links_wait_on_disk(
    database_url: str, other_worker: Conversations, spool: Spool
) -> None:
    relay = Relay(database_url)
    await relay.connect()
    database = Database(relay.url, wait_seconds=0.1)
    await database.open()
    worker, far = Conversations(database, spool), Conversations(database, spool)
    await relay.cut()
    kept = [link(provider_id=f"resp_{number}") for number in range(3)]
    for each in kept:
        await worker.keep(each)
    assert await worker.find(kept[0].id) == kept[0]
    with pytest.raises(StorageError):
        await far.find(kept[0].id)
    with pytest.raises(NotFoundError):
        await other_worker.find(kept[0].id)

    replaying = asyncio.create_task(spool.replay_forever(other_worker.replay))
    for each in kept:
        assert await _found(other_worker, each.id) == each
    replaying.cancel()
    await asyncio.gather(replaying, return_exceptions=True)
    await database.close()


async def _found(worker: Conversations, interaction: bytes) -> ResponseLink:
    for _ in range(500):
        try:
            return await worker.find(interaction)
        except NotFoundError:
            await asyncio.sleep(0.01)
    raise AssertionError("it was not replayed")


async def test_a_database_that_hangs_holds_nobody_up_for_long(
    worker: Conversations, other_worker: Conversations, database: Database, spool: Spool
) -> None:
    kept, clock = link(), SystemClock()
    async with database.connection() as connection:
        await connection.execute("LOCK TABLE response_link")
        started = clock.monotonic_seconds()
        await worker.keep(kept)
        assert clock.monotonic_seconds() - started < 3
    assert spool.records_waiting == 1
    assert await worker.find(kept.id) == kept
    await spool.replay(other_worker.replay, 10)
    assert await other_worker.find(kept.id) == kept


async def test_a_replayed_link_may_come_twice(worker: Conversations, database: Database, tmp_path: Path) -> None:
    records: list[bytes] = []

    class Log:
        async def append(self, record: bytes) -> None:
            records.append(record)

    closed = Database("postgresql://127.0.0.1:1/headway")
    await Conversations(closed, Log()).keep(link())
    [record] = records
    await worker.replay(record)
    await worker.replay(record)
