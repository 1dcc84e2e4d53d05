"""Scenarios: two releases whose true behaviour is known, the traffic that meets them, and the policy that judges."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from headway.domain.metric import BUILT_IN_FEEDBACK, FeedbackMetric, Form, find_metric, method_for
from headway.domain.policy import DeclaredBaseline, MetricRule, Policy, StageRule, half_way
from headway.domain.snapshot import Unit
from headway.stats import GAMMA

Truth = Literal["within", "between", "beyond"]
"""What a candidate really is: within all harm lines, beyond a margin, or neither."""
Wiring = Literal["right", "releases", "arms"]
"""``releases``: the gateway sends each arm to the other's release; ``arms``: it books each under the other's name."""

LATENCY_SIGMA = 0.6
"""Latencies are lognormal."""
STABLE_P95_MS = GAMMA**399
"""95th percentile of the stable release's latency, on an edge of the log-histogram: exactly 5 % of calls are slow."""
STABLE_MEDIAN_MS = STABLE_P95_MS / math.exp(1.6448536269514722 * LATENCY_SIGMA)


@dataclass(frozen=True)
class Release:
    """How a release really behaves.

    Attributes:
        thumbs_up: Part of raters who like its answers.
        errors, refusals, filtered, attempt_errors, fallbacks: Rates per interaction, each independent of the others.
        latency: Factor on all latencies.
        cost: Factor on all costs.
        feedback: Part of the answers that is rated.
        calls: Interactions for each question: 1.25 means that every fourth is asked twice.
    """

    thumbs_up: float = 0.70
    errors: float = 0.005
    refusals: float = 0.02
    filtered: float = 0.05
    attempt_errors: float = 0.01
    fallbacks: float = 0.005
    latency: float = 1.0
    cost: float = 1.0
    feedback: float = 0.05
    calls: float = 1.0


@dataclass(frozen=True)
class Traffic:
    """Who calls.

    Attributes:
        unit: What is assigned to an arm.
        per_unit: Interactions of a unit, on average (geometric); 1: each interaction is its own unit.
        active_units: Units among which the next caller is drawn; who leaves is replaced by a new unit.
        correlation: Of the ratings of one unit.
        troubled: Part of the units that has all the errors; 1 spreads them evenly.
        hard: Share of hard questions at first, and after ``hard_interactions``: they are liked 30 points less, fail
            three times as often and take half as long again.
        hard_interactions: Over how many interactions that share changes.
        per_hour: Interactions per hour.
        per_tick: Interactions between two ticks of the controller.
    """

    unit: Unit = "request"
    per_unit: float = 1.0
    active_units: int = 2000
    correlation: float = 0.0
    troubled: float = 1.0
    hard: tuple[float, float] = (0.0, 0.0)
    hard_interactions: int = 100_000
    per_hour: int = 10_000
    per_tick: int = 200


@dataclass(frozen=True)
class Raters:
    """When and how people rate.

    Attributes:
        delay_seconds: From the answer to the rating: the median.
        delay_sigma: Of its lognormal spread; 0: always the same.
        quick_dislike: Factor on the delay of those who dislike.
        slips: Part who hit the wrong button, and correct it half a minute later.
        candidate_slips: Factor on that for those who met the candidate.
        changes: Part who change their minds two hours later.
    """

    delay_seconds: float = 3600.0
    delay_sigma: float = 0.0
    quick_dislike: float = 1.0
    slips: float = 0.0
    candidate_slips: float = 1.0
    changes: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """One row of the table.

    Attributes:
        name: What to type.
        about: What happens, for people.
        truth: What the candidate really is under the policy.
        policy: What must judge it.
        stable, candidate: What the two are really like.
        traffic: Who calls.
        raters: How people rate.
        wiring: How the gateway is built; anything but ``right`` is a mistake that must show.
        interactions: Where a run ends if nothing has been decided.
    """

    name: str
    about: str
    truth: Truth
    policy: Policy
    stable: Release = field(default_factory=Release)
    candidate: Release = field(default_factory=Release)
    traffic: Traffic = field(default_factory=Traffic)
    raters: Raters = field(default_factory=Raters)
    wiring: Wiring = "right"
    interactions: int = 1_000_000

    @property
    def releases(self) -> tuple[Release, Release]:
        """Stable and candidate."""
        return self.stable, self.candidate

    def until(self, interactions: int) -> Scenario:
        """Give the same with another end."""
        return replace(self, interactions=interactions)

    @property
    def feedback(self) -> dict[str, FeedbackMetric]:
        """The feedback metrics that the policy names."""
        return {
            rule.metric: BUILT_IN_FEEDBACK[rule.metric]
            for rule in self.policy.rules
            if rule.metric in BUILT_IN_FEEDBACK
        }


def rule(
    metric: str,
    margin: float,
    weight: float,
) -> MetricRule:
    """Write one rule of a policy; the goal is ``thumbs_up``, the harm line is half of the margin."""
    found = find_metric(metric, BUILT_IN_FEEDBACK)
    form: Form = "points" if found.kind in ("binary", "bounded") else "ratio"
    return MetricRule(
        metric=metric,
        role="goal" if metric == "thumbs_up" else "guardrail",
        method=method_for(found.kind, form),
        form=form,
        direction=found.direction,
        margin=margin,
        harm=half_way(form, margin),
        weight=weight,
    )


_RAMP = tuple(StageRule(share) for share in (0.01, 0.05, 0.25, 0.5, 1.0))
_FOUR = {"thumbs_up": 0.05, "error_rate": 2.0, "slow_rate": 1.5, "refusal_rate": 1.5}
_EIGHT = {
    "thumbs_up": 0.05,
    "error_rate": 2.0,
    "refusal_rate": 1.5,
    "latency_p95": 1.2,
    "cost": 1.1,
    "feedback_rate": 0.8,
    "attempt_error_rate": 1.5,
    "fallback_rate": 1.5,
}


def four_metrics() -> Policy:
    """The policy of the published table: ratings count as they come, no dwell, no holdback."""
    rules = tuple(rule(name, margin, 1 / len(_FOUR)) for name, margin in _FOUR.items())
    return Policy(
        name="four metrics",
        stages=_RAMP,
        rules=rules,
        dwell_seconds=0.0,
        feedback_window_seconds=1800.0,
        settle_seconds=0.0,
        holdback=None,
        baselines={
            "thumbs_up": DeclaredBaseline(0.70),
            "error_rate": DeclaredBaseline(0.005),
            "refusal_rate": DeclaredBaseline(0.02),
            "latency_p95": DeclaredBaseline(STABLE_P95_MS),
            "slow_rate": DeclaredBaseline(0.05),
        },
    )


def eight_metrics() -> Policy:
    """A policy as one would write it: all kinds of metrics, the defaults of everything else."""
    rules = tuple(rule(name, margin, 1 / len(_EIGHT)) for name, margin in _EIGHT.items())
    return Policy(name="eight metrics", stages=_RAMP, rules=rules)
