"""The feed of routing snapshots: new ones come at once, and the last one outlives the database."""

import asyncio
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from psycopg.types.json import Jsonb

from headway.clock import SystemClock
from headway.domain.snapshot import Snapshot, decode_snapshot, encode_snapshot
from headway.errors import ConfigurationError, StorageError
from headway.gateway.feed import SnapshotFeed
from headway.storage import routing
from headway.storage.database import Database
from headway.testing import refusing_port
from tests.integration.feedback.conftest import Relay
from tests.routes import make_snapshot
from tests.world import World, found_world


class _BriskClock(SystemClock):
    """Sleeps a hundredth of what it is asked to."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / 100)


class _Follower:
    """A feed, what it gave, and waiting for more."""

    def __init__(self, database: Database, path: Path, lost_seconds: float = 60.0) -> None:
        self.path = path
        self.snapshots: list[Snapshot] = []
        self.feed = SnapshotFeed(database, path, _BriskClock(), self._take, lost_seconds)
        self._came = asyncio.Event()

    def _take(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)
        self._came.set()

    @property
    def number(self) -> int:
        return self.snapshots[-1].number

    async def wait_for(self, number: int, seconds: float = 10) -> float:
        """Wait for a snapshot; gives how long that took."""
        clock = SystemClock()
        started = clock.monotonic_seconds()
        await self.wait_until(lambda: self.number >= number, seconds)
        return clock.monotonic_seconds() - started

    async def wait_until(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        """Wait for what is served to be so."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._came.clear()
                await self._came.wait()

    @property
    def is_rolling(self) -> bool:
        """Whether the rollout of `support` is served."""
        return self.snapshots[-1].applications["support"].rollout is not None


@pytest.fixture
async def world(database: Database) -> World:
    return await found_world(database)


@pytest.fixture
def follower(world: World, tmp_path: Path) -> _Follower:
    return _Follower(world.database, tmp_path / "snapshot.json")


@pytest.fixture
async def relay(database_url: str) -> AsyncIterator[Relay]:
    made = Relay(database_url)
    await made.connect()
    yield made
    await made.cut()


@pytest.fixture
async def far(world: World, relay: Relay, tmp_path: Path) -> AsyncIterator[_Follower]:
    """A follower whose database is reached through the relay."""
    database = Database(relay.url, wait_seconds=0.3)
    await database.open()
    yield _Follower(database, tmp_path / "snapshot.json")
    await database.close()


@pytest.fixture
async def lost(tmp_path: Path) -> AsyncIterator[_Follower]:
    """A follower whose database is away."""
    with refusing_port() as port:
        database = Database(f"postgresql://127.0.0.1:{port}/headway", wait_seconds=0.05)
        with pytest.raises(StorageError):
            await database.open()
        yield _Follower(database, tmp_path / "snapshot.json")
        await database.close()


async def publish(world: World) -> int:
    async with world.database.connection() as connection:
        return await routing.publish(connection)


async def insert(world: World, number: int, body: bytes) -> None:
    """Write a snapshot and tell nobody."""
    async with world.database.connection() as connection:
        query = "INSERT INTO routing_snapshot (number, body) OVERRIDING SYSTEM VALUE VALUES (%s, %s)"
        await connection.execute(query, (number, body))


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=5)
    assert done, "it does not end when it is cancelled"
    assert task.cancelled()


class TestStart:
    async def test_the_newest_is_taken_and_kept_on_disk(self, world: World, follower: _Follower) -> None:
        newest = await publish(world)
        await follower.feed.start()
        assert follower.number == newest
        assert decode_snapshot(follower.path.read_bytes()) == follower.snapshots[-1]

    async def test_the_file_is_private_whatever_was_there(self, follower: _Follower) -> None:
        follower.path.write_text("old")
        follower.path.chmod(0o644)
        await follower.feed.start()
        assert stat.S_IMODE(follower.path.stat().st_mode) == 0o600
        assert [path.name for path in follower.path.parent.iterdir()] == ["snapshot.json"]

    async def test_without_any_it_says_what_to_do(self, database: Database, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="headway apply"):
            await _Follower(database, tmp_path / "snapshot.json").feed.start()

    async def test_a_disk_that_refuses_does_not_matter(self, world: World, tmp_path: Path) -> None:
        follower = _Follower(world.database, tmp_path / "missing" / "snapshot.json")
        await follower.feed.start()
        assert follower.number == world.snapshot.number

    async def test_while_the_database_is_away_the_last_one_on_disk_serves(self, lost: _Follower) -> None:
        lost.path.write_bytes(encode_snapshot(make_snapshot(number=7)))
        await lost.feed.start()
        assert lost.number == 7

    @pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b'{"number": 1', b"[]", b"[" * 100_000])
    async def test_but_not_a_broken_one(self, lost: _Follower, content: bytes | None) -> None:
        if content is not None:
            lost.path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="no routing snapshot"):
            await lost.feed.start()

    async def test_what_only_a_newer_headway_can_read_is_left_alone(self, world: World, follower: _Follower) -> None:
        await insert(world, 900, b'{"number": 900, "shape": "of another version"}')
        with pytest.raises(ConfigurationError):
            await follower.feed.start()
        follower.path.write_bytes(encode_snapshot(make_snapshot(number=7)))
        await follower.feed.start()
        assert follower.number == 7


class TestRun:
    @pytest.fixture
    async def running(self, follower: _Follower) -> AsyncIterator[_Follower]:
        await follower.feed.start()
        task = asyncio.create_task(follower.feed.run())
        yield follower
        await stop(task)

    async def test_a_new_one_comes_at_once(self, world: World, running: _Follower) -> None:
        await running.wait_for(await publish(world))  # now it listens
        waits = [await running.wait_for(await publish(world)) for _ in range(5)]
        assert sorted(waits)[2] < 0.1  # by polling alone, half a second
        assert max(waits) < 1
        assert decode_snapshot(running.path.read_bytes()).number == running.number

    async def test_one_that_nobody_told_of_comes_with_the_next_poll(self, world: World, running: _Follower) -> None:
        await insert(world, 500, encode_snapshot(make_snapshot(number=500)))
        assert await running.wait_for(500) < 2

    async def test_each_is_given_once_and_none_goes_back(self, world: World, running: _Follower) -> None:
        published = [await publish(world) for _ in range(10)]
        await running.wait_for(published[-1])
        numbers = [snapshot.number for snapshot in running.snapshots]
        assert numbers == sorted(set(numbers))

    async def test_what_it_cannot_read_does_not_stop_it(self, world: World, running: _Follower) -> None:
        await insert(world, 900, b'{"number": 900, "shape": "of another version"}')
        async with world.database.connection() as connection:
            await connection.execute("NOTIFY headway_snapshot")
        await insert(world, 901, encode_snapshot(make_snapshot(number=901)))
        await running.wait_for(901)
        assert 900 not in [snapshot.number for snapshot in running.snapshots]

    async def test_its_connection_is_not_lent_to_others_while_it_listens(
        self, world: World, follower: _Follower
    ) -> None:
        await follower.feed.start()
        task = asyncio.create_task(follower.feed.run())
        await follower.wait_for(await publish(world))
        await stop(task)
        for _ in range(8):
            async with world.database.connection() as connection:
                assert not connection.autocommit
                cursor = await connection.execute("SELECT pg_listening_channels()")
                assert await cursor.fetchall() == []


class TestOutage:
    async def test_the_last_one_stays_and_the_next_one_comes_when_the_database_is_back(
        self, world: World, far: _Follower, relay: Relay
    ) -> None:
        await far.feed.start()
        task = asyncio.create_task(far.feed.run())
        await far.wait_for(await publish(world))
        await relay.cut()
        missed = await publish(world)
        assert far.number < missed
        await relay.connect()
        await far.wait_for(missed)
        await far.wait_for(await publish(world))
        await stop(task)

    async def test_who_started_from_disk_follows_when_the_database_is_there(
        self, world: World, relay: Relay, tmp_path: Path
    ) -> None:
        await relay.cut()
        database = Database(relay.url, wait_seconds=0.3)
        with pytest.raises(StorageError):
            await database.open()
        follower = _Follower(database, tmp_path / "snapshot.json")
        follower.path.write_bytes(encode_snapshot(msgspec.structs.replace(world.snapshot, number=0)))
        await follower.feed.start()
        task = asyncio.create_task(follower.feed.run())
        await relay.connect()
        await follower.wait_for(await publish(world))
        await stop(task)
        await database.close()

    @pytest.mark.parametrize("while_away", [0.0, 0.05])
    async def test_it_ends_when_it_is_cancelled_while_the_database_goes(
        self, far: _Follower, relay: Relay, world: World, while_away: float
    ) -> None:
        await far.feed.start()
        task = asyncio.create_task(far.feed.run())
        await far.wait_for(await publish(world))
        await relay.cut()
        await asyncio.sleep(while_away)
        await stop(task)


class TestLostControl:
    @pytest.fixture
    async def cautious(
        self, world: World, relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[_Follower]:
        """A follower that is cut off after half a second of silence, of a rollout that then asks for stable."""
        monkeypatch.setattr("headway.gateway.feed._POLL_SECONDS", 0.1)
        await self.set_policy(world, "stable")
        database = Database(relay.url, wait_seconds=0.3)
        await database.open()
        follower = _Follower(database, tmp_path / "snapshot.json", lost_seconds=0.5)
        await follower.feed.start()
        tasks = [asyncio.create_task(follower.feed.run()), asyncio.create_task(follower.feed.watch())]
        await follower.wait_for(await publish(world))
        yield follower
        for task in tasks:
            await stop(task)
        await database.close()

    async def set_policy(self, world: World, on_lost_control: str) -> None:
        terms = Jsonb({"policy": {"on_lost_control": on_lost_control}})
        async with world.database.connection() as connection:
            await connection.execute("UPDATE rollout SET terms = %s", (terms,))

    async def test_it_serves_stable_until_it_hears_again(self, cautious: _Follower, relay: Relay) -> None:
        number = cautious.number
        assert cautious.is_rolling
        await relay.cut()
        await cautious.wait_until(lambda: not cautious.is_rolling)
        assert cautious.number == number
        assert decode_snapshot(cautious.path.read_bytes()).applications["support"].rollout is not None
        await relay.connect()
        await cautious.wait_until(lambda: cautious.is_rolling)
        assert cautious.number == number

    async def test_a_database_that_hangs_is_not_heard(self, cautious: _Follower, relay: Relay) -> None:
        relay.flowing.clear()
        await cautious.wait_until(lambda: not cautious.is_rolling)
        relay.flowing.set()
        await cautious.wait_until(lambda: cautious.is_rolling)

    async def test_what_it_missed_comes_with_control(self, world: World, cautious: _Follower, relay: Relay) -> None:
        await relay.cut()
        await cautious.wait_until(lambda: not cautious.is_rolling)
        missed = await publish(world)
        await relay.connect()
        await cautious.wait_for(missed)
        assert cautious.is_rolling

    async def test_a_database_with_nothing_new_is_heard(self, cautious: _Follower) -> None:
        served = len(cautious.snapshots)
        await asyncio.sleep(1.1)  # twice as long as the silence that would cut it off
        assert len(cautious.snapshots) == served

    async def test_other_rollouts_keep_their_share(self, world: World, cautious: _Follower, relay: Relay) -> None:
        await self.set_policy(world, "keep")
        await cautious.wait_for(await publish(world))
        served = len(cautious.snapshots)
        await relay.cut()
        await cautious.wait_until(lambda: len(cautious.snapshots) > served)
        assert cautious.is_rolling

    async def test_who_starts_from_disk_has_heard_nothing(self, world: World, lost: _Follower) -> None:
        await self.set_policy(world, "stable")
        await publish(world)
        async with world.database.connection() as connection:
            snapshot = await routing.latest(connection)
        assert snapshot is not None
        lost.path.write_bytes(encode_snapshot(snapshot))
        await lost.feed.start()
        assert lost.number == snapshot.number
        assert not lost.is_rolling
