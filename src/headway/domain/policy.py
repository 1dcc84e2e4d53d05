"""Rollout policies: how a candidate gets from no traffic to all of it, and what stops it (statistics, section 4)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import msgspec

from headway.domain.metric import Direction, Form, Method

Role = Literal["goal", "guardrail"]
Require = Literal["non_inferior", "superior"]

DEFAULT_FLOOR = 0.001


class StageRule(msgspec.Struct, frozen=True):
    """One step of the ramp: the candidate's share of units, and whether a person releases it."""

    share: float
    approve: bool = False


class MetricRule(msgspec.Struct, frozen=True):
    """What a rollout asks of one metric.

    Attributes:
        metric: Its name.
        role: Guardrails must not get worse by more than the margin; the goal decides.
        method: How it is tested; follows from the kind of the metric and the form of the margin.
        form: Whether margin and harm line are differences in the metric's unit (rates: 0 to 1) or ratios.
        direction: Which way is better.
        margin: The largest loss that is acceptable. Points: m > 0. Ratio, candidate over stable: above 1 where lower is
            better, below 1 where higher is better.
        harm: The harm line, between no loss (0, or 1) and the margin: beyond it a candidate is rolled back.
        weight: Its part of alpha; the weights of a policy add up to 1.
        require: Of the goal: ``superior`` must be better than stable to reach 100 %.
        floor: Of events that are better fewer: a candidate shown below this rate passes whatever its ratio (f / w to
            enter share w); 0 is no floor.
    """

    metric: str
    role: Role
    method: Method
    form: Form
    direction: Direction
    margin: float
    harm: float
    weight: float
    require: Require = "non_inferior"
    floor: float = DEFAULT_FLOOR


DEFAULT_STAGES = tuple(StageRule(share) for share in (0.01, 0.05, 0.25, 0.5, 1.0))
DEFAULT_GUARDRAILS = ("attempt_error_rate", "fallback_rate")
"""Guardrails of every policy, so that fallbacks do not hide a dead candidate (statistics, 4b.7)."""
DEFAULT_RATIO = 1.5
"""Margin of the default guardrails."""


class ShadowRule(msgspec.Struct, frozen=True):
    """The shadow stage: part of the requests is mirrored to the candidate, and its answers are dropped.

    Attributes:
        sample: Part of the requests, 0 to 1.
        budget_usd: What mirrored answers may cost; None is no limit. It ends the mirroring, not the stage.
        interactions: Mirrored answers needed to leave the stage.
    """

    sample: float = 0.1
    budget_usd: float | None = None
    interactions: int = 50


class HoldbackRule(msgspec.Struct, frozen=True):
    """After promotion: the share that stays on the old release, for how long, and the error rate of its harm tests."""

    share: float = 0.02
    seconds: float = 86_400.0
    alpha: float = 0.01


class KillSwitch(msgspec.Struct, frozen=True):
    """The hard limit beside the guarantee; it counts and does not test.

    Attributes:
        safety_events: The candidate's refusals and filtered answers that roll it back; 0 is no limit.
        failures: Failures among the candidate's first ``of_first`` interactions that roll it back; 0 is no limit.
        of_first: See ``failures``.
    """

    safety_events: int = 0
    failures: int = 0
    of_first: int = 20


class DeclaredBaseline(msgspec.Struct, frozen=True):
    """What is taken for the stable release's level of a metric while too little of it is recorded.

    Attributes:
        level: Rate (0 to 1), mean, or quantile in milliseconds, by the kind of metric.
        limit: Of positive values: near their 99.9th percentile; they are cut off there, times the margin.
    """

    level: float
    limit: float | None = None


class Policy(msgspec.Struct, frozen=True):
    """How releases of an application are rolled out; frozen when a rollout starts.

    Attributes:
        name: Its name in the file.
        stages: The ramp: rising shares, the last one 1.
        rules: The goal first, then the guardrails.
        shadow: The shadow stage before the ramp, if there is one.
        alpha: Chance that a candidate within its harm lines is rolled back during the ramp.
        beta: Chance that a candidate worse than a margin reaches all traffic.
        min_units: Units of the candidate in a stage before it may be left.
        dwell_seconds: Least time in a stage.
        feedback_window_seconds: D: how old an exposure must be to count for promotion.
        settle_seconds: How long a rating can still be changed before it counts.
        max_duration_seconds: Longest time without pauses.
        on_inconclusive: What happens then: back to stable, or keep the share until a person decides.
        on_lost_control: What a gateway does that is cut off from the controller: keep the share, or serve stable.
        holdback: What stays on the old release for a while after promotion; None promotes at once.
        kill_switch: The hard limit.
        baselines: Declared levels of metrics of which too little is recorded.
    """

    name: str
    stages: tuple[StageRule, ...]
    rules: tuple[MetricRule, ...]
    shadow: ShadowRule | None = None
    alpha: float = 0.05
    beta: float = 0.05
    min_units: int = 50
    dwell_seconds: float = 1800.0
    feedback_window_seconds: float = 3600.0
    settle_seconds: float = 60.0
    max_duration_seconds: float = 14 * 86_400.0
    on_inconclusive: Literal["roll_back", "keep"] = "roll_back"
    on_lost_control: Literal["keep", "stable"] = "keep"
    holdback: HoldbackRule | None = HoldbackRule()
    kill_switch: KillSwitch = KillSwitch()
    baselines: dict[str, DeclaredBaseline] = {}

    def __post_init__(self) -> None:
        """Refuse a ramp that does not climb to everything from less.

        Raises:
            ValueError: Shares do not grow, do not end at 1, or there is but one.
        """
        shares = [stage.share for stage in self.stages]
        climbs = all(one < other for one, other in pairwise([0.0, *shares]))
        if len(shares) < 2 or not climbs or shares[-1] != 1.0:
            raise ValueError(f"the shares of a policy grow from above 0 to 1 in at least two stages, not {shares}")

    @property
    def period_seconds(self) -> int:
        """How finely evidence knows when it was exposed: an hour, or the feedback window where that is shorter."""
        return max(1, min(3600, int(self.feedback_window_seconds)))


def half_way(form: Form, margin: float) -> float:
    """Give the harm line where none is set: half of the margin (statistics, section 4, "why half").

    Example:
        >>> half_way("points", 0.05), half_way("ratio", 1.5), half_way("ratio", 0.8)
        (0.025, 1.25, 0.9)
    """
    return margin / 2 if form == "points" else 1 + (margin - 1) / 2
