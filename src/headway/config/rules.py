"""What the policies of headway.yaml mean: every rule resolved to a test, or told what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from msgspec.structs import replace

from headway.config.document import Document, Place, nearest, show
from headway.config.policies import OFF, SHADOW
from headway.config.quantities import Measure, format_duration, format_share
from headway.config.schema import INVALID
from headway.domain.metric import (
    MEASURED,
    RETRIEVAL_METRICS,
    FeedbackMetric,
    Form,
    Metric,
    find_metric,
    method_for,
)
from headway.domain.policy import (
    DEFAULT_FLOOR,
    DEFAULT_GUARDRAILS,
    DEFAULT_RATIO,
    DEFAULT_STAGES,
    DeclaredBaseline,
    HoldbackRule,
    KillSwitch,
    MetricRule,
    Policy,
    Role,
    ShadowRule,
    StageRule,
    half_way,
)
from headway.errors import ConfigurationError

_LABEL_KINDS = ("label", "text")
_ROUNDING = 1e-9
_SMALLEST_CHANCE = 1e-6
_SMALLEST_RATIO = 1e-3
_SMALLEST_LOSS = 1e-4  # of a metric's range; of a ratio, ten times that

Tree = Mapping[str, Any]  # as the schema read it: defaults filled in, INVALID where a problem was noted


class Feedback(NamedTuple):
    """The feedback metrics that policies can name: those that are sound, and the names of those that are not."""

    sound: Mapping[str, FeedbackMetric]
    broken: frozenset[str]


def resolve_policy(name: str, entry: Tree, feedback: Feedback, document: Document) -> Policy | None:
    """Resolve a policy: metrics to tests, defaults filled in.

    Returns:
        None after a complaint.
    """
    place = ("policies", name)
    before = len(document.problems)
    stages = _resolve_stages(entry["stages"], (*place, "stages"), document)
    holdback = _resolve_holdback(entry["holdback"], stages, (*place, "holdback"), document)
    rules = _resolve_rules(entry, place, feedback, document)
    _check_chances(entry, place, document)
    baselines = _resolve_baselines(entry["baselines"], rules, feedback, (*place, "baselines"), document)
    switch = _resolve_kill_switch(entry["kill_switch"], (*place, "kill_switch"), document)
    shadow = stages[0] if stages is not None else None
    if stages is not None:
        _check_times(entry, len(stages[1]) - (shadow is None), place, document)
    if len(document.problems) > before or stages is None or rules is None or INVALID in entry.values():
        return None
    return Policy(
        name=name,
        stages=stages[1],
        rules=rules,
        shadow=shadow,
        alpha=entry["alpha"],
        beta=entry["beta"],
        min_units=entry["min_units"],
        dwell_seconds=entry["dwell"],
        feedback_window_seconds=entry["feedback_window"],
        settle_seconds=entry["settle"],
        max_duration_seconds=entry["max_duration"],
        on_inconclusive=entry["on_inconclusive"],
        on_lost_control=entry["on_lost_control"],
        holdback=holdback,
        kill_switch=switch,
        baselines=baselines,
    )


def _check_chances(entry: Tree, place: Place, document: Document) -> None:
    holdback = entry["holdback"]
    chances = [((*place, key), entry[key]) for key in ("alpha", "beta")]
    if isinstance(holdback, Mapping):
        chances.append(((*place, "holdback", "alpha"), holdback["alpha"]))
    for where, chance in chances:
        if chance is not INVALID and chance < _SMALLEST_CHANCE:
            document.complain(where, f"must be at least {_SMALLEST_CHANCE:f}: no traffic gives the evidence for less")


# --- stages --------------------------------------------------------------------------------------------------------


def _resolve_stages(
    steps: Any, place: Place, document: Document
) -> tuple[ShadowRule | None, tuple[StageRule, ...]] | None:
    if steps is INVALID:
        return None
    if steps is None:
        return None, DEFAULT_STAGES
    shadow: ShadowRule | None = None
    stages: list[StageRule] = []
    places: list[Place] = []
    for number, step in enumerate(steps):
        if isinstance(step, Mapping) and INVALID in step.values():
            return None
        if step == SHADOW or (isinstance(step, Mapping) and SHADOW in step):
            if number > 0:
                document.complain((*place, str(number)), "the shadow stage comes before the ramp: put it first")
                return None
            shadow = ShadowRule() if step == SHADOW else _mirror(step)
        else:
            stages.append(StageRule(**step) if isinstance(step, Mapping) else StageRule(step))
            places.append((*place, str(number)))
    sound = _check_ramp(stages, places, shadow, place, document)
    return (shadow, tuple(stages)) if sound else None


def _mirror(step: Tree) -> ShadowRule:
    return ShadowRule(sample=step[SHADOW], budget_usd=step["budget_usd"], interactions=step["interactions"])


def _check_ramp(
    stages: Sequence[StageRule], places: Sequence[Place], shadow: ShadowRule | None, place: Place, document: Document
) -> bool:
    before = len(document.problems)
    for (one, other), where in zip(pairwise(stages), places[1:], strict=False):
        if other.share <= one.share:
            shares = f"{format_share(other.share)} comes after {format_share(one.share)}"
            document.complain(where, f"shares must rise from stage to stage: {shares}")
    if not stages or stages[-1].share != 1.0:
        document.complain(places[-1] if places else place, "the last stage must be 100%: that is where a rollout goes")
    elif len(stages) == 1:
        document.complain(places[0], "a stage below 100% must come first: both releases are compared there")
    if stages and stages[0].approve and shadow is None:
        message = "who applies the release starts its first stage: approve it there, or put shadow before it"
        document.complain(places[0], message)
    return len(document.problems) == before


def _resolve_holdback(
    entry: Any, stages: tuple[ShadowRule | None, tuple[StageRule, ...]] | None, place: Place, document: Document
) -> HoldbackRule | None:
    if entry is INVALID or entry == OFF or (entry is not None and INVALID in entry.values()):
        return None
    rule = HoldbackRule()
    if entry is not None:
        rule = HoldbackRule(share=entry["share"], seconds=entry["duration"], alpha=entry["alpha"])
    highest = 0.0 if stages is None else stages[1][-2].share
    if rule.share >= 1.0 or 1.0 - rule.share < highest - _ROUNDING:
        message = (
            f"the holdback ({format_share(rule.share)}) would take traffic back: the stage before 100% has"
            f" {format_share(highest)} already"
        )
        document.complain(place, "must be below 100%" if rule.share >= 1.0 else message)
    return rule


def _check_times(entry: Tree, gates: int, place: Place, document: Document) -> None:
    longest, dwell, window = entry["max_duration"], entry["dwell"], entry["feedback_window"]
    if longest is INVALID:
        return
    if dwell is not INVALID and dwell * gates > longest:
        message = f"{gates} stages of at least {format_duration(dwell)} do not fit into {format_duration(longest)}"
        document.complain((*place, "max_duration"), message)
    if window is not INVALID and window > longest:
        message = f"is longer than max_duration ({format_duration(longest)}): no rating would ever count"
        document.complain((*place, "feedback_window"), message)


def _resolve_kill_switch(entry: Any, place: Place, document: Document) -> KillSwitch:
    if entry is INVALID or entry is None or INVALID in entry.values():
        return KillSwitch()
    switch = KillSwitch(**entry)
    if switch.failures > switch.of_first:
        message = f"{switch.failures} failures cannot be reached among the first {switch.of_first} (of_first)"
        document.complain((*place, "failures"), message)
    return switch


# --- rules ---------------------------------------------------------------------------------------------------------


def _resolve_rules(entry: Tree, place: Place, feedback: Feedback, document: Document) -> tuple[MetricRule, ...] | None:
    found: list[tuple[Place, Role, Any]] = [((*place, "goal"), "goal", entry["goal"])]
    guardrails = [] if entry["guardrails"] is INVALID else entry["guardrails"]
    found += [((*place, "guardrails", str(number)), "guardrail", each) for number, each in enumerate(guardrails)]
    rules: list[MetricRule] = []
    weights: list[float | None] = []
    sound = INVALID not in (entry["goal"], entry["guardrails"])
    for where, role, keys in found:
        rule = None if keys is INVALID else _resolve_rule(keys, where, role, feedback, document)
        if rule is None:
            sound = False
        elif any(rule.metric == other.metric for other in rules):
            document.complain((*where, "metric"), f"{rule.metric} has a rule in this policy already")
        else:
            rules.append(rule)
            weights.append(keys["weight"])
    if not sound:
        return None
    for metric in DEFAULT_GUARDRAILS:
        if all(rule.metric != metric for rule in rules):
            rules.append(_default_guardrail(metric))
            weights.append(None)
    return _weigh(rules, weights, place, document)


def _default_guardrail(metric: str) -> MetricRule:
    form: Form = "ratio"
    found = MEASURED[metric]
    method = method_for(found.kind, form)
    harm = half_way(form, DEFAULT_RATIO)
    return MetricRule(metric, "guardrail", method, form, found.direction, DEFAULT_RATIO, harm, weight=0.0)


def _weigh(
    rules: Sequence[MetricRule], weights: Sequence[float | None], place: Place, document: Document
) -> tuple[MetricRule, ...] | None:
    """Share alpha out: what the given weights leave goes to the other rules in equal parts."""
    given = sum(weight for weight in weights if weight is not None)
    others = [rule.metric for rule, weight in zip(rules, weights, strict=True) if weight is None]
    if not others and abs(given - 1.0) > _ROUNDING:
        document.complain(place, f"the weights of goal and guardrails add up to {given:g} instead of 1")
        return None
    if others and given > 1.0 - _ROUNDING:
        names = ", ".join(others)
        document.complain(place, f"the weights add up to {given:g} already, which leaves nothing for {names}")
        return None
    rest = (1.0 - given) / len(others) if others else 0.0
    if min(rest if weight is None else weight for weight in weights) < _SMALLEST_CHANCE:
        document.complain(place, f"no weight may be below {_SMALLEST_CHANCE:f}: such a rule would never roll back")
        return None
    pairs = zip(rules, weights, strict=True)
    return tuple(replace(rule, weight=rest if weight is None else weight) for rule, weight in pairs)


def _resolve_rule(keys: Tree, place: Place, role: Role, feedback: Feedback, document: Document) -> MetricRule | None:
    metric = _resolve_metric(keys["metric"], (*place, "metric"), feedback, document)
    if metric is None or INVALID in keys.values():
        return None
    if (keys["margin"] is None) == (keys["ratio"] is None):
        what = "either margin or ratio, not both" if keys["margin"] is not None else f"missing key: {_wanted(metric)}"
        document.complain(place, what)
        return None
    form: Form = "ratio" if keys["margin"] is None else "points"
    key = "ratio" if form == "ratio" else "margin"
    try:
        method = method_for(metric.kind, form)
    except ConfigurationError as error:
        document.complain((*place, key), error.message)
        return None
    margin = keys["ratio"] if form == "ratio" else _resolve_points(metric, keys["margin"], (*place, key), document)
    if margin is None or (form == "ratio" and not _check_ratio(metric, margin, (*place, key), document)):
        return None
    harm = half_way(form, margin)
    if keys["harm"] is not None:
        harm = _resolve_harm(metric, form, margin, keys["harm"], (*place, "harm"), document)
    floor = _resolve_floor(metric, keys["floor"], (*place, "floor"), document)
    require = keys.get("require", "non_inferior")
    return MetricRule(metric.name, role, method, form, metric.direction, margin, harm, 0.0, require, floor)


def _resolve_metric(name: Any, place: Place, feedback: Feedback, document: Document) -> Metric | None:
    if name is INVALID or name in feedback.broken:
        return None
    if name not in MEASURED and name not in feedback.sound:
        rated = [each for each, metric in feedback.sound.items() if metric.kind not in _LABEL_KINDS]
        document.complain(place, f"no metric is called {show(name)}{nearest(name, [*MEASURED, *rated])}")
        return None
    metric = find_metric(name, feedback.sound)
    if metric.kind in _LABEL_KINDS:
        document.complain(place, f"{name} is a {metric.kind} metric: it has no number to compare")
        return None
    return metric


def _wanted(metric: Metric) -> str:
    if metric.kind == "binary":
        return "margin, such as 5pp"
    if metric.kind == "bounded":
        return f"margin, such as {(metric.maximum - metric.minimum) / 20:g}"
    return f"ratio, such as {1.5 if metric.direction == 'lower' else 0.8:g}"


def _resolve_points(metric: Metric, margin: Measure, place: Place, document: Document) -> float | None:
    value = _read_points(metric, margin, place, document)
    if value is None:
        return None
    widest = 1.0 if metric.kind == "binary" else metric.maximum - metric.minimum
    problem = None
    if value < 0.0:
        problem = "a margin is the largest acceptable loss, whichever way is better: write it without a sign"
    elif value == 0.0:
        problem = "must be above 0: that nothing at all is lost can never be shown"
    elif value < _SMALLEST_LOSS * widest:
        problem = f"is too small to be shown with any traffic: at least {_SMALLEST_LOSS:.2%} of its range"
    elif value >= widest:
        problem = f"is as wide as {metric.name} itself: it would allow any loss"
    if problem:
        document.complain(place, problem)
    return None if problem else value


def _read_points(metric: Metric, measure: Measure, place: Place, document: Document) -> float | None:
    """Read a difference as its metric has them: percentage points of a rate, plain numbers of a bounded value."""
    if metric.kind == "binary":
        if measure.form == "pp" or measure.value == 0.0:
            return measure.value
        points = measure.value * (1 if measure.form == "plain" and measure.value >= 1 else 100)
        hint = f": {points:g}pp" if measure.form != "time" else ""
        document.complain(place, f"a difference of {metric.name} is written in percentage points{hint}")
        return None
    if measure.form == "plain":
        return measure.value
    document.complain(place, f"a difference of {metric.name} is a plain number, such as {_wanted(metric).split()[-1]}")
    return None


def _check_ratio(metric: Metric, ratio: float, place: Place, document: Document) -> bool:
    lower = metric.direction == "lower"
    if ratio > 1.0 if lower else ratio < 1.0:
        if ratio >= _SMALLEST_RATIO and abs(ratio - 1.0) >= 10 * _SMALLEST_LOSS:
            return True
        near = f"must be at least {10 * _SMALLEST_LOSS:g} from 1: less can be shown with no traffic"
        document.complain(place, near if ratio >= _SMALLEST_RATIO else f"must be at least {_SMALLEST_RATIO:g}")
        return False
    better, side = ("lower", "above") if lower else ("higher", "below")
    hint = f" (such as {1 / ratio:.3g})" if ratio != 1.0 else ": that nothing at all is lost can never be shown"
    document.complain(place, f"{metric.name} is better {better}: its ratio, candidate over stable, is {side} 1{hint}")
    return False


def _resolve_harm(metric: Metric, form: Form, margin: float, harm: Measure, place: Place, document: Document) -> float:
    """Read a harm line; a wrong one is complained of, and the default returned."""
    value: float | None = harm.value
    if form == "points":
        value = _read_points(metric, harm, place, document)
        none, edge = 0.0, f"{margin * 100:g}pp" if metric.kind == "binary" else f"{margin:g}"
    else:
        none, edge = 1.0, f"{margin:g}"
        if harm.form != "plain":
            document.complain(place, f"the harm line of a ratio is a ratio: between 1 and {edge}")
            value = None
    if value is None:
        return half_way(form, margin)
    if not min(none, margin) <= value <= max(none, margin):
        document.complain(place, f"the harm line lies between no loss ({none:g}) and the margin ({edge})")
    return value


def _resolve_floor(metric: Metric, floor: Measure | None, place: Place, document: Document) -> float:
    fits = metric.kind == "event" and metric.direction == "lower"
    if floor is None:
        return DEFAULT_FLOOR if fits else 0.0
    if not fits:
        document.complain(place, "is for rates of events that are better fewer")
    elif floor.form not in ("plain", "%") or not 0.0 <= floor.value < 1.0:
        document.complain(place, "a floor is a rate below 100%, such as 0.1%; 0 is none")
    return floor.value


# --- declared baselines --------------------------------------------------------------------------------------------


def _resolve_baselines(
    entries: Any, rules: Sequence[MetricRule] | None, feedback: Feedback, place: Place, document: Document
) -> dict[str, DeclaredBaseline]:
    found: dict[str, DeclaredBaseline] = {}
    if entries is INVALID or rules is None:
        return found
    for name, entry in entries.items():
        if entry is INVALID or INVALID in entry.values():
            continue
        if all(rule.metric != name for rule in rules):
            hint = nearest(name, [rule.metric for rule in rules])
            document.complain((*place, name), f"no rule of this policy is about {name!r}{hint}")
            continue
        declared = _resolve_baseline(find_metric(name, feedback.sound), entry, (*place, name), document)
        if declared is not None:
            found[name] = declared
    return found


def _resolve_baseline(metric: Metric, entry: Tree, place: Place, document: Document) -> DeclaredBaseline | None:
    measure, limit = entry["level"], entry["limit"]
    level, fits, what = measure.value, measure.form == "plain", "a number above 0"
    if metric.kind in ("event", "binary"):
        what, fits = "a rate between 0 and 100%", measure.form in ("plain", "%") and level < 1.0
    elif metric.kind == "quantile":
        what, fits = "a time such as 800ms", measure.form in ("time", "plain")
        level = level * 1000 if measure.form == "time" else level
    elif metric.kind == "bounded":
        what = f"a number from {metric.minimum:g} to {metric.maximum:g}"
        fits = fits and metric.minimum <= level <= metric.maximum
    if not fits or (metric.kind != "bounded" and level <= 0.0):
        document.complain((*place, "level"), f"the level of {metric.name} is {what}")
        return None
    if metric.kind != "positive" and limit is not None:
        document.complain((*place, "limit"), "is for cost, tokens and positive feedback")
    elif metric.kind == "positive" and (limit is None or limit <= level):
        message = f"{metric.name} needs a limit above its level, near the 99.9th percentile of its values"
        document.complain(place, message)
    return DeclaredBaseline(level=level, limit=limit)


# --- applications --------------------------------------------------------------------------------------------------


def check_use(policy: Policy, application: Tree, deployments: Any, place: Place, document: Document) -> None:
    """Complain of what a policy asks for and an application cannot deliver: feedback not taken, costs, retrieval.

    Args:
        policy: The application's policy.
        application: As the schema read it.
        deployments: As the schema read them.
        place: Of the application.
        document: Takes the problems.
    """
    taken = application["metrics"]
    for rule in policy.rules if taken not in (None, INVALID) else ():
        if rule.metric not in MEASURED and rule.metric not in taken:
            message = f"{policy.name} decides on {rule.metric}, which is not among this application's metrics"
            document.complain((*place, "policy"), message)
        if rule.metric == "feedback_rate" and not taken:
            document.complain((*place, "policy"), f"{policy.name} decides on feedback_rate, but no feedback is taken")
    release = application["release"]
    searched = [rule.metric for rule in policy.rules if rule.metric in RETRIEVAL_METRICS]
    if searched and release is not INVALID and release["index"] is None:
        message = f"{policy.name} decides on {searched[0]}, but the release has no index: nothing is searched for it"
        document.complain((*place, "policy"), message)
    asks = [rule.metric for rule in policy.rules if rule.metric == "cost"]
    asks += ["the budget of its shadow stage"] if policy.shadow and policy.shadow.budget_usd is not None else []
    if (
        not asks
        or release is INVALID
        or deployments is INVALID
        or INVALID in (release["deployment"], release["fallbacks"])
    ):
        return
    for name in (release["deployment"], *release["fallbacks"]):
        deployment = deployments.get(name)
        if deployment not in (None, INVALID) and deployment["usd_per_million_tokens"] is None:
            message = f"{policy.name} needs costs ({asks[0]}), but deployment {name} has no prices"
            document.complain((*place, "policy"), f"{message}: give it usd_per_million_tokens")
