"""Forecasts: how long a rollout should take at the present traffic, and what it can detect.

A forecast follows the expected growth of the evidence (``headway.rollouts.prospects``) through the stages of a policy,
for a candidate that equals stable. It is a median and no guarantee: half of the rollouts take longer. What nothing is
known of is None, never 0; what does not happen at this traffic is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal, NamedTuple

import msgspec

from headway.domain.display import format_count, format_seconds, format_share, scale_of
from headway.domain.metric import find_metric
from headway.domain.policy import MetricRule, Policy
from headway.domain.recording import Terms
from headway.domain.rollout import baseline_gaps
from headway.rollouts.prospects import Array, Prospect, Prospects, compared_level
from headway.storage.baselines import Traffic

DETECTED = 0.8
"""How often a detectable loss is rolled back before the stage is left."""

_HORIZON_HOURS = 10 * 365 * 24.0  # beyond is never
_DAY_HOURS = 24.0
_STEADY_GROWTH = 0.7  # below, most of the units of a day have been there before
_LARGEST_RATIO = 1_000.0

StageName = Literal["baseline", "shadow", "ramp", "holdback"]


class StageForecast(msgspec.Struct, frozen=True):
    """One stage.

    Attributes:
        phase: What it is.
        share: The candidate's.
        seconds: How long it should take; infinite for ever, None where nothing is known.
        waits_for: What takes longest: ``dwell``, ``units``, ``interactions``, ``ratings``, or the name of a metric.
        approval: A person has to release the step out of it, which takes as long as that takes.
    """

    phase: StageName
    share: float
    seconds: float | None
    waits_for: str
    approval: bool = False


class MetricForecast(msgspec.Struct, frozen=True):
    """One metric. The lists have one entry per stage of the ramp but the last.

    Attributes:
        metric: Its name.
        role: Goal or guardrail.
        level: Stable's; None without data.
        compared_to: What ratios are told of: the level, or half an event where there has been none.
        margin, harm: The policy's lines, signed as an estimate: -0.05, or 1.5.
        interactions: Of both arms, from the beginning of the stage until this metric lets it go on.
        detectable: The smallest loss, as an estimate, that is rolled back before the stage is left, 4 times out of 5.
        caught_seconds: After how long a loss of twice the margin is rolled back; infinite: not before the rollout is
            given up; None: nothing is known, or the level is 0.
    """

    metric: str
    role: str
    level: float | None
    compared_to: float | None
    margin: float
    harm: float
    interactions: tuple[float | None, ...]
    detectable: tuple[float | None, ...]
    caught_seconds: float | None


class Forecast(msgspec.Struct, frozen=True):
    """What can be foretold of a rollout.

    Attributes:
        traffic: What it is foretold from; None without data.
        stages: From the baseline to the holdback, those that there are.
        metrics: In the order of the policy's rules.
        seconds: From the start until everything but the holdback is on the candidate.
        problems: Why it cannot finish within the policy's longest duration; empty when it can, or nobody knows.
        notes: What else to know.
    """

    traffic: Traffic | None
    stages: tuple[StageForecast, ...]
    metrics: tuple[MetricForecast, ...]
    seconds: float | None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class RolledBack(NamedTuple):
    """When a rollout is expected to be rolled back, in seconds since the ramp began, and for which metric."""

    seconds: float
    metric: str


def forecast(terms: Terms, traffic: Traffic | None) -> Forecast:
    """Foretell a rollout of a candidate that equals stable; one that must be superior is better by its margin.

    Args:
        terms: With the baseline as far as it is known, and the recording that follows from it.
        traffic: What arrives; None without data.
    """
    policy = terms.policy
    if traffic is None:
        stages = tuple(
            StageForecast("ramp", stage.share, None, "", policy.stages[step + 1].approve)
            for step, stage in enumerate(policy.stages[:-1])
        )
        unknown = (None,) * (len(policy.stages) - 1)
        metrics = tuple(_metric(rule, terms, unknown, unknown, None) for rule in policy.rules)
        return Forecast(None, stages, metrics, None, notes=("no traffic recorded: no data on how long it takes",))
    course = _follow(terms, traffic, _expected_losses(policy))
    before = [*_baseline_stage(terms, traffic), *_shadow_stage(policy, traffic)]
    ramp = [
        StageForecast("ramp", stage.share, leg.seconds, leg.waits_for, policy.stages[step + 1].approve)
        for step, (stage, leg) in enumerate(zip(policy.stages, course.legs, strict=False))
    ]
    after = []
    if policy.holdback is not None and len(ramp) == len(policy.stages) - 1:
        after.append(StageForecast("holdback", 1 - policy.holdback.share, policy.holdback.seconds, "dwell"))
    metrics = tuple(_metric_forecast(rule, course) for rule in policy.rules)
    return Forecast(
        traffic=traffic,
        stages=(*before, *ramp, *after),
        metrics=metrics,
        seconds=_total([*before, *ramp]),
        problems=tuple(_problems(course, [stage for stage in (*before, *ramp) if stage.phase != "baseline"])),
        notes=tuple(_notes(course)),
    )


def expected_roll_back(terms: Terms, traffic: Traffic, losses: Mapping[str, float]) -> RolledBack | None:
    """Foretell when a worse candidate is rolled back during the ramp; None if it is not.

    Args:
        terms: As for ``forecast``.
        traffic: As for ``forecast``.
        losses: By metric: points, or ratio - 1, of the worse over the better; metrics left out are equal.
    """
    return _follow(terms, traffic, losses, until_harm=True).rolled_back


# --- following the evidence through the stages -----------------------------------------------------------------------


@dataclass
class _Leg:
    """One stage of the ramp: hours since the ramp began, and when each metric lets it go on."""

    share: float
    start: float
    end: float | None = None  # None: nothing is known
    waits_for: str = ""
    ready: dict[str, float | None] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        return None if self.end is None else (self.end - self.start) * 3600


@dataclass
class _Course:
    """A ramp as it is expected to go."""

    terms: Terms
    traffic: Traffic
    rules: dict[str, Prospects | None]
    legs: list[_Leg]
    rolled_back: RolledBack | None = None

    @property
    def policy(self) -> Policy:
        return self.terms.policy

    def exposed(self, rule: MetricRule, hours: float) -> float:
        """Give for how many steady hours a metric has been observed: units that come back count but once."""
        if hours <= 0:
            return 0.0
        metric = find_metric(rule.metric, self.terms.feedback)
        if metric.per == "interaction":
            return hours
        return self.units(hours)

    def units(self, hours: float) -> float:
        """Give in how many hours as many different units come as now in an hour, when none came back."""
        traffic = self.traffic
        each = traffic.interactions_per_hour / traffic.units_per_hour  # there are no more units than interactions
        return float(min(_DAY_HOURS * (hours / _DAY_HOURS) ** traffic.unit_growth, hours * each))

    def delay(self, rule: MetricRule) -> float:
        """Give how long a metric of people's answers is held back for promotion, in hours (booking rules 5 and 6)."""
        if find_metric(rule.metric, self.terms.feedback).per == "interaction":
            return 0.0
        # An exposure is as old as its period: half of one on average.
        return (self.policy.feedback_window_seconds + self.policy.period_seconds / 2) / 3600

    def state(self, rule: MetricRule, prospect: Prospect, hours: float) -> Array:
        """Give the expected state of a test of what was exposed until then."""
        total = 0.0 * prospect.growth(self.legs[0].share)
        for leg in self.legs:
            end = hours if leg.end is None else min(hours, leg.end)
            if end - leg.start >= prospect.least_hours(leg.share):
                length = self.exposed(rule, end) - self.exposed(rule, leg.start)
                total = total + length * prospect.growth(leg.share)
        return total

    def crossing(self, rule: MetricRule, prospect: Prospect, threshold: float, delay: float) -> float:
        """Find when a test gets through, in the stage that is open."""
        start = self.legs[-1].start
        # The growth at a share is asked for again and again.
        grown = _Remembered(prospect)
        return _first_time(lambda hours: prospect.log_e(self.state(rule, grown, hours - delay)) >= threshold, start)


@dataclass
class _Remembered:
    """A prospect that remembers its growth."""

    prospect: Prospect
    known: dict[float, Array] = field(default_factory=dict)

    def growth(self, share: float) -> Array:
        if share not in self.known:
            self.known[share] = self.prospect.growth(share)
        return self.known[share]

    def log_e(self, state: Array, deviations: float = 0.0) -> float:
        return self.prospect.log_e(state, deviations)

    def least_hours(self, share: float) -> float:
        return self.prospect.least_hours(share)


def _expected_losses(policy: Policy) -> dict[str, float]:
    """A candidate that equals stable; where it has to be superior, it is better by the margin."""
    return {rule.metric: -_margin_loss(rule) for rule in policy.rules if rule.require == "superior"}


def _margin_loss(rule: MetricRule) -> float:
    return rule.margin if rule.form == "points" else 1 - min(rule.margin, 1 / rule.margin)


def _follow(terms: Terms, traffic: Traffic, losses: Mapping[str, float], *, until_harm: bool = False) -> _Course:
    policy = terms.policy
    rules = {rule.metric: Prospects.of(rule, terms, traffic) for rule in policy.rules}
    course = _Course(terms, traffic, rules, [])
    start = 0.0
    for step, stage in enumerate(policy.stages[:-1]):
        leg = _Leg(stage.share, start)
        course.legs.append(leg)
        following = policy.stages[step + 1].share
        for rule in policy.rules:
            leg.ready[rule.metric] = _ready(course, rule, following, losses.get(rule.metric, 0.0))
        ends: list[tuple[float | None, str]] = [
            (start + policy.dwell_seconds / 3600, "dwell"),
            (_enough_units(course, leg), "units"),
            *((ready, metric) for metric, ready in leg.ready.items()),
        ]
        if until_harm:
            course.rolled_back = _harm(course, losses, [end for end, _ in ends])
            if course.rolled_back is not None:
                return course
        unknown = [metric for end, metric in ends if end is None]
        if unknown:
            leg.waits_for = unknown[0]
            break
        end, leg.waits_for = max(((end, what) for end, what in ends if end is not None), key=lambda each: each[0])
        leg.end = end
        if math.isinf(end):
            break
        start = end
    return course


def _ready(course: _Course, rule: MetricRule, following: float, loss: float) -> float | None:
    """Find when a metric lets the next share be entered; None where nothing is known of it."""
    prospects = course.rules[rule.metric]
    start = course.legs[-1].start
    if prospects is None:
        return None
    delay, beta = course.delay(rule), course.policy.beta
    threshold = math.log((2 if prospects.has_floor else 1) / beta)
    ways = prospects.safe(following, loss)
    start = max(start, _first_data(course, prospects))
    ready = min(max((course.crossing(rule, test, threshold, delay) for test in way), default=start) for way in ways)
    if rule.require == "superior" and following == 1.0:
        tests = prospects.superior(loss)
        ready = max(ready, *(course.crossing(rule, test, math.log(1 / beta), delay) for test in tests))
    return ready


def _first_data(course: _Course, prospects: Prospects) -> float:
    """Find when a metric has data at all, without which nothing passes."""
    for leg in course.legs:
        needed = prospects.harm(0.0).least_hours(leg.share)
        if leg.end is None or leg.end - leg.start >= needed:
            return leg.start + needed
    return course.legs[-1].start


def _enough_units(course: _Course, leg: _Leg) -> float:
    needed = course.policy.min_units / (course.traffic.units_per_hour * leg.share)
    met = course.units(leg.start) if leg.start > 0 else 0.0
    return _first_time(lambda hours: hours > 0 and course.units(hours) - met >= needed, leg.start)


def _harm(course: _Course, losses: Mapping[str, float], ends: list[float | None]) -> RolledBack | None:
    """Find whether a worse candidate is rolled back before the open stage is left."""
    first: RolledBack | None = None
    for rule in course.policy.rules:
        prospects, loss = course.rules[rule.metric], losses.get(rule.metric, 0.0)
        if prospects is None or loss <= 0:
            continue
        threshold = math.log(1 / (course.policy.alpha * rule.weight))
        hours = course.crossing(rule, prospects.harm(loss), threshold, 0.0)
        if math.isfinite(hours) and (first is None or hours * 3600 < first.seconds):
            first = RolledBack(hours * 3600, rule.metric)
    end = max((math.inf if end is None else end for end in ends), default=math.inf)
    end = min(end, course.policy.max_duration_seconds / 3600)
    return first if first is not None and first.seconds <= end * 3600 else None


def _first_time(happened: Callable[[float], bool], start: float) -> float:
    """Find when something that stays has happened; infinite beyond the horizon."""
    if happened(start):
        return start
    length = 1 / 3600
    while not happened(start + length):
        length *= 2
        if length > _HORIZON_HOURS:
            return math.inf
    low, high = (length / 2 if length > 1 / 3600 else 0.0), length
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if happened(start + middle) else (middle, high)
    return start + high


# --- what is told of it ----------------------------------------------------------------------------------------------


def _baseline_stage(terms: Terms, traffic: Traffic) -> list[StageForecast]:
    gaps = baseline_gaps(terms)
    if not gaps:
        return []
    longest: tuple[float, str] | None = (0.0, "")
    for gap in gaps:
        per_hour = traffic.interactions_per_hour
        if gap.noun == "ratings":
            per_hour = traffic.units_per_hour * traffic.ratings_per_unit.get(gap.metric, 0.0)
        if per_hour <= 0:
            longest = None
            break
        hours = (gap.needed - gap.found) / per_hour
        longest = max(longest or (0.0, ""), (hours * 3600, gap.noun))
    seconds, noun = (None, gaps[0].noun) if longest is None else longest
    return [StageForecast("baseline", 0.0, seconds, noun)]


def _shadow_stage(policy: Policy, traffic: Traffic) -> list[StageForecast]:
    if policy.shadow is None:
        return []
    seconds = policy.shadow.interactions / (traffic.interactions_per_hour * policy.shadow.sample) * 3600
    waits_for = "interactions" if seconds > policy.dwell_seconds else "dwell"
    approval = policy.stages[0].approve
    return [StageForecast("shadow", 0.0, max(seconds, policy.dwell_seconds), waits_for, approval)]


def _metric_forecast(rule: MetricRule, course: _Course) -> MetricForecast:
    count = len(course.policy.stages) - 1
    interactions: list[float | None] = [None] * count
    detectable: list[float | None] = [None] * count
    for step, leg in enumerate(course.legs):
        ready = leg.ready.get(rule.metric)
        if ready is not None:
            interactions[step] = (ready - leg.start) * course.traffic.interactions_per_hour
        detectable[step] = _detectable(rule, course, leg)
    caught = None
    known = course.terms.baseline.metrics.get(rule.metric)
    if course.rules[rule.metric] is not None and known is not None and known.level > 0:
        twice = 2 * rule.margin if rule.form == "points" else 2 * (max(rule.margin, 1 / rule.margin) - 1)
        found = expected_roll_back(course.terms, course.traffic, {rule.metric: twice})
        caught = math.inf if found is None else found.seconds
    return _metric(rule, course.terms, tuple(interactions), tuple(detectable), caught)


def _metric(
    rule: MetricRule,
    terms: Terms,
    interactions: tuple[float | None, ...],
    detectable: tuple[float | None, ...],
    caught_seconds: float | None,
) -> MetricForecast:
    known = terms.baseline.metrics.get(rule.metric)
    sign = -1.0 if rule.form == "points" and rule.direction == "higher" else 1.0
    return MetricForecast(
        metric=rule.metric,
        role=rule.role,
        level=None if known is None else known.level,
        compared_to=None if known is None else compared_level(known),
        margin=sign * rule.margin,
        harm=sign * rule.harm,
        interactions=interactions,
        detectable=detectable,
        caught_seconds=caught_seconds,
    )


def _detectable(rule: MetricRule, course: _Course, leg: _Leg) -> float | None:
    """Find the smallest loss that is rolled back before a stage is left, and before the rollout is given up."""
    prospects = course.rules[rule.metric]
    if prospects is None:
        return None
    given_up = course.policy.max_duration_seconds / 3600
    end = min(given_up if leg.end is None else leg.end, max(given_up, leg.start))
    threshold = math.log(1 / (course.policy.alpha * rule.weight))
    deviations = NormalDist().inv_cdf(DETECTED)

    def is_caught(loss: float) -> bool:
        harm = prospects.harm(loss)
        return harm.log_e(course.state(rule, harm, end), deviations) >= threshold

    low, high = _losses(rule, course.terms)
    if not is_caught(high):
        return math.inf
    while high / low > 1.02:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_caught(middle) else (middle, high)
    return _as_estimate(rule, high)


def _as_estimate(rule: MetricRule, loss: float) -> float:
    """Write a loss as the estimate of a candidate that has it."""
    if rule.form == "points":
        return -loss if rule.direction == "higher" else loss
    return 1 + loss if rule.direction == "lower" else 1 / (1 + loss)


def _losses(rule: MetricRule, terms: Terms) -> tuple[float, float]:
    """A loss that is never caught, being within the harm line, and the largest there can be."""
    if rule.form == "points":
        metric = find_metric(rule.metric, terms.feedback)
        level = terms.baseline.metrics[rule.metric].level
        room = level - metric.minimum if rule.direction == "higher" else metric.maximum - level
        return max(min(rule.harm, room / 2), 1e-9), max(room, 1e-9)
    known = terms.baseline.metrics[rule.metric]
    largest = _LARGEST_RATIO
    if rule.method == "event_ratio" and rule.direction == "lower":
        largest = 1 / compared_level(known)
    elif rule.method == "normal_mixture" and known.limit is not None:
        largest = known.limit / known.level
    low = max(rule.harm, 1 / rule.harm) - 1
    return low, max(largest - 1, 2 * low)


def _total(stages: list[StageForecast]) -> float | None:
    seconds = [stage.seconds for stage in stages]
    if math.inf in seconds:
        return math.inf
    return None if None in seconds else sum(each for each in seconds if each is not None)


def _problems(course: _Course, stages: list[StageForecast]) -> list[str]:
    policy, problems = course.policy, []
    for step, leg in enumerate(course.legs):
        if leg.end is None or not math.isinf(leg.end):
            continue
        share, following = format_share(leg.share), format_share(policy.stages[step + 1].share)
        if leg.waits_for == "units":
            problems.append(f"{policy.min_units:,} new units of the candidate never come together at {share}")
        for metric, ready in leg.ready.items():
            if ready is not None and math.isinf(ready):
                problems.append(f"at {share}, {metric} is never shown to be safe at {following} with this traffic")
    known = sum(stage.seconds for stage in stages if stage.seconds is not None)
    if not problems and known > policy.max_duration_seconds:
        longest = max((stage for stage in stages if stage.seconds is not None), key=lambda stage: stage.seconds or 0.0)
        problems.append(
            f"it takes about {format_seconds(known)} at this traffic, and max_duration is"
            f" {format_seconds(policy.max_duration_seconds)}; {format_share(longest.share)} alone takes"
            f" {format_seconds(longest.seconds or 0.0)}, for {longest.waits_for}"
        )
    return problems


def _notes(course: _Course) -> list[str]:
    terms, traffic = course.terms, course.traffic
    notes = [
        f"{gap.metric}: {gap.found:,} of {gap.needed:,} {gap.noun} for the baseline, which is collected first"
        for gap in baseline_gaps(terms)
    ]
    for rule in terms.policy.rules:
        if rule.metric in terms.feedback and not traffic.ratings_per_unit.get(rule.metric):
            notes.append(f"nobody has rated {rule.metric} of stable in the last 7 days: no data on how long it takes")
        if rule.require == "superior":
            better = scale_of(rule, terms.feedback).effect(_as_estimate(rule, -_margin_loss(rule)))
            notes.append(
                f"100% needs a better {rule.metric}, foretold for {better}: one that is equal never gets there"
            )
    if terms.unit == "user" and traffic.unit_growth < _STEADY_GROWTH:
        notes.append(
            f"the same users come back ({format_count(traffic.units_per_hour * _DAY_HOURS)} in a day): one who has been"
            " seen counts no more for ratings and first events, so that waiting adds little; take unit: conversation if"
            " a user may see both releases"
        )
    shadow = terms.policy.shadow
    cost = terms.baseline.metrics.get("cost")
    if shadow is not None and shadow.budget_usd is not None and cost is not None:
        needed = shadow.interactions * cost.level
        if needed > shadow.budget_usd:
            notes.append(
                f"{shadow.interactions:,} mirrored answers cost about ${needed:.2f}; the budget of"
                f" ${shadow.budget_usd:g} ends the mirroring before"
            )
    return notes
