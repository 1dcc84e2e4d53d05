"""Where a rollout stands, what a person can ask of it there, and its steps from one place to another."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from headway.domain.policy import Policy
from headway.domain.recording import Terms

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
        excused: A person let it go on after the shadow stage had paused it, which it does not do again.
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
    return status if baseline_gaps(terms) else leave_baseline(terms.policy, status, now_ms)


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
    waiting = step_to_approve(policy, status)
    return tuple(command for command in found if command != "approve" or waiting is not None)


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


def step_to_approve(policy: Policy, status: Status) -> int | None:
    """Find the next step that needs a person's approval and has none."""
    if not shares_ahead(policy, status):
        return None
    steps = range(max(status.step, status.approved_step) + 1, len(policy.stages))
    return next((step for step in steps if policy.stages[step].approve), None)


def leave_baseline(policy: Policy, status: Status, now_ms: int) -> Status:
    """Start the clock with the shadow stage, or with the ramp where the policy has none."""
    started = replace(status, started_ms=now_ms, since_ms=now_ms, paused_ms=0)
    return enter(policy, started, 0, now_ms) if policy.shadow is None else replace(started, state="shadow")


def enter(policy: Policy, status: Status, step: int, now_ms: int) -> Status:
    """Enter a step of the ramp; the last one is the holdback, or the end where there is none."""
    state: State = "ramp"
    share = policy.stages[step].share
    if step == len(policy.stages) - 1:
        if policy.holdback is None:
            return replace(end(status, "promoted", 1.0, now_ms), step=step)
        state, share = "holdback", 1.0 - policy.holdback.share
    return replace(status, state=state, step=step, stage=status.stage + 1, share=share, since_ms=now_ms)


def pause(status: Status, reason: Reason, now_ms: int) -> Status:
    """Freeze the share until a person decides."""
    return replace(status, state="paused", paused_since_ms=now_ms, paused_state=status.state, paused_reason=reason)


def pause_ms(status: Status, now_ms: int) -> int:
    """Give the length of the running pause; 0 when there is none."""
    return 0 if status.paused_since_ms is None else max(0, now_ms - status.paused_since_ms)


def resume(status: Status, now_ms: int) -> Status:
    """Go on after a pause; after one by the sample ratio in a new stratum, with a new check."""
    resumed = replace(_unpause(status, now_ms), state=status.paused_state or "ramp")
    if status.paused_reason == "sample_ratio":
        epoch = status.ratio_epoch + 1
        return replace(resumed, stage=status.stage + 1, ratio_epoch=epoch, since_ms=now_ms)
    # The shadow stage pauses; what it has been paused for by itself, a person has now seen.
    return replace(resumed, excused=True) if status.paused_reason in ("shadow", "kill_switch") else resumed


def _unpause(status: Status, now_ms: int) -> Status:
    paused_ms = status.paused_ms + pause_ms(status, now_ms)
    return replace(status, paused_ms=paused_ms, paused_since_ms=None, paused_state=None, paused_reason="")


def end(status: Status, state: State, share: float, now_ms: int) -> Status:
    """End it with this share for good."""
    return replace(_unpause(status, now_ms), state=state, share=share, since_ms=now_ms)
