"""What people say of a running rollout: a unit's first value once it has settled, and which units said anything."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from psycopg.types.json import Jsonb

from headway.clock import utc
from headway.domain.books import Rating, ResponseKey
from headway.domain.feedback import Attribution, Feedback, LinkedInteraction, Report
from headway.domain.policy import MetricRule, Policy, StageRule
from headway.domain.recording import Recording, Terms
from headway.ids import Kind, uuid7
from headway.storage.batches import Batch, BatchWriter
from headway.storage.database import Database
from headway.storage.feedback import keep
from headway.storage.ratings import claim, count_responses
from headway.storage.reports import insert
from tests.interactions import make_interaction
from tests.world import World, found_world

PERIOD = 600
START_MS = 1_790_000_000_000
PERIOD_START = START_MS // 1000 // PERIOD * PERIOD
KEY = ResponseKey(1, PERIOD_START, 1)
GOAL = MetricRule("error_rate", "goal", "event_ratio", "ratio", "lower", margin=3.0, harm=2.0, weight=1.0)


@pytest.fixture
async def world(database: Database) -> World:
    """Rollout 1 of `support` under a policy: 60 s to settle, exposure periods of ten minutes."""
    world = await found_world(database)
    await set_terms(database, "conversation")
    return world


async def set_terms(database: Database, unit: str) -> None:
    terms = msgspec.to_builtins(
        Terms(
            policy=Policy(name="careful", stages=(StageRule(0.5), StageRule(1.0)), rules=(GOAL,), settle_seconds=60.0),
            unit="conversation",
            feedback={},
            recording=Recording(period_seconds=PERIOD),
        )
    )
    await rows(
        database,
        "UPDATE rollout SET terms = %s, kind = 1, state = 'ramp' RETURNING 1",
        Jsonb({**terms, "unit": unit}),
    )


async def rows(database: Database, query: str, *values: Any) -> list[tuple[Any, ...]]:
    async with database.connection() as connection:
        return await (await connection.execute(query.encode(), values)).fetchall()


def attribution(unit: str = "ann", **changes: Any) -> Attribution:
    given = Attribution(
        application=1,
        release=2,
        rollout=1,
        stage=1,
        arm=1,
        kind=Kind.RANDOMISED,
        unit=unit.encode().ljust(8),
        exposed_unix_ms=START_MS,
    )
    return msgspec.structs.replace(given, **changes)


def feedback(number: float | None, seconds: float = 0.0, **changes: Any) -> Feedback:
    """A rating of the interaction of a unit, some seconds after it."""
    unix_ms = START_MS + int(seconds * 1000)
    given = changes.pop("attribution", None) or attribution()
    values: dict[str, Any] = {
        "id": uuid7(unix_ms),
        "unix_ms": unix_ms,
        "target": "interaction",
        "target_id": given.unit.hex(),
        "choice": 0,
        "attribution": given,
        "metric": "thumbs_up",
        "number": number,
        "text": None if number is not None else "words",
        "comment": None,
        "correction": None,
        "source": "end_user",
        "author": "ann",
        "key": 0,
    }
    return Feedback(**{**values, **changes})


async def say(database: Database, *given: Feedback) -> None:
    for each in given:
        async with database.connection() as connection:
            await keep(connection, each)


async def claimed(database: Database, seconds: float, tick: int = 1) -> list[Rating]:
    async with database.connection() as connection:
        return await claim(connection, 1, tick, utc(START_MS + int(seconds * 1000)))


async def counted(database: Database, *keys: ResponseKey) -> dict[ResponseKey, tuple[int, int]]:
    async with database.connection() as connection:
        return await count_responses(connection, 1, keys or (KEY,))


def rating(value: float, unit: str = "ann", **changes: Any) -> Rating:
    return Rating("thumbs_up", value, unit.encode().ljust(8), 1, PERIOD_START, 1)._replace(**changes)


# --- ratings ---


async def test_a_rating_counts_once_it_has_settled_and_once_only(database: Database, world: World) -> None:
    await say(database, feedback(1.0, seconds=30))
    assert await claimed(database, 89.9) == []
    assert await claimed(database, 90) == [rating(1.0)]
    assert await claimed(database, 1000, tick=2) == []
    assert await rows(database, "SELECT tick FROM rating") == [(1,)]


async def test_a_claim_that_is_rolled_back_leaves_the_rating(database: Database, world: World) -> None:
    await say(database, feedback(1.0))
    async with database.connection() as connection:
        assert await claim(connection, 1, 1, utc(START_MS + 60_000)) == [rating(1.0)]
        await connection.rollback()
    assert await claimed(database, 60, tick=2) == [rating(1.0)]


async def test_a_revision_counts_within_a_minute_and_not_later(database: Database, world: World) -> None:
    late = attribution("bob")
    await say(
        database,
        feedback(1.0),
        feedback(0.0, seconds=20),
        feedback(1.0, seconds=60),
        feedback(1.0, attribution=late),
        feedback(0.0, seconds=61, attribution=late),
    )
    assert await claimed(database, 3600) == [rating(1.0), rating(1.0, "bob")]
    assert await claimed(database, 7200, tick=2) == []


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_late_replays_settle_on_what_was_said_last_in_time(
    database: Database, world: World, order: Sequence[int]
) -> None:
    """Values that were spooled come in any order, long after they were given."""
    said = [feedback(1.0), feedback(0.0, seconds=10), feedback(1.0, seconds=500)]
    await say(database, *(said[index] for index in order))
    expected = rating(1.0) if order[0] == 2 else rating(0.0)  # the first to arrive says when it settles
    assert await claimed(database, 3600) == [expected]


async def test_of_two_values_in_one_moment_the_one_in_force_counts(database: Database, world: World) -> None:
    await say(database, feedback(1.0), feedback(0.0))
    in_force = await rows(database, "SELECT number FROM feedback WHERE superseded_at IS NULL")
    assert [(each.value,) for each in await claimed(database, 60)] == in_force == [(0.0,)]


async def test_two_authors_of_one_unit_are_one_rating_of_the_first(database: Database, world: World) -> None:
    await say(database, feedback(1.0), feedback(0.0, seconds=5, author="bob"), feedback(0.0, seconds=5, choice=1))
    assert await claimed(database, 3600) == [rating(1.0)]


async def test_a_unit_is_counted_once_over_its_interactions_and_stages(database: Database, world: World) -> None:
    again = attribution(stage=2, exposed_unix_ms=START_MS + 7_200_000)
    await say(database, feedback(1.0), feedback(0.0, seconds=7300, target_id="another", attribution=again))
    assert await claimed(database, 10_000) == [rating(1.0)]


async def test_each_metric_of_numbers_has_a_rating_of_its_own(database: Database, world: World) -> None:
    await say(database, feedback(4.0, metric="stars"), feedback(1.0), feedback(None, metric="mood"))
    assert await claimed(database, 3600) == [rating(4.0, metric="stars"), rating(1.0)]


async def test_a_rating_belongs_to_the_period_of_its_exposure(database: Database, world: World) -> None:
    exposed = START_MS + PERIOD * 1000
    await say(database, feedback(1.0, seconds=5000, attribution=attribution(exposed_unix_ms=exposed)))
    assert await claimed(database, 10_000) == [rating(1.0, period=PERIOD_START + PERIOD)]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": Kind.PINNED},
        {"kind": Kind.SHADOW, "stage": 0},
        {"kind": Kind.RANDOMISED, "stage": 0},
        {"rollout": 0, "stage": 0},
        {"rollout": 99},
    ],
)
async def test_what_is_no_evidence_is_no_rating(database: Database, world: World, changes: dict[str, Any]) -> None:
    await say(database, feedback(1.0, attribution=attribution(**changes)))
    assert await rows(database, "SELECT 1 FROM rating UNION ALL SELECT 1 FROM response") == []
    assert await rows(database, "SELECT 1 FROM feedback") == [(1,)]


@pytest.mark.parametrize("kind", [Kind.RANDOMISED, Kind.MANUAL, Kind.HOLDBACK])
async def test_what_a_rollout_assigned_is_a_rating(database: Database, world: World, kind: Kind) -> None:
    await say(database, feedback(1.0, attribution=attribution(kind=kind)))
    assert await claimed(database, 60) == [rating(1.0)]


async def test_a_rollout_that_has_ended_takes_no_more(database: Database, world: World) -> None:
    await rows(database, "UPDATE rollout SET ended_at = now() RETURNING 1")
    await say(database, feedback(1.0))
    assert await rows(database, "SELECT 1 FROM rating UNION ALL SELECT 1 FROM response") == []


@pytest.mark.parametrize(("unit", "expected"), [("conversation", [rating(1.0)]), ("user", []), ("request", [])])
async def test_a_conversations_rating_counts_where_the_unit_is_the_conversation(
    database: Database, world: World, unit: str, expected: list[Rating]
) -> None:
    await set_terms(database, unit)
    await say(database, feedback(1.0, target="conversation", target_id="talk"))
    assert await claimed(database, 60) == expected
    assert await rows(database, "SELECT kind FROM response") == [("feedback",)]


async def test_an_equal_value_of_a_conversation_is_a_rating_of_its_new_rollout(
    database: Database, world: World
) -> None:
    before = attribution(rollout=0, stage=0)
    await say(
        database,
        feedback(1.0, seconds=-100, target="conversation", target_id="talk", attribution=before),
        feedback(1.0, seconds=5, target="conversation", target_id="talk"),
    )
    assert len(await rows(database, "SELECT 1 FROM feedback")) == 1
    assert await claimed(database, 64.9) == []
    assert await claimed(database, 65) == [rating(1.0)]


async def test_a_manual_rollout_books_by_the_defaults(database: Database, world: World) -> None:
    await rows(database, "UPDATE rollout SET terms = NULL, kind = 3 RETURNING 1")
    await say(database, feedback(1.0, attribution=attribution(kind=Kind.MANUAL)))
    assert await claimed(database, 59.9) == []
    assert await claimed(database, 60) == [rating(1.0, period=START_MS // 3_600_000 * 3600)]


async def test_ratings_that_come_together_are_one_and_nobody_waits_in_a_ring(database: Database, world: World) -> None:
    async def rate(number: int) -> None:
        for unit in range(10):
            given = attribution(f"u{(unit * (1 if number % 2 else 7)) % 10}")
            said = feedback(float(number % 2), seconds=number / 10, attribution=given, author=f"author {number}")
            await say(database, said)

    async with asyncio.timeout(30):
        await asyncio.gather(*map(rate, range(8)))
    found = await claimed(database, 3600)
    assert sorted(each.unit for each in found) == sorted(f"u{n}".encode().ljust(8) for n in range(10))
    assert await rows(database, "SELECT count(*) FROM response") == [(10,)]
    for each in found:  # the value is that of the row that won
        ((value,),) = await rows(
            database,
            "SELECT f.number FROM rating r JOIN feedback f ON f.id = r.feedback WHERE r.unit = %s",
            each.unit,
        )
        assert each.value == value


# --- responses ---


def report(*exposures: Attribution) -> Report:
    unix_ms = START_MS + 1000
    return Report(
        id=uuid7(unix_ms),
        unix_ms=unix_ms,
        application=1,
        title="Wrong",
        description="",
        severity="low",
        author="key:1",
        key=1,
        interactions=tuple(
            LinkedInteraction(
                interaction_id="hw_",
                uuid=uuid7(given.exposed_unix_ms),
                **{name: value for name, value in msgspec.structs.asdict(given).items() if name != "application"},
            )
            for given in exposures
        ),
    )


async def raise_report(database: Database, given: Report) -> None:
    async with database.connection() as connection:
        await insert(connection, given)


async def test_units_that_responded_are_counted_by_stage_period_and_arm(database: Database, world: World) -> None:
    later = START_MS + PERIOD * 1000
    await say(
        database,
        feedback(1.0),
        feedback(None, metric="mood"),
        feedback(1.0, attribution=attribution("bob")),
        feedback(1.0, attribution=attribution("eve", arm=0)),
        feedback(1.0, attribution=attribution("dan", exposed_unix_ms=later)),
    )
    await raise_report(database, report(attribution(), attribution("fay"), attribution("gus", stage=2)))
    keys = (
        KEY,
        KEY._replace(arm=0),
        KEY._replace(period=PERIOD_START + PERIOD),
        KEY._replace(stage=2),
        KEY._replace(stage=3),
    )
    assert await counted(database, *keys) == dict(zip(keys, [(2, 2), (1, 0), (1, 0), (0, 1), (0, 0)], strict=True))
    async with database.connection() as connection:
        assert await count_responses(connection, 1, ()) == {}


async def test_a_unit_responds_where_it_was_first_exposed(database: Database, world: World) -> None:
    """A unit counts in the denominator of its first exposure only, so in no other numerator either."""
    later = START_MS + PERIOD * 1000
    known = make_interaction(
        START_MS, unit="ann", rollout=1, stage=1, arm=1, kind=Kind.RANDOMISED, application=1, release=2
    )
    await BatchWriter(database).write(Batch(uuid.uuid4(), 1, [known]))
    there = attribution(exposed_unix_ms=later)
    await say(database, feedback(1.0, attribution=msgspec.structs.replace(there, unit=known.unit)))
    next_key = KEY._replace(period=PERIOD_START + PERIOD)
    assert await counted(database, KEY, next_key) == {KEY: (0, 0), next_key: (0, 0)}
    here = attribution()
    await say(database, feedback(0.0, target_id="first", attribution=msgspec.structs.replace(here, unit=known.unit)))
    assert await counted(database, KEY, next_key) == {KEY: (1, 0), next_key: (0, 0)}


async def test_reports_about_the_same_units_do_not_wait_in_a_ring(database: Database, world: World) -> None:
    units = [attribution(f"u{n}") for n in range(40)]
    async with asyncio.timeout(30):
        await asyncio.gather(
            *(raise_report(database, report(*(units if n % 2 else reversed(units)))) for n in range(10))
        )
    assert await counted(database) == {KEY: (0, 40)}


async def test_a_report_of_an_older_headway_is_kept_and_counts_for_nothing(database: Database, world: World) -> None:
    encoded = msgspec.msgpack.decode(msgspec.msgpack.encode(report(attribution())))
    for link in encoded["interactions"]:
        for name in ("rollout", "stage", "arm", "kind", "unit"):
            del link[name]
    await raise_report(database, msgspec.convert(encoded, Report))
    assert await rows(database, "SELECT 1 FROM report_interaction") == [(1,)]
    assert await rows(database, "SELECT 1 FROM response") == []
