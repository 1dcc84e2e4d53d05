"""The recorder on a real PostgreSQL: nothing lost, nothing twice, whoever is away or killed."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from headway.clock import ManualClock, SystemClock
from headway.config.settings import Settings
from headway.domain.evidence import Counts
from headway.domain.snapshot import KeyRoute
from headway.errors import CostCapError
from headway.gateway import recorder as recorder_module
from headway.gateway.quota import Quota
from headway.gateway.recorder import Recorder
from headway.gateway.scoreboard import Scoreboard, WorkerState
from headway.storage import embedded
from headway.storage.database import Database, migrate
from headway.storage.spool import Spool
from tests.embedded import kill_postmaster
from tests.interactions import START_MS, make_interaction

POISON = "".join(map(chr, range(0x4E00, 0x4E00 + 8000)))  # a conversation too long for its index


class Worker:
    """What a worker of the data plane puts around its recorder."""

    def __init__(self, home: Path, url: str, clock: ManualClock | SystemClock, **settings: Any) -> None:
        self.settings = Settings(home=home, **settings)
        self.clock = clock
        self.database = Database(url, wait_seconds=0.5)
        self.scoreboard = Scoreboard.open(home)
        self.quota = Quota(self.scoreboard, clock)
        self.spool = Spool(home / "spool" / "interactions", clock, max_bytes=10**7)
        self.recorder = Recorder(self.database, self.spool, self.scoreboard, clock, self.settings, self.quota)

    @property
    def state(self) -> WorkerState:
        return self.scoreboard.workers()[self.scoreboard.slot]

    def record(self, *, count: int = 1, **fields: Any) -> None:
        for _ in range(count):
            self.recorder.record(make_interaction(self.clock.unix_ms(), **fields))

    async def close(self) -> None:
        await self.recorder.close()
        await self.spool.close()
        self.scoreboard.close()
        await self.database.close()


@asynccontextmanager
async def running(home: Path, url: str, **settings: Any) -> AsyncIterator[Worker]:
    """A worker on a clock that stands still; it writes when it is told to."""
    worker = Worker(home, url, ManualClock(START_MS), **settings)
    await worker.database.open()
    await worker.recorder.start()
    try:
        yield worker
    finally:
        await worker.close()


async def ask(url: str, query: str) -> Any:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        row = await (await connection.execute(query.encode())).fetchone()
        return row and row[0]


async def recorded(url: str) -> int:
    return int(await ask(url, "SELECT count(*) FROM interaction"))


async def counted(url: str) -> int:
    """Interactions that evidence counts."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        rows = await (await connection.execute("SELECT counts::text FROM evidence")).fetchall()
    return sum(msgspec.json.decode(text, type=Counts).interactions for (text,) in rows)


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - other threads and processes are waited for
            await asyncio.sleep(0.01)


# --- the way of an interaction ---


async def test_what_is_recorded_is_in_the_database(tmp_path: Path, database_url: str) -> None:
    async with running(tmp_path, database_url) as worker:
        worker.record(count=450)
        assert (worker.state.accepted, worker.state.recorded) == (450, 0)
        await worker.recorder.flush()
        assert await recorded(database_url) == await counted(database_url) == 450
        assert await ask(database_url, "SELECT count(*) FROM recorder_batch") == 2
        assert (worker.state.recorded, worker.state.dropped, worker.state.queue) == (450, 0, 0)


async def test_it_is_written_every_fifth_of_a_second(tmp_path: Path, database_url: str) -> None:
    async with running(tmp_path, database_url) as worker:
        clock = worker.clock
        assert isinstance(clock, ManualClock)
        for turn in range(1, 4):
            await until(lambda: clock.sleepers > 0)
            worker.record(count=5)
            clock.advance(0.19)
            await asyncio.sleep(0)
            assert worker.state.recorded == 5 * (turn - 1)
            clock.advance(0.01)
            await until(lambda turn=turn: worker.state.recorded == 5 * turn)  # type: ignore[misc]


async def test_closing_writes_what_is_left(tmp_path: Path, database_url: str) -> None:
    async with running(tmp_path, database_url) as worker:
        worker.record(count=7)
    assert await recorded(database_url) == 7


async def test_what_comes_after_closing_is_dropped_and_counted(tmp_path: Path, database_url: str) -> None:
    async with running(tmp_path, database_url) as worker:
        await worker.recorder.close()
        worker.record()
        assert worker.state.dropped == 1


async def test_a_full_queue_drops_and_counts(tmp_path: Path, database_url: str) -> None:
    async with running(tmp_path, database_url, queue_size=10) as worker:
        worker.record(count=15)
        await worker.recorder.flush()
        worker.record(count=2)
        await worker.recorder.flush()
        assert (worker.state.accepted, worker.state.recorded, worker.state.dropped) == (17, 12, 5)
    assert await recorded(database_url) == 12


async def test_content_is_left_out_when_memory_is_short(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "_QUEUE_BYTES", 1000)
    async with running(tmp_path, database_url) as worker:
        worker.record(count=3, request=b"x" * 400, answer=None)
        await worker.recorder.flush()
        worker.record(request=b"x" * 400, answer=None)
        await worker.recorder.flush()
    assert await recorded(database_url) == 4
    assert await ask(database_url, "SELECT count(*) FROM interaction WHERE request IS NULL") == 1


async def test_the_quota_learns_what_keys_have_cost(tmp_path: Path, database_url: str) -> None:
    key = await ask(
        database_url,
        "WITH k AS (INSERT INTO api_key (name, hash, hint, scopes, created_by)"
        " VALUES ('k', 'h', 'hw-', '{invoke}', 't') RETURNING id),"
        " u AS (INSERT INTO key_usage SELECT id, '2026-09-01', 10, 4.0 FROM k) SELECT id FROM k",
    )
    async with running(tmp_path, database_url) as worker:
        route = KeyRoute(key, "k", ("invoke",), monthly_usd=5.0)
        for _ in range(2):
            worker.quota.admit(route)
            worker.quota.leave(route, 0.6)
        worker.record(count=2, key=key, cost_usd=0.6)
        await worker.recorder.flush()
        assert worker.quota.spent_usd(key, worker.clock.unix_ms()) == pytest.approx(5.2)
        with pytest.raises(CostCapError):
            worker.quota.admit(route)


# --- refused ---


async def test_one_poisoned_interaction_costs_no_other(tmp_path: Path, database_url: str) -> None:
    async with running(tmp_path, database_url) as worker:
        worker.record(count=20)
        worker.record(conversation=POISON)
        worker.record(count=20)
        worker.record(conversation=POISON)
        await worker.recorder.flush()
        worker.record(count=3)
        await worker.recorder.flush()
        assert (worker.state.recorded, worker.state.dropped) == (43, 2)
    assert await recorded(database_url) == await counted(database_url) == 43


async def test_an_interaction_that_nobody_foresaw_costs_no_other(tmp_path: Path, database_url: str) -> None:
    async with running(tmp_path, database_url) as worker:
        worker.record(count=3)
        worker.record(total_ms="slow")
        worker.record(count=3)
        await worker.recorder.flush()
        assert (worker.state.recorded, worker.state.dropped) == (6, 1)


# --- the database away ---


@pytest.mark.fault
async def test_batches_wait_on_disk_while_the_database_is_away(
    tmp_path: Path, database_url: str, refusing: Callable[[bool], Awaitable[None]]
) -> None:
    async with running(tmp_path, database_url) as worker:
        worker.record(count=5)
        await worker.recorder.flush()
        await refusing(True)
        for _ in range(3):
            worker.record(count=10)
            await worker.recorder.flush()
        assert (worker.state.recorded, worker.state.spool_records) == (35, 3)
        assert worker.state.spool_bytes > 1000
        await refusing(False)
        while await worker.spool.replay(worker.recorder.replay, 2):
            pass
        assert await recorded(database_url) == await counted(database_url) == 35
        worker.record()
        await worker.recorder.flush()
        assert worker.state.spool_records == 0
    assert await recorded(database_url) == 36


@pytest.mark.fault
async def test_what_was_spooled_at_the_end_is_written_by_the_next_start(
    tmp_path: Path, database_url: str, refusing: Callable[[bool], Awaitable[None]]
) -> None:
    async with running(tmp_path, database_url) as worker:
        await refusing(True)
        worker.record(count=12)
    await refusing(False)
    async with running(tmp_path, database_url) as worker:
        assert worker.scoreboard.predecessors == []
        await worker.spool.adopt()
        await worker.spool.replay(worker.recorder.replay, 10)
    assert await recorded(database_url) == await counted(database_url) == 12


async def test_a_spool_that_is_replayed_twice_counts_once(tmp_path: Path, database_url: str) -> None:
    async with running(tmp_path, database_url) as worker:
        batch = [make_interaction(unit=str(n), conversation=POISON if n == 3 else "c") for n in range(9)]
        spooled = msgspec.msgpack.encode((worker.scoreboard.worker, 77, batch))
        for _ in range(2):
            await worker.recorder.replay(spooled)
    assert await recorded(database_url) == await counted(database_url) == 8


@pytest.mark.fault
async def test_the_database_is_killed_under_load(tmp_path: Path, proof: bool) -> None:
    """kill -9 of the server, more than once; the guardian brings it back. Nothing is lost, nothing counted twice."""
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    for folder in (tmp_path, *tmp_path.parents[:1]):
        folder.chmod(0o755)
    with embedded.start(home) as server:
        await asyncio.to_thread(migrate, server.url)
        worker = Worker(home, server.url, SystemClock())
        await worker.database.open()
        await worker.recorder.start()
        replaying = asyncio.ensure_future(worker.spool.replay_forever(worker.recorder.replay))
        numbers, sent = random.Random(5), 0
        for _ in range(5 if proof else 2):
            killing = asyncio.ensure_future(asyncio.to_thread(kill_postmaster, home))
            while not killing.done():
                worker.record(count=20, unit=str(numbers.randrange(50)))
                sent += 20
                await asyncio.sleep(0.02)
            await killing
            await until(lambda: worker.state.recorded == worker.state.accepted, 60)
            await until(lambda: worker.spool.records_waiting == 0, 60)
        replaying.cancel()
        with suppress(asyncio.CancelledError):
            await replaying
        assert (worker.state.accepted, worker.state.dropped) == (sent, 0)
        assert await recorded(server.url) == await counted(server.url) == sent
        await worker.close()


# --- a worker killed ---

RECORD_FOR_EVER = """
import asyncio, sys
from pathlib import Path
from headway.clock import SystemClock
from tests.integration.gateway.test_recorder import Worker

async def main():
    worker = Worker(Path(sys.argv[1]), sys.argv[2], SystemClock())
    await worker.database.open()
    await worker.recorder.start()
    print("ready", flush=True)
    while True:
        worker.record(count=10)
        await asyncio.sleep(0.004)

asyncio.run(main())
"""


@pytest.mark.fault
async def test_a_killed_worker_loses_exactly_what_is_said_to_be_lost(
    tmp_path: Path, database_url: str, proof: bool
) -> None:
    numbers = random.Random(3)
    for attempt in range(30 if proof else 3):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", RECORD_FOR_EVER, str(tmp_path), database_url),
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": "."},
        )
        try:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
            before = await recorded(database_url)
            await until_recorded(database_url, before + 50)
            await asyncio.sleep(0.2 * numbers.random())  # at any moment of a turn
        finally:
            process.send_signal(signal.SIGKILL)
            await process.communicate()
        worker = Worker(tmp_path, database_url, ManualClock(START_MS))
        await worker.database.open()
        await until_quiet(database_url)
        await worker.recorder.close()
        state = worker.state
        assert state.accepted == state.recorded + state.lost
        assert await recorded(database_url) == await counted(database_url) == state.recorded, attempt
        await worker.close()


async def until_recorded(url: str, wanted: int) -> None:
    async with asyncio.timeout(20):
        while await recorded(url) < wanted:  # noqa: ASYNC110 - another process is waited for
            await asyncio.sleep(0.01)


async def until_quiet(url: str) -> None:
    """Wait until the dead worker's backend has noticed and finished, or rolled back."""
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND state <> 'idle'"
    )
    async with asyncio.timeout(20):
        while await ask(url, others):  # noqa: ASYNC110 - another process is waited for
            await asyncio.sleep(0.01)
