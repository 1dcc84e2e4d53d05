"""The state machine of a rollout: what is known goes in, the next step comes out, and nothing else happens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from headway.domain.assessment import Assessment, MetricFigures
from headway.domain.display import format_count, format_e, format_seconds, format_share, scale_of
from headway.domain.policy import MetricRule, Policy
from headway.domain.recording import Terms
from headway.errors import ConflictError

State = Literal["baseline", "shadow", "ramp", "paused", "holdback", "rolled_back", "promoted", "inconclusive"]
Outcome = Literal["advance", "hold", "promote", "roll_back", "pause", "resume", "approve", "inconclusive"]
Reason = Literal[
    "ended",
    "baseline",
    "kill_switch",
    "paused",
    "sample_ratio",
    "harm",
    "max_duration",
    "provider_changed",
    "shadow",
    "holdback",
    "dwell",
    "min_units",
    "no_data",
    "evidence",
    "approval",
    "safe",
    "command",
    "heavy_unit",
    "fingerprint_changed",
]
Phase = Literal["shadow", "ramp", "holdback"]
Command = Literal["pause", "resume", "approve", "advance", "promote", "rollback"]

ENDED: frozenset[State] = frozenset(("rolled_back", "promoted"))
"""States in which a rollout is over whatever its share; see ``is_over``."""

SAMPLE_RATIO_ALARM = math.log(1000.0)
"""Evidence at which units are taken to arrive at other shares than were set."""

BASELINE_INTERACTIONS = 1000
BASELINE_RATINGS = 200


class Status(msgspec.Struct, frozen=True):
    """Where a rollout stands: all that ``decide`` needs to know of its past. Times are Unix milliseconds.

    Attributes:
        state: Its state.
        step: Index of the policy's stage it is in; -1 before the ramp.
        stage: Number of the stratum that interactions are booked under. It grows with every change of share, with every
            new start of the sample-ratio check, and when the provider changes its model.
        share: The candidate's share of units.
        since_ms: When the share was set, or the rollout resumed after the sample ratio had paused it.
        started_ms: When the ramp (or the shadow stage before it) began.
        paused_ms: Length of all pauses that are over.
        paused_since_ms: When the running pause began; None when there is none.
        paused_state: The state to go back to after the pause.
        paused_reason: Code of why it is paused.
        approved_step: Highest step that a person has released.
        ratio_epoch: Grows with every new start of the sample-ratio check.
        excused: A person let it go on after harm in the shadow stage, which does not pause it again.
    """

    state: State
    step: int
    stage: int
    share: float
    since_ms: int
    started_ms: int
    paused_ms: int = 0
    paused_since_ms: int | None = None
    paused_state: State | None = None
    paused_reason: str = ""
    approved_step: int = -1
    ratio_epoch: int = 0
    excused: bool = False


class Decision(msgspec.Struct, frozen=True):
    """One decision: what happens, why, and where the rollout stands afterwards.

    Attributes:
        outcome: What happens.
        reason: Stable code of why: docs/reference/policies.md explains each.
        message: The same in a sentence, with figures.
        metric: The metric that decided, if one did.
        status: Where the rollout stands afterwards.
    """

    outcome: Outcome
    reason: Reason
    message: str
    status: Status
    metric: str | None = None


class BaselineGap(NamedTuple):
    """What the baseline of a metric lacks: it has ``found`` of the ``needed`` interactions, or ratings."""

    metric: str
    found: int
    needed: int
    noun: str


def begin(terms: Terms, now_ms: int) -> Status:
    """Say where a new rollout stands: in its first stage, or collecting its baseline when that is not complete."""
    status = Status(state="baseline", step=-1, stage=0, share=0.0, since_ms=now_ms, started_ms=now_ms)
    return status if baseline_gaps(terms) else _leave_baseline(terms.policy, status, now_ms)


def is_over(status: Status) -> bool:
    """Say whether the rollout has ended: promoted, rolled back, or inconclusive with nothing left on the candidate."""
    return status.state in ENDED or (status.state == "inconclusive" and status.share == 0.0)


def phase_of(status: Status) -> Phase | None:
    """Name the phase whose processes take the evidence, during a pause too; None before the first and after all."""
    state = status.paused_state if status.state == "paused" else status.state
    if state == "inconclusive":
        return None if is_over(status) else "ramp"
    return state if state in {"shadow", "ramp", "holdback"} else None


def shares_ahead(policy: Policy, status: Status) -> tuple[float, ...]:
    """List the shares that the candidate still has to be shown safe for, the next one first."""
    state = status.paused_state if status.state == "paused" else status.state
    return tuple(stage.share for stage in policy.stages[status.step + 1 :]) if state in _BEFORE_THE_END else ()


def next_share(policy: Policy, status: Status) -> float | None:
    """Give the share that the rollout enters next; None when no step is left."""
    return next(iter(shares_ahead(policy, status)), None)


def baseline_gaps(terms: Terms) -> tuple[BaselineGap, ...]:
    """List the metrics of which too little is known for a start; declared levels count as known."""
    gaps = []
    for rule in terms.policy.rules:
        known = terms.baseline.metrics.get(rule.metric)
        if known is not None and known.observations == 0:
            continue  # declared
        rated = rule.metric in terms.feedback
        needed, noun = (BASELINE_RATINGS, "ratings") if rated else (BASELINE_INTERACTIONS, "interactions")
        found = 0 if known is None else known.observations
        if known is not None and rule.method == "event_ratio":
            found = max(found, terms.baseline.interactions)  # rates per unit are observed less often
        if found < needed:
            gaps.append(BaselineGap(rule.metric, found, needed, noun))
    return tuple(gaps)


def commands(policy: Policy, status: Status) -> tuple[Command, ...]:
    """List what a person can ask of a rollout that stands there."""
    if is_over(status):
        return ()
    found = _COMMANDS[status.state]
    waiting = _step_to_approve(policy, status)
    return tuple(command for command in found if command != "approve" or waiting is not None)


def decide(terms: Terms, status: Status, assessment: Assessment, now_ms: int) -> Decision:
    """Decide on a rollout: pure, so that it can be replayed.

    The checks come in a fixed order, and the first that has something to say decides: kill switch, pause, sample ratio,
    harm, duration, a change at the provider, and then whether the next step can be taken.

    Args:
        terms: Frozen at the start; in the state ``baseline``, with the baseline as far as it is known.
        status: Where the rollout stands.
        assessment: What the evidence says.
        now_ms: Unix milliseconds.
    """
    case = _Case(terms, status, assessment, now_ms)
    return next(decision for check in _CHECKS if (decision := check(case)) is not None)


def obey(terms: Terms, status: Status, command: Command, reason: str, now_ms: int) -> Decision:
    """Do what a person asks; ``advance`` and ``promote`` skip the gates, and the decision says so.

    Args:
        terms: Of the rollout.
        status: Where it stands.
        command: What is asked.
        reason: Why, in the person's words.
        now_ms: Unix milliseconds.

    Raises:
        ConflictError: It makes no sense in this state; the message says what does.
    """
    _check_possible(terms.policy, status, command)
    outcome: Outcome = "roll_back" if command == "rollback" else command
    if command == "pause":
        after, message = _pause(status, "command", now_ms), f"paused at {format_share(status.share)}"
    elif command == "resume":
        after = _resume(status, now_ms)
        message = f"resumed after {format_seconds((now_ms - _paused_since(status, now_ms)) / 1000)}"
        message += ", with a new sample-ratio check" if after.ratio_epoch > status.ratio_epoch else ""
    elif command == "approve":
        step = _step_to_approve(terms.policy, status)
        after = replace(status, approved_step=status.approved_step if step is None else step)
        message = f"approved the step to {format_share(terms.policy.stages[after.approved_step].share)}"
    elif command == "advance":
        after = _enter(terms.policy, status, status.step + 1, now_ms)
        message = f"advanced from {format_share(status.share)} to {format_share(after.share)} past the gates"
        outcome = "promote" if after.state == "promoted" else "advance"
    elif command == "promote":
        after = _end(status, "promoted", 1.0, now_ms)
        message = f"promoted from {format_share(status.share)} past the gates, without holdback"
    else:
        after = _end(status, "rolled_back", 0.0, now_ms)
        message = f"rolled back from {format_share(status.share)}"
    return Decision(outcome, "command", f"{message}: {reason}" if reason else message, after)


# --- steps from one status to another ------------------------------------------------------------------------------

_BEFORE_THE_END: frozenset[State] = frozenset(("baseline", "shadow", "ramp"))
_COMMANDS: dict[State, tuple[Command, ...]] = {
    "baseline": ("pause", "approve", "promote", "rollback"),
    "shadow": ("pause", "approve", "advance", "promote", "rollback"),
    "ramp": ("pause", "approve", "advance", "promote", "rollback"),
    "paused": ("resume", "approve", "promote", "rollback"),
    "holdback": ("pause", "promote", "rollback"),
    "inconclusive": ("promote", "rollback"),
}


def _check_possible(policy: Policy, status: Status, command: Command) -> None:
    possible = commands(policy, status)
    if command in possible:
        return
    if not possible:
        state = status.state.replace("_", " ")
        raise ConflictError(f"the rollout is over ({state}); to try again, start another one")
    if command == "approve":
        raise ConflictError("no step ahead of this rollout waits for approval")
    if command == "resume":
        raise ConflictError(f"the rollout is not paused; possible are: {', '.join(possible)}")
    raise ConflictError(f"{command} is not possible in the state {status.state}; possible are: {', '.join(possible)}")


def _step_to_approve(policy: Policy, status: Status) -> int | None:
    """Find the next step that needs a person's approval and has none."""
    if not shares_ahead(policy, status):
        return None
    steps = range(max(status.step, status.approved_step) + 1, len(policy.stages))
    return next((step for step in steps if policy.stages[step].approve), None)


def _leave_baseline(policy: Policy, status: Status, now_ms: int) -> Status:
    started = replace(status, started_ms=now_ms, since_ms=now_ms, paused_ms=0)
    return _enter(policy, started, 0, now_ms) if policy.shadow is None else replace(started, state="shadow")


def _enter(policy: Policy, status: Status, step: int, now_ms: int) -> Status:
    """Enter a step of the ramp; the last one is the holdback, or the end where there is none."""
    state: State = "ramp"
    share = policy.stages[step].share
    if step == len(policy.stages) - 1:
        if policy.holdback is None:
            return replace(_end(status, "promoted", 1.0, now_ms), step=step)
        state, share = "holdback", 1.0 - policy.holdback.share
    return replace(status, state=state, step=step, stage=status.stage + 1, share=share, since_ms=now_ms)


def _pause(status: Status, reason: str, now_ms: int) -> Status:
    return replace(status, state="paused", paused_since_ms=now_ms, paused_state=status.state, paused_reason=reason)


def _paused_since(status: Status, now_ms: int) -> int:
    return now_ms if status.paused_since_ms is None else min(status.paused_since_ms, now_ms)


def _resume(status: Status, now_ms: int) -> Status:
    resumed = replace(_unpause(status, now_ms), state=status.paused_state or "ramp")
    if status.paused_reason == "sample_ratio":
        epoch = status.ratio_epoch + 1
        return replace(resumed, stage=status.stage + 1, ratio_epoch=epoch, since_ms=now_ms)
    return replace(resumed, excused=True) if status.paused_reason == "shadow" else resumed


def _unpause(status: Status, now_ms: int) -> Status:
    paused_ms = status.paused_ms + now_ms - _paused_since(status, now_ms)
    return replace(status, paused_ms=paused_ms, paused_since_ms=None, paused_state=None, paused_reason="")


def _end(status: Status, state: State, share: float, now_ms: int) -> Status:
    return replace(_unpause(status, now_ms), state=state, share=share, since_ms=now_ms)


# --- the checks of a tick, in their order --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    """What ``decide`` was given."""

    terms: Terms
    status: Status
    assessment: Assessment
    now_ms: int

    @property
    def policy(self) -> Policy:
        return self.terms.policy

    @property
    def seconds_at_share(self) -> float:
        return max(0, self.now_ms - self.status.since_ms) / 1000

    @property
    def running_seconds(self) -> float:
        return max(0, self.now_ms - self.status.started_ms - self.status.paused_ms) / 1000

    @property
    def share(self) -> str:
        return format_share(self.status.share)

    def figures(self, rule: MetricRule) -> MetricFigures | None:
        return next((each for each in self.assessment.metrics if each.metric == rule.metric), None)

    def hold(self, reason: Reason, message: str, metric: str | None = None) -> Decision:
        return Decision("hold", reason, message, self.status, metric)


def _stay_ended(case: _Case) -> Decision | None:
    if not is_over(case.status):
        return None
    return case.hold("ended", f"the rollout is over: {case.status.state.replace('_', ' ')}")


def _collect_baseline(case: _Case) -> Decision | None:
    if case.status.state != "baseline":
        return None
    gaps = baseline_gaps(case.terms)
    if not gaps:
        after = _leave_baseline(case.policy, case.status, case.now_ms)
        into = "the shadow stage" if after.state == "shadow" else format_share(after.share)
        return Decision("advance", "baseline", f"the baseline is complete: on to {into}", after)
    unseen = [gap.metric for gap in gaps if gap.found == 0]
    if unseen and case.terms.baseline.interactions >= BASELINE_INTERACTIONS and _has_dwelt(case):
        message = f"the stable release has no observation of {unseen[0]}: {_advise(case, unseen[0])}"
        return case.hold("no_data", f"{message}, or declare its level under baselines", unseen[0])
    missing = ", ".join(f"{gap.metric} has {gap.found:,} of {gap.needed:,} {gap.noun}" for gap in gaps)
    message = f"collecting the stable release's baseline: {missing}; levels can also be declared under baselines"
    return case.hold("baseline", message, gaps[0].metric if len(gaps) == 1 else None)


def _obey_kill_switch(case: _Case) -> Decision | None:
    switch, found = case.policy.kill_switch, case.assessment
    if 0 < switch.safety_events <= found.safety_events:
        what = f"{found.safety_events:,} of the candidate's answers were refused or filtered"
        limit = f"{switch.safety_events:,}"
    elif 0 < switch.failures <= found.first_failures:
        what = f"{found.first_failures:,} of the candidate's first {switch.of_first:,} interactions failed"
        limit = f"{switch.failures:,}"
    else:
        return None
    message = f"kill switch, the hard limit beside the guarantee: {what}, the limit is {limit}"
    return Decision("roll_back", "kill_switch", message, _end(case.status, "rolled_back", 0.0, case.now_ms))


def _wait_for_a_person(case: _Case) -> Decision | None:
    possible = ", ".join(commands(case.policy, case.status))
    if case.status.state == "paused":
        why = case.status.paused_reason
        message = (
            f"paused ({why}) at {case.share} until a person decides; only the kill switch acts. Possible: {possible}"
        )
        return case.hold("paused", message)
    if case.status.state == "inconclusive":
        message = f"inconclusive at {case.share}, kept until a person decides. Possible: {possible}"
        return case.hold("max_duration", message)
    return None


def _check_sample_ratio(case: _Case) -> Decision | None:
    log_e = case.assessment.sample_ratio_log_e
    if case.status.state == "shadow" or log_e < SAMPLE_RATIO_ALARM:
        return None
    stable, candidate = case.assessment.stage_units
    message = (
        f"units do not arrive at the share set, {case.share}: E {format_e(log_e)} of {format_e(SAMPLE_RATIO_ALARM)};"
        f" this stage has {stable:,} units of stable and {candidate:,} of the candidate."
        " Assignment or recording is at fault: find out where, then resume or roll back"
    )
    return Decision("pause", "sample_ratio", message, _pause(case.status, "sample_ratio", case.now_ms))


def _check_harm(case: _Case) -> Decision | None:
    harmful = [each for each in case.assessment.metrics if each.harm_log_e >= each.harm_threshold]
    if not harmful or (case.status.state == "shadow" and case.status.excused):
        return None
    worst = max(harmful, key=lambda each: each.harm_log_e - each.harm_threshold)
    what = f"{worst.metric} is beyond its harm line: {_describe_loss(case, worst)}"
    if case.status.state == "shadow":
        message = f"in the shadow stage, {what}. Resume to go on all the same, or roll back"
        return Decision("pause", "shadow", message, _pause(case.status, "shadow", case.now_ms), worst.metric)
    after = _end(case.status, "rolled_back", 0.0, case.now_ms)
    return Decision("roll_back", "harm", what, after, worst.metric)


def _describe_loss(case: _Case, figures: MetricFigures) -> str:
    evidence = f"E {format_e(figures.harm_log_e)} of {format_e(figures.harm_threshold)}"
    rule = next((rule for rule in case.policy.rules if rule.metric == figures.metric), None)
    if rule is None:
        return evidence
    scale = scale_of(rule, case.terms.feedback)
    interval = scale.interval(figures.lower, figures.upper)
    line = f"harm line {scale.effect(figures.harm)}, margin {scale.effect(figures.margin)}"
    return f"{scale.effect(figures.estimate)} (95% interval {interval}; {line}), {evidence}"


def _check_duration(case: _Case) -> Decision | None:
    limit = case.policy.max_duration_seconds
    if case.status.state == "holdback" or case.running_seconds <= limit:
        return None
    message = f"no decision within {format_seconds(limit)}, pauses not counted"
    if case.policy.on_inconclusive == "keep" and case.status.share > 0.0:
        message = f"{message}: {case.share} stays until a person decides"
        return Decision("inconclusive", "max_duration", message, replace(case.status, state="inconclusive"))
    after = _end(case.status, "inconclusive", 0.0, case.now_ms)
    return Decision("inconclusive", "max_duration", f"{message}: all traffic is back on stable", after)


def _check_provider(case: _Case) -> Decision | None:
    if not case.assessment.provider_changed or case.status.state == "shadow":
        return None
    after = replace(case.status, stage=case.status.stage + 1)
    message = "a provider answers with another model than before: what comes now is booked as a stage of its own"
    return Decision("hold", "provider_changed", message, after)


def _leave_shadow(case: _Case) -> Decision | None:
    shadow = case.policy.shadow
    if case.status.state != "shadow":
        return None
    if not _has_dwelt(case):
        return _dwell(case)
    mirrored, needed = case.assessment.stage_interactions[1], 0 if shadow is None else shadow.interactions
    if mirrored < needed:
        message = f"{mirrored:,} of {needed:,} mirrored answers"
        if shadow is not None and shadow.budget_usd is not None:
            message += f"; mirroring ends at ${shadow.budget_usd:g}, a person may advance"
        return case.hold("shadow", message)
    return _await_approval(case) or _advance(case, "shadow", f"{mirrored:,} mirrored answers")


def _leave_holdback(case: _Case) -> Decision | None:
    holdback = case.policy.holdback
    if case.status.state != "holdback":
        return None
    length = 0.0 if holdback is None else holdback.seconds
    if case.seconds_at_share < length:
        kept = format_share(1.0 - case.status.share)
        spent = f"{format_seconds(case.seconds_at_share)} of {format_seconds(length)}"
        return case.hold("holdback", f"{kept} of the units stay on the old release: {spent}")
    after = _end(case.status, "promoted", 1.0, case.now_ms)
    return Decision("promote", "holdback", f"no harm in a holdback of {format_seconds(length)}", after)


def _climb(case: _Case) -> Decision:
    if not _has_dwelt(case):
        return _dwell(case)
    units, needed = case.assessment.stage_units[1], case.policy.min_units
    if units < needed:
        return case.hold("min_units", f"{units:,} of {needed:,} units of the candidate in this stage")
    return (
        _miss_data(case) or _lack_evidence(case) or _await_approval(case) or _advance(case, "safe", "shown to be safe")
    )


def _has_dwelt(case: _Case) -> bool:
    return case.seconds_at_share >= case.policy.dwell_seconds


def _dwell(case: _Case) -> Decision:
    spent = f"{format_seconds(case.seconds_at_share)} of {format_seconds(case.policy.dwell_seconds)}"
    return case.hold("dwell", f"{spent} in this stage")


def _miss_data(case: _Case) -> Decision | None:
    for rule in case.policy.rules:
        figures = case.figures(rule)
        stable = 0 if figures is None else figures.stable_observations
        candidate = 0 if figures is None else figures.candidate_observations
        if stable and candidate:
            continue
        arm = "the candidate" if stable else "stable" if candidate else "either release"
        message = (
            f"no observation of {rule.metric} of {arm}, and without data nothing passes: {_advise(case, rule.metric)}"
        )
        return case.hold("no_data", message, rule.metric)
    return None


def _advise(case: _Case, metric: str) -> str:
    if metric == "cost":
        return "give the deployments prices (usd_per_million_tokens)"
    if metric.startswith("first_token"):
        return "only streamed answers have a first token; take latency where clients do not stream"
    if metric in case.terms.feedback:
        return f"see whether clients send {metric} (POST /v1/feedback) for what they are shown"
    return "see whether interactions are recorded"


def _lack_evidence(case: _Case) -> Decision | None:
    share = case.policy.stages[case.status.step + 1].share
    lacking, texts, longest = [], [], 0.0
    for rule in case.policy.rules:
        figures = case.figures(rule)
        if figures is None:
            continue  # no data, which has been told
        safe = next((each for each in figures.safe if each.share == share), None)
        reached = safe is not None and (safe.vacuous or safe.log_e >= figures.safe_threshold)
        if not reached:
            e = format_e(safe.log_e) if safe is not None else "unknown"
            lacking.append(rule.metric)
            texts.append(f"{rule.metric} (E {e} of {format_e(figures.safe_threshold)})")
            longest = max(longest, figures.interactions_to_go or 0.0)
    if lacking:
        message = f"not yet shown to be safe at {format_share(share)}: {', '.join(texts)}"
        message += f"; about {format_count(longest)} more interactions" if 0.0 < longest < math.inf else ""
        return case.hold("evidence", message, lacking[0] if len(lacking) == 1 else None)
    return _lack_superiority(case, share)


def _lack_superiority(case: _Case, share: float) -> Decision | None:
    threshold = -math.log(case.policy.beta)
    for rule in case.policy.rules:
        figures = case.figures(rule)
        if rule.require != "superior" or share < 1.0 or figures is None:
            continue
        log_e = figures.superior_log_e
        if log_e is None or not log_e >= threshold:
            e = "unknown" if log_e is None else format_e(log_e)
            message = f"{rule.metric} is not yet shown to be better than stable's, as 100% needs"
            return case.hold("evidence", f"{message} (E {e} of {format_e(threshold)})", rule.metric)
    return None


def _await_approval(case: _Case) -> Decision | None:
    step = case.status.step + 1
    if not case.policy.stages[step].approve or case.status.approved_step >= step:
        return None
    message = f"ready for {format_share(case.policy.stages[step].share)}: it waits for a person's approval"
    return case.hold("approval", message)


def _advance(case: _Case, reason: Reason, why: str) -> Decision:
    after = _enter(case.policy, case.status, case.status.step + 1, case.now_ms)
    promoted = after.state == "promoted"
    message = f"{why}: from {case.share} to {format_share(after.share)}"
    if after.state == "holdback":
        message += f", the rest stays on the old release for {format_seconds(_holdback_seconds(case.policy))}"
    return Decision("promote" if promoted else "advance", reason, message, after)


def _holdback_seconds(policy: Policy) -> float:
    return 0.0 if policy.holdback is None else policy.holdback.seconds


_CHECKS = (
    _stay_ended,
    _collect_baseline,
    _obey_kill_switch,
    _wait_for_a_person,
    _check_sample_ratio,
    _check_harm,
    _check_duration,
    _check_provider,
    _leave_shadow,
    _leave_holdback,
    _climb,
)
