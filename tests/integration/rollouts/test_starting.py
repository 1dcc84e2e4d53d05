"""Starting rollouts: by applying a file and directly; what is frozen, what is refused, and what is foretold."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from headway.clock import ManualClock, utc
from headway.config.load import ConfigurationFile, load
from headway.domain.recording import plan_recording
from headway.domain.snapshot import RolloutRoute
from headway.errors import ConflictError, HeadwayError, NotFoundError
from headway.ids import Kind
from headway.rollouts import applying, starting
from headway.rollouts.applying import AppliedFile, FilePlan
from headway.rollouts.controller import Controller
from headway.rollouts.manual import set_share
from headway.rollouts.operations import take
from headway.rollouts.replaying import replay
from headway.rollouts.starting import Started
from headway.storage import routing
from headway.storage.database import Database
from headway.storage.rollouts import Rollout, active_rollout, find_rollout, list_rollouts, list_stages
from tests.history import Record, write
from tests.project import Project

NOW = datetime(2026, 3, 20, 15, 30, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
CAREFUL = """\
policies:
  careful:
    stages: [10%, 50%, 100%]
    goal: {metric: thumbs_up, margin: 10pp}
    guardrails: [{metric: error_rate, ratio: 3}]
    dwell: 1m
    feedback_window: 10m
    min_units: 20
"""
UNDER_POLICY = "    policy: careful\n"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project in a folder of its own."""
    return Project(tmp_path)


class Office:
    """Applies files and starts rollouts, as ann, at one moment."""

    def __init__(self, database: Database, project: Project) -> None:
        self.database = database
        self.project = project

    def file(self, prompt: str, policies: str = CAREFUL, keys: str = UNDER_POLICY, **fields: Any) -> ConfigurationFile:
        return self.project.write(prompt, keys=keys, more=policies, **fields)

    async def plan(self, file: ConfigurationFile, *, retry: bool = False) -> FilePlan:
        async with self.database.connection() as connection:
            return await applying.plan(connection, file, NOW_MS, retry=retry)

    async def apply(self, file: ConfigurationFile, **options: Any) -> AppliedFile:
        async with self.database.connection() as connection:
            return await applying.apply(connection, file, author="ann", now_ms=NOW_MS, **options)

    async def start(self, release: str, application: str = "support", **options: Any) -> Started:
        async with self.database.connection() as connection:
            return await starting.start(
                connection, application, release, author="ann", reason="try it", now_ms=NOW_MS, **options
            )

    async def roll_back(self, number: int) -> None:
        async with self.database.connection() as connection:
            await take(connection, number, "rollback", author="ann", reason="no", now_ms=NOW_MS)

    async def promote(self, number: int) -> None:
        async with self.database.connection() as connection:
            await take(connection, number, "promote", author="ann", reason="yes", now_ms=NOW_MS)

    async def record(self, **fields: Any) -> None:
        """Traffic of the stable release: 1,000 conversations an hour, by default half of them rated."""
        values = {"count": 8_000, "hours": 4.0, "turns": 2, "thumbs": 0.5} | fields
        async with self.database.connection() as connection:
            await write(connection, Record(application=1, release=1, until=NOW, **values))

    async def running(self, application: str = "support") -> Rollout | None:
        async with self.database.connection() as connection:
            return await active_rollout(connection, application)

    async def route(self) -> RolloutRoute | None:
        async with self.database.connection() as connection:
            snapshot = await routing.latest(connection)
        assert snapshot is not None
        return snapshot.applications["support"].rollout

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        async with self.database.connection() as connection:
            return await (await connection.execute(query.encode())).fetchall()


@pytest.fixture
async def office(database: Database, project: Project) -> Office:
    """Support has its first release, under the policy careful, and a day of traffic."""
    office = Office(database, project)
    await office.apply(office.file("Be brief."))
    await office.record()
    return office


# --- by applying a file ---


async def test_a_changed_release_is_rolled_out(office: Office) -> None:
    file = office.file("Be long.")
    applied = await office.apply(file, reason="users ask for it")
    name = file.specification.applications["support"].release.name
    (rollout,) = applied.rollouts
    assert (rollout.candidate, rollout.policy, rollout.state, rollout.stage, rollout.share) == (
        name,
        "careful",
        "ramp",
        1,
        0.1,
    )
    assert (rollout.started_by, rollout.restarts, rollout.started_at) == ("ann", 0, utc(NOW_MS))
    route = await office.route()
    assert route is not None
    assert (route.number, route.share, route.stage, route.kind, len(route.salt)) == (
        rollout.number,
        0.1,
        1,
        Kind.RANDOMISED,
        16,
    )
    async with office.database.connection() as connection:
        snapshot = await routing.latest(connection)
        (stage,) = await list_stages(connection, rollout.number)
    assert snapshot is not None
    assert applied.snapshot == snapshot.number
    assert (stage.stage, stage.share, stage.phase, stage.author, stage.reason) == (
        1,
        0.1,
        "ramp",
        "ann",
        "users ask for it",
    )
    (entry,) = await office.rows("SELECT author, subject, reason FROM audit_log WHERE action = 'rollout.start'")
    assert entry == ("ann", f"rollout {rollout.number} of application support", "users ask for it")


async def test_terms_are_frozen_at_the_start(office: Office) -> None:
    file = office.file("Be long.")
    (rollout,) = (await office.apply(file)).rollouts
    terms = rollout.terms
    assert terms is not None
    assert terms.policy == file.specification.policies["careful"]
    assert terms.unit == "conversation"
    assert set(terms.feedback) == {"thumbs_up"}
    assert terms.baseline.interactions == 8_000
    assert terms.baseline.metrics["thumbs_up"].level == pytest.approx(0.7, abs=0.02)
    assert terms.recording == plan_recording(terms.policy, terms.baseline)
    wider = CAREFUL.replace("margin: 10pp", "margin: 20pp")
    again = await office.apply(office.file("Be long.", wider))
    assert again.rollouts == ()
    (release,) = again.configuration.plan.releases
    assert release.action == "running"
    assert release.note == "the running rollout keeps the policy it was started under (careful)"
    kept = await office.running()
    assert kept is not None
    assert kept.terms == terms


async def test_without_a_baseline_it_collects_one_first(office: Office) -> None:
    await office.rows("DELETE FROM feedback RETURNING id")
    (rollout,) = (await office.apply(office.file("Be long."))).rollouts
    assert (rollout.state, rollout.stage, rollout.share) == ("baseline", 0, 0.0)
    assert await office.route() is None
    async with office.database.connection() as connection:
        assert await list_stages(connection, rollout.number) == []
    assert (await office.plan(office.file("Be long."))).configuration.releases[0].action == "running"


async def test_declared_levels_are_enough(office: Office) -> None:
    await office.rows("DELETE FROM feedback RETURNING id")
    declared = CAREFUL + "    baselines: {thumbs_up: {level: 70%}}\n"
    (rollout,) = (await office.apply(office.file("Be long.", declared))).rollouts
    assert rollout.state == "ramp"


async def test_a_shadow_stage_comes_first(office: Office) -> None:
    shadowed = CAREFUL.replace("stages: [", "stages: [{shadow: 20%, interactions: 80}, ")
    (rollout,) = (await office.apply(office.file("Be long.", shadowed))).rollouts
    assert (rollout.state, rollout.stage, rollout.share) == ("shadow", 0, 0.0)
    route = await office.route()
    assert route is not None
    assert route.shadow is not None
    assert (route.share, route.stage, route.shadow.sample) == (0.0, 0, 0.2)


async def test_planning_writes_nothing(office: Office) -> None:
    tables = "SELECT (SELECT count(*) FROM rollout), (SELECT max(id) FROM audit_log), (SELECT max(number) FROM %s)"
    before = await office.rows(tables % "routing_snapshot")
    planned = await office.plan(office.file("Be long."))
    (start,) = planned.rollouts
    assert (start.application, start.policy) == ("support", "careful")
    assert planned.configuration.releases[0].action == "rollout"
    assert not planned.is_empty
    assert await office.rows(tables % "routing_snapshot") == before


async def test_applying_again_starts_nothing(office: Office) -> None:
    await office.apply(office.file("Be long."))
    again = await office.apply(office.file("Be long."))
    assert again.rollouts == ()
    assert again.snapshot == 0
    assert (await office.plan(office.file("Be long."))).is_empty


async def test_manual_stays_manual(office: Office) -> None:
    file = office.file("Be long.", keys="")
    applied = await office.apply(file)
    assert applied.rollouts == ()
    name = file.specification.applications["support"].release.name
    assert applied.configuration.plan.releases[0].next_step == f"headway share support {name} 10%"
    # It is rolled out once it comes under a policy.
    (rollout,) = (await office.apply(office.file("Be long."))).rollouts
    assert rollout.candidate == name


async def test_going_back_to_stable_leaves_the_rollout(office: Office) -> None:
    (rollout,) = (await office.apply(office.file("Be long."))).rollouts
    back = await office.apply(office.file("Be brief."))
    (release,) = back.configuration.plan.releases
    assert release.action == "stable"
    assert release.note == (
        f"{rollout.candidate} is still being rolled out; to take it back: `headway rollout rollback support`"
    )
    running = await office.running()
    assert running is not None
    assert running.number == rollout.number


async def test_a_second_rollout_is_refused(office: Office) -> None:
    (rollout,) = (await office.apply(office.file("Be long."))).rollouts
    third = office.file("Be quick.")
    complaint = f"{rollout.candidate} is being rolled out.*`headway rollout rollback support`"
    (obstacle,) = (await office.plan(third)).obstacles(accept=True)
    with pytest.raises(ConflictError, match=complaint) as refused:
        await office.apply(third, accept=True, retry=True)
    assert str(refused.value) == obstacle
    assert await office.rows("SELECT count(*) FROM configuration") == [(2,)]
    await office.roll_back(rollout.number)
    assert len((await office.apply(third)).rollouts) == 1


async def test_another_file_does_not_bring_a_stopped_release_back(office: Office) -> None:
    (rollout,) = (await office.apply(office.file("Be long."))).rollouts
    await office.roll_back(rollout.number)
    more = "  sales:\n    release: {deployment: spare}\n"
    applied = await office.apply(office.file("Be long.", more + CAREFUL))
    assert applied.rollouts == ()
    release = applied.configuration.plan.releases[0]
    assert (release.action, release.next_step) == ("candidate", "headway apply --retry")
    assert release.note == f"{rollout.candidate} was stopped before (rolled back, rollout {rollout.number})"
    assert await office.running() is None


async def test_a_release_that_was_rolled_back_needs_a_retry(office: Office) -> None:
    (rollout,) = (await office.apply(office.file("Be long."))).rollouts
    await office.roll_back(rollout.number)
    await office.apply(office.file("Be brief."))
    with pytest.raises(ConflictError, match=r"was stopped before \(rolled back, rollout 1\); --retry starts it again"):
        await office.apply(office.file("Be long."))
    assert (await office.plan(office.file("Be long."), retry=True)).obstacles(accept=False) == []
    (again,) = (await office.apply(office.file("Be long."), retry=True)).rollouts
    assert (again.restarts, again.candidate) == (1, rollout.candidate)
    salts = await office.rows("SELECT count(DISTINCT salt) FROM rollout")
    assert salts == [(2,)]
    # The same file again, after another end: nothing but the retry makes it go.
    await office.roll_back(again.number)
    assert (await office.apply(office.file("Be long."))).rollouts == ()
    third = await office.apply(office.file("Be long."), retry=True)
    assert third.configuration.entry == 0
    assert [each.restarts for each in third.rollouts] == [2]


async def test_what_was_promoted_and_left_can_come_back(office: Office) -> None:
    (rollout,) = (await office.apply(office.file("Be long."))).rollouts
    await office.promote(rollout.number)
    (back,) = (await office.apply(office.file("Be brief."))).rollouts
    await office.promote(back.number)
    assert len((await office.apply(office.file("Be long."))).rollouts) == 1


async def test_an_application_that_goes_takes_its_rollout_along(office: Office) -> None:
    await office.apply(office.file("Be long."))
    other = office.project.write(keys="", more="").source.replace("  support:", "  sales:")
    office.project.file.write_text(other)
    await office.apply(load(office.project.file))
    async with office.database.connection() as connection:
        (rollout,) = await list_rollouts(connection)
    assert (rollout.state, rollout.share) == ("rolled_back", 0.0)
    assert rollout.ended_at is not None


async def test_what_cannot_finish_is_refused_and_can_be_accepted(office: Office) -> None:
    hurried = CAREFUL + "    max_duration: 15m\n"
    file = office.file("Be long.", hurried)
    planned = await office.plan(file)
    (obstacle,) = planned.obstacles(accept=False)
    assert "the rollout of support cannot finish: it takes about" in obstacle
    assert "max_duration is 15 min" in obstacle
    assert planned.obstacles(accept=True) == []
    with pytest.raises(ConflictError, match="cannot finish"):
        await office.apply(file)
    assert await office.rows("SELECT count(*) FROM configuration") == [(1,)]
    (rollout,) = (await office.apply(file, accept=True)).rollouts
    (detail,) = await office.rows("SELECT detail->'problems' FROM audit_log WHERE action = 'rollout.start'")
    assert rollout.state == "ramp"
    assert "it takes about" in detail[0][0]


async def test_two_who_apply_at_once_start_one(office: Office) -> None:
    files = [office.file("Be long."), office.file("Be quick.")]
    results = await asyncio.gather(*(office.apply(file) for file in files), return_exceptions=True)
    (failed,) = (each for each in results if isinstance(each, BaseException))
    assert isinstance(failed, ConflictError)
    assert await office.rows("SELECT count(*) FROM rollout") == [(1,)]


async def test_an_overtaken_plan_starts_nothing(office: Office) -> None:
    base = (await office.plan(office.file("Be long."))).configuration.base
    await office.apply(office.file("Be brief.", CAREFUL + "    alpha: 0.04\n"))
    with pytest.raises(ConflictError, match="somebody else has applied"):
        await office.apply(office.file("Be long."), base=base)
    assert await office.running() is None


# --- directly ---


async def candidate(office: Office) -> str:
    """A release that waits, of an application under a policy."""
    file = office.file("Be long.", keys="")
    await office.apply(file)
    await office.apply(office.file("Be brief."))
    return file.specification.applications["support"].release.name


async def test_a_release_is_started(office: Office) -> None:
    name = await candidate(office)
    started = await office.start(name)
    assert (started.rollout.candidate, started.rollout.state, started.rollout.share) == (name, "ramp", 0.1)
    assert started.forecast.problems == ()
    route = await office.route()
    assert route is not None
    assert route.number == started.rollout.number
    async with office.database.connection() as connection:
        assert (await replay(connection, started.rollout.number)).mismatches == ()


async def test_what_cannot_be_started_says_why(office: Office) -> None:
    name = await candidate(office)
    stable = office.file("Be brief.").specification.applications["support"].release.name

    async def refuse(kind: type[HeadwayError], message: str, code: str, *names: str, **options: Any) -> None:
        with pytest.raises(kind, match=message) as error:
            await office.start(*names, **options)
        assert error.value.error_code == code

    await refuse(ConflictError, "is the stable release of support already", "conflict", stable)
    await refuse(NotFoundError, "support has no release called 'r-none'", "not_found", "r-none")
    await refuse(NotFoundError, "no application is called 'none'", "not_found", name, "none")
    started = await office.start(name)
    await refuse(ConflictError, f"is being rolled out to {name} already", "conflict", name)
    await refuse(ConflictError, "nothing to roll out.*roll back rollout 1", "conflict", stable)
    await office.roll_back(started.rollout.number)
    await refuse(ConflictError, r"was stopped before \(rolled back, rollout 1\)", "retry_needed", name)
    assert (await office.start(name, retry=True)).rollout.restarts == 1


async def test_a_manual_policy_points_to_shares(office: Office) -> None:
    name = await candidate(office)
    await office.apply(office.file("Be brief.", keys=""))
    with pytest.raises(ConflictError, match=f"`headway share support {name} 10%`"):
        await office.start(name)
    async with office.database.connection() as connection:
        manual = await set_share(connection, "support", name, 0.1, author="ann")
    # Under a policy again, the manual rollout goes on as it is.
    (release,) = (await office.apply(office.file("Be brief."))).configuration.plan.releases
    assert release.note == f"{name} is still being rolled out; to take it back: `headway share support {name} 0%`"
    with pytest.raises(ConflictError, match="is being rolled out"):
        await office.start(name)
    async with office.database.connection() as connection:
        assert (await find_rollout(connection, manual.rollout.number)).terms is None


async def test_a_forecast_that_does_not_fit_needs_to_be_accepted(office: Office) -> None:
    name = await candidate(office)
    await office.apply(office.file("Be brief.", CAREFUL + "    max_duration: 15m\n"))
    with pytest.raises(ConflictError, match="accept starts it all the same") as refused:
        await office.start(name)
    assert refused.value.error_code == "accept_needed"
    assert (await office.start(name, accept=True)).forecast.problems != ()


async def test_two_starts_at_once_give_one_rollout(office: Office) -> None:
    name = await candidate(office)
    results = await asyncio.gather(*(office.start(name) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(each, Started) for each in results) == 1
    assert sum(isinstance(each, ConflictError) for each in results) == 3


async def test_without_traffic_nothing_is_foretold(database: Database, project: Project) -> None:
    office = Office(database, project)
    await office.apply(office.file("Be brief."))
    (start,) = (await office.plan(office.file("Be long."))).rollouts
    assert start.forecast.traffic is None
    assert start.forecast.seconds is None
    assert start.forecast.problems == ()
    assert all(metric.level is None for metric in start.forecast.metrics)
    assert start.forecast.notes == ("no traffic recorded: no data on how long it takes",)
    (rollout,) = (await office.apply(office.file("Be long."))).rollouts
    assert rollout.state == "baseline"


async def test_the_controller_takes_it_from_there(office: Office) -> None:
    await office.rows("DELETE FROM feedback RETURNING id")
    (rollout,) = (await office.apply(office.file("Be long."))).rollouts
    clock = ManualClock(NOW_MS)
    controller = Controller(office.database, clock, 5.0)
    await controller.tick()
    assert (await office.running() or rollout).state == "baseline"
    await office.record(count=1_000, thumbs=1.0)
    clock.advance(120.0)
    await controller.tick()
    running = await office.running()
    assert running is not None
    assert (running.state, running.share) == ("ramp", 0.1)
    assert running.terms is not None
    assert running.terms.baseline.metrics["thumbs_up"].observations >= 200
