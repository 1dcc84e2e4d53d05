"""Readings of a rollout to draw: what a controller would have left in the database."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

from msgspec.structs import replace

from headway.cli.rollout_screen import Reading
from headway.clock import utc
from headway.domain.assessment import Assessment, MetricFigures, SafeFigure
from headway.domain.difference import Difference
from headway.domain.metric import BUILT_IN_FEEDBACK, MEASURED
from headway.domain.policy import MetricRule, Policy, ShadowRule, StageRule
from headway.domain.recording import Terms
from headway.domain.rollout import Status
from headway.storage.rollouts import Figure, Rollout, RolloutDecision, Stage

NOW_MS = 1_795_000_000_000
_MINUTE_MS = 60_000


def _ratio(metric: str, margin: float) -> MetricRule:
    kind = MEASURED[metric].kind
    method = {"event": "event_ratio", "quantile": "slow_calls", "positive": "normal_mixture"}[kind]
    return MetricRule(metric, "guardrail", method, "ratio", "lower", margin, 1 + (margin - 1) / 2, 0.2)  # type: ignore[arg-type]  # from a table


RULES = (
    MetricRule("thumbs_up", "goal", "two_sample", "points", "higher", 0.05, 0.025, 0.2),
    _ratio("attempt_error_rate", 1.5),
    _ratio("fallback_rate", 1.5),
    _ratio("latency_p95", 1.15),
    _ratio("cost", 1.1),
)
POLICY = Policy(
    "careful",
    (StageRule(0.01), StageRule(0.05), StageRule(0.25), StageRule(0.5), StageRule(1.0, approve=True)),
    RULES,
    shadow=ShadowRule(),
)
TERMS = Terms(POLICY, "conversation", {"thumbs_up": BUILT_IN_FEEDBACK["thumbs_up"]})
STATUS = Status("ramp", 2, 3, 0.25, NOW_MS - 12 * _MINUTE_MS, NOW_MS - 95 * _MINUTE_MS)

_FIGURES: dict[str, tuple[Any, ...]] = {
    # levels, estimate, interval, E of harm, E of safety, to go
    "thumbs_up": (0.702, 0.689, -0.013, (-0.041, 0.016), 4.2, 2.1, 4213.0),
    "attempt_error_rate": (0.0051, 0.0048, 0.94, (0.61, 1.43), 0.03, 31.0, 0.0),
    "fallback_rate": (0.0, 0.0, None, (None, None), 1.0, 24.0, None),
    "latency_p95": (1240.0, 1310.0, 1.06, (0.98, 1.14), 0.9, 11.0, 900.0),
    "cost": (0.00042, 0.00039, 0.93, (0.90, 0.97), 0.001, 410.0, 0.0),
}


def figures(metric: str, **changes: Any) -> MetricFigures:
    rule = next(rule for rule in RULES if rule.metric == metric)
    stable, candidate, estimate, (lower, upper), harm_e, safe_e, to_go = _FIGURES[metric]
    sign = -1 if rule.form == "points" else 1
    found = MetricFigures(
        metric=metric,
        role=rule.role,
        stable_observations=1204,
        candidate_observations=391,
        stable_level=stable,
        candidate_level=candidate,
        estimate=estimate,
        lower=lower,
        upper=upper,
        margin=sign * rule.margin,
        harm=sign * rule.harm,
        harm_log_e=math.log(harm_e),
        harm_threshold=math.log(100),
        safe=(SafeFigure(0.5, math.log(safe_e)), SafeFigure(1.0, math.log(safe_e) / 2)),
        safe_threshold=math.log(20),
        interactions_to_go=to_go,
    )
    return replace(found, **changes)


def assessment(**changes: Any) -> Assessment:
    metrics = tuple(figures(rule.metric) for rule in RULES)
    found = Assessment(metrics, 0.2, (410, 123), (2340, 780), (21_840, 1_460))
    return replace(found, **changes)


def decision(number: int, outcome: str, reason: str, message: str, minutes: float, **changes: Any) -> RolloutDecision:
    values: dict[str, Any] = {
        "number": number,
        "tick": number * 10,
        "at": utc(NOW_MS) - timedelta(minutes=minutes),
        "author": "controller",
        "outcome": outcome,
        "reason": reason,
        "message": message,
        "metric": None,
        "command": None,
        "words": "",
        "before": STATUS,
        "after": STATUS,
        "assessment": None,
        **changes,
    }
    return RolloutDecision(**values)


DECISIONS = (
    decision(
        7,
        "hold",
        "evidence",
        "not yet shown to be safe at 50%: thumbs_up (E 2.1 of 20), latency_p95 (E 11 of 20); about 4,200 more"
        " interactions",
        3,
    ),
    decision(6, "advance", "safe", "shown to be safe: from 5% to 25%", 12),
    decision(5, "hold", "evidence", "not yet shown to be safe at 25%: thumbs_up (E 9.4 of 20)", 31),
    decision(
        4,
        "resume",
        "command",
        "resumed after 4 min: looked at the answers, fine",
        44,
        command="resume",
        author="ann",
    ),
    decision(3, "pause", "command", "paused at 5%: odd answers", 48, command="pause", author="ann"),
    decision(2, "advance", "safe", "shown to be safe: from 1% to 5%", 60),
    decision(1, "advance", "baseline", "the baseline is complete: on to 1%", 95),
)


def rollout(**changes: Any) -> Rollout:
    values: dict[str, Any] = {
        "number": 12,
        "application": "support",
        "stable": "r-1f2e3d4c",
        "candidate": "r-9a8b7c6d",
        "state": "ramp",
        "stage": 3,
        "share": 0.25,
        "started_at": utc(STATUS.started_ms),
        "ended_at": None,
        "policy": "careful",
        "restarts": 0,
        "version": 7,
        "tick": 1140,
        "started_by": "ann",
        "shadow_usd": 0.0,
        "terms": TERMS,
        "status": STATUS,
        "difference": Difference(("model",)),
        **changes,
    }
    return Rollout(**values)


def reading(**changes: Any) -> Reading:
    values: dict[str, Any] = {
        "rollout": rollout(),
        "stages": (
            Stage(1, 0.01, utc(STATUS.started_ms), "ann", "a kinder prompt"),
            Stage(2, 0.05, utc(NOW_MS - 60 * _MINUTE_MS), "controller", "shown to be safe: from 1% to 5%"),
            Stage(3, 0.25, utc(STATUS.since_ms), "controller", "shown to be safe: from 5% to 25%"),
        ),
        "decisions": DECISIONS,
        "figure": Figure(1140, utc(NOW_MS - 2000), STATUS, assessment()),
        "pace": 0.7,
        "now_ms": NOW_MS,
        **changes,
    }
    return Reading(**values)
