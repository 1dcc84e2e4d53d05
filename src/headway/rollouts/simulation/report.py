"""What many runs say: rates with their Monte-Carlo error, and whether the promise is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from headway.rollouts.simulation.run import Run, Verdict
from headway.rollouts.simulation.scenarios import Scenario

Promise = Literal["kept", "broken", "caught", "missed", "none"]

PAUSES = frozenset(("sample_ratio",))
"""Reasons to pause a rollout."""

_SLACK = 3.0
"""Standard errors by which a measured rate may exceed a promised one."""


@dataclass(frozen=True)
class Rate:
    """In how many of so many runs something happened."""

    hits: int
    runs: int

    @property
    def value(self) -> float:
        """The rate, 0 to 1; nan without runs."""
        return self.hits / self.runs if self.runs else math.nan

    @property
    def error(self) -> float:
        """Its standard error; that of half a hit where there is none, or nothing else."""
        if not self.runs:
            return math.nan
        hits = min(max(self.hits, 0.5), self.runs - 0.5)
        return math.sqrt(hits * (self.runs - hits) / self.runs**3)

    def is_at_most(self, bound: float) -> bool:
        """Say whether the true rate may be the bound or less, within three standard errors of the bound's."""
        return self.value <= bound + _SLACK * math.sqrt(bound * (1 - bound) / self.runs)


@dataclass(frozen=True)
class Summary:
    """One row of the table: one way to decide, many runs of one scenario.

    Attributes:
        scenario: Its name.
        method: Who decided: ``headway``, ``z-test``, ``thresholds``.
        rolled_back: During the ramp.
        promoted: Let through to 100 %.
        holding: Neither, when the traffic ended.
        held_back: Of all runs, rolled back in the holdback after 100 %.
        interactions: To the decision: median and 90th percentile; None where fewer runs were decided.
        candidate_interactions: Before a rollback: the median, of the runs that were rolled back.
        reasons: How often each metric, or other reason, decided on a rollback or a pause.
        promise: Whether what the policy promises was kept or broken, within Monte-Carlo error; of a wrong wiring,
            whether the figures give it away.
    """

    scenario: str
    method: str
    rolled_back: Rate
    promoted: Rate
    holding: Rate
    held_back: Rate
    interactions: tuple[float | None, float | None]
    candidate_interactions: float | None
    reasons: dict[str, int]
    promise: Promise


def summarise(scenario: Scenario, method: str, runs: Sequence[Run]) -> Summary:
    """Add up the runs of a scenario under one way to decide."""

    def rate(verdict: Verdict) -> Rate:
        return Rate(sum(run.verdict == verdict for run in runs), len(runs))

    ends = [run.interactions if run.verdict != "holding" else math.inf for run in runs]
    before = [run.candidate_interactions for run in runs if run.verdict == "rolled_back"]
    reasons: dict[str, int] = {}
    for run in runs:
        if run.verdict == "rolled_back" or run.held_back or run.reason in PAUSES:
            reason = run.metric or run.reason
            reasons[reason] = reasons.get(reason, 0) + 1
    rolled_back, promoted = rate("rolled_back"), rate("promoted")
    held_back = Rate(sum(run.held_back for run in runs), len(runs))
    return Summary(
        scenario=scenario.name,
        method=method,
        rolled_back=rolled_back,
        promoted=promoted,
        holding=rate("holding"),
        held_back=held_back,
        interactions=(_quantile(ends, 0.5), _quantile(ends, 0.9)),
        candidate_interactions=float(np.median(before)) if before else None,
        reasons=dict(sorted(reasons.items(), key=lambda item: -item[1])),
        promise=_judge(scenario, Rate(rolled_back.hits + held_back.hits, len(runs)), promoted, reasons),
    )


def _judge(scenario: Scenario, gone: Rate, promoted: Rate, reasons: Mapping[str, int]) -> Promise:
    policy = scenario.policy
    if scenario.truth == "within":
        alpha = policy.alpha + (0.0 if policy.holdback is None else policy.holdback.alpha)
        kept = gone.is_at_most(alpha)
    elif scenario.truth == "beyond":
        kept = promoted.is_at_most(policy.beta)
    else:
        return "none"
    if scenario.wiring == "right":
        return "kept" if kept else "broken"
    paused = sum(reasons.get(reason, 0) for reason in PAUSES)
    return "missed" if kept and paused < gone.runs else "caught"


def _quantile(ends: Sequence[float], part: float) -> float | None:
    found = float(np.quantile(ends, part, method="inverted_cdf"))
    return found if math.isfinite(found) else None
