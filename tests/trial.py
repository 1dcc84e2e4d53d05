"""A rollout under a policy, in the database, with what a test needs to drive it tick by tick."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from headway.clock import ManualClock
from headway.domain.assignment import is_candidate
from headway.domain.interaction import Interaction
from headway.domain.policy import HoldbackRule, MetricRule, Policy, StageRule
from headway.domain.recording import Baseline, MetricBaseline, Terms, plan_recording
from headway.domain.rollout import Command, begin
from headway.domain.snapshot import ApplicationRoute
from headway.ids import Arm, Kind
from headway.rollouts.controller import Controller
from headway.rollouts.manual import set_share
from headway.rollouts.operations import Taken, take
from headway.storage import routing
from headway.storage.applications import find_application, find_release
from headway.storage.batches import Batch, BatchWriter
from headway.storage.database import Database
from headway.storage.rollouts import Opening, Rollout, RolloutDecision, find_rollout, list_decisions, open_staged
from tests.interactions import make_interaction
from tests.world import found_world

TICK_SECONDS = 5.0
_SALT = b"always the same."
POLICY = Policy(
    name="careful",
    stages=(StageRule(0.2), StageRule(0.5), StageRule(1.0)),
    rules=(MetricRule("error_rate", "goal", "event_ratio", "ratio", "lower", margin=3.0, harm=2.0, weight=1.0),),
    min_units=20,
    dwell_seconds=10.0,
    feedback_window_seconds=10.0,
    settle_seconds=1.0,
    holdback=HoldbackRule(seconds=20.0),
)
"""Errors may triple; a minute is enough where a fifth of stable's answers fail and none of the candidate's."""

BASELINE = Baseline(1_000, {"error_rate": MetricBaseline(1_000, 0.2, unit_variance=0.16, bucket_interactions=4.0)})


@dataclass
class Trial:
    """Rollout ``number`` of support, from its release calm to its release bold."""

    database: Database
    clock: ManualClock
    writer: BatchWriter
    number: int
    controller: Controller
    units: int = 0
    served: list[int] = field(default_factory=lambda: [0, 0])

    async def serve(self, count: int, *, stable: float = 0.2, candidate: float = 0.0, **fields: Any) -> None:
        """Serve units that have never come, as a gateway would route them now; of each arm this part fails."""
        route = await self.route()
        rollout = route.rollout
        assert rollout is not None, "it is not routed"
        interactions = []
        for number in range(self.units, self.units + count):
            arm = Arm.CANDIDATE if is_candidate(rollout.salt, f"unit {number}", rollout.share) else Arm.STABLE
            self.served[arm] += 1
            rate = candidate if arm else stable
            fails = int(self.served[arm] * rate) > int((self.served[arm] - 1) * rate)
            placed = {
                "stage": rollout.stage,
                "arm": arm,
                "kind": rollout.kind,
                "release": rollout.candidate if arm else route.stable,
                "release_error": fails,
            }
            interactions.append(self.interaction(f"unit {number}", **{**placed, **fields}))
        self.units += count
        await self.write(interactions)

    def interaction(self, unit: str, **fields: Any) -> Interaction:
        """An interaction of the rollout's first stage, now."""
        placed = {"rollout": self.number, "kind": Kind.RANDOMISED}
        return make_interaction(self.clock.unix_ms(), unit, **{**placed, **fields})

    async def write(self, interactions: Iterable[Interaction]) -> None:
        """Record interactions, as one batch."""
        await self.writer.write(Batch(uuid.uuid4(), 1, list(interactions)))

    async def tick(self, seconds: float = TICK_SECONDS) -> None:
        """Let time pass, and take a tick."""
        self.clock.advance(seconds)
        await self.controller.tick()

    async def take(self, command: Command, reason: str = "because") -> Taken:
        """Ask something of the rollout, as ann."""
        async with self.database.connection() as connection:
            return await take(
                connection, self.number, command, author="ann", reason=reason, now_ms=self.clock.unix_ms()
            )

    async def rollout(self) -> Rollout:
        """The rollout as it is now."""
        async with self.database.connection() as connection:
            return await find_rollout(connection, self.number)

    async def route(self) -> ApplicationRoute:
        """The application as gateways see it."""
        async with self.database.connection() as connection:
            snapshot = await routing.latest(connection)
        assert snapshot is not None
        return snapshot.applications["support"]

    async def decisions(self) -> list[RolloutDecision]:
        """The log, first to last."""
        async with self.database.connection() as connection:
            return (await list_decisions(connection, self.number, limit=1_000))[::-1]

    async def outcomes(self) -> list[tuple[str, str]]:
        """Outcome and reason of every decision, first to last."""
        return [(each.outcome, each.reason) for each in await self.decisions()]

    async def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        async with self.database.connection() as connection:
            return await (await connection.execute(query.encode(), values)).fetchall()


async def begin_trial(
    database: Database, clock: ManualClock, policy: Policy = POLICY, *, baseline: Baseline | None = BASELINE
) -> Trial:
    """Fill a migrated database and begin a rollout in it; without a baseline it begins by collecting one."""
    await found_world(database, clock)
    async with database.connection() as connection:
        await set_share(connection, "support", "bold", 0.0, author="ann")  # the manual one of that world
    return await next_trial(database, clock, policy, baseline=baseline)


async def next_trial(
    database: Database,
    clock: ManualClock,
    policy: Policy = POLICY,
    *,
    baseline: Baseline | None = BASELINE,
    application: str = "support",
    candidate: str = "bold",
) -> Trial:
    """Begin another rollout in a database where none is running."""
    terms = Terms(policy, "conversation", {})
    if baseline is not None:
        terms = replace(terms, baseline=baseline, recording=plan_recording(policy, baseline))
    now_ms = clock.unix_ms()
    async with database.connection() as connection:
        target = await find_application(connection, application, lock=True)
        release = await find_release(connection, application, candidate)
        opening = Opening(terms, begin(terms, now_ms), restarts=0, author="ann", reason="a better one", now_ms=now_ms)
        rollout = await open_staged(connection, target, release, opening, _SALT)
        await routing.publish(connection)
    controller = Controller(database, clock, TICK_SECONDS)
    return Trial(database, clock, BatchWriter(database), rollout.number, controller)
