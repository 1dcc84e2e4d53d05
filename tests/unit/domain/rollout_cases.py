"""A policy, its terms, and what may be known of a rollout under it."""

import math
from typing import Any

from msgspec.structs import replace

from headway.domain.assessment import Assessment, MetricFigures, SafeFigure
from headway.domain.metric import BUILT_IN_FEEDBACK
from headway.domain.policy import MetricRule, Policy, StageRule
from headway.domain.recording import Baseline, MetricBaseline, Terms
from headway.domain.rollout import Decision, Status, decide

THRESHOLD = math.log(20)
HARM = math.log(60)
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
NOW_MS = 1_800_000_000_000

ERRORS = MetricRule("error_rate", "guardrail", "event_ratio", "ratio", "lower", 1.5, 1.25, 0.4)
THUMBS = MetricRule("thumbs_up", "goal", "two_sample", "points", "higher", 0.05, 0.025, 0.6)
POLICY = Policy(
    name="careful",
    stages=(StageRule(0.01), StageRule(0.1), StageRule(0.5), StageRule(1.0)),
    rules=(THUMBS, ERRORS),
    dwell_seconds=1800,
    min_units=50,
    max_duration_seconds=86_400,
)
KNOWN = Baseline(5000, {"thumbs_up": MetricBaseline(400, 0.7), "error_rate": MetricBaseline(5000, 0.01)})


def terms(**changes: Any) -> Terms:
    """The policy with some of its keys changed, over a complete baseline."""
    feedback = {"thumbs_up": BUILT_IN_FEEDBACK["thumbs_up"]}
    return Terms(replace(POLICY, **changes), "conversation", feedback, changes.pop("baseline", KNOWN))


def figures(rule: MetricRule, harm: float = 0.0, safe: float = 0.0, **changes: Any) -> MetricFigures:
    """A metric with this much evidence of harm, and of safety at every share."""
    points = rule.form == "points"
    return replace(
        MetricFigures(
            metric=rule.metric,
            role=rule.role,
            stable_observations=900,
            candidate_observations=60,
            stable_level=0.7 if points else 0.01,
            candidate_level=0.6 if points else 0.02,
            estimate=-0.1 if points else 2.0,
            lower=-0.15 if points else 1.4,
            upper=-0.04 if points else 2.9,
            margin=-0.05 if points else 1.5,
            harm=-0.025 if points else 1.25,
            harm_log_e=harm,
            harm_threshold=HARM,
            safe=tuple(SafeFigure(stage.share, safe) for stage in POLICY.stages),
            safe_threshold=THRESHOLD,
        ),
        **changes,
    )


def assess(harm: float = 0.0, safe: float = 0.0, **changes: Any) -> Assessment:
    """Both metrics with this much evidence, after enough units."""
    metrics = (figures(THUMBS, harm, safe), figures(ERRORS, harm, safe))
    given = Assessment(metrics, stage_units=(900, 60), stage_interactions=(900, 60), interactions=(900, 60))
    return replace(given, **changes)


RAMP = Status("ramp", step=0, stage=1, share=0.01, since_ms=NOW_MS, started_ms=NOW_MS)
SHADOW = Status("shadow", step=-1, stage=0, share=0.0, since_ms=NOW_MS, started_ms=NOW_MS)
BASELINE = Status("baseline", step=-1, stage=0, share=0.0, since_ms=NOW_MS, started_ms=NOW_MS)
HOLDBACK = Status("holdback", step=3, stage=5, share=0.98, since_ms=NOW_MS, started_ms=NOW_MS - HOUR_MS)
KEPT = replace(RAMP, state="inconclusive")
LATE_MS = NOW_MS + HOUR_MS  # dwelt


def decided(assessment: Assessment, status: Status = RAMP, now_ms: int = LATE_MS, **changes: Any) -> Decision:
    return decide(terms(**changes), status, assessment, now_ms)


def paused(status: Status, reason: str = "command") -> Status:
    return replace(status, state="paused", paused_state=status.state, paused_reason=reason, paused_since_ms=NOW_MS)
