"""What people ask of a rollout: it happens, it is written down, and gateways are told."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest
from msgspec.structs import replace

from headway.clock import ManualClock
from headway.domain.policy import ShadowRule, StageRule
from headway.domain.rollout import Command
from headway.domain.snapshot import ShadowRoute
from headway.errors import ConflictError, HeadwayError, NotFoundError
from headway.ids import Kind
from headway.rollouts.manual import set_share
from headway.rollouts.operations import Taken, take
from headway.storage.database import Database
from headway.storage.rollouts import find_rollout, list_stages
from tests.trial import POLICY, Trial, begin_trial, next_trial


async def test_it_begins_at_the_first_step(trial: Trial) -> None:
    rollout = await trial.rollout()
    assert (rollout.state, rollout.stage, rollout.share, rollout.policy) == ("ramp", 1, 0.2, "careful")
    assert (rollout.started_by, rollout.restarts, rollout.version, rollout.tick) == ("ann", 0, 0, 0)
    assert rollout.status is not None
    assert rollout.terms is not None
    assert rollout.terms.policy == POLICY
    route = (await trial.route()).rollout
    assert route is not None
    assert (route.share, route.stage, route.kind, route.shadow) == (0.2, 1, Kind.RANDOMISED, None)
    assert await trial.decisions() == []


async def test_a_step_is_taken_logged_audited_and_published(trial: Trial) -> None:
    before = await trial.rollout()
    taken = await trial.take("advance", "we know it")
    assert (taken.rollout.state, taken.rollout.stage, taken.rollout.share) == ("ramp", 2, 0.5)
    assert taken.rollout.version == before.version + 1
    (decision,) = await trial.decisions()
    assert taken.decision == decision
    assert (decision.number, decision.author, decision.command, decision.words) == (1, "ann", "advance", "we know it")
    assert (decision.outcome, decision.reason, decision.assessment) == ("advance", "command", None)
    assert (decision.before, decision.after) == (before.status, taken.rollout.status)
    assert await trial.rows(
        "SELECT author, action, subject, reason, detail->'to' FROM audit_log ORDER BY id DESC LIMIT 1"
    ) == [
        (
            "ann",
            "rollout.advance",
            f"rollout {trial.number} of application support",
            "we know it",
            {"state": "ramp", "share": 0.5},
        )
    ]
    async with trial.database.connection() as connection:
        first, second = await list_stages(connection, trial.number)
    assert (first.stage, first.share, first.phase) == (1, 0.2, "ramp")
    assert (second.stage, second.share, second.phase, second.author, second.reason) == (
        2,
        0.5,
        "ramp",
        "ann",
        "we know it",
    )
    route = (await trial.route()).rollout
    assert route is not None
    assert (route.stage, route.share) == (2, 0.5)
    assert taken.snapshot > 0


async def test_the_way_up(trial: Trial) -> None:
    await trial.take("advance")
    holdback = await trial.take("advance")
    assert (holdback.rollout.state, holdback.rollout.share, holdback.rollout.ended_at) == ("holdback", 0.98, None)
    served = await trial.route()
    assert served.rollout is not None
    assert (served.rollout.kind, served.rollout.share, served.rollout.stage) == (Kind.HOLDBACK, 0.98, 3)
    stable = served.stable
    promoted = await trial.take("promote")
    assert (promoted.rollout.state, promoted.rollout.share) == ("promoted", 1.0)
    assert promoted.rollout.ended_at is not None
    served = await trial.route()
    assert served.rollout is None
    assert served.stable != stable
    with pytest.raises(ConflictError, match="the rollout is over"):
        await trial.take("rollback")


async def test_the_way_back(trial: Trial) -> None:
    stable = (await trial.route()).stable
    taken = await trial.take("rollback", "users complain")
    assert (taken.rollout.state, taken.rollout.share) == ("rolled_back", 0.0)
    served = await trial.route()
    assert (served.rollout, served.stable) == (None, stable)
    again = await next_trial(trial.database, trial.clock)
    assert again.number > trial.number


async def test_a_pause_leaves_traffic_alone(trial: Trial) -> None:
    before = await trial.route()
    taken = await trial.take("pause")
    assert (taken.rollout.state, taken.rollout.share, taken.snapshot) == ("paused", 0.2, 0)
    assert await trial.route() == before
    trial.clock.advance(30)
    resumed = await trial.take("resume")
    assert (resumed.rollout.state, resumed.rollout.stage, resumed.snapshot) == ("ramp", 1, 0)
    assert resumed.rollout.status is not None
    assert resumed.rollout.status.paused_ms == 30_000


async def test_an_approval_is_noted(database: Database, clock: ManualClock) -> None:
    stages = (StageRule(0.2), StageRule(1.0, approve=True))
    trial = await begin_trial(database, clock, replace(POLICY, stages=stages))
    taken = await trial.take("approve", "looks fine")
    assert taken.decision.after.approved_step == 1
    assert (taken.rollout.share, taken.snapshot) == (0.2, 0)
    with pytest.raises(ConflictError, match="no step ahead of this rollout waits for approval"):
        await trial.take("approve")


async def test_shadow_is_routed_without_a_share(database: Database, clock: ManualClock) -> None:
    policy = replace(POLICY, shadow=ShadowRule(sample=0.25, budget_usd=1.0), on_lost_control="stable")
    trial = await begin_trial(database, clock, policy)

    async def shadow() -> ShadowRoute | None:
        route = (await trial.route()).rollout
        assert route is not None
        assert (route.stage, route.share, route.kind, route.stable_when_lost) == (0, 0.0, Kind.RANDOMISED, True)
        return route.shadow

    assert await shadow() == ShadowRoute(0.25)
    assert (await trial.take("pause")).snapshot > 0
    assert await shadow() == ShadowRoute(0.25, paused=True)
    await trial.take("resume")
    assert await shadow() == ShadowRoute(0.25)
    await trial.take("advance")
    route = (await trial.route()).rollout
    assert route is not None
    assert (route.stage, route.share, route.shadow) == (1, 0.2, None)


async def test_what_collects_its_baseline_is_not_routed(database: Database, clock: ManualClock) -> None:
    trial = await begin_trial(database, clock, baseline=None)
    assert (await trial.rollout()).state == "baseline"
    assert (await trial.route()).rollout is None
    await trial.take("pause")
    assert (await trial.route()).rollout is None
    async with database.connection() as connection:
        assert await list_stages(connection, trial.number) == []
    await trial.take("resume")
    await trial.take("rollback")
    assert (await trial.rollout()).state == "rolled_back"


async def test_what_makes_no_sense_changes_nothing(trial: Trial) -> None:
    before = (await trial.rollout(), await trial.route())
    with pytest.raises(ConflictError, match="the rollout is not paused"):
        await trial.take("resume")
    with pytest.raises(NotFoundError, match="there is no rollout 999; `headway rollout list` shows them"):
        async with trial.database.connection() as connection:
            await take(connection, 999, "pause", author="ann", reason="", now_ms=0)
    assert (await trial.rollout(), await trial.route()) == before
    assert await trial.decisions() == []


async def test_manual_and_staged_rollouts_name_each_others_commands(trial: Trial) -> None:
    async with trial.database.connection() as connection:
        with pytest.raises(
            ConflictError, match="under the policy careful, which sets the share; `headway rollout show"
        ):
            await set_share(connection, "support", "bold", 0.5, author="bob")
    await trial.take("rollback")
    async with trial.database.connection() as connection:
        manual = (await set_share(connection, "support", "bold", 0.5, author="bob")).rollout
        assert (manual.policy, manual.started_by, manual.terms, manual.status) == ("manual", "bob", None, None)
        with pytest.raises(ConflictError, match="is manual: `headway share support bold` sets its share"):
            await take(connection, manual.number, "pause", author="ann", reason="", now_ms=0)


async def test_many_people_at_once_leave_one_consistent_story(trial: Trial) -> None:
    commands: Sequence[Command] = ("pause", "resume", "advance", "advance", "pause", "resume", "promote", "rollback")

    async def wish(command: Command) -> Taken | HeadwayError:
        try:
            return await trial.take(command)
        except ConflictError as error:
            return error

    results = await asyncio.gather(*(wish(command) for command in commands))
    taken = [each for each in results if isinstance(each, Taken)]
    decisions = await trial.decisions()
    assert len(decisions) == len(taken)
    assert [each.number for each in decisions] == list(range(1, len(decisions) + 1))
    assert all(one.after == two.before for one, two in pairwise(decisions))
    rollout = await trial.rollout()
    assert rollout.status == decisions[-1].after
    assert rollout.version == len(decisions)
    assert rollout.ended_at is not None  # promote and rollback both end it, and one of them came
    async with trial.database.connection() as connection:
        assert await find_rollout(connection, trial.number) == rollout
