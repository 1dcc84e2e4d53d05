"""Retention of rollouts: what they were booked from goes when they ended long ago; what decided stays for ever."""

from datetime import timedelta

from headway.clock import ManualClock, utc
from headway.rollouts.replaying import replay
from headway.storage import retention
from headway.storage.database import Database
from tests.trial import Trial, begin_trial, next_trial

BOOKED = ("unit_state", "rating", "response", "evidence")


async def counts(trial: Trial, rollout: int) -> dict[str, int]:
    return {
        table: int((await trial.rows(f"SELECT count(*) FROM {table} WHERE rollout = %s", rollout))[0][0])
        for table in BOOKED
    }


async def add_ratings(trial: Trial) -> None:
    await trial.rows(
        "INSERT INTO rating (rollout, metric, unit, feedback, stage, period, arm, settles_at)"
        " VALUES (%s, 'thumbs_up', 'u', gen_random_uuid(), 1, now(), 1, now()) RETURNING 1",
        trial.number,
    )
    await trial.rows(
        "INSERT INTO response (rollout, stage, period, arm, unit, kind) VALUES (%s, 1, now(), 1, 'u', 'report')"
        " RETURNING 1",
        trial.number,
    )


async def test_what_ended_rollouts_were_booked_from_is_trimmed(database: Database, clock: ManualClock) -> None:
    ended = await begin_trial(database, clock)
    await ended.serve(150)
    await ended.tick()
    await add_ratings(ended)
    await ended.take("rollback")
    running = await next_trial(database, clock)
    await running.serve(50)
    await running.tick()
    await add_ratings(running)
    async with database.connection() as connection:
        early = await retention.enforce(connection, utc(clock.unix_ms()) + timedelta(days=29))
        assert early.booked == 0
        removed = await retention.enforce(connection, utc(clock.unix_ms()) + timedelta(days=31))
        assert removed.booked == 150 + 1 + 1 + 2  # units, rating, response, evidence of either arm
        assert (await retention.enforce(connection, utc(clock.unix_ms()) + timedelta(days=31))).booked == 0
        assert (await replay(connection, ended.number)).mismatches == ()
    assert await counts(ended, ended.number) == dict.fromkeys(BOOKED, 0)
    assert await counts(running, running.number) == {"unit_state": 50, "rating": 1, "response": 1, "evidence": 2}
    for table in ("block", "decision", "figure", "rollout_stage"):
        assert (await ended.rows(f"SELECT count(*) FROM {table} WHERE rollout_id = %s", ended.number))[0][0] > 0


async def test_it_trims_in_bounded_batches(database: Database, clock: ManualClock) -> None:
    trial = await begin_trial(database, clock)
    await trial.rows(
        "INSERT INTO unit_state (rollout, unit, arm, stage, first_at, events, latency_bins)"
        " SELECT %s, int4send(n), 0, 1, now(), 0, '{}' FROM generate_series(1, %s) AS n RETURNING 1",
        trial.number,
        retention.BATCH_ROWS + 1,
    )
    await trial.take("rollback")
    later = utc(clock.unix_ms()) + timedelta(days=31)
    async with database.connection() as connection:
        assert (await retention.enforce(connection, later, most_batches=1)).booked == retention.BATCH_ROWS
        assert (await retention.enforce(connection, later)).booked == 1


async def test_messages_that_need_no_more_attempts_go(database: Database, clock: ManualClock) -> None:
    trial = await begin_trial(database, clock)
    now = utc(clock.unix_ms())
    for age, next_at in ((31, None), (31, now), (29, None)):
        await trial.rows(
            "INSERT INTO webhook_delivery (id, created_at, event, url, body, next_at)"
            " VALUES (gen_random_uuid(), %s, 'rollout.started', 'http://127.0.0.1:1/', '{}', %s) RETURNING 1",
            now - timedelta(days=age),
            next_at,
        )
    async with database.connection() as connection:
        assert (await retention.enforce(connection, now)).webhooks == 1
