"""Batches on a real PostgreSQL: everything once, whatever is repeated, refused or done at the same time."""

import asyncio
import datetime as dt
import random
import uuid
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.types.json import Jsonb

from headway.domain.evidence import Counts, ExposureKey, UnitKey, UnitState, fold, merge
from headway.domain.interaction import Interaction
from headway.domain.metric import EVENT_METRICS
from headway.domain.recording import Recording, SlowTest
from headway.errors import StorageError
from headway.ids import Arm, Kind
from headway.storage.batches import Batch, BatchRefusedError, BatchWriter, KeyUsage
from headway.storage.database import Database
from tests.interactions import START_MS, make_interaction
from tests.world import found_world

WORKER = uuid.UUID(int=1)
MONTH = "2026-09"


def make_batch(*interactions: Interaction, sequence: int = 1, worker: uuid.UUID = WORKER) -> Batch:
    return Batch(worker, sequence, list(interactions))


async def rows(database: Database, query: str, *values: Any) -> list[tuple[Any, ...]]:
    async with database.connection() as connection:
        return await (await connection.execute(query.encode(), values)).fetchall()


async def count(database: Database, table: str) -> int:
    return int((await rows(database, f"SELECT count(*) FROM {table}"))[0][0])


async def read_evidence(database: Database) -> dict[ExposureKey, Counts]:
    total: dict[ExposureKey, Counts] = {}
    found = await rows(
        database,
        "SELECT rollout, stage, extract(epoch FROM period)::bigint, arm, counts::text FROM evidence ORDER BY id",
    )
    for rollout, stage, period, arm, text in found:
        key = ExposureKey(rollout, stage, period, arm)
        counts = msgspec.json.decode(text, type=Counts)
        total[key] = merge(total[key], counts) if key in total else counts
    return total


async def read_states(database: Database) -> dict[UnitKey, UnitState]:
    found = await rows(
        database,
        "SELECT rollout, unit, arm, stage, (extract(epoch FROM first_at) * 1000)::bigint, events, latency_bins"
        " FROM unit_state",
    )
    return {
        (rollout, unit): UnitState(arm, stage, first, events, tuple(bins))
        for rollout, unit, arm, stage, first, events, bins in found
    }


@pytest.fixture
async def api_key(database: Database) -> int:
    found = await rows(
        database,
        "INSERT INTO api_key (name, hash, hint, scopes, created_by)"
        " VALUES ('k', 'h', 'hw-', '{invoke}', 't') RETURNING id",
    )
    return int(found[0][0])


@pytest.fixture
def writer(database: Database) -> BatchWriter:
    return BatchWriter(database)


# --- what is written ---


async def test_an_interaction_is_stored_as_it_was(database: Database, writer: BatchWriter) -> None:
    one = make_interaction(
        arm=Arm.CANDIDATE,
        user="ann",
        stream=True,
        status=502,
        error="provider_cut",
        release_error=True,
        attempts=3,
        attempt_errors=2,
        fallback=True,
        provider_id="chatcmpl-1",
        provider_model="gpt",
        provider_fingerprint="fp_1",
        finish_reason="stop",
        queue_ms=1.5,
        answer="grüße\0\ud800".encode("utf-8", "surrogatepass"),
    )
    await writer.write(make_batch(one))
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT * FROM interaction")
        (row,) = await cursor.fetchall()
        stored = dict(zip([column.name for column in cursor.description or ()], row, strict=True))
    assert stored == {
        **{name: getattr(one, name) for name in one.__struct_fields__ if name != "user"},
        "user_id": "ann",
        "id": uuid.UUID(bytes=one.id),
        "at": dt.datetime.fromtimestamp(START_MS / 1000, dt.UTC),
        "overhead_ms": pytest.approx(0.4),
        "request": '{"messages": []}',
        "answer": "grüße\ufffd\ufffd\ufffd\ufffd",
    }


RECORDING = Recording(
    period_seconds=900,
    slow=(
        SlowTest("latency_p95:harm", "latency", 310, 340),
        SlowTest("latency_p95:1.0", "latency", 310, 320),
        SlowTest("first_token_p95:harm", "first_token", 230, 245),
    ),
    limits={"cost": 500_000_000},
)


async def begin_rollout(database: Database, recording: Recording | None) -> None:
    """Begin rollout 1, recorded like that; None is one without terms."""
    await found_world(database)
    terms = None if recording is None else Jsonb({"recording": msgspec.to_builtins(recording)})
    await rows(database, "UPDATE rollout SET terms = %s WHERE id = 1 RETURNING 1", terms)


@pytest.mark.parametrize("recording", [None, RECORDING])
async def test_evidence_and_states_are_what_the_fold_says(
    database: Database, writer: BatchWriter, recording: Recording | None
) -> None:
    await begin_rollout(database, recording)
    recordings = {} if recording is None else {1: recording}
    numbers = random.Random(7)
    expected: dict[ExposureKey, Counts] = {}
    states: dict[UnitKey, UnitState] = {}
    for sequence in range(12):
        batch = [some_interaction(numbers) for _ in range(numbers.randint(1, 40))]
        counts, changed = fold(batch, states, recordings)
        states.update(changed)
        for key, found in counts.items():
            expected[key] = merge(expected[key], found) if key in expected else found
        await writer.write(make_batch(*batch, sequence=sequence))
    assert await read_evidence(database) == expected
    assert await read_states(database) == states
    assert len(states) > 20
    if recording is not None:
        assert sum(counts.events["latency_p95:harm"].first for key, counts in expected.items() if key.rollout == 1) > 10
        assert {key.period % 3600 for key in expected if key.rollout == 1} == {0, 900, 1800, 2700}


async def test_how_a_rollout_is_recorded_is_read_once(database: Database, writer: BatchWriter) -> None:
    await begin_rollout(database, RECORDING)
    await writer.write(make_batch(make_interaction(unit="a", total_ms=1e6)))
    await rows(database, "UPDATE rollout SET terms = NULL RETURNING 1")
    await writer.write(make_batch(make_interaction(unit="b", total_ms=1e6), sequence=2))
    (counts,) = (await read_evidence(database)).values()
    assert counts.events["latency_p95:harm"].first == 2


async def test_mirrored_answers_are_kept_apart(database: Database, writer: BatchWriter, api_key: int) -> None:
    """They are evidence of the shadow stage, belong to no unit, and cost no key anything."""
    await begin_rollout(database, RECORDING)
    served = make_interaction(stage=0, kind=Kind.RANDOMISED, key=api_key, cost_usd=0.5)
    mirrored = make_interaction(
        stage=0, kind=Kind.SHADOW, arm=Arm.CANDIDATE, release=2, key=0, cost_usd=2.0, mirror_of=served.id
    )
    assert await writer.write(make_batch(served, mirrored)) == [KeyUsage(api_key, MONTH, 1, 0.5, 0.5)]
    stored = await rows(database, "SELECT id, mirror_of FROM interaction WHERE mirror_of IS NOT NULL")
    assert stored == [(uuid.UUID(bytes=mirrored.id), uuid.UUID(bytes=served.id))]
    found = {key.arm: counts for key, counts in (await read_evidence(database)).items()}
    assert {arm: (counts.interactions, counts.units) for arm, counts in found.items()} == {0: (1, 0), 1: (1, 0)}
    assert await count(database, "unit_state") == 0


def some_interaction(numbers: random.Random, units: int = 30) -> Interaction:
    failed = numbers.random() < 0.1
    return make_interaction(
        unix_ms=START_MS + numbers.randrange(7_200_000),
        unit=f"unit {numbers.randrange(units)}",
        rollout=numbers.choice((0, 1, 2)),
        stage=numbers.choice((1, 2)),
        arm=numbers.choice((Arm.STABLE, Arm.CANDIDATE)),
        kind=numbers.choice((Kind.RANDOMISED, Kind.MANUAL, Kind.PINNED)),
        own_unit=numbers.random() < 0.2,
        release_error=failed,
        error="provider_error" if failed else None,
        fallback=numbers.random() < 0.1,
        refused=numbers.random() < 0.1,
        cost_usd=numbers.choice((None, numbers.random())),
        total_ms=numbers.lognormvariate(6, 1),
    )


async def test_usage_is_added_up_by_key_and_month(database: Database, writer: BatchWriter, api_key: int) -> None:
    october = START_MS + 10 * 86_400_000
    first = make_batch(
        make_interaction(key=api_key, cost_usd=0.5),
        make_interaction(key=api_key, cost_usd=None),
        make_interaction(october, key=api_key, cost_usd=2.0),
    )
    assert await writer.write(first) == [
        KeyUsage(api_key, MONTH, 2, 0.5, 0.5),
        KeyUsage(api_key, "2026-10", 1, 2.0, 2.0),
    ]
    second = make_batch(make_interaction(key=api_key, cost_usd=0.25), sequence=2)
    assert await writer.write(second) == [KeyUsage(api_key, MONTH, 3, 0.75, 0.25)]


async def test_a_key_that_is_gone_keeps_nothing_from_being_recorded(database: Database, writer: BatchWriter) -> None:
    assert await writer.write(make_batch(make_interaction(key=12_345))) == []
    assert await count(database, "interaction") == 1


async def test_days_have_partitions_of_their_own(database: Database, writer: BatchWriter) -> None:
    midnight = (START_MS // 86_400_000 + 1) * 86_400_000
    await writer.write(make_batch(make_interaction(midnight - 1), make_interaction(midnight)))
    found = await rows(database, "SELECT tableoid::regclass::text, count(*) FROM interaction GROUP BY 1 ORDER BY 1")
    days = [dt.datetime.fromtimestamp(ms / 1000, dt.UTC) for ms in (midnight - 1, midnight)]
    assert found == [(f"interaction_{day:%Y%m%d}", 1) for day in days]


async def test_a_day_that_retention_dropped_is_made_again(database: Database, writer: BatchWriter) -> None:
    await writer.write(make_batch(make_interaction()))
    day = dt.datetime.fromtimestamp(START_MS / 1000, dt.UTC)
    async with database.connection() as connection:
        await connection.execute(f"DROP TABLE interaction_{day:%Y%m%d}".encode())
    await writer.write(make_batch(make_interaction(), sequence=2))
    assert await count(database, "interaction") == 1


# --- exactly once ---


async def test_a_batch_that_is_written_again_changes_nothing(
    database: Database, writer: BatchWriter, api_key: int
) -> None:
    batch = make_batch(*(make_interaction(unit=str(n), key=api_key, release_error=True) for n in range(5)))
    assert len(await writer.write(batch)) == 1
    before = await snapshot(database)
    assert await writer.write(batch) == []
    assert await BatchWriter(database).write(batch) == []
    assert await snapshot(database) == before
    assert await writer.has_written(WORKER, 1)
    assert not await writer.has_written(WORKER, 2)


async def snapshot(database: Database) -> list[Any]:
    tables = ("interaction", "evidence", "unit_state", "key_usage", "recorder_batch")
    return [await rows(database, f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]


async def test_the_same_batch_from_many_at_once_is_written_once(database: Database, api_key: int) -> None:
    batch = make_batch(*(make_interaction(unit=str(n), key=api_key) for n in range(20)))
    outcomes = await asyncio.gather(*(BatchWriter(database).write(batch) for _ in range(6)))
    assert sorted(map(len, outcomes)) == [0, 0, 0, 0, 0, 1]
    assert await count(database, "interaction") == 20
    assert sum(found.interactions for found in (await read_evidence(database)).values()) == 20


@pytest.mark.fault
async def test_a_connection_cut_at_any_point_leaves_no_doubt_after_a_retry(
    database: Database, database_url: str, proof: bool
) -> None:
    """The backend is killed at another step of each batch; each batch is retried until it is said to be there."""
    batches, unsure = (100 if proof else 10), 0
    for sequence in range(batches):
        batch = make_batch(*(make_interaction(unit=f"{sequence} {n}") for n in range(10)), sequence=sequence)
        killer = asyncio.ensure_future(kill_soon(database_url, sequence * 0.012 / batches))
        while not await try_to_write(database_url, batch):
            unsure += 1
        await killer
    assert unsure > 0
    assert await count(database, "interaction") == 10 * batches
    evidence = await read_evidence(database)
    assert sum(found.interactions for found in evidence.values()) == 10 * batches
    assert sum(found.units for found in evidence.values()) == 10 * batches


async def try_to_write(url: str, batch: Batch) -> bool:
    database = Database(url)  # of its own: a pool waits a second before it replaces a lost connection
    try:
        await database.open()
        await BatchWriter(database).write(batch)
        return True
    except StorageError:
        return False
    finally:
        await database.close()


async def kill_soon(url: str, seconds: float) -> None:
    await asyncio.sleep(seconds)  # where in the batch it hits does not matter, each place once does
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


# --- at the same time ---


async def test_workers_with_the_same_units_neither_deadlock_nor_count_twice(database: Database, api_key: int) -> None:
    """Units fail and are slow all the time: each first is counted once, whoever commits first."""
    await begin_rollout(database, RECORDING)
    numbers = random.Random(11)
    workers, batches, size, units = 6, 150, 12, 10

    async def work(worker: int) -> None:
        writer = BatchWriter(database)
        for sequence in range(batches):
            batch = [
                make_interaction(
                    unit=f"unit {numbers.randrange(units)}",
                    rollout=1 + sequence // 2,  # units are new again and again
                    key=api_key,
                    arm=numbers.choice((Arm.STABLE, Arm.CANDIDATE)),
                    release_error=numbers.random() < 0.15,
                    fallback=numbers.random() < 0.1,
                    total_ms=numbers.lognormvariate(6, 0.5),
                )
                for _ in range(size)
            ]
            await writer.write(make_batch(*batch, sequence=sequence, worker=uuid.UUID(int=worker)))

    async with asyncio.timeout(60):
        await asyncio.gather(*(work(worker) for worker in range(workers)))
    total, first_rollout = Counts(), Counts()
    for key, counts in (await read_evidence(database)).items():
        total = merge(total, counts)
        first_rollout = merge(first_rollout, counts) if key.rollout == 1 else first_rollout
    states = await read_states(database)
    assert total.interactions == workers * batches * size
    assert total.units == len(states)
    for position, metric in enumerate(EVENT_METRICS):
        with_event = sum(state.events >> position & 1 for state in states.values())
        assert total.events[metric.name].first == with_event
    assert total.events["error_rate"].first > 100
    slow = [state for (rollout, _), state in states.items() if rollout == 1 and is_slow(state)]
    assert first_rollout.events["latency_p95:harm"].first == len(slow) > 3
    usage = await rows(database, "SELECT requests FROM key_usage")
    assert usage == [(workers * batches * size,)]


def is_slow(state: UnitState) -> bool:
    test = RECORDING.slow[0]
    return state.bins[0] > test.stable_bin or state.bins[1] > test.candidate_bin


# --- refused ---


async def test_a_batch_with_a_row_that_does_not_fit_is_refused_whole(database: Database, writer: BatchWriter) -> None:
    poisoned = make_interaction(conversation="".join(map(chr, range(0x4E00, 0x4E00 + 8000))))  # too long for its index
    with pytest.raises(BatchRefusedError):
        await writer.write(make_batch(make_interaction(), poisoned))
    assert await snapshot(database) == [[], [], [], [], []]
    await writer.write(make_batch(make_interaction()))
    assert await count(database, "interaction") == 1


async def test_an_interaction_that_comes_twice_is_refused(writer: BatchWriter) -> None:
    one = make_interaction()
    await writer.write(make_batch(one))
    with pytest.raises(BatchRefusedError):
        await writer.write(make_batch(one, sequence=2))


def test_halves_have_keys_that_a_replay_finds_again() -> None:
    batch = make_batch(*(make_interaction(unit=str(n)) for n in range(5)))
    first, second = batch.split()
    assert first.interactions + second.interactions == batch.interactions
    assert batch.split() == (first, second)
    keys = {(part.worker, part.sequence) for part in (batch, first, second, *first.split(), *second.split())}
    assert len(keys) == 7


async def test_another_schema_is_no_fault_of_the_batch(database: Database, writer: BatchWriter) -> None:
    async with database.connection() as connection:
        await connection.execute("ALTER TABLE evidence RENAME COLUMN counts TO other")
    with pytest.raises(StorageError):
        await writer.write(make_batch(make_interaction()))


async def test_a_database_that_is_away_is_said_to_be(database_url: str) -> None:
    database = Database(database_url, wait_seconds=1)
    await database.open()
    writer = BatchWriter(database)
    await database.close()
    with pytest.raises(StorageError):
        await writer.write(make_batch(make_interaction()))
