"""The state machine of a rollout: what is known goes in, the next step comes out, and nothing else happens."""

from __future__ import annotations

from typing import Literal

import msgspec

from headway.domain.assessment import Assessment
from headway.domain.recording import Terms

State = Literal["baseline", "shadow", "ramp", "paused", "holdback", "rolled_back", "promoted", "inconclusive"]
Outcome = Literal["advance", "hold", "promote", "roll_back", "pause", "resume", "approve", "inconclusive"]
Phase = Literal["shadow", "ramp", "holdback"]
Command = Literal["pause", "resume", "approve", "advance", "promote", "rollback"]

ENDED: frozenset[State] = frozenset(("rolled_back", "promoted"))
"""States in which a rollout is over; an inconclusive one that went back to stable is rolled back."""


class Status(msgspec.Struct, frozen=True):
    """Where a rollout stands: all that ``decide`` needs to know of its past. Times are Unix milliseconds.

    Attributes:
        state: Its state.
        step: Index of the policy's stage it is in; -1 before the ramp.
        stage: Number of the stratum that interactions are booked under. It grows with every change of share, and with
            every new start of the sample-ratio check.
        share: The candidate's share of units.
        since_ms: When the stage began.
        started_ms: When the ramp (or the shadow stage before it) began.
        paused_ms: Length of all pauses that are over.
        paused_since_ms: When the running pause began; None when there is none.
        paused_state: The state to go back to after the pause.
        paused_reason: Code of why it is paused.
        approved_step: Highest step that a person has released.
        ratio_epoch: Grows with every new start of the sample-ratio check.
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


class Decision(msgspec.Struct, frozen=True):
    """One decision: what happens, why, and where the rollout stands afterwards.

    Attributes:
        outcome: What happens.
        reason: Stable code: ``harm``, ``kill_switch``, ``sample_ratio``, ``max_duration``, ``no_data``, ``dwell``,
            ``min_units``, ``evidence`` (not yet safe), ``approval``, ``safe``, ``holdback``, ``baseline``, ``shadow``,
            ``paused``, or ``command`` for what a person asked.
        message: The same in a sentence, with figures.
        metric: The metric that decided, if one did.
        status: Where the rollout stands afterwards.
    """

    outcome: Outcome
    reason: str
    message: str
    status: Status
    metric: str | None = None


def decide(terms: Terms, status: Status, assessment: Assessment, now_ms: int) -> Decision:
    """Decide on a rollout: pure, so that it can be replayed.

    Args:
        terms: Frozen at the start.
        status: Where the rollout stands.
        assessment: What the evidence says.
        now_ms: Unix milliseconds.
    """
    raise NotImplementedError


def obey(terms: Terms, status: Status, command: Command, reason: str, now_ms: int) -> Decision:
    """Do what a person asks.

    Raises:
        ConflictError: It makes no sense in this state; the message says what does.
    """
    raise NotImplementedError
