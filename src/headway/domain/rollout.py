"""The state machine of a rollout: what is known goes in, the next step comes out, and nothing else happens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from msgspec.structs import replace

from headway.domain.assessment import Assessment, MetricFigures
from headway.domain.difference import explain_difference
from headway.domain.display import format_count, format_e, format_seconds, format_share, scale_of
from headway.domain.metric import RETRIEVAL_METRICS
from headway.domain.policy import MetricRule, Policy
from headway.domain.recording import Terms
from headway.domain.standing import (
    BASELINE_INTERACTIONS,
    BASELINE_RATINGS,
    ENDED,
    SAMPLE_RATIO_ALARM,
    BaselineGap,
    Command,
    Decision,
    Outcome,
    Phase,
    Reason,
    State,
    Status,
    baseline_gaps,
    begin,
    commands,
    end,
    enter,
    is_over,
    leave_baseline,
    next_share,
    pause,
    pause_ms,
    phase_of,
    resume,
    shares_ahead,
    step_to_approve,
)
from headway.errors import ConflictError

__all__ = [
    "BASELINE_INTERACTIONS",
    "BASELINE_RATINGS",
    "ENDED",
    "SAMPLE_RATIO_ALARM",
    "BaselineGap",
    "Command",
    "Decision",
    "Outcome",
    "Phase",
    "Reason",
    "State",
    "Status",
    "baseline_gaps",
    "begin",
    "commands",
    "decide",
    "is_over",
    "next_share",
    "obey",
    "phase_of",
    "shares_ahead",
]


_VERDICTS: frozenset[Outcome] = frozenset(("promote", "roll_back", "inconclusive", "pause"))


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
    decision = next(decision for check in _CHECKS if (decision := check(case)) is not None)
    cause = explain_difference(terms.difference) if decision.outcome in _VERDICTS else ""
    # Not where the sample ratio is at fault: no release is to blame for that.
    if not cause or decision.reason == "sample_ratio":
        return decision
    return replace(decision, message=f"{decision.message}; {cause}")


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
        after, message = pause(status, "command", now_ms), f"paused at {format_share(status.share)}"
    elif command == "resume":
        after = resume(status, now_ms)
        message = f"resumed after {format_seconds(pause_ms(status, now_ms) / 1000)}"
        message += ", with a new sample-ratio check" if after.ratio_epoch > status.ratio_epoch else ""
    elif command == "approve":
        step = step_to_approve(terms.policy, status)
        after = replace(status, approved_step=status.approved_step if step is None else step)
        message = f"approved the step to {format_share(terms.policy.stages[after.approved_step].share)}"
    elif command == "advance":
        after = enter(terms.policy, status, status.step + 1, now_ms)
        message = f"advanced from {format_share(status.share)} to {format_share(after.share)} past the gates"
        outcome = "promote" if after.state == "promoted" else "advance"
    elif command == "promote":
        after = end(status, "promoted", 1.0, now_ms)
        message = f"promoted from {format_share(status.share)} past the gates, without holdback"
    else:
        after = end(status, "rolled_back", 0.0, now_ms)
        message = f"rolled back from {format_share(status.share)}"
    return Decision(outcome, "command", f"{message}: {reason}" if reason else message, after)


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
        after = leave_baseline(case.policy, case.status, case.now_ms)
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
    switch, found, status = case.policy.kill_switch, case.assessment, case.status
    mirrored = phase_of(status) == "shadow"
    if mirrored and (status.excused or status.state == "paused"):
        return None
    if 0 < switch.safety_events <= found.safety_events:
        what = f"{found.safety_events:,} of the candidate's answers were refused or filtered"
        limit = f"{switch.safety_events:,}"
    elif 0 < switch.failures <= found.first_failures:
        what = f"{found.first_failures:,} of the candidate's first {switch.of_first:,} interactions failed"
        limit = f"{switch.failures:,}"
    else:
        return None
    message = f"kill switch, the hard limit beside the guarantee: {what}, the limit is {limit}"
    if mirrored:
        message += ". Nobody has seen those answers: resume to go on all the same, or roll back"
        return Decision("pause", "kill_switch", message, pause(status, "kill_switch", case.now_ms))
    return Decision("roll_back", "kill_switch", message, end(status, "rolled_back", 0.0, case.now_ms))


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
    return Decision("pause", "sample_ratio", message, pause(case.status, "sample_ratio", case.now_ms))


def _check_harm(case: _Case) -> Decision | None:
    harmful = [each for each in case.assessment.metrics if each.harm_log_e >= each.harm_threshold]
    if not harmful or (case.status.state == "shadow" and case.status.excused):
        return None
    worst = max(harmful, key=lambda each: each.harm_log_e - each.harm_threshold)
    what = f"{worst.metric} is beyond its harm line: {_describe_loss(case, worst)}"
    if case.status.state == "shadow":
        message = f"in the shadow stage, {what}. Resume to go on all the same, or roll back"
        return Decision("pause", "shadow", message, pause(case.status, "shadow", case.now_ms), worst.metric)
    after = end(case.status, "rolled_back", 0.0, case.now_ms)
    return Decision("roll_back", "harm", what, after, worst.metric)


def _describe_loss(case: _Case, figures: MetricFigures) -> str:
    evidence = f"E {format_e(figures.harm_log_e)} of {format_e(figures.harm_threshold)}"
    rule = next((rule for rule in case.policy.rules if rule.metric == figures.metric), None)
    if rule is None:
        return evidence
    scale = scale_of(rule, case.terms.feedback)
    lines = f"harm line {scale.effect(figures.harm)}, margin {scale.effect(figures.margin)}"
    if figures.lower is not None or figures.upper is not None:
        lines = f"95% interval {scale.interval(figures.lower, figures.upper)}; {lines}"
    return f"{scale.effect(figures.estimate)} ({lines}), {evidence}"


def _check_duration(case: _Case) -> Decision | None:
    limit = case.policy.max_duration_seconds
    if case.status.state == "holdback" or case.running_seconds <= limit:
        return None
    message = f"no decision within {format_seconds(limit)}, pauses not counted"
    if case.policy.on_inconclusive == "keep" and case.status.share > 0.0:
        message = f"{message}: {case.share} stays until a person decides"
        return Decision("inconclusive", "max_duration", message, replace(case.status, state="inconclusive"))
    after = end(case.status, "inconclusive", 0.0, case.now_ms)
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
    after = end(case.status, "promoted", 1.0, case.now_ms)
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
    if metric in RETRIEVAL_METRICS:
        return "only releases with a search index retrieve; take another metric where one of the two has none"
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
    after = enter(case.policy, case.status, case.status.step + 1, case.now_ms)
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
