"""Retrieval metrics in policies, from headway.yaml to the decision; what cannot be compared is refused."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headway.clock import ManualClock, utc
from headway.config.indexes import IndexReference
from headway.config.load import ConfigurationFile, InvalidFileError
from headway.domain.assignment import is_candidate
from headway.errors import ConfigurationError, ConflictError
from headway.ids import Arm
from headway.rollouts import applying, starting
from headway.rollouts.applying import AppliedFile
from headway.rollouts.controller import Controller
from headway.rollouts.replaying import replay
from headway.storage import versions
from headway.storage.batches import Batch, BatchWriter
from headway.storage.database import Database
from tests.history import Record, write
from tests.indexes import Page, publish
from tests.lakes import CountingEmbedder
from tests.project import Project
from tests.trial import Trial

INDEX = "indexes:\n  handbook: {lake: file:./docs}\n"
KEYS = "    policy: careful\n"
PAGES = (Page("leave.md", "Leave", "Everybody has twenty five days of leave."),)
FOUND = (
    ("retrieval_ms", "15 + g * 37 %% 100"),
    ("passages", "CASE WHEN g %% 50 = 0 THEN 0 ELSE 3 END"),
    ("context_tokens", "CASE WHEN g %% 50 = 0 THEN 0 ELSE 400 + g %% 200 END"),
    ("cited", "g %% 10 > 0"),
)
"""What stable's searches were like in the past; ``usual`` says the same of now."""
ONLY = "the releases differ in the index version only: handbook@1 -> handbook@2"


def policy(*rules: str) -> str:
    """A policy with a rating for its goal and these guardrails, quick to decide."""
    fixed = ["{metric: attempt_error_rate, ratio: 3, floor: 5%}", "{metric: fallback_rate, ratio: 3, floor: 5%}"]
    listed = "".join(f"      - {rule}\n" for rule in (*fixed, *rules[1:]))
    return (
        f"policies:\n  careful:\n    stages: [20%, 50%, 100%]\n    goal: {rules[0]}\n    guardrails:\n{listed}"
        "    min_units: 20\n    dwell: 10s\n    feedback_window: 10s\n    settle: 1s\n    holdback: {duration: 20s}\n"
    )


def usual(number: int) -> dict[str, Any]:
    """A search as stable's are."""
    empty = number % 50 == 0
    return {
        "retrieval_ms": 15.0 + number * 37 % 100,
        "passages": 0 if empty else 3,
        "context_tokens": 0 if empty else 400 + number % 200,
        "cited": number % 10 > 0,
    }


def often_empty(number: int) -> dict[str, Any]:
    return usual(number) | ({"passages": 0, "context_tokens": 0} if number % 4 == 0 else {})


def often_failing(number: int) -> dict[str, Any]:
    failed = {"passages": None, "context_tokens": None, "cited": None, "retrieval_error": "retrieval_timeout"}
    return usual(number) | (failed if number % 4 == 0 else {})


def seldom_cited(number: int) -> dict[str, Any]:
    return usual(number) | {"cited": number % 3 == 0}


def longer(number: int) -> dict[str, Any]:
    return usual(number) | {"context_tokens": 1_100 + number % 200}


def slower(number: int) -> dict[str, Any]:
    return usual(number) | {"retrieval_ms": 150.0 + number * 37 % 100}


@dataclass
class Desk:
    """A project under a policy, applied by ann."""

    database: Database
    project: Project
    clock: ManualClock

    def file(self, policies: str, index: str = "handbook", more: str = "") -> ConfigurationFile:
        """The file; the release is grounded in ``index``, or in none where that is empty."""
        release = f", index: {index}{more}" if index else ""
        return self.project.write(keys=KEYS, release=release, more=INDEX + policies)

    async def publish(self, number: int) -> None:
        """Publish the next version of the handbook."""
        async with self.database.connection() as connection:
            await publish(connection, "handbook", number, PAGES, CountingEmbedder().embed)

    async def apply(self, file: ConfigurationFile) -> AppliedFile:
        async with self.database.connection() as connection:
            return await applying.apply(
                connection, file, author="ann", now_ms=self.clock.unix_ms(), accept=True, retry=True
            )

    def trial(self, number: int) -> Trial:
        """What a rollout is driven with."""
        controller = Controller(self.database, self.clock, 5.0)
        return Trial(self.database, self.clock, BatchWriter(self.database), number, controller)

    async def remember(self, columns: tuple[tuple[str, str], ...] = FOUND) -> None:
        """Write a day of stable's past."""
        async with self.database.connection() as connection:
            record = Record(application=1, release=1, until=utc(self.clock.unix_ms()), count=2_000, columns=columns)
            await write(connection, record)


@pytest.fixture
def desk(database: Database, tmp_path: Path, clock: ManualClock) -> Desk:
    return Desk(database, Project(tmp_path), clock)


async def serve(trial: Trial, count: int, candidate: Callable[[int], Mapping[str, Any]]) -> None:
    """Serve new units as a gateway would; what searches of the candidate are like, ``candidate`` says."""
    route = await trial.route()
    rollout = route.rollout
    assert rollout is not None, "it is not routed"
    interactions = []
    for unit in range(trial.units, trial.units + count):
        arm = Arm.CANDIDATE if is_candidate(rollout.salt, f"unit {unit}", rollout.share) else Arm.STABLE
        trial.served[arm] += 1
        fields: dict[str, Any] = dict((candidate if arm else usual)(trial.served[arm]))
        placed = {"stage": rollout.stage, "arm": arm, "kind": rollout.kind}
        release = rollout.candidate if arm else route.stable
        interactions.append(trial.interaction(f"unit {unit}", release=release, **placed, **fields))
    trial.units += count
    await trial.writer.write(Batch(uuid.uuid4(), 1, interactions))


async def run(desk: Desk, number: int, candidate: Callable[[int], Mapping[str, Any]]) -> Trial:
    """Let users come and ticks pass until the rollout is over, and replay it."""
    trial = Trial(
        desk.database, desk.clock, BatchWriter(desk.database), number, Controller(desk.database, desk.clock, 5.0)
    )
    for _ in range(60):
        await serve(trial, 200, candidate)
        await trial.tick()
        if (await trial.rollout()).ended_at is not None:
            break
    async with desk.database.connection() as connection:
        assert (await replay(connection, number)).mismatches == ()
    return trial


@pytest.mark.parametrize(
    ("rule", "candidate"),
    [
        ("{metric: empty_result_rate, ratio: 2}", often_empty),
        ("{metric: retrieval_error_rate, ratio: 2}", often_failing),
        ("{metric: cited_answer_rate, ratio: 0.8}", seldom_cited),
        ("{metric: context_tokens, ratio: 1.4}", longer),
        ("{metric: retrieval_p50, ratio: 1.5}", slower),
        ("{metric: retrieval_p95, ratio: 1.5}", slower),
    ],
)
async def test_a_version_that_searches_worse_is_rolled_back(
    desk: Desk, rule: str, candidate: Callable[[int], Mapping[str, Any]]
) -> None:
    """Build, apply the same file again, and the rollout that begins is decided by the metric that is worse."""
    file = desk.file(policy(rule))
    await desk.publish(1)
    assert (await desk.apply(file)).rollouts == ()
    await desk.remember()
    await desk.publish(2)
    (rollout,) = (await desk.apply(file)).rollouts
    assert (rollout.state, rollout.difference.parts, rollout.difference.indexes) == (
        "ramp",
        ("index",),
        "handbook@1 -> handbook@2",
    )
    trial = await run(desk, rollout.number, candidate)
    last = (await trial.decisions())[-1]
    metric = rule.removeprefix("{metric: ").partition(",")[0]
    assert (last.outcome, last.reason, last.metric) == ("roll_back", "harm", metric)
    assert last.message.endswith(ONLY)


async def test_a_version_that_searches_as_well_is_promoted(desk: Desk) -> None:
    rules = (
        "{metric: cited_answer_rate, ratio: 0.7}",
        "{metric: empty_result_rate, ratio: 3, floor: 8%}",
        "{metric: retrieval_error_rate, ratio: 3, floor: 5%}",
        "{metric: context_tokens, ratio: 1.5}",
        "{metric: retrieval_p95, ratio: 2}",
    )
    file = desk.file(policy(*rules))
    await desk.publish(1)
    await desk.apply(file)
    await desk.remember()
    await desk.publish(2)
    (rollout,) = (await desk.apply(file)).rollouts
    trial = await run(desk, rollout.number, usual)
    last = (await trial.decisions())[-1]
    assert last.outcome == "promote", last.message
    assert last.message.endswith(ONLY)


async def test_both_versions_of_a_running_rollout_are_kept(desk: Desk) -> None:
    file = desk.file(policy("{metric: cited_answer_rate, ratio: 0.7}"))
    await desk.publish(1)
    await desk.apply(file)
    await desk.publish(2)
    (rollout,) = (await desk.apply(file)).rollouts
    assert rollout.state == "baseline", "nothing is recorded yet"
    for number in (3, 4):
        await desk.publish(number)
    async with desk.database.connection() as connection:
        assert await versions.enforce_keep(connection, "handbook", 1, author="ann") == ["handbook@3"]
        left = await versions.list_versions(connection, "handbook")
    assert [each.number for each in left if each.state == "published"] == [4, 2, 1]


async def test_a_newer_version_waits_for_the_end_of_a_running_rollout(desk: Desk) -> None:
    file = desk.file(policy("{metric: cited_answer_rate, ratio: 0.7}"))
    await desk.publish(1)
    await desk.apply(file)
    await desk.publish(2)
    await desk.apply(file)
    await desk.publish(3)
    with pytest.raises(ConflictError, match="one rollout at a time"):
        await desk.apply(file)


async def test_a_version_that_is_gone_or_not_there_is_refused(desk: Desk) -> None:
    await desk.publish(1)
    await desk.apply(desk.file(policy("{metric: cited_answer_rate, ratio: 0.7}")))
    await desk.publish(2)
    async with desk.database.connection() as connection:
        found = await versions.find_version(connection, IndexReference("handbook", 2))
        await versions.drop(connection, found, author="ann")
    for number in (2, 3):
        wanted = desk.file(policy("{metric: cited_answer_rate, ratio: 0.7}"), f"handbook@{number}")
        with pytest.raises(ConfigurationError, match=f"handbook@{number} is not published"):
            await desk.apply(wanted)


RETRIEVAL = "{metric: empty_result_rate, ratio: 2}"
RATING = "{metric: thumbs_up, margin: 10pp}"


def test_a_release_without_an_index_cannot_be_decided_by_retrieval(desk: Desk) -> None:
    with pytest.raises(InvalidFileError) as caught:
        desk.file(policy(RATING, RETRIEVAL), "")
    (problem,) = caught.value.problems
    assert problem.place == "applications.support.policy"
    assert problem.message == (
        "careful decides on empty_result_rate, but the release has no index: nothing is searched for it"
    )


async def test_a_first_index_cannot_be_decided_by_retrieval(desk: Desk) -> None:
    """Stable has none, so there is nothing to compare; under other metrics it is rolled out like anything else."""
    await desk.apply(desk.file(policy(RATING), ""))
    await desk.publish(1)
    file = desk.file(policy(RATING, RETRIEVAL))
    refusal = "the stable release has no index, so there is nothing to compare empty_result_rate with"
    async with desk.database.connection() as connection:
        planned = await applying.plan(connection, file, desk.clock.unix_ms())
    assert [each for each in planned.obstacles(accept=True) if refusal in each]
    with pytest.raises(ConflictError, match=refusal):
        await desk.apply(file)
    (rollout,) = (await desk.apply(desk.file(policy(RATING)))).rollouts
    assert rollout.difference.indexes == "none -> handbook@1"


async def test_neither_can_a_release_that_has_lost_its_index(desk: Desk) -> None:
    await desk.publish(1)
    await desk.apply(desk.file(policy(RATING), ""))
    async with desk.database.connection() as connection:
        cursor = await connection.execute("SELECT name FROM release")
        (bare,) = await cursor.fetchone() or ("",)
        await connection.execute("UPDATE application SET policy = 'manual'")
    (rollout,) = (await desk.apply(desk.file(policy(RATING)))).rollouts
    trial = Trial(
        desk.database,
        desk.clock,
        BatchWriter(desk.database),
        rollout.number,
        Controller(desk.database, desk.clock, 5.0),
    )
    await trial.take("promote")
    await desk.apply(desk.file(policy(RATING, RETRIEVAL)))
    async with desk.database.connection() as connection:
        with pytest.raises(ConflictError, match="the candidate release has no index"):
            await starting.start(
                connection, "support", bare, author="ann", reason="", now_ms=desk.clock.unix_ms(), accept=True
            )
