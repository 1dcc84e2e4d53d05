"""One run of a scenario, until the rollout is decided or the traffic ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy.typing as npt

from headway.domain.recording import Terms
from headway.domain.rollout import Decision, is_over
from headway.rollouts.simulation.memory import MemoryRollout
from headway.rollouts.simulation.scenarios import Scenario
from headway.rollouts.simulation.stream import Stream

Verdict = Literal["rolled_back", "promoted", "holding"]


@dataclass(frozen=True)
class Run:
    """How a run ended.

    Attributes:
        verdict: Rolled back during the ramp, let through to 100 %, or neither by the end.
        interactions: Until then.
        candidate_interactions: Of them, served by the candidate.
        reason: Code of the last decision; of a paused rollout, why it is.
        metric: The metric that decided, if one did.
        held_back: Of a promoted one with a holdback: whether it was rolled back there.
    """

    verdict: Verdict
    interactions: int
    candidate_interactions: int
    reason: str
    metric: str | None = None
    held_back: bool = False


def play(scenario: Scenario, terms: Terms, seed: npt.ArrayLike) -> Run:
    """Play a scenario once, deciding at every tick; a rollout that pauses stays so, for there is nobody to ask.

    Args:
        scenario: What to play.
        terms: Of its rollouts (``history.agree_terms``).
        seed: One per run: the same seed is the same run.
    """
    stream = Stream(scenario, seed)
    rollout = MemoryRollout(terms, stream.now_ms)
    interactions = candidate_interactions = 0
    promoted: Run | None = None
    decision: Decision | None = None
    while interactions < scenario.interactions and not is_over(rollout.status) and rollout.status.state != "paused":
        taken = stream.take(rollout.status)
        interactions += len(taken.interactions)
        candidate_interactions += taken.candidates
        rollout.record(taken.interactions)
        rollout.rate(taken.spoken)
        decision = rollout.tick(stream.now_ms)
        if promoted is None and rollout.status.state in ("holdback", "promoted"):
            promoted = Run("promoted", interactions, candidate_interactions, decision.reason)
    reason, metric = ("", None) if decision is None else (decision.reason, decision.metric)
    back = rollout.status.state in ("rolled_back", "inconclusive")
    if promoted is not None:
        return replace(promoted, held_back=True, reason=reason, metric=metric) if back else promoted
    return Run("rolled_back" if back else "holding", interactions, candidate_interactions, reason, metric)
