"""What still stands between a rollout and its next step, for people who wait for it; ``decide`` alone decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from headway.domain.assessment import Assessment, MetricFigures
from headway.domain.display import format_seconds
from headway.domain.metric import find_metric
from headway.domain.policy import Policy
from headway.domain.recording import Terms
from headway.domain.rollout import Status, baseline_gaps, is_over


class Outlook(msgspec.Struct, frozen=True):
    """What a rollout waits for.

    Attributes:
        share: The candidate's share after the next step; None when there is none, or a person has to say.
        missing: What is not there yet, each in a few words; empty when the next tick may take the step.
        seconds: About how long it takes at the present traffic; None if that cannot be told.
        progress: How far it has come, 0 to 1: that of the condition that is furthest off.
    """

    share: float | None = None
    missing: tuple[str, ...] = ()
    seconds: float | None = None
    progress: float = 0.0


def look_ahead(terms: Terms, status: Status, assessment: Assessment, now_ms: int, pace: float | None = None) -> Outlook:
    """Say what a rollout waits for.

    Args:
        terms: Its terms.
        status: Where it stands.
        assessment: What the evidence says.
        now_ms: Unix milliseconds.
        pace: Interactions of both arms per second, if known (``display.pace``).
    """
    if is_over(status):
        return Outlook()
    if status.state in _WAITING:
        return Outlook(missing=(_WAITING[status.state],))
    policy = terms.policy
    waited = max(0.0, (now_ms - status.since_ms) / 1000)
    if status.state == "baseline":
        return _baseline(terms)
    if status.state == "holdback":
        return _holdback(policy, waited)
    if status.state == "shadow":
        return _shadow(policy, status, assessment, waited)
    return _ramp(terms, status, assessment, waited, pace)


_WAITING: Mapping[str, str] = MappingProxyType(
    {
        "paused": "a person who resumes it or rolls it back",
        "inconclusive": "a person who promotes it or rolls it back",
    }
)


def _baseline(terms: Terms) -> Outlook:
    gaps = baseline_gaps(terms)
    together: dict[str, list[str]] = {}
    for gap in gaps:
        together.setdefault(f"{gap.found:,} of {gap.needed:,} {gap.noun}", []).append(_label(terms, gap.metric))
    missing = tuple(f"{count} of stable for {', '.join(labels)}" for count, labels in together.items())
    share = 0.0 if terms.policy.shadow is not None else terms.policy.stages[0].share
    return Outlook(share, missing, None, min((gap.found / gap.needed for gap in gaps), default=1.0))


def _holdback(policy: Policy, waited: float) -> Outlook:
    length = 0.0 if policy.holdback is None else policy.holdback.seconds
    left = max(0.0, length - waited)
    missing = (f"{format_seconds(left)} of holdback",) if left else ()
    return Outlook(1.0, missing, left, 1 - left / length if length else 1.0)


def _shadow(policy: Policy, status: Status, assessment: Assessment, waited: float) -> Outlook:
    gates = _Gates()
    gates.dwell(policy, waited)
    needed = 0 if policy.shadow is None else policy.shadow.interactions
    gates.count(assessment.stage_interactions[1], needed, "mirrored answers")
    return gates.outlook(policy, status)


def _ramp(terms: Terms, status: Status, assessment: Assessment, waited: float, pace: float | None) -> Outlook:
    policy = terms.policy
    if status.step + 1 >= len(policy.stages):
        return Outlook()
    gates = _Gates()
    gates.dwell(policy, waited)
    gates.count(assessment.stage_units[1], policy.min_units, f"{terms.unit}s of the candidate")
    gates.evidence(terms, assessment.metrics, pace)
    return gates.outlook(policy, status)


class _Gates:
    """Collects what is missing, how long it takes (infinite: nobody knows), and how far it has come."""

    def __init__(self) -> None:
        self._missing: list[str] = []
        self._seconds = 0.0
        self._progress = 1.0

    def dwell(self, policy: Policy, waited: float) -> None:
        left = policy.dwell_seconds - waited
        if left > 0:
            self._add(f"{format_seconds(left)} of dwell", left, waited / policy.dwell_seconds)

    def count(self, have: int, needed: int, what: str) -> None:
        if have < needed:
            self._add(f"{have:,} of {needed:,} {what}", math.inf, have / needed)

    def evidence(self, terms: Terms, metrics: Sequence[MetricFigures], pace: float | None) -> None:
        unseen, unclear = [], []
        for figures in metrics:
            label = _label(terms, figures.metric)
            if not (figures.stable_observations and figures.candidate_observations):
                unseen.append(label)
                self._delay(math.inf, 0.0)
            elif (progress := _lacking(terms, figures)) is not None:
                unclear.append(label)
                to_go = figures.interactions_to_go
                self._delay(math.inf if to_go is None or pace is None else to_go / pace, progress)
        self._missing += [f"data on {', '.join(unseen)}"] if unseen else []
        self._missing += [f"evidence on {', '.join(unclear)}"] if unclear else []

    def outlook(self, policy: Policy, status: Status) -> Outlook:
        step = status.step + 1
        if policy.stages[step].approve and status.approved_step < step:
            self._missing.append("approval")
            self._seconds = math.inf
        seconds = self._seconds if math.isfinite(self._seconds) else None
        return Outlook(policy.stages[step].share, tuple(self._missing), seconds, self._progress)

    def _add(self, missing: str, seconds: float, progress: float) -> None:
        self._missing.append(missing)
        self._delay(seconds, progress)

    def _delay(self, seconds: float, progress: float) -> None:
        self._seconds = max(self._seconds, seconds)
        self._progress = min(self._progress, max(0.0, progress))


def _lacking(terms: Terms, figures: MetricFigures) -> float | None:
    """Say how far the evidence of a metric has come, 0 to 1; None when the next step needs no more of it."""
    following = figures.safe[0] if figures.safe else None
    if following is None:
        return 0.0
    pairs = [] if following.vacuous else [(following.log_e, figures.safe_threshold)]
    if following.share == 1.0 and figures.superior_log_e is not None:
        pairs.append((figures.superior_log_e, -math.log(terms.policy.beta)))
    return min((log_e / threshold for log_e, threshold in pairs if log_e < threshold), default=None)


def _label(terms: Terms, metric: str) -> str:
    return find_metric(metric, terms.feedback).label.lower()
