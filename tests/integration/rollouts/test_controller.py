"""The controller: each step taken once, whatever dies when, and whoever else is at it."""

import asyncio
import random
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest

from headway.clock import ManualClock, SystemClock
from headway.domain.policy import KillSwitch, MetricRule, ShadowRule, StageRule
from headway.domain.recording import MetricBaseline
from headway.domain.snapshot import ShadowRoute
from headway.errors import ConflictError, StorageError
from headway.ids import Arm, Kind
from headway.rollouts.controller import Controller
from headway.rollouts.replaying import Replay, replay
from headway.rollouts.ticks import CLAIMED_ROWS, Ticks
from headway.storage.database import Database
from headway.storage.rollouts import list_figures
from tests.faults import CrashError, Fault, sabotage
from tests.trial import BASELINE, POLICY, TICK_SECONDS, Trial, begin_trial, next_trial

HOUR_MS = 3_600_000
SERVED = 150
"""Units between two ticks; two such ticks are enough for each step."""


# --- the way of a rollout ---


async def climb(trial: Trial, ticks: int = 8, **rates: float) -> None:
    for _ in range(ticks):
        if (await trial.rollout()).ended_at is not None:
            return
        await trial.serve(SERVED, **rates)
        await trial.tick()


async def test_a_good_candidate_is_promoted(trial: Trial) -> None:
    stable = (await trial.route()).stable
    await climb(trial)
    assert [(each.outcome, each.reason, each.author) for each in await trial.decisions()] == [
        ("hold", "dwell", "controller"),
        ("advance", "safe", "controller"),
        ("hold", "dwell", "controller"),
        ("advance", "safe", "controller"),
        ("hold", "holdback", "controller"),
        ("promote", "holdback", "controller"),
    ]
    rollout = await trial.rollout()
    assert (rollout.state, rollout.share, rollout.tick) == ("promoted", 1.0, 8)
    served = await trial.route()
    assert served.rollout is None
    assert served.stable != stable
    assert await trial.rows(
        "SELECT phase, share FROM rollout_stage WHERE rollout_id = %s ORDER BY stage", trial.number
    ) == [
        ("ramp", 0.2),
        ("ramp", 0.5),
        ("holdback", 0.98),
    ]


async def test_a_bad_candidate_is_rolled_back(trial: Trial) -> None:
    await climb(trial, stable=0.05, candidate=0.9)
    decision = (await trial.decisions())[-1]
    assert (decision.outcome, decision.reason, decision.metric) == ("roll_back", "harm", "error_rate")
    assert decision.assessment is not None
    (metric,) = decision.assessment.metrics
    assert metric.harm_log_e >= metric.harm_threshold
    assert (await trial.route()).rollout is None
    assert (await trial.rollout()).state == "rolled_back"


async def test_the_kill_switch(database: Database, clock: ManualClock) -> None:
    trial = await begin_trial(database, clock, replace(POLICY, kill_switch=KillSwitch(failures=3, of_first=20)))
    await climb(trial, ticks=1, candidate=1.0)
    assert await trial.outcomes() == [("roll_back", "kill_switch")]


async def test_evidence_is_claimed_once_and_marked_with_its_tick(trial: Trial) -> None:
    await trial.serve(30)
    await trial.tick()
    await trial.serve(20)
    await trial.tick()
    await trial.tick()
    counted = await trial.rows(
        "SELECT tick, sum((counts->>'interactions')::int) FROM evidence GROUP BY tick ORDER BY tick"
    )
    assert counted == [(1, 30), (2, 20)]
    assert await interactions(trial) == 50


async def interactions(trial: Trial) -> int:
    """What the books have counted, by the newest figure."""
    async with trial.database.connection() as connection:
        figures = await list_figures(connection, trial.number)
    return sum(figures[-1].assessment.interactions)


async def test_a_hold_is_logged_once_and_figures_are_kept_now_and_then(database: Database, clock: ManualClock) -> None:
    trial = await begin_trial(database, clock, replace(POLICY, dwell_seconds=200.0))
    for _ in range(12):
        await trial.tick()
    assert await trial.outcomes() == [("hold", "dwell")]
    ticks = await trial.rows("SELECT tick FROM figure WHERE rollout_id = %s ORDER BY tick", trial.number)
    assert [tick for (tick,) in ticks] == [1, 5, 9]  # a tenth of the dwell is four ticks
    rollout = await trial.rollout()
    assert (rollout.tick, rollout.version) == (12, 1)


async def test_a_snapshot_comes_only_when_traffic_moves(trial: Trial) -> None:
    async def snapshots() -> int:
        return int((await trial.rows("SELECT count(*) FROM routing_snapshot"))[0][0])

    before = await snapshots()
    await trial.serve(SERVED)
    await trial.tick()
    assert await snapshots() == before
    await trial.serve(SERVED)
    await trial.tick()
    assert await snapshots() == before + 1


async def test_rows_that_commit_late_are_taken_next(trial: Trial) -> None:
    """A writer that was given low numbers may commit after others with higher ones were claimed."""
    async with trial.database.connection() as slow:
        await slow.execute(
            "INSERT INTO evidence (rollout, stage, period, arm, counts)"
            " VALUES (%s, 1, to_timestamp(0), 0, '{\"interactions\": 7}')",
            (trial.number,),
        )
        await trial.serve(10)
        await trial.tick()
        assert await interactions(trial) == 10
    await trial.tick()
    assert await interactions(trial) == 17


async def test_a_backlog_is_taken_bit_by_bit(trial: Trial) -> None:
    await trial.rows(
        "INSERT INTO evidence (rollout, stage, period, arm, counts)"
        " SELECT %s, 1, to_timestamp(0), 0, '{\"interactions\": 1}' FROM generate_series(1, %s) RETURNING 1",
        trial.number,
        CLAIMED_ROWS + 5,
    )
    await trial.tick()
    assert await interactions(trial) == CLAIMED_ROWS
    await trial.tick()
    assert await interactions(trial) == CLAIMED_ROWS + 5


async def test_claims_read_the_unclaimed_rows_only(trial: Trial) -> None:
    await trial.rows(
        "INSERT INTO evidence (rollout, stage, period, arm, counts, tick)"
        " SELECT %s, 1, to_timestamp(0), 0, '{}', 1 FROM generate_series(1, 20000) RETURNING 1",
        trial.number,
    )
    await trial.serve(10)
    async with trial.database.connection() as connection:
        await connection.execute("ANALYZE evidence")
    plan = await trial.rows(
        "EXPLAIN SELECT id FROM evidence WHERE rollout = %s AND tick IS NULL ORDER BY id LIMIT 2000", trial.number
    )
    assert "evidence_unclaimed" in "\n".join(line for (line,) in plan)


# --- the rest of the states ---


async def test_shadow_is_left_after_enough_mirrored_answers(database: Database, clock: ManualClock) -> None:
    policy = replace(POLICY, shadow=ShadowRule(sample=0.5, interactions=20, budget_usd=0.01))
    trial = await begin_trial(database, clock, policy)
    await mirror(trial, 10)
    await trial.tick()
    assert (await trial.rollout()).shadow_usd == pytest.approx(0.0025)
    assert await shadow(trial) == ShadowRoute(0.5)
    await mirror(trial, 30)
    await trial.tick(1)
    assert (await trial.rollout()).shadow_usd == pytest.approx(0.01)
    assert await shadow(trial) == ShadowRoute(0.5, paused=True)  # the money is spent
    await trial.tick()
    rollout = await trial.rollout()
    assert (rollout.state, rollout.stage, rollout.share) == ("ramp", 1, 0.2)
    assert await trial.outcomes() == [("hold", "dwell"), ("advance", "shadow")]


async def mirror(trial: Trial, count: int) -> None:
    """Serve callers in the shadow stage, and mirror each of them."""
    await trial.serve(count)
    await trial.write(
        trial.interaction(f"mirror {number}", stage=0, arm=Arm.CANDIDATE, kind=Kind.SHADOW) for number in range(count)
    )


async def shadow(trial: Trial) -> ShadowRoute | None:
    route = (await trial.route()).rollout
    assert route is not None
    return route.shadow


async def test_a_baseline_is_collected_frozen_and_then_the_ramp_begins(database: Database, clock: ManualClock) -> None:
    trial = await begin_trial(database, clock, baseline=None)
    await trial.tick()
    assert await trial.outcomes() == [("hold", "baseline")]
    route = await trial.route()
    await trial.write(
        trial.interaction(
            f"before {number}",
            rollout=0,
            stage=0,
            kind=Kind.RANDOMISED,
            release=route.stable,
            release_error=number % 5 == 0,
        )
        for number in range(1_100)
    )
    await trial.tick(30)
    assert (await trial.rollout()).state == "baseline"  # it looks once a minute
    await trial.tick(31)
    rollout = await trial.rollout()
    assert (rollout.state, rollout.stage, rollout.share) == ("ramp", 1, 0.2)
    assert rollout.terms is not None
    assert rollout.terms.baseline.interactions == 1_100
    assert rollout.terms.baseline.metrics["error_rate"].level == pytest.approx(0.2)
    assert rollout.terms.recording.period_seconds == 10
    served = (await trial.route()).rollout
    assert served is not None
    assert (served.stage, served.share) == (1, 0.2)
    await climb(trial)
    assert (await trial.rollout()).state == "promoted"


async def test_a_step_waits_for_approval_and_says_so_once(database: Database, clock: ManualClock) -> None:
    stages = (StageRule(0.2), StageRule(0.5, approve=True), StageRule(1.0))
    trial = await begin_trial(database, clock, replace(POLICY, stages=stages))
    await climb(trial, ticks=4)
    assert (await trial.outcomes())[-1] == ("hold", "approval")
    await trial.take("approve")
    await trial.tick()
    assert (await trial.outcomes())[-2:] == [("approve", "command"), ("advance", "safe")]


async def test_a_pause_books_on_and_only_the_kill_switch_acts(database: Database, clock: ManualClock) -> None:
    trial = await begin_trial(database, clock, replace(POLICY, kill_switch=KillSwitch(failures=20, of_first=20)))
    await trial.take("pause")
    await climb(trial, ticks=3)
    assert await trial.outcomes() == [("pause", "command"), ("hold", "paused")]
    assert await trial.rows("SELECT count(*) FROM evidence WHERE tick IS NULL") == [(0,)]
    assert (await trial.rollout()).share == 0.2


async def test_inconclusive_is_kept_or_taken_back(database: Database, clock: ManualClock) -> None:
    trial = await begin_trial(database, clock, replace(POLICY, max_duration_seconds=30.0, on_inconclusive="keep"))
    await trial.tick(31)
    rollout = await trial.rollout()
    assert (rollout.state, rollout.share, rollout.ended_at) == ("inconclusive", 0.2, None)
    assert (await trial.route()).rollout is not None
    await trial.take("rollback")
    other = await next_trial(database, clock, replace(POLICY, max_duration_seconds=30.0))
    await other.tick(31)
    rollout = await other.rollout()
    assert (rollout.state, rollout.share) == ("inconclusive", 0.0)
    assert rollout.ended_at is not None
    assert (await other.route()).rollout is None


async def test_a_metric_without_data_is_an_alert(database: Database, clock: ManualClock) -> None:
    cost = MetricRule("cost", "guardrail", "normal_mixture", "ratio", "lower", margin=1.5, harm=1.25, weight=0.5)
    known = MetricBaseline(0, 0.001, limit=0.01, unit_variance=1e-6, bucket_interactions=4.0)
    baseline = replace(BASELINE, metrics={**BASELINE.metrics, "cost": known})
    policy = replace(POLICY, rules=(replace(POLICY.rules[0], weight=0.5), cost))
    trial = await begin_trial(database, clock, policy, baseline=baseline)
    for _ in range(3):
        await trial.serve(SERVED, cost_usd=None)
        await trial.tick()
    decision = (await trial.decisions())[-1]
    assert (decision.outcome, decision.reason, decision.metric) == ("hold", "no_data", "cost")


async def test_another_model_is_a_stage_of_its_own(trial: Trial) -> None:
    await trial.serve(50, provider_model="gpt-1")
    await trial.tick(1)
    await trial.serve(50, provider_model="gpt-2")
    await trial.tick(1)
    decision = (await trial.decisions())[-1]
    assert (decision.outcome, decision.reason) == ("hold", "provider_changed")
    rollout = await trial.rollout()
    assert (rollout.state, rollout.stage, rollout.share) == ("ramp", 2, 0.2)
    route = (await trial.route()).rollout
    assert route is not None
    assert route.stage == 2
    await trial.serve(50, provider_model="gpt-2")
    await trial.tick(1)
    assert (await trial.rollout()).stage == 2


async def test_another_fingerprint_is_an_alert_and_changes_nothing(trial: Trial) -> None:
    for fingerprint in ("fp_1", "fp_2"):  # who answers from the beginning is no news
        await trial.serve(20, provider_model="gpt-1", provider_fingerprint=fingerprint)
    await trial.tick(1)
    for fingerprint in ("fp_1", "fp_3", "fp_3"):
        await trial.serve(20, provider_model="gpt-1", provider_fingerprint=fingerprint)
        await trial.tick(1)
    decisions = await trial.decisions()
    assert [(each.outcome, each.reason) for each in decisions] == [("hold", "dwell"), ("hold", "fingerprint_changed")]
    assert decisions[1].message.endswith("same model: local gpt-1 fp_3")
    assert (await trial.rollout()).stage == 1
    async with trial.database.connection() as connection:
        assert await replay(connection, trial.number) == Replay(1, 1, ())


async def test_a_unit_with_much_of_the_traffic_is_an_alert_once(trial: Trial) -> None:
    await trial.serve(380)
    await trial.write(trial.interaction("heavy") for _ in range(20))
    await trial.tick(1)
    assert ("hold", "heavy_unit") not in await trial.outcomes()  # 20 of 400 are not more than 5 %
    await trial.write(trial.interaction("heavy") for _ in range(10))
    await trial.tick(30)
    assert ("hold", "heavy_unit") not in await trial.outcomes()  # it looks once a minute
    for _ in range(3):
        await trial.tick(60)
    alerts = [each for each in await trial.decisions() if each.reason == "heavy_unit"]
    assert [each.message[:52] for each in alerts] == ["one unit has 30 of the latest 410 interactions: wher"]


# --- whatever dies when ---


async def state_of(trial: Trial) -> list[tuple[Any, ...]]:
    """All that a tick or a command may change, as it is."""
    tables = (
        *("rollout", "rollout_stage", "block", "decision", "figure", "evidence", "rating", "application"),
        *("routing_snapshot", "webhook_delivery", "audit_log"),
    )
    return await trial.rows(
        " UNION ALL ".join(
            f"SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} AS t" for table in tables
        )
    )


async def story_of(trial: Trial) -> list[Any]:
    """What has happened, told so that two rollouts with the same traffic tell the same."""
    rollout, decisions = await trial.rollout(), await trial.decisions()
    began_ms = decisions[0].before.started_ms
    told: list[Any] = [(rollout.state, rollout.stage, rollout.share, rollout.version, rollout.tick)]
    for each in decisions:
        after = replace(each.after, since_ms=each.after.since_ms - began_ms, started_ms=0)
        told.append((each.number, each.tick, each.outcome, each.reason, each.message, after, each.assessment))
    queries = (
        "SELECT stage, share, phase FROM rollout_stage WHERE rollout_id = %s ORDER BY stage",
        "SELECT tick, body FROM block WHERE rollout_id = %s ORDER BY tick",
        "SELECT tick, count(*) FROM evidence WHERE rollout = %s GROUP BY tick ORDER BY tick",
    )
    return told + [await trial.rows(query, trial.number) for query in queries]


def align(clock: ManualClock) -> None:
    """Go on to the next full hour: exposure periods fall alike then."""
    clock.advance((HOUR_MS - clock.unix_ms() % HOUR_MS) / 1000)


async def take_back(trial: Trial) -> None:
    """Make calm the stable release again, as it was at the beginning."""
    await trial.rows("UPDATE application SET stable_release = 1 WHERE id = 1 RETURNING 1")


async def fail(trial: Trial, fault: Fault, monkeypatch: pytest.MonkeyPatch, at: int = 0) -> int:
    """Take a tick as a controller that has just been started, and meet a fault; count its statements."""
    ticks = Ticks(trial.clock, TICK_SECONDS)
    with sabotage(monkeypatch, trial.database.url, fault, at) as saboteur, pytest.raises((CrashError, StorageError)):
        async with trial.database.connection() as connection:
            await ticks.take(connection, trial.number)
    assert saboteur.struck
    return saboteur.statements


@pytest.mark.parametrize("candidate", [0.0, 0.9])
async def test_a_crash_at_every_statement_of_every_step(
    candidate: float, database: Database, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails, nothing has changed; the next tick takes the step, once, as if nothing had happened."""
    align(clock)
    reference = await begin_trial(database, clock)
    await climb(reference, candidate=candidate)
    steps = {each.tick for each in await reference.decisions() if each.outcome != "hold"}
    await take_back(reference)
    align(clock)
    trial = await next_trial(database, clock)
    tick = struck = 0
    while (await trial.rollout()).ended_at is None:
        tick += 1
        await trial.serve(SERVED, candidate=candidate)
        clock.advance(TICK_SECONDS)
        before = await state_of(trial)
        statements = await fail(trial, "commit fails", monkeypatch)
        assert await state_of(trial) == before
        for at in range(1, statements + 1) if tick in steps else ():
            fault: Fault = "raises" if (at + tick) % 2 else "server dies"
            await fail(trial, fault, monkeypatch, at)
            assert await state_of(trial) == before, f"{fault} at statement {at}"
            struck += 1
        await fail(trial, "commit unknown", monkeypatch)
        assert await state_of(trial) != before
    assert await story_of(trial) == await story_of(reference)
    assert struck >= 15 * len(steps)


async def test_a_crash_at_every_statement_of_a_command(
    database: Database, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = await begin_trial(database, clock)

    async def promote(fault: Fault, at: int = 0) -> int:
        with sabotage(monkeypatch, database.url, fault, at) as saboteur, pytest.raises((CrashError, StorageError)):
            await trial.take("promote")
        assert saboteur.struck
        return saboteur.statements

    before = await state_of(trial)
    statements = await promote("commit fails")
    assert await state_of(trial) == before
    for at in range(1, statements + 1):
        await promote("server dies" if at % 2 else "raises", at)
        assert await state_of(trial) == before, f"statement {at}"
    await promote("commit unknown")
    assert (await trial.rollout()).state == "promoted"
    with pytest.raises(ConflictError, match="the rollout is over"):
        await trial.take("promote")
    assert len(await trial.decisions()) == 1


# --- several at it ---


async def test_two_controllers_at_once_take_each_step_once(database: Database, clock: ManualClock) -> None:
    align(clock)
    reference = await begin_trial(database, clock)
    await climb(reference)
    await take_back(reference)
    align(clock)
    trial = await next_trial(database, clock)
    controllers = [Controller(database, clock, TICK_SECONDS) for _ in range(3)]
    while (await trial.rollout()).ended_at is None:
        await trial.serve(SERVED)
        clock.advance(TICK_SECONDS)
        await asyncio.gather(*(controller.tick() for controller in controllers))
    told, expected = await trial.decisions(), await reference.decisions()
    assert [each.number for each in told] == list(range(1, len(told) + 1))
    assert all(one.after == two.before for one, two in pairwise(told))
    steps = [(each.outcome, each.reason, each.message) for each in told if each.outcome != "hold"]
    assert steps == [(each.outcome, each.reason, each.message) for each in expected if each.outcome != "hold"]
    assert sum(told[-1].assessment.interactions) == trial.units  # type: ignore[union-attr]  # of the controller
    assert await trial.rows("SELECT count(*) FROM evidence WHERE rollout = %s AND tick IS NULL", trial.number) == [(0,)]


async def test_people_and_controllers_race_while_data_flows(database: Database, clock: ManualClock) -> None:
    trial = await begin_trial(database, clock, replace(POLICY, max_duration_seconds=1e6))
    chance = random.Random(3)
    controllers = [Controller(database, clock, TICK_SECONDS) for _ in range(2)]
    refused = 0

    async def ask() -> None:
        nonlocal refused
        for _ in range(25):
            try:
                await trial.take(chance.choice(("pause", "resume", "advance", "approve")))
            except ConflictError:
                refused += 1

    async def flow() -> None:
        for _ in range(15):
            await trial.serve(20)
            clock.advance(1)

    async def lead(controller: Controller) -> None:
        for _ in range(20):
            await controller.tick()

    await asyncio.gather(ask(), ask(), flow(), *(lead(controller) for controller in controllers))
    await trial.tick()
    decisions, rollout = await trial.decisions(), await trial.rollout()
    assert [each.number for each in decisions] == list(range(1, len(decisions) + 1))
    assert all(one.after == two.before for one, two in pairwise(decisions))
    assert rollout.status == decisions[-1].after
    stages = await trial.rows("SELECT stage FROM rollout_stage WHERE rollout_id = %s ORDER BY stage", trial.number)
    assert [stage for (stage,) in stages] == list(range(1, rollout.stage + 1))
    assert await trial.rows("SELECT count(*) FROM evidence WHERE tick IS NULL") == [(0,)]
    counted = await trial.rows(
        "SELECT sum((counts->>'interactions')::int) FROM evidence WHERE rollout = %s", trial.number
    )
    assert counted == [(trial.units,)]
    async with database.connection() as connection:
        replayed = await replay(connection, trial.number)
    assert replayed.mismatches == ()
    assert replayed.checked == len(decisions)


async def test_a_rollout_that_fails_does_not_stop_the_others(
    database: Database, clock: ManualClock, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = await begin_trial(database, clock)
    await trial.rows("UPDATE rollout SET books = 'nonsense' WHERE id = %s RETURNING 1", trial.number)
    other = await next_trial(database, clock, application="sales")
    await other.tick()
    assert (await other.rollout()).tick == 1
    assert (await trial.rollout()).tick == 0
    assert "headway_rollout_failures_total 1.0" in metrics(other.controller)
    assert "headway_rollout_tick_seconds_count 2.0" in metrics(other.controller)
    await trial.rows("UPDATE rollout SET books = NULL WHERE id = %s RETURNING 1", trial.number)
    await trial.tick()
    assert (await trial.rollout()).tick == 1


def metrics(controller: Controller) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(controller)
    return generate_latest(registry).decode()


# --- leading ---


async def test_one_leads_and_another_takes_over(database: Database) -> None:
    clock = SystemClock()
    trial = await begin_trial(database, ManualClock(clock.unix_ms()))
    controllers = [Controller(database, clock, 0.05) for _ in range(2)]
    tasks = {controller: asyncio.create_task(controller.run()) for controller in controllers}
    try:
        first = await leader(controllers)
        (second,) = set(controllers) - {first}
        assert "headway_controller_leading 0.0" in metrics(second)
        while not tasks[first].done():  # a cancellation can get lost: headway.runtime.worker.Tasks
            tasks[first].cancel()
            await asyncio.wait((tasks[first],), timeout=3)
        assert await leader([second]) is second
        await advance_ticks(trial)
        await trial.rows("SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' AND granted")
        await advance_ticks(trial)
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


async def advance_ticks(trial: Trial) -> None:
    """Wait until somebody has taken some more ticks."""
    tick = (await trial.rollout()).tick
    async with asyncio.timeout(30):
        while (await trial.rollout()).tick < tick + 3:  # noqa: ASYNC110 (the row has no event to wait for)
            await asyncio.sleep(0.01)


async def leader(controllers: list[Controller]) -> Controller:
    """The one that leads, once there is one."""
    async with asyncio.timeout(30):
        while True:
            for controller in controllers:
                if "headway_controller_leading 1.0" in metrics(controller):
                    return controller
            await asyncio.sleep(0.01)


async def test_it_waits_for_a_database_that_is_away(database: Database, clock: ManualClock) -> None:
    away = Database("host=127.0.0.1 port=1 dbname=nowhere", wait_seconds=0.1)
    await away.open(wait=False)
    controller = Controller(away, clock, TICK_SECONDS)
    try:
        with pytest.raises(StorageError):
            await controller.tick()
        running = asyncio.create_task(controller.run())
        async with asyncio.timeout(30):
            while not clock.sleepers:  # noqa: ASYNC110 (a manual clock has no event to wait for)
                await asyncio.sleep(0.01)
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    finally:
        await away.close()
