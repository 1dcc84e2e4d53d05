"""The spool: what was appended comes back in order, once the database is there, whoever died meanwhile."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from headway.clock import ManualClock
from headway.errors import OverloadedError, StorageError
from headway.storage.spool import Spool

MEGABYTE = 1_000_000


def make_spool(folder: Path, *, max_bytes: int = MEGABYTE, clock: ManualClock | None = None, **options: float) -> Spool:
    return Spool(folder, clock or ManualClock(), max_bytes=max_bytes, **options)  # type: ignore[arg-type]


def collector(into: list[bytes]) -> Callable[[bytes], Awaitable[None]]:
    async def handle(record: bytes) -> None:
        into.append(record)

    return handle


async def drain(spool: Spool) -> list[bytes]:
    found: list[bytes] = []
    while await spool.replay(collector(found), 7):
        pass
    return found


def only_segment(folder: Path) -> Path:
    (segment,) = folder.rglob("*.spool")
    return segment


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


async def test_records_come_back_in_order_and_leave_nothing_behind(tmp_path: Path) -> None:
    spool = make_spool(tmp_path / "spool", max_bytes=4000)
    records = [b"%d" % number * 20 for number in range(40)]
    for record in records:
        await spool.append(record)
    assert spool.records_waiting == 40
    assert len(files(tmp_path)) > 2  # several segments, and the lock
    assert await drain(spool) == records
    assert (spool.records_waiting, spool.bytes_waiting) == (0, 0)
    await spool.close()
    assert files(tmp_path) == []


async def test_records_that_come_together_are_all_kept(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    await asyncio.gather(*(spool.append(b"%d" % number) for number in range(100)))
    assert sorted(await drain(spool), key=int) == [b"%d" % number for number in range(100)]


async def test_a_cancelled_append_does_not_hold_up_the_others(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    first = asyncio.ensure_future(spool.append(b"first"))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(spool.append(b"second"))
    first.cancel()
    await asyncio.wait_for(second, 5)
    assert await drain(spool) == [b"first", b"second"]


async def test_a_record_stays_while_its_handler_cannot_reach_the_database(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    for record in (b"a", b"b", b"c"):
        await spool.append(record)
    found: list[bytes] = []

    async def handle(record: bytes) -> None:
        if record == b"b" and found == [b"a"]:
            found.append(b"away")
            raise StorageError("away")
        found.append(record)

    with pytest.raises(StorageError):
        await spool.replay(handle, 10)
    assert spool.records_waiting == 2
    assert await spool.replay(handle, 10) == 2
    assert found == [b"a", b"away", b"b", b"c"]


async def test_a_record_that_makes_no_sense_is_put_aside(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    for record in (b"a", b"junk", b"c"):
        await spool.append(record)
    found: list[bytes] = []

    async def handle(record: bytes) -> None:
        if record == b"junk":
            raise ValueError(record)
        found.append(record)

    assert await spool.replay(handle, 10) == 3
    assert found == [b"a", b"c"]
    assert b"junk" in (tmp_path / "refused").read_bytes()


async def test_appending_goes_on_during_a_replay(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    await spool.append(b"old")
    found: list[bytes] = []

    async def handle(record: bytes) -> None:
        found.append(record)
        if record == b"old":
            await spool.append(b"new")

    assert await spool.replay(handle, 10) == 2
    assert found == [b"old", b"new"]


async def test_one_record_that_is_refused_does_not_take_others_along(tmp_path: Path) -> None:
    spool = make_spool(tmp_path, max_bytes=1000)
    outcomes = await asyncio.gather(
        *(spool.append(record) for record in (b"first", b"small", b"x" * 2000, b"last")), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), type(None), OverloadedError, type(None)]
    assert await drain(spool) == [b"first", b"small", b"last"]


# --- bounds ---


async def test_the_oldest_are_dropped_and_counted_when_it_is_full(tmp_path: Path) -> None:
    spool = make_spool(tmp_path, max_bytes=16_000)
    for number in range(200):
        await spool.append(b"%3d" % number * 100, weight=3)
    assert spool.bytes_waiting <= 16_000
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 16_000
    kept = await drain(spool)
    assert kept == [b"%3d" % number * 100 for number in range(200 - len(kept), 200)]
    assert len(kept) > 40
    assert spool.dropped == 3 * (200 - len(kept))


async def test_a_spool_that_must_not_drop_refuses(tmp_path: Path) -> None:
    spool = make_spool(tmp_path, max_bytes=100, drop_oldest=False)
    await spool.append(b"x" * 50)
    with pytest.raises(OverloadedError):
        await spool.append(b"y" * 50)
    assert await drain(spool) == [b"x" * 50]
    await spool.append(b"z" * 50)
    assert spool.dropped == 0


async def test_a_record_larger_than_the_spool_is_refused_and_drops_nothing(tmp_path: Path) -> None:
    spool = make_spool(tmp_path, max_bytes=100)
    await spool.append(b"small")
    with pytest.raises(OverloadedError):
        await spool.append(b"x" * 200)
    assert await drain(spool) == [b"small"]


async def test_old_records_are_dropped_and_counted(tmp_path: Path) -> None:
    clock = ManualClock()
    spool = make_spool(tmp_path, clock=clock, max_age_seconds=60)
    await spool.append(b"old", weight=5)
    clock.advance(61)
    await spool.append(b"new")
    assert await drain(spool) == [b"new"]
    assert spool.dropped == 5


async def test_a_disk_that_refuses_is_an_error_and_not_a_torn_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = make_spool(tmp_path)
    await spool.append(b"before")
    write = os.write

    def full(descriptor: int, content: bytes) -> int:
        if len(content) > 100:
            return write(descriptor, content[:50])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError, match="No space left"):
            await spool.append(b"x" * 120)
    await spool.append(b"after")
    assert await drain(spool) == [b"before", b"after"]


# --- crashes ---

APPEND_AND_DIE = """
import asyncio, os, signal, sys
from pathlib import Path
from headway.clock import SystemClock
from headway.storage.spool import Spool

async def main():
    spool = Spool(Path(sys.argv[1]), SystemClock(), max_bytes=10**6)
    for number in range(int(sys.argv[2])):
        await spool.append(b"%d" % number)
        print(number, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def append_and_die(folder: Path, records: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", APPEND_AND_DIE, str(folder), str(records)], capture_output=True, check=False
    )
    assert done.returncode == -9, done.stderr
    assert len(done.stdout.split()) == records


@pytest.mark.fault
async def test_what_a_killed_worker_left_is_adopted_by_exactly_one(tmp_path: Path) -> None:
    append_and_die(tmp_path, 20)
    spools = [make_spool(tmp_path) for _ in range(3)]
    assert sorted(await asyncio.gather(*(spool.adopt() for spool in spools))) == [0, 0, 20]
    found = [await drain(spool) for spool in spools]
    assert sorted(found) == [[], [], [b"%d" % number for number in range(20)]]
    for spool in spools:
        await spool.close()
    assert files(tmp_path) == []


async def test_a_living_workers_records_are_nobody_elses(tmp_path: Path) -> None:
    living, other = make_spool(tmp_path), make_spool(tmp_path)
    await living.append(b"mine")
    assert await other.adopt() == 0
    await living.close()
    assert await other.adopt() == 1


@pytest.mark.fault
@pytest.mark.parametrize("cut", [1, 5, 19, 20, 21])
async def test_a_torn_tail_costs_the_torn_record_only(tmp_path: Path, cut: int) -> None:
    append_and_die(tmp_path, 10)
    segment = only_segment(tmp_path)
    os.truncate(segment, segment.stat().st_size - cut)
    spool = make_spool(tmp_path)
    await spool.adopt()
    whole = 9 if cut <= 21 else 8
    assert await drain(spool) == [b"%d" % number for number in range(whole)]


@pytest.mark.fault
@pytest.mark.parametrize("junk", [b"\0" * 64, b"\xff" * 64, b"\0\0\0\2" + b"junk" * 9])
async def test_junk_behind_the_records_is_not_taken_for_one(tmp_path: Path, junk: bytes) -> None:
    append_and_die(tmp_path, 3)
    segment = only_segment(tmp_path)
    with segment.open("ab") as file:
        file.write(junk)
    spool = make_spool(tmp_path)
    assert await spool.adopt() == 3
    assert await drain(spool) == [b"0", b"1", b"2"]


async def test_replay_forever_takes_up_what_comes_and_what_others_left(tmp_path: Path) -> None:
    clock = ManualClock()
    left, spool = make_spool(tmp_path, clock=clock), make_spool(tmp_path, clock=clock)
    await left.append(b"left")
    await left.close()
    found: list[bytes] = []
    away = True

    async def handle(record: bytes) -> None:
        if away:
            raise StorageError("away")
        found.append(record)

    async def tick() -> None:
        while not clock.sleepers:  # noqa: ASYNC110 - the replay works in a thread
            await asyncio.sleep(0.001)
        clock.advance(1)

    async with asyncio.timeout(10):
        task = asyncio.ensure_future(spool.replay_forever(handle))
        await tick()
        away = False
        await spool.append(b"own")
        while len(found) < 2:
            await tick()
        task.cancel()
    assert found == [b"left", b"own"]


@pytest.mark.parametrize("records", [9, 10, 11, 20])
async def test_replay_forever_leaves_no_file_behind(tmp_path: Path, records: int) -> None:
    clock = ManualClock()
    spool = make_spool(tmp_path, clock=clock)
    for number in range(records):
        await spool.append(b"%d" % number)
    found: list[bytes] = []
    async with asyncio.timeout(10):
        task = asyncio.ensure_future(spool.replay_forever(collector(found)))
        while len(found) < records or list(tmp_path.rglob("*.spool")):  # noqa: ASYNC240 - see above
            await asyncio.sleep(0.001)
            clock.advance(0.1)
        task.cancel()
    assert found == [b"%d" % number for number in range(records)]
