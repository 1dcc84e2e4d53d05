"""Setting shares by hand: begin, grow, promote, take back; whoever comes second is told."""

import asyncio
import random

import pytest

from headway.domain.assignment import is_candidate
from headway.domain.snapshot import ApplicationRoute
from headway.errors import ConflictError, HeadwayError, InvalidRequestError, NotFoundError
from headway.ids import Kind
from headway.rollouts.manual import ShareChange, set_share
from headway.storage import configuration, rollouts, routing
from headway.storage.database import Database
from headway.storage.rollouts import Stage, Step
from tests.project import Project


@pytest.fixture
async def releases(database: Database, project: Project) -> list[str]:
    """Names of three releases of support; the first is stable."""
    names = []
    for prompt in ("One.", "Two.", "Three."):
        async with database.connection() as connection:
            applied = await configuration.apply(connection, project.write(prompt), author="ann")
        names.append(applied.plan.releases[0].release)
    return names


async def share(database: Database, release: str, share: float, author: str = "ann", reason: str = "") -> ShareChange:
    async with database.connection() as connection:
        return await set_share(connection, "support", release, share, author=author, reason=reason)


async def route(database: Database) -> tuple[ApplicationRoute, dict[int, str]]:
    """The application as gateways see it, and the names of its releases."""
    async with database.connection() as connection:
        snapshot = await routing.latest(connection)
    assert snapshot is not None
    return snapshot.applications["support"], {number: one.name for number, one in snapshot.releases.items()}


async def test_the_first_share_begins_a_rollout(database: Database, releases: list[str]) -> None:
    change = await share(database, releases[1], 0.1, reason="try")
    assert (change.opened, change.changed, change.before) == (True, True, 0)
    served, names = await route(database)
    assert served.rollout is not None
    assert (served.rollout.share, served.rollout.stage, served.rollout.kind) == (0.1, 1, Kind.MANUAL)
    assert len(served.rollout.salt) == 16
    assert (names[served.stable], names[served.rollout.candidate]) == (releases[0], releases[1])
    async with database.connection() as connection:
        (stage,) = await rollouts.list_stages(connection, change.rollout.number)
    assert stage == Stage(1, 0.1, stage.since, "ann", "try")


async def test_a_growing_share_moves_nobody_back(database: Database, releases: list[str]) -> None:
    units = [f"unit {number}" for number in range(500)]
    before: set[str] = set()
    for stage, wanted in enumerate((0.05, 0.1, 0.3, 0.9), start=1):
        change = await share(database, releases[1], wanted)
        assert change.rollout.stage == stage
        served, _ = await route(database)
        assert served.rollout is not None
        now = {unit for unit in units if is_candidate(served.rollout.salt, unit, served.rollout.share)}
        assert before <= now
        before = now


async def test_all_traffic_promotes(database: Database, releases: list[str]) -> None:
    await share(database, releases[1], 0.1)
    change = await share(database, releases[1], 1)
    assert (change.rollout.state, change.rollout.share, change.rollout.stage) == ("promoted", 1, 2)
    assert change.rollout.ended_at is not None
    served, names = await route(database)
    assert served.rollout is None
    assert names[served.stable] == releases[1]
    back = await share(database, releases[0], 1)  # the way back, at once
    assert (back.opened, back.rollout.state, back.rollout.stable) == (True, "promoted", releases[1])
    served, names = await route(database)
    assert names[served.stable] == releases[0]


async def test_no_traffic_takes_back(database: Database, releases: list[str]) -> None:
    first = await share(database, releases[1], 0.1)
    change = await share(database, releases[1], 0, reason="worse")
    assert change.rollout.state == "rolled_back"
    served, names = await route(database)
    assert served.rollout is None
    assert names[served.stable] == releases[0]
    again = await share(database, releases[1], 0.1)
    assert again.rollout.number != first.rollout.number
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT count(DISTINCT salt) FROM rollout")
        assert await cursor.fetchone() == (2,)


async def test_the_same_share_again_changes_nothing(database: Database, releases: list[str]) -> None:
    await share(database, releases[1], 0.1)
    again = await share(database, releases[1], 0.1)
    assert (again.changed, again.snapshot, again.rollout.stage) == (False, 0, 1)


@pytest.mark.parametrize(
    ("release", "wanted", "complaint"),
    [
        (0, 0.5, "is the stable release of support; set the share of the candidate"),
        (2, 0.5, "support is being rolled out to .*, at 10%; end that first"),
    ],
)
async def test_one_candidate_at_a_time(
    release: int, wanted: float, complaint: str, database: Database, releases: list[str]
) -> None:
    await share(database, releases[1], 0.1)
    before, _ = await route(database)
    with pytest.raises(ConflictError, match=complaint):
        await share(database, releases[release], wanted)
    assert (await route(database))[0] == before


async def test_what_cannot_be_is_refused(database: Database, releases: list[str]) -> None:
    with pytest.raises(ConflictError, match="is the stable release of support and has all its traffic"):
        await share(database, releases[0], 0.5)
    with pytest.raises(ConflictError, match="there is nothing to take back"):
        await share(database, releases[1], 0)
    with pytest.raises(
        NotFoundError, match=f"support has no release called '{releases[1]}x'; did you mean '{releases[1]}'"
    ):
        await share(database, releases[1] + "x", 0.5)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidRequestError, match="a share is a number from 0 to 1"):
            await share(database, releases[1], wrong)
    async with database.connection() as connection:
        with pytest.raises(NotFoundError, match="no application is called 'suport'; did you mean 'support'"):
            await set_share(connection, "suport", releases[1], 0.5, author="ann")
        assert await rollouts.list_rollouts(connection) == []


async def test_everything_is_audited(database: Database, releases: list[str]) -> None:
    await share(database, releases[1], 0.1, author="ann", reason="try")
    await share(database, releases[1], 1, author="bob")
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT author, subject, reason, detail - 'rollout' FROM audit_log WHERE action = 'share.set' ORDER BY id"
        )
        assert await cursor.fetchall() == [
            ("ann", "application support", "try", {"release": releases[1], "from": 0.0, "to": 0.1}),
            ("bob", "application support", None, {"release": releases[1], "from": 0.1, "to": 1}),
        ]


async def test_a_rollout_that_has_moved_on_is_left_alone(database: Database, releases: list[str]) -> None:
    seen = (await share(database, releases[1], 0.1)).rollout
    await share(database, releases[1], 0.2, author="bob")
    with pytest.raises(ConflictError, match="somebody else has just changed the rollout of support"):
        async with database.connection() as connection:
            await rollouts.move(connection, seen, Step(0.9, "ann", ""))
    assert (await route(database))[0].rollout.share == 0.2  # type: ignore[union-attr]  # it is running


async def test_many_operators_at_once_leave_one_consistent_story(database: Database, releases: list[str]) -> None:
    shares = [0.1, 0.25, 0.5, 0.0, 1.0]
    chance = random.Random(7)
    wishes = [(chance.choice(releases), chance.choice(shares), f"operator {number}") for number in range(40)]

    async def wish(release: str, wanted: float, author: str) -> HeadwayError | ShareChange:
        try:
            return await share(database, release, wanted, author)
        except (ConflictError, NotFoundError) as error:
            return error

    results = await asyncio.gather(*(wish(*one) for one in wishes))
    changes = [result for result in results if isinstance(result, ShareChange) and result.changed]
    assert changes
    async with database.connection() as connection:
        told = {
            one.number: await rollouts.list_stages(connection, one.number)
            for one in await rollouts.list_rollouts(connection)
        }
        found = await rollouts.list_rollouts(connection)
    # Every change is one stage (a direct promotion is two), and each rollout's stages count up without a gap.
    direct = sum(change.opened and change.rollout.state == "promoted" for change in changes)
    assert sum(map(len, told.values())) == len(changes) + direct
    for stages in told.values():
        assert [stage.stage for stage in stages] == list(range(1, len(stages) + 1))
    assert sum(one.ended_at is None for one in found) <= 1
    # The stable release is the last one promoted, and gateways see what the tables say.
    promoted = [
        one.candidate
        for one in sorted(found, key=lambda one: one.ended_at or one.started_at)
        if one.state == "promoted"
    ]
    served, names = await route(database)
    assert names[served.stable] == (promoted[-1] if promoted else releases[0])
    running = [one for one in found if one.ended_at is None]
    assert (served.rollout is None) == (not running)
    if running and served.rollout is not None:
        assert (served.rollout.number, served.rollout.share) == (running[0].number, running[0].share)
