"""Terms and evidence for tests of the books."""

from collections.abc import Mapping
from typing import Any

import msgspec

from headway.domain.blocks import Closed, inflate
from headway.domain.books import Books, Intake, Rating, Stratum
from headway.domain.evidence import Counts, EventCounts, ExposureKey, ValueCounts
from headway.domain.metric import BUILT_IN_FEEDBACK, FeedbackMetric, Form, find_metric, method_for
from headway.domain.policy import MetricRule, Policy, StageRule, half_way
from headway.domain.recording import Baseline, MetricBaseline, Terms, plan_recording
from headway.domain.rollout import Status

SHARES = (0.01, 0.05, 0.25, 0.5, 1.0)
FEEDBACK = {
    **BUILT_IN_FEEDBACK,
    "complaint": FeedbackMetric("binary", "lower"),
    "minutes_saved": FeedbackMetric("positive", "higher"),
}
STREAMS = ("error_rate", "fallback_rate", "refusal_rate")
RAMP = Stratum(1, "ramp", 0.5)
STATUS = Status("ramp", 0, 1, 0.5, 0, 0)
PERIOD = 3600


def make_rule(metric: str, margin: float, weight: float = 0.25, **changes: Any) -> MetricRule:
    """A guardrail with the harm line half-way, unless told otherwise."""
    found = find_metric(metric, FEEDBACK)
    form: Form = "points" if found.kind in ("binary", "bounded") else "ratio"
    values: dict[str, Any] = {
        "metric": metric,
        "role": "guardrail",
        "method": method_for(found.kind, form),
        "form": form,
        "direction": found.direction,
        "margin": margin,
        "harm": half_way(form, margin),
        "weight": weight,
    }
    return MetricRule(**{**values, **changes})


KNOWN = {
    "thumbs_up": MetricBaseline(1_000, 0.7, unit_variance=0.21, bucket_interactions=1.0),
    "complaint": MetricBaseline(1_000, 0.1, unit_variance=0.09, bucket_interactions=1.0),
    "stars": MetricBaseline(1_000, 3.8, unit_variance=1.2, bucket_interactions=1.0),
    "minutes_saved": MetricBaseline(1_000, 5.0, 60.0, 25.0, 1.0),
    "error_rate": MetricBaseline(10_000, 0.02, unit_variance=0.0196, bucket_interactions=1.0),
    "fallback_rate": MetricBaseline(10_000, 0.01, unit_variance=0.0099, bucket_interactions=1.0),
    "refusal_rate": MetricBaseline(10_000, 0.01, unit_variance=0.0099, bucket_interactions=1.0),
    "feedback_rate": MetricBaseline(10_000, 0.3, unit_variance=0.21, bucket_interactions=1.0),
    "report_rate": MetricBaseline(10_000, 0.02, unit_variance=0.0196, bucket_interactions=1.0),
    "latency_p95": MetricBaseline(10_000, 1_000.0, unit_variance=0.0475, bucket_interactions=1.0),
    "slow_rate": MetricBaseline(10_000, 0.05, unit_variance=0.0475, bucket_interactions=1.0),
    "cost": MetricBaseline(10_000, 0.001, 0.01, 1e-6, 1.0),
}


def make_terms(*rules: MetricRule, unit: str = "request", **changes: Any) -> Terms:
    """Terms of a policy with these rules, over a baseline that knows all of their metrics."""
    values: dict[str, Any] = {"name": "test", "stages": tuple(map(StageRule, SHARES)), "rules": rules}
    policy = Policy(**{**values, **changes})
    named = {rule.metric for rule in rules}
    baseline = Baseline(10_000, {name: known for name, known in KNOWN.items() if name in named | {"latency_p95"}})
    feedback = {name: FEEDBACK[name] for name in named & FEEDBACK.keys()}
    return Terms(policy, unit, feedback, baseline, plan_recording(policy, baseline))  # type: ignore[arg-type]


def make_counts(interactions: int, events: Mapping[str, int] | None = None, **fields: Any) -> Counts:
    """Counts of so many interactions of units of their own, spread over the buckets, with so many events."""
    cells = {cell: count for cell in range(256) if (count := len(range(cell, interactions, 256)))}
    found = {
        name: EventCounts(
            hits, interactions, hits, {cell: count for cell in range(256) if (count := len(range(cell, hits, 256)))}
        )
        for name, hits in (events or {}).items()
    }
    values = {"interactions": interactions, "units": interactions, "buckets": cells, "events": found}
    return Counts(**{**values, **fields})


def make_values(buckets: Mapping[int, tuple[int, int]]) -> ValueCounts:
    """Counts of values, (count, total) by bucket."""
    return ValueCounts(
        sum(count for count, _ in buckets.values()), sum(total for _, total in buckets.values()), 0, dict(buckets)
    )


def both_arms(stable: Counts, candidate: Counts, stage: int = 1, period: int = 0) -> Intake:
    """What a tick claims of one stage and period."""
    return Intake({ExposureKey(1, stage, period, 0): stable, ExposureKey(1, stage, period, 1): candidate})


def rate(metric: str, values: tuple[list[float], list[float]], stage: int = 1, period: int = 0) -> list[Rating]:
    """Ratings of stable and of the candidate, each of another unit."""
    return [
        Rating(metric, value, bytes((arm, place // 256, place % 256)), stage, period, arm)
        for arm in (0, 1)
        for place, value in enumerate(values[arm])
    ]


def feed(books: Books, *intakes: Intake, strata: tuple[Stratum, ...] = (RAMP,), start_ms: int = 0) -> list[bytes]:
    """Let ticks of five seconds claim these, one after the other; returns what has closed."""
    found = [books.collect(intake, strata, start_ms + 5_000 * (number + 1)) for number, intake in enumerate(intakes)]
    return [body for body in found if body is not None]


def closed_blocks(bodies: list[bytes]) -> list[tuple[str, int, list[int]]]:
    """The blocks in what ticks have closed: stream, stage, counts."""
    decoded = [msgspec.msgpack.decode(inflate(body), type=Closed) for body in bodies]
    return [(block.stream, block.stage, block.counts) for closed in decoded for block in closed.blocks]
