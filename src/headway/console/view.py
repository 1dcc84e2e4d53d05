"""A rollout as its page shows it: where it stands, in words, and the places of everything that is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from headway.domain.assessment import Assessment
from headway.domain.display import (
    NO_DATA,
    Evidence,
    MetricText,
    describe_evidence,
    describe_metric,
    describe_state,
    format_seconds,
    format_share,
    pace,
)
from headway.domain.outlook import Outlook, look_ahead
from headway.domain.policy import Policy
from headway.domain.recording import Terms
from headway.domain.rollout import SAMPLE_RATIO_ALARM, Command, Status, commands, is_over, next_share
from headway.storage.rollouts import Figure, Rollout, RolloutDecision

Progress = Literal["done", "current", "ahead", "stopped"]
Tone = Literal["running", "waiting", "good", "bad"]

# The axis of the overview, in margins: worse to the left, the margin at -1.
_WORST, _BEST = -1.6, 1.6


@dataclass(frozen=True)
class StepView:
    """One step of the way to all traffic.

    Attributes:
        label: Its share, or ``shadow``.
        progress: Whether the rollout was there, is there, ended there, or has it ahead.
        note: What else is to be said.
        needs_person: It waits for an approval that it has not got.
        reached: Of the next step: how far the rollout has come to it, per cent.
    """

    label: str
    progress: Progress
    note: str = ""
    needs_person: bool = False
    reached: float = 0.0


@dataclass(frozen=True)
class Strip:
    """An interval on the overview's axis; places are per cent of its width, None where there is nothing to draw.

    Attributes:
        low, high: Ends of the interval.
        estimate: The estimate.
        harm: The harm line.
        open_low, open_high: The interval goes on beyond the axis.
        beyond: ``worse`` or ``better`` where the estimate itself lies beyond the axis.
    """

    low: float | None
    high: float | None
    estimate: float | None
    harm: float
    open_low: bool = False
    open_high: bool = False
    beyond: str = ""


@dataclass(frozen=True)
class MetricView:
    """One metric: its figures in words, and where the overview draws them."""

    text: MetricText
    strip: Strip


@dataclass(frozen=True)
class Watched:
    """What is watched beside the metrics: what, its value in words, and whether it has gone too far."""

    what: str
    value: str
    ill: bool = False


@dataclass(frozen=True)
class CommandView:
    """Something that a person can ask: its button, what it does, and whether it is expected, usual or grave."""

    command: str
    name: str
    effect: str
    kind: Literal["main", "plain", "grave"]


@dataclass(frozen=True)
class RolloutView:
    """A rollout as its page shows it.

    Attributes:
        rollout: As stored.
        state: Its state, in words.
        tone: Whether it runs, waits for somebody, or how it ended.
        headline: Where traffic goes, in a sentence.
        reason: Why it stands where it stands, or what it waits for; empty if that is plain.
        steps: The way to all traffic.
        metrics: In the policy's order.
        watched: What is watched beside them.
        commands: What a person can ask.
        figures_at: When the figures were taken; None before the first.
        mirrors: Whether there are mirrored answers to look at.
    """

    rollout: Rollout
    state: str
    tone: Tone
    headline: str
    reason: str
    steps: tuple[StepView, ...]
    metrics: tuple[MetricView, ...]
    watched: tuple[Watched, ...]
    commands: tuple[CommandView, ...]
    figures_at: datetime | None
    mirrors: bool

    @property
    def is_over(self) -> bool:
        """Whether nothing happens any more."""
        return self.rollout.ended_at is not None


def describe_rollout(
    rollout: Rollout,
    decisions: Sequence[RolloutDecision],
    figures: Sequence[Figure],
    now_ms: int,
) -> RolloutView:
    """Say what a rollout's page shows.

    Args:
        rollout: As stored.
        decisions: Its decisions, newest first.
        figures: The latest figures, oldest first: some minutes of them tell the traffic.
        now_ms: Unix milliseconds.
    """
    terms, status = rollout.terms, rollout.status
    if terms is None or status is None:
        return _describe_manual(rollout)
    latest = figures[-1] if figures else None
    assessment = Assessment() if latest is None else latest.assessment
    readings = [(round(each.at.timestamp() * 1000), each.assessment) for each in figures]
    possible = [_command(command, terms.policy, status) for command in commands(terms.policy, status)]
    outlook = look_ahead(terms, status, assessment, now_ms, pace(readings))
    return RolloutView(
        rollout=rollout,
        state="waits for approval" if _awaits_approval(outlook) else describe_state(status.state),
        tone=_tone(status, outlook),
        headline=_headline(rollout, f"{terms.unit}s", status, terms.policy, now_ms),
        reason=_reason(status, outlook, decisions),
        steps=tuple(_steps(terms.policy, status, outlook, now_ms)),
        metrics=tuple(_metrics(terms, assessment)),
        watched=() if latest is None else tuple(_watched(rollout, terms, assessment)),
        commands=tuple(sorted(possible, key=lambda each: ("main", "plain", "grave").index(each.kind))),
        figures_at=None if latest is None else latest.at,
        mirrors=terms.policy.shadow is not None,
    )


def _describe_manual(rollout: Rollout) -> RolloutView:
    share = format_share(rollout.share)
    words = {
        "promoted": f"{rollout.candidate} was promoted: it has all traffic.",
        "rolled_back": f"{rollout.candidate} was taken back: {rollout.stable} has all traffic.",
    }
    tones: dict[str, Tone] = {"promoted": "good", "rolled_back": "bad"}
    return RolloutView(
        rollout=rollout,
        state=describe_state(rollout.state),
        tone=tones.get(rollout.state, "running"),
        headline=words.get(rollout.state, f"{share} of traffic gets {rollout.candidate}, set by hand."),
        reason="" if rollout.ended_at else "under the policy “manual” nothing is tested: a person sets the share",
        steps=(),
        metrics=(),
        watched=(),
        commands=() if rollout.ended_at else (_COMMANDS["promote"], _COMMANDS["rollback"]),
        figures_at=None,
        mirrors=False,
    )


# --- where it stands -----------------------------------------------------------------------------------------------


def _tone(status: Status, outlook: Outlook) -> Tone:
    if status.state in ("rolled_back", "inconclusive"):
        return "bad" if is_over(status) else "waiting"
    if status.state == "promoted":
        return "good"
    return "waiting" if status.state == "paused" or _awaits_approval(outlook) else "running"


def _awaits_approval(outlook: Outlook) -> bool:
    return outlook.missing == ("approval",)


def _headline(rollout: Rollout, units: str, status: Status, policy: Policy, now_ms: int) -> str:
    candidate, stable, share = rollout.candidate, rollout.stable, format_share(status.share)
    state = status.paused_state if status.state == "paused" else status.state
    shadow = policy.shadow
    sample = format_share(shadow.sample) if shadow is not None else "0%"
    words = {
        "baseline": f"{stable} has all traffic while its baseline is collected.",
        "shadow": f"{stable} answers everything; {sample} of requests go to {candidate} too, its answers are dropped.",
        "ramp": f"{share} of {units} get {candidate}.",
        "holdback": f"{candidate} has {share} of {units}; {format_share(1 - status.share)} stay on {stable} for now.",
        "promoted": f"{candidate} was promoted: it has all traffic.",
        "rolled_back": f"{candidate} was rolled back: {stable} has all traffic.",
    }
    if state == "inconclusive":
        words[state] = (
            f"No result in time: {stable} has all traffic."
            if is_over(status)
            else f"No result in time; {share} of {units} still get {candidate}."
        )
    if status.state != "paused" or state is None:
        return words[status.state]
    since = status.paused_since_ms or now_ms
    return f"Paused for {format_seconds((now_ms - since) / 1000)}. {words[state]}"


def _reason(status: Status, outlook: Outlook, decisions: Sequence[RolloutDecision]) -> str:
    """Why it stands where it stands: what stopped it, else what it waits for."""
    if is_over(status) or status.state in ("paused", "inconclusive"):
        stopping = (each.message for each in decisions if each.outcome not in ("hold", "approve"))
        return next(stopping, "")
    if outlook.share is None and not outlook.missing:
        return ""
    following = "the shadow stage" if not outlook.share else format_share(outlook.share)
    following = "promotion" if status.state == "holdback" else following
    if _awaits_approval(outlook):
        return f"everything else is there for {following}"
    if not outlook.missing:
        return f"next is {following}, with the next look at the evidence"
    told = len(outlook.missing) == 1 and outlook.missing[0].endswith(" of dwell")
    about = f": about {format_seconds(outlook.seconds)}" if outlook.seconds and not told else ""
    about = about if status.state == "ramp" else ""
    return f"before {following}: {'; '.join(outlook.missing)}{about}"


def _steps(policy: Policy, status: Status, outlook: Outlook, now_ms: int) -> list[StepView]:
    here = format_seconds((now_ms - status.since_ms) / 1000)
    steps = []
    if policy.shadow is not None:
        progress = _progress(-1, status)
        steps.append(StepView("shadow", progress, here if progress == "current" else ""))
    for place, stage in enumerate(policy.stages):
        progress = _progress(place, status)
        approved = status.approved_step >= place or progress != "ahead"
        note = ("approved" if approved else "needs approval") if stage.approve else ""
        if progress == "current":
            note = f"holdback, {here}" if place == len(policy.stages) - 1 else here
        reached = round(outlook.progress * 100, 1) if place == status.step + 1 and progress == "ahead" else 0.0
        steps.append(StepView(format_share(stage.share), progress, note, stage.approve and not approved, reached))
    return steps


def _progress(place: int, status: Status) -> Progress:
    state = status.paused_state if status.state == "paused" else status.state
    if state == "promoted":
        return "done"
    if state == "baseline" or place > status.step:
        return "ahead"
    if place < status.step:
        return "done"
    return "stopped" if is_over(status) else "current"


# --- metrics -------------------------------------------------------------------------------------------------------


def _metrics(terms: Terms, assessment: Assessment) -> list[MetricView]:
    texts = [describe_metric(terms, figures) for figures in assessment.metrics]
    return [MetricView(text, _strip(text)) for text in texts]


def _strip(text: MetricText) -> Strip:
    harm, estimate = _place(text.harm_place), text.estimate_place
    if estimate is None:
        return Strip(None, None, None, harm)
    beyond = "worse" if estimate < _WORST else "better" if estimate > _BEST else ""
    worst, best = text.worst_place, text.best_place
    if worst is None or best is None or worst > _BEST or best < _WORST or (math.isinf(worst) and math.isinf(best)):
        return Strip(None, None, _place(estimate), harm, beyond=beyond)
    return Strip(_place(worst), _place(best), _place(estimate), harm, worst < _WORST, best > _BEST, beyond)


def _place(margins: float) -> float:
    return round((min(max(margins, _WORST), _BEST) - _WORST) / (_BEST - _WORST) * 100, 2)


# --- what else is watched ------------------------------------------------------------------------------------------


def _watched(rollout: Rollout, terms: Terms, assessment: Assessment) -> list[Watched]:
    switch, shadow = terms.policy.kill_switch, terms.policy.shadow
    stable, candidate = assessment.stage_units
    found = [Watched(f"{terms.unit}s in this stage", f"{stable:,} / {candidate:,}")] if stable + candidate else []
    stable, candidate = assessment.interactions
    found.append(Watched("interactions in all", f"{stable:,} / {candidate:,}"))
    ratio = describe_evidence(assessment.sample_ratio_log_e, SAMPLE_RATIO_ALARM)
    found.append(Watched("units off their share", _write(ratio), ratio.reached))
    if switch.safety_events:
        events = assessment.safety_events
        value = f"{events:,} of {switch.safety_events:,} refused or filtered"
        found.append(Watched("kill switch", value, events >= switch.safety_events))
    if switch.failures:
        failures = assessment.first_failures
        value = f"{failures:,} of {switch.failures:,} failures in the first {switch.of_first:,}"
        found.append(Watched("kill switch", value, failures >= switch.failures))
    if shadow is not None:
        limit = "" if shadow.budget_usd is None else f" of ${shadow.budget_usd:,.2f}"
        spent = shadow.budget_usd is not None and rollout.shadow_usd >= shadow.budget_usd
        found.append(Watched("cost of mirroring", f"${rollout.shadow_usd:,.2f}{limit}", spent))
    if rollout.restarts:
        found.append(Watched("earlier tries", f"{rollout.restarts}"))
    return found


def _write(evidence: Evidence) -> str:
    return NO_DATA if evidence.e == NO_DATA else f"E {evidence.e} of {evidence.threshold}"


# --- what a person can ask -----------------------------------------------------------------------------------------

_COMMANDS = {
    "promote": CommandView("promote", "Promote", "Gives the candidate all traffic now, past every test.", "plain"),
    "rollback": CommandView("rollback", "Roll back", "Gives stable all traffic with the next request.", "grave"),
    "pause": CommandView("pause", "Pause", "Keeps the share; only the kill switch or a person acts then.", "plain"),
    "resume": CommandView("resume", "Resume", "Goes on where it was paused.", "main"),
}


def _command(command: Command, policy: Policy, status: Status) -> CommandView:
    if command == "approve":
        waiting = (place for place, stage in enumerate(policy.stages) if stage.approve and place > status.step)
        step = next((place for place in waiting if place > status.approved_step), len(policy.stages) - 1)
        share = format_share(policy.stages[step].share)
        return CommandView("approve", f"Approve {share}", "Lets it go there once the evidence does.", "main")
    if command == "advance":
        ahead = next_share(policy, status)
        to = "Advance" if ahead is None else f"Advance to {format_share(ahead)}"
        return CommandView("advance", to, "Goes on now, without waiting for evidence.", "plain")
    return _COMMANDS[command]
