"""The simulation keeps a rollout in memory. The database and the controller must make the same of the same stream."""

from __future__ import annotations

import uuid
from dataclasses import replace

import msgspec
import pytest

from headway.clock import ManualClock
from headway.domain.assessment import Assessment
from headway.domain.books import Books
from headway.domain.feedback import Attribution, Feedback
from headway.domain.policy import HoldbackRule, Policy, StageRule
from headway.domain.recording import Terms
from headway.domain.rollout import begin, is_over
from headway.rollouts.controller import Controller
from headway.rollouts.manual import set_share
from headway.rollouts.simulation.catalogue import SCENARIOS
from headway.rollouts.simulation.history import agree_terms
from headway.rollouts.simulation.memory import METRIC, MemoryRollout
from headway.rollouts.simulation.scenarios import Raters, Release, rule
from headway.rollouts.simulation.stream import Spoken, Stream, Taken
from headway.storage import feedback, routing
from headway.storage.applications import find_application, find_release
from headway.storage.batches import Batch, BatchWriter
from headway.storage.database import Database
from headway.storage.rollouts import Opening, Rollout, find_rollout, list_decisions, list_strata, open_staged
from tests.world import found_world

_MARGINS = {"thumbs_up": 0.2, "feedback_rate": 0.5, "latency_p95": 2.0, "cost": 1.5}
SHORT: Policy = msgspec.structs.replace(
    SCENARIOS["conversations"].policy,
    rules=tuple(
        rule(each.metric, _MARGINS.get(each.metric, 6.0), each.weight)
        for each in SCENARIOS["conversations"].policy.rules
    ),
    stages=(StageRule(0.2), StageRule(0.5), StageRule(1.0)),
    min_units=20,
    dwell_seconds=600.0,
    feedback_window_seconds=900.0,
    settle_seconds=60.0,
    holdback=HoldbackRule(share=0.1, seconds=900.0),
)
BASE = replace(
    SCENARIOS["conversations"],
    policy=SHORT,
    traffic=replace(SCENARIOS["conversations"].traffic, active_units=200, per_tick=250),
    stable=Release(feedback=0.3),
    raters=Raters(delay_seconds=300.0, delay_sigma=1.0, slips=0.2, changes=0.2),
)


class StoredRollout:
    """The same rollout in PostgreSQL, under the controller."""

    def __init__(self, database: Database, clock: ManualClock, rollout: Rollout, places: tuple[int, int, int]) -> None:
        self.database = database
        self.clock = clock
        self.number = rollout.number
        self.application, *self.releases = places
        self.controller = Controller(database, clock, 5.0)
        self.writer = BatchWriter(database)
        self.spoken: list[Spoken] = []

    @classmethod
    async def begin(cls, database: Database, clock: ManualClock, terms: Terms, salt: bytes) -> StoredRollout:
        await found_world(database, clock)
        async with database.connection() as connection:
            await set_share(connection, "support", "bold", 0.0, author="ann")
        async with database.connection() as connection:
            application = await find_application(connection, "support", lock=True)
            candidate = await find_release(connection, "support", "bold")
            now_ms = clock.unix_ms()
            opening = Opening(terms, begin(terms, now_ms), restarts=0, author="ann", reason="", now_ms=now_ms)
            rollout = await open_staged(connection, application, candidate, opening, salt)
            await routing.publish(connection)
        stable = application.stable_release
        assert stable is not None
        return cls(database, clock, rollout, (application.number, stable, candidate.number))

    async def serve(self, taken: Taken) -> None:
        interactions = [
            msgspec.structs.replace(
                each,
                application=self.application,
                rollout=self.number,
                release=self.releases[each.release - 1],
                conversation=each.unit.hex(),
            )
            for each in taken.interactions
        ]
        # As several workers would write them, in the order in which they came.
        for first in range(0, len(interactions), 100):
            await self.writer.write(Batch(uuid.uuid4(), 1, interactions[first : first + 100]))
        self.spoken = sorted(self.spoken + taken.spoken)

    async def tick(self) -> Rollout:
        now_ms = self.clock.unix_ms()
        due = [each for each in self.spoken if each.unix_ms <= now_ms]
        self.spoken = self.spoken[len(due) :]
        async with self.database.connection() as connection:
            for each in due:
                await feedback.keep(connection, self.feedback(each))
        await self.controller.tick()
        async with self.database.connection() as connection:
            return await find_rollout(connection, self.number)

    async def assess(self, terms: Terms) -> Assessment:
        async with self.database.connection() as connection:
            row = await (await connection.execute("SELECT books FROM rollout WHERE id = %s", (self.number,))).fetchone()
            rollout = await find_rollout(connection, self.number)
            strata = await list_strata(connection, self.number)
        assert row is not None
        assert rollout.status is not None
        return Books.decode(terms, row[0]).assess(rollout.status, strata)

    def feedback(self, spoken: Spoken) -> Feedback:
        attribution = Attribution(
            application=self.application,
            release=self.releases[spoken.arm],
            rollout=self.number,
            stage=spoken.stage,
            arm=spoken.arm,
            kind=spoken.kind,
            unit=spoken.unit,
            exposed_unix_ms=spoken.exposed_unix_ms,
        )
        return Feedback(
            id=uuid.uuid4().bytes,
            unix_ms=spoken.unix_ms,
            target="interaction",
            target_id=str(uuid.UUID(bytes=spoken.target)),
            choice=0,
            attribution=attribution,
            metric=METRIC,
            number=spoken.value,
            text=None,
            comment=None,
            correction=None,
            source="end_user",
            author="unit",
            key=0,
        )


@pytest.mark.parametrize(
    ("candidate", "end"),
    [(Release(feedback=0.3), "promoted"), (Release(feedback=0.3, errors=0.1), "rolled_back")],
    ids=["good", "bad"],
)
async def test_the_same_in_the_database(database: Database, candidate: Release, end: str, proof: bool) -> None:
    scenario = replace(BASE, candidate=candidate, interactions=40_000 if proof else 15_000)
    terms = agree_terms(scenario)
    stream, other = Stream(scenario, 5), Stream(scenario, 5)
    clock = ManualClock(stream.now_ms)
    memory = MemoryRollout(terms, stream.now_ms)
    stored = await StoredRollout.begin(database, clock, terms, stream.salt)
    outcomes = []
    served = 0
    while served < scenario.interactions and not is_over(memory.status):
        taken = stream.take(memory.status)
        served += len(taken.interactions)
        memory.record(taken.interactions)
        memory.rate(taken.spoken)
        await stored.serve(other.take(memory.status))
        clock.advance((stream.now_ms - clock.unix_ms()) / 1000)
        decision = memory.tick(clock.unix_ms())
        rollout = await stored.tick()
        assert rollout.status == memory.status
        if decision.outcome != "hold":
            outcomes.append((decision.outcome, decision.reason, decision.metric))
    async with database.connection() as connection:
        log = (await list_decisions(connection, stored.number, limit=1000))[::-1]
    assert [(each.outcome, each.reason, each.metric) for each in log if each.outcome != "hold"] == outcomes
    assert memory.status.state == end
    assert await stored.assess(terms) == memory.assess()
