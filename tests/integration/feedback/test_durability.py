"""Feedback and reports while the database is away: kept before the answer, replayed once, in any order."""

import asyncio
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from headway.clock import SystemClock
from headway.domain.snapshot import encode_snapshot
from headway.errors import StorageError
from headway.storage.database import Database
from headway.storage.spool import Spool
from tests.integration.feedback.conftest import Desk, Relay, make_desk
from tests.world import World


@pytest.fixture
async def relay(database_url: str) -> AsyncIterator[Relay]:
    relay = Relay(database_url)
    await relay.connect()
    yield relay
    await relay.cut()


@pytest.fixture
async def far_desk(world: World, relay: Relay) -> AsyncIterator[Desk]:
    """A desk whose database is reached through the relay."""
    database = Database(relay.url, wait_seconds=0.3)
    await database.open()
    desk = make_desk(world, database)
    yield desk
    await relay.cut()  # what hangs now fails
    await desk.keeper.close()
    await database.close()


async def replay(desk: Desk) -> None:
    """Replay everything, as soon as the database takes it again."""
    for record in desk.log.records:
        for _ in range(100):
            try:
                await desk.keeper.replay(record)
                break
            except StorageError:
                await asyncio.sleep(0.05)
        else:
            raise AssertionError("the database stayed away")


async def test_nothing_acknowledged_is_lost_while_the_database_is_away(far_desk: Desk, relay: Relay) -> None:
    posts = [{"interaction_id": far_desk.world.issue(), "metric": "stars", "value": n % 5 + 1} for n in range(10)]
    await relay.cut()
    answers = [await far_desk.feedback(post) for post in posts]
    assert {(status, body["outcome"]) for status, body in answers} == {(202, "spooled")}
    report = await far_desk.call("POST", "/v1/reports", {"title": "Down"}, key="developer")
    assert (report[0], report[1]["outcome"]) == (202, "spooled")
    assert await far_desk.rows("SELECT 1 FROM feedback") == []
    assert len(far_desk.log.records) == len(posts) + 1

    await relay.connect()
    await replay(far_desk)
    await replay(far_desk)  # a replay that was cut short starts again
    accepted = sorted(uuid.UUID(body["id"]) for _, body in answers)
    assert sorted(row[0] for row in await far_desk.rows("SELECT id FROM feedback")) == accepted
    assert await far_desk.rows("SELECT id, title FROM report") == [(uuid.UUID(report[1]["id"]), "Down")]


async def test_a_database_that_hangs_is_away_too(far_desk: Desk, relay: Relay) -> None:
    post = {"interaction_id": far_desk.world.issue(), "metric": "stars", "value": 1}
    assert (await far_desk.feedback(post))[0] == 201
    relay.flowing.clear()
    started = asyncio.get_running_loop().time()
    far_desk.world.clock.advance(1)
    status, body = await far_desk.feedback({**post, "value": 2})
    assert (status, body["outcome"]) == (202, "spooled")
    assert asyncio.get_running_loop().time() - started < 4
    far_desk.world.clock.advance(0.5)
    assert (await far_desk.feedback({**post, "value": 3}))[0] == 202
    assert asyncio.get_running_loop().time() - started < 4.1
    relay.flowing.set()
    await replay(far_desk)
    assert await far_desk.rows("SELECT number FROM feedback ORDER BY at, number") == [(1,), (2,), (3,)]
    assert await far_desk.rows("SELECT number FROM feedback WHERE superseded_at IS NULL") == [(3,)]


async def test_only_the_first_waits_for_a_database_that_is_away(far_desk: Desk, relay: Relay) -> None:
    await relay.cut()
    await far_desk.feedback({"interaction_id": far_desk.world.issue(), "metric": "stars", "value": 1})
    started = asyncio.get_running_loop().time()
    for _ in range(20):
        await far_desk.feedback({"interaction_id": far_desk.world.issue(), "metric": "stars", "value": 1})
    assert asyncio.get_running_loop().time() - started < 1
    await relay.connect()
    statuses: list[int] = []
    while 201 not in statuses and len(statuses) < 100:
        far_desk.world.clock.advance(5)
        post = {"interaction_id": far_desk.world.issue(), "metric": "stars", "value": 1}
        statuses.append((await far_desk.feedback(post))[0])
    assert statuses[-1] == 201


async def test_what_needs_the_database_says_that_it_is_away(far_desk: Desk, relay: Relay) -> None:
    await relay.cut()
    post = {"conversation_id": "talk", "application": "support", "metric": "stars", "value": 5}
    for status, body in (
        await far_desk.feedback(post, key="developer"),
        await far_desk.call("GET", "/v1/reports", key="developer"),
        await far_desk.call("POST", f"/v1/reports/{uuid.uuid4()}/comments", {"comment": "x"}, key="developer"),
    ):
        assert (status, body["code"]) == (503, "storage_unavailable")
    assert far_desk.log.records == []


async def test_a_late_replay_does_not_undo_a_later_value(desk: Desk) -> None:
    """Three values given in order reach the database in every order: the last given is the current one."""
    text = desk.world.issue()
    away = make_desk(desk.world, Database("postgresql://127.0.0.1:1/none", wait_seconds=0.05))
    for value in (1, 2, 3):
        assert (await away.feedback({"interaction_id": text, "metric": "stars", "value": value}))[0] == 202
        desk.world.clock.advance(1)
    first, second, third = away.log.records
    for order in ((third, first, second), (second, third, first), (first, third, second)):
        for record in (*order, *order):
            await desk.keeper.replay(record)
        rows = await desk.rows("SELECT number, superseded_at, at FROM feedback ORDER BY at")
        assert [row[0] for row in rows] == [1, 2, 3]
        assert [row[1] for row in rows] == [rows[1][2], rows[2][2], None]
        await desk.rows("DELETE FROM feedback RETURNING 1")


async def test_an_equal_value_is_not_replayed(desk: Desk) -> None:
    away = make_desk(desk.world, Database("postgresql://127.0.0.1:1/none", wait_seconds=0.05))
    post = {"interaction_id": desk.world.issue(), "metric": "stars", "value": 3}
    await away.feedback(post)
    await away.feedback(post)
    for record in away.log.records:
        await desk.keeper.replay(record)
    assert len(await desk.rows("SELECT 1 FROM feedback")) == 1


async def test_the_history_bound_does_not_drop_what_was_acknowledged(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headway.feedback.keeping.KEYLESS_REVISIONS", 1)
    text = desk.world.issue()
    away = make_desk(desk.world, Database("postgresql://127.0.0.1:1/none", wait_seconds=0.05))
    for value in (1, 2, 3):
        await away.feedback({"interaction_id": text, "metric": "stars", "value": value})
    for record in away.log.records:
        await desk.keeper.replay(record)
    assert len(await desk.rows("SELECT 1 FROM feedback")) == 3
    assert (await desk.feedback({"interaction_id": text, "metric": "stars", "value": 4}))[0] == 429


async def test_a_report_is_made_once_per_idempotency_key_across_an_outage(desk: Desk) -> None:
    away = make_desk(desk.world, Database("postgresql://127.0.0.1:1/none", wait_seconds=0.05))
    headers = {b"idempotency-key": b"abc"}
    first = await away.call("POST", "/v1/reports", {"title": "x"}, key="developer", headers=headers)
    again = await desk.call("POST", "/v1/reports", {"title": "x"}, key="developer", headers=headers)
    assert (first[0], again[0]) == (202, 201)
    assert first[1]["id"] == again[1]["id"]
    for record in away.log.records:
        await desk.keeper.replay(record)
    assert len(await desk.rows("SELECT 1 FROM report")) == 1


async def test_what_was_acknowledged_survives_kill_9_in_the_spool(desk: Desk, tmp_path: Path) -> None:
    ids, snapshot = tmp_path / "ids", tmp_path / "snapshot"
    clock = SystemClock()
    now = desk.world.clock.unix_ms() - clock.unix_ms()
    age_days = now / 86_400_000  # the process has the machine's clock
    ids.write_text("\n".join(desk.world.issue(age_days=age_days) for _ in range(300)))
    snapshot.write_bytes(encode_snapshot(desk.world.snapshot))
    folder = tmp_path / "spool"
    program = Path(__file__).with_name("crashing.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), str(folder), str(snapshot), str(ids), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    acknowledged = {uuid.UUID(line) for line in output.decode().split()}
    assert len(acknowledged) == 100

    for _ in range(2):  # and once more: nothing is there twice
        spool = Spool(folder, clock, max_bytes=10_000_000, drop_oldest=False)
        await spool.adopt()
        await spool.replay(desk.keeper.replay, 1000)
        await spool.close()
    rows = await desk.rows("SELECT id FROM feedback")
    assert acknowledged <= {row[0] for row in rows}
    assert len(rows) <= 300


async def test_a_full_spool_refuses_and_keeps_what_it_has(desk: Desk, tmp_path: Path) -> None:
    spool = Spool(tmp_path, desk.world.clock, max_bytes=2000, drop_oldest=False)
    away = make_desk(desk.world, Database("postgresql://127.0.0.1:1/none", wait_seconds=0.05), log=spool)
    posts = [{"interaction_id": desk.world.issue(), "metric": "stars", "value": 5} for _ in range(20)]
    answers = [await away.feedback(post) for post in posts]
    statuses = [status for status, _ in answers]
    kept = statuses.count(202)
    assert 0 < kept < 20
    assert statuses == [202] * kept + [429] * (20 - kept)
    assert answers[-1][1]["code"] == "overloaded"
    await spool.replay(desk.keeper.replay, 100)
    await spool.close()
    accepted = {body["id"] for status, body in answers if status == 202}
    assert {str(row[0]) for row in await desk.rows("SELECT id FROM feedback")} == accepted


async def test_what_is_no_record_is_refused(desk: Desk) -> None:
    for junk in (b"", b"\xc1", msgspec.msgpack.encode({"type": "feedback"}), msgspec.msgpack.encode({"type": "x"})):
        with pytest.raises(msgspec.MsgspecError):
            await desk.keeper.replay(junk)
