"""Rollouts as the console meets them: written into the database as the controller would, with figures that look real.

The figures are made up (a normal estimate that settles on its truth), the rows are not: they are written by the same
functions that the controller calls.
"""

from __future__ import annotations

import math
import random
import uuid
from dataclasses import dataclass, field
from typing import Any

import msgspec
from psycopg.types.json import Jsonb

from headway.clock import Clock, utc
from headway.domain.assessment import Assessment, MetricFigures, SafeFigure
from headway.domain.metric import BUILT_IN_FEEDBACK
from headway.domain.policy import KillSwitch, MetricRule, Policy, ShadowRule, StageRule
from headway.domain.recording import Baseline, MetricBaseline, Terms
from headway.domain.release import Bundle, Deployment, Endpoint
from headway.domain.rollout import Decision, Status, begin, decide, obey, phase_of, shares_ahead
from headway.domain.snapshot import Scope
from headway.ids import Kind, uuid7
from headway.storage import decisions, keys, routing
from headway.storage.applications import find_application, find_release
from headway.storage.database import Connection, Database
from headway.storage.decisions import Circumstances
from headway.storage.rollouts import Opening, Rollout, find_rollout, open_staged

PER_SECOND = 12.0
TICK_SECONDS = 30.0


def make_policy(**changes: Any) -> Policy:
    """A careful policy; ``changes`` replace some of its fields."""
    rules = (
        MetricRule("thumbs_up", "goal", "two_sample", "points", "higher", 0.05, 0.025, 0.25),
        MetricRule("error_rate", "guardrail", "event_ratio", "ratio", "lower", 1.5, 1.25, 0.15),
        MetricRule("attempt_error_rate", "guardrail", "event_ratio", "ratio", "lower", 1.5, 1.25, 0.15),
        MetricRule("fallback_rate", "guardrail", "event_ratio", "ratio", "lower", 1.5, 1.25, 0.15),
        MetricRule("latency_p95", "guardrail", "slow_calls", "ratio", "lower", 1.15, 1.075, 0.15),
        MetricRule("cost", "guardrail", "normal_mixture", "ratio", "lower", 1.1, 1.05, 0.15),
    )
    stages = (*(StageRule(share) for share in (0.01, 0.05, 0.25, 0.5)), StageRule(1.0, approve=True))
    policy = Policy(
        name="careful",
        stages=stages,
        rules=rules,
        shadow=ShadowRule(sample=0.1, budget_usd=5.0, interactions=50),
        kill_switch=KillSwitch(safety_events=25),
    )
    return msgspec.structs.replace(policy, **changes)


LEVELS = {
    "thumbs_up": 0.71,
    "error_rate": 0.006,
    "attempt_error_rate": 0.011,
    "fallback_rate": 0.004,
    "latency_p95": 2140.0,
    "cost": 0.00184,
}
# How far an estimate of one observation per arm spreads, and how many observations an interaction brings.
SPREADS = {
    "thumbs_up": (0.46, 0.05),
    "error_rate": (12.0, 1.0),
    "attempt_error_rate": (9.5, 1.0),
    "fallback_rate": (15.0, 1.0),
    "latency_p95": (4.2, 1.0),
    "cost": (1.3, 1.0),
}
GOOD = {
    "thumbs_up": 0.012,
    "error_rate": 0.9,
    "attempt_error_rate": 1.04,
    "fallback_rate": 0.95,
    "latency_p95": 0.93,
    "cost": 0.81,
}


def make_terms(policy: Policy | None = None) -> Terms:
    baseline = Baseline(40_000, {name: MetricBaseline(4_000, level) for name, level in LEVELS.items()})
    return Terms(policy or make_policy(), "conversation", {"thumbs_up": BUILT_IN_FEEDBACK["thumbs_up"]}, baseline)


@dataclass
class Story:
    """A rollout that goes on: each tick writes figures, and what is decided on them."""

    database: Database
    number: int
    now_ms: int
    truth: dict[str, float] = field(default_factory=lambda: dict(GOOD))
    seed: int = 7
    seen: dict[str, tuple[float, float]] = field(default_factory=dict)
    _walks: dict[str, float] = field(default_factory=dict)
    _noise: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._noise = random.Random(self.seed)

    async def rollout(self) -> Rollout:
        async with self.database.connection() as connection:
            return await find_rollout(connection, self.number)

    async def tick(self, seconds: float = TICK_SECONDS) -> Decision:
        """Let time pass, look at the evidence, and decide."""
        self.now_ms += round(seconds * 1000)
        async with self.database.connection() as connection:
            rollout = await find_rollout(connection, self.number, lock=True)
            assert rollout.terms is not None
            assert rollout.status is not None
            assessment = self._assess(rollout.terms, rollout.status, seconds)
            decision = decide(rollout.terms, rollout.status, assessment, self.now_ms)
            tick = rollout.tick + 1
            await connection.execute("UPDATE rollout SET tick = %s WHERE id = %s", (tick, self.number))
            await decisions.add_figure(
                connection, self.number, rollout.status, assessment, tick=tick, now_ms=self.now_ms
            )
            if decision.outcome != "hold" or await self._is_news(connection, decision):
                circumstances = Circumstances("controller", self.now_ms, tick, assessment)
                await decisions.change(connection, rollout, decision, circumstances)
                await routing.publish(connection)
        return decision

    async def ask(self, command: Any, words: str, author: str = "ann (key 2)") -> None:
        """Let a person ask something of it."""
        async with self.database.connection() as connection:
            rollout = await find_rollout(connection, self.number, lock=True)
            assert rollout.terms is not None
            assert rollout.status is not None
            decision = obey(rollout.terms, rollout.status, command, words, self.now_ms)
            circumstances = Circumstances(author, self.now_ms, rollout.tick, command=command, words=words)
            await decisions.change(connection, rollout, decision, circumstances)
            await routing.publish(connection)

    async def run_until(self, stage: int, extra: int = 0, limit: int = 2_000) -> None:
        """Tick until a stage is reached, or the rollout is over, and some ticks more."""
        for _ in range(limit):
            rollout = await self.rollout()
            if rollout.ended_at is not None or rollout.stage >= stage:
                break
            await self.tick()
        for _ in range(extra):
            if (await self.rollout()).ended_at is not None:
                break
            await self.tick()

    async def _is_news(self, connection: Connection, decision: Decision) -> bool:
        cursor = await connection.execute(
            "SELECT reason, metric FROM decision WHERE rollout_id = %s ORDER BY number DESC LIMIT 1", (self.number,)
        )
        return await cursor.fetchone() != (decision.reason, decision.metric)

    def _assess(self, terms: Terms, status: Status, seconds: float) -> Assessment:
        share = terms.policy.shadow.sample if status.state == "shadow" and terms.policy.shadow else status.share
        stable, candidate = self._grow("all", seconds, share)
        in_stage = self._grow(f"stage {status.stage}", seconds, share)
        phase = phase_of(status)
        return Assessment(
            metrics=tuple(self._figures(terms, rule, status, seconds, share) for rule in terms.policy.rules)
            if phase
            else (),
            sample_ratio_log_e=-1.2 if phase == "ramp" else 0.0,
            stage_units=(0, 0) if phase == "shadow" else (round(in_stage[0] / 3.1), round(in_stage[1] / 3.1)),
            stage_interactions=(round(in_stage[0]), round(in_stage[1])),
            interactions=(round(stable), round(candidate)),
            safety_events=round(candidate * 0.0004),
        )

    def _grow(self, name: str, seconds: float, share: float) -> tuple[float, float]:
        stable, candidate = self.seen.get(name, (0.0, 0.0))
        arrived = seconds * PER_SECOND * (0.9 + 0.2 * self._noise.random())
        self.seen[name] = (stable + arrived * (1 - share), candidate + arrived * share)
        return self.seen[name]

    def _figures(self, terms: Terms, rule: MetricRule, status: Status, seconds: float, share: float) -> MetricFigures:
        spread, part = SPREADS[rule.metric]
        place = f"{phase_of(status)} {rule.metric}"
        before = self.seen.get(place, (0.0, 0.0))
        stable, candidate = self._grow(place, seconds, share)
        level = LEVELS[rule.metric]
        points = rule.form == "points"
        sign = -1.0 if points and rule.direction == "higher" else 1.0
        margin, harm = sign * rule.margin, sign * rule.harm
        n, grown = part * candidate, part * (candidate - before[1])
        # The sum of what each tick brings is a walk, so that estimates wander as real ones do.
        walk = self._walks.get(place, 0.0) + math.sqrt(grown) * self._noise.gauss(0, 1)
        self._walks[place] = walk
        if n < 1:
            return MetricFigures(
                rule.metric, rule.role, round(part * stable), 0, level, None, None, None, None, margin, harm, 0.0,
                -math.log(terms.policy.alpha * rule.weight),
                tuple(SafeFigure(each, 0.0) for each in shares_ahead(terms.policy, status)),
                -math.log(terms.policy.beta),
            )  # fmt: skip
        error = spread * math.sqrt(1 / n + 1 / max(part * stable, 1.0))
        truth, neutral = self.truth[rule.metric], 0.0 if points else 1.0
        estimate = truth + spread * walk / max(n, 1.0)
        lower, upper = estimate - 3.1 * error, estimate + 3.1 * error
        if not points:
            estimate, lower = max(estimate, 0.02), max(lower, 0.0)
        worse = 1.0 if margin > neutral else -1.0

        def log_e(distance: float) -> float:
            z = distance / error
            return 0.5 * z * abs(z) - 0.5 * math.log1p(n / 40) - 1.0

        ahead = shares_ahead(terms.policy, status)
        tolerances = [neutral + (margin - neutral) / each for each in ahead]
        safe = tuple(
            SafeFigure(each, log_e(worse * (tolerance - estimate)))
            for each, tolerance in zip(ahead, tolerances, strict=True)
        )
        threshold = -math.log(terms.policy.beta)
        lacking = [threshold - each.log_e for each in safe[:1] if each.log_e < threshold]
        return MetricFigures(
            metric=rule.metric,
            role=rule.role,
            stable_observations=round(part * stable),
            candidate_observations=round(n),
            stable_level=level,
            candidate_level=level + estimate if points else level * estimate,
            estimate=estimate,
            lower=None if n < 20 else lower,
            upper=None if n < 20 else upper,
            margin=margin,
            harm=harm,
            harm_log_e=log_e(worse * (estimate - harm)),
            harm_threshold=-math.log(terms.policy.alpha * rule.weight),
            safe=safe,
            safe_threshold=threshold,
            interactions_to_go=lacking[0] * 2_400 if lacking else None,
        )


PROMPTS = {
    "plain": "You are the support assistant of {{ company }}.\nAnswer briefly and politely.\n"
    "If you are not sure, say so.\nNever promise a refund.\n",
    "concise": "You are the support assistant of {{ company }}.\nAnswer in at most three sentences.\n"
    "Name the page of the handbook that says so.\nIf you are not sure, say so.\nNever promise a refund.\n",
}


def make_bundle(name: str) -> Bundle:
    """A release of the application ``support``."""
    endpoint = Endpoint("openai", "http://127.0.0.1:9/v1", "gpt-4o-mini" if name == "plain" else "gpt-5-mini")
    fallback = Endpoint("azure_openai", "http://127.0.0.1:9", "gpt-4o")
    return Bundle(
        deployments=(("main" if name == "plain" else "next", endpoint), ("spare", fallback)),
        prompt=PROMPTS["plain" if name == "plain" else "concise"],
        parameters={"temperature": 0.7 if name == "plain" else 0.2, "max_tokens": 400},
    )


async def add_application(database: Database, name: str, *releases: str, policy: str = "careful") -> None:
    """An application with its releases; the first is stable."""
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO application (name, unit, policy, record_content, retention_days, metrics)"
            " VALUES (%s, 'conversation', %s, true, 90, %s)",
            (name, policy, Jsonb(msgspec.to_builtins(BUILT_IN_FEEDBACK))),
        )
        application = await find_application(connection, name)
        for release in releases:
            bundle = make_bundle(release)
            deployments = [Deployment(each, endpoint) for each, endpoint in bundle.deployments]
            hashed = msgspec.structs.replace(bundle, parameters={**bundle.parameters, "seed": release}).content_hash()
            await connection.execute(
                "INSERT INTO release (application_id, name, content_hash, bundle, deployments, created_by)"
                " VALUES (%s, %s, %s, %s, %s, 'ann')",
                (
                    application.number,
                    release,
                    hashed,
                    Jsonb(msgspec.to_builtins(bundle)),
                    Jsonb(msgspec.to_builtins(deployments)),
                ),
            )
        stable = await find_release(connection, name, releases[0])
        await connection.execute(
            "UPDATE application SET stable_release = %s WHERE id = %s", (stable.number, application.number)
        )
        await routing.publish(connection)


async def add_key(database: Database, name: str, *scopes: Scope) -> str:
    async with database.connection() as connection:
        _, secret = await keys.create(connection, keys.Grant(name, scopes), author="ann")
    return secret


async def start_story(
    database: Database, clock: Clock, application: str, candidate: str, *, ago_seconds: float = 0.0, **more: Any
) -> Story:
    """Begin a rollout under a careful policy; ``more`` are fields of the story, or ``policy``."""
    now_ms = clock.unix_ms() - round(ago_seconds * 1000)
    terms = make_terms(more.pop("policy", None))
    async with database.connection() as connection:
        opening = Opening(terms, begin(terms, now_ms), 0, "ann (key 2)", "cheaper, and answers with sources", now_ms)
        target = await find_application(connection, application, lock=True)
        release = await find_release(connection, application, candidate)
        rollout = await open_staged(connection, target, release, opening, b"s" * 16)
        await routing.publish(connection)
    return Story(database, rollout.number, now_ms, **more)


async def record(
    database: Database,
    at_ms: int,
    *,
    names: tuple[str, str],
    ask: str | None,
    answer: str | None,
    rollout: int = 0,
    mirror_of: uuid.UUID | None = None,
    **changes: Any,
) -> uuid.UUID:
    """An interaction, or a mirrored one, as the recorder would write it; ``names`` are application and release."""
    number = uuid.UUID(bytes=uuid7(at_ms))
    request = None if ask is None else msgspec.json.encode({"messages": [{"role": "user", "content": ask}]}).decode()
    choice = {"index": 0, "message": {"role": "assistant", "content": answer}}
    body = None if answer is None else msgspec.json.encode({"choices": [choice]}).decode()
    row = {
        "at": utc(at_ms),
        "id": number,
        "rollout": rollout,
        "stage": 0,
        "arm": 0 if mirror_of is None else 1,
        "kind": int(Kind.RANDOMISED if mirror_of is None else Kind.SHADOW),
        "unit": b"unit",
        "own_unit": False,
        "key": 1,
        "conversation": "",
        "operation": "chat",
        "stream": False,
        "status": 200,
        "release_error": False,
        "aborted": False,
        "refused": False,
        "filtered": False,
        "deployment": "main",
        "attempts": 1,
        "attempt_errors": 0,
        "fallback": False,
        "output_tokens": len((answer or "").split()),
        "cost_usd": 0.0018,
        "first_token_ms": 220.0,
        "total_ms": 900.0,
        "overhead_ms": 0.4,
        "queue_ms": 0.0,
        "request": request,
        "answer": body,
        "mirror_of": mirror_of,
        **changes,
    }
    columns = ", ".join(row)
    places = ", ".join(f"%({name})s" for name in row)
    async with database.connection() as connection:
        await connection.execute("SELECT ensure_interaction_partition(%s)", (utc(at_ms).date(),))
        insert = (
            f"INSERT INTO interaction (application, release, {columns}) SELECT a.id, r.id, {places}"
            " FROM application a JOIN release r ON r.application_id = a.id WHERE a.name = %(of)s AND r.name = %(by)s"
        )
        await connection.execute(insert.encode(), {**row, "of": names[0], "by": names[1]})
    return number
