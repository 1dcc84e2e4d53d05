"""Stored responses: a later turn finds the earlier one on any worker, also after the database was away."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from headway.clock import ManualClock, SystemClock
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
    return Conversations(database, spool, SystemClock())


@pytest.fixture
def other_worker(database: Database, spool: Spool) -> Conversations:
    return Conversations(database, spool, SystemClock())


@dataclass(frozen=True)
class _Far:
    """A worker whose database is reached through a relay."""

    relay: Relay
    database: Database
    clock: ManualClock
    worker: Conversations


@pytest.fixture
async def far(database_url: str, spool: Spool) -> AsyncIterator[_Far]:
    relay = Relay(database_url)
    await relay.connect()
    database = Database(relay.url, wait_seconds=0.1)
    await database.open()
    clock = ManualClock()
    worker = Conversations(database, spool, clock)
    yield _Far(relay, database, clock, worker)
    await relay.cut()
    await worker.close()
    await database.close()


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
    far: _Far, other_worker: Conversations, spool: Spool
) -> None:
    await far.relay.cut()
    kept = [link(provider_id=f"resp_{number}") for number in range(3)]
    for each in kept:
        await far.worker.keep(each)
    assert await far.worker.find(kept[0].id) == kept[0]
    with pytest.raises(StorageError):
        await far.worker.find(link().id)
    with pytest.raises(NotFoundError):
        await other_worker.find(kept[0].id)

    replaying = asyncio.create_task(spool.replay_forever(other_worker.replay))
    for each in kept:
        assert await _found(other_worker, each.id) == each
    replaying.cancel()
    await asyncio.gather(replaying, return_exceptions=True)


async def _found(worker: Conversations, interaction: bytes) -> ResponseLink:
    for _ in range(500):
        try:
            return await worker.find(interaction)
        except NotFoundError:
            await asyncio.sleep(0.01)
    raise AssertionError("it was not replayed")


async def test_only_one_waits_for_a_database_that_hangs_and_not_for_long(
    far: _Far, other_worker: Conversations, spool: Spool
) -> None:
    far.relay.flowing.clear()
    kept, clock = [link(provider_id=f"resp_{number}") for number in range(20)], SystemClock()
    started = clock.monotonic_seconds()
    for each in kept:
        await far.worker.keep(each)
    with pytest.raises(StorageError):
        await far.worker.find(link().id)
    assert clock.monotonic_seconds() - started < 3
    assert spool.records_waiting == len(kept)
    assert await far.worker.find(kept[0].id) == kept[0]
    await spool.replay(other_worker.replay, 100)
    assert await other_worker.find(kept[0].id) == kept[0]


async def test_after_a_while_one_asks_whether_the_database_is_back(far: _Far, spool: Spool) -> None:
    await far.relay.cut()
    await far.worker.keep(link())
    await far.relay.connect()
    await far.worker.keep(link())
    assert spool.records_waiting == 2  # it is not asked again so soon
    assert await _answers(far)
    await far.worker.keep(link())
    assert spool.records_waiting == 2


async def _answers(far: _Far) -> bool:
    for _ in range(500):
        far.clock.advance(1)
        with pytest.raises((StorageError, NotFoundError)) as caught:
            await far.worker.find(link().id)
        if caught.type is NotFoundError:
            return True
        await asyncio.sleep(0.01)  # the pool connects again in its own time
    return False


async def test_a_link_is_kept_for_a_caller_who_left(far: _Far, other_worker: Conversations) -> None:
    far.relay.flowing.clear()
    kept = link()
    keeping = asyncio.create_task(far.worker.keep(kept))
    await asyncio.sleep(0)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    far.relay.flowing.set()
    assert await _found(other_worker, kept.id) == kept


async def test_a_replayed_link_may_come_twice(worker: Conversations, database: Database, tmp_path: Path) -> None:
    records: list[bytes] = []

    class Log:
        async def append(self, record: bytes) -> None:
            records.append(record)

    closed = Database("postgresql://127.0.0.1:1/headway")
    await Conversations(closed, Log(), SystemClock()).keep(link())
    [record] = records
    await worker.replay(record)
    await worker.replay(record)
