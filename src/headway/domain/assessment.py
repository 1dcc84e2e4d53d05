"""What the evidence says about a rollout at one moment: the figures that decide, and that people look at."""

from __future__ import annotations

import msgspec

from headway.domain.policy import Role


class SafeFigure(msgspec.Struct, frozen=True):
    """The evidence that a share is safe to enter.

    Attributes:
        share: The share.
        log_e: Natural log of the E-value; where two tests must agree, the lower one.
        vacuous: The tolerance is as wide as the metric itself: the step passes on this metric without evidence.
    """

    share: float
    log_e: float
    vacuous: bool = False


class MetricFigures(msgspec.Struct, frozen=True):
    """One metric. Levels, estimate, interval and lines are in the metric's unit, or ratios where its margin is one.

    Attributes:
        metric: Its name.
        role: Guardrail or goal.
        stable_observations, candidate_observations: What was counted: interactions at risk, raters, values.
        stable_level, candidate_level: Rate, mean or quantile per arm; None without data.
        estimate: Candidate minus stable, or candidate over stable; None without data.
        lower, upper: Anytime-valid 95 % interval of the estimate; None where nothing can be said.
        margin, harm: The lines that the estimate is held against, on the same scale (so a loss of 5 points where higher
            is better is -0.05).
        harm_log_e: Evidence of harm; rolls back at ``harm_threshold``.
        harm_threshold: log(1 / alpha_j).
        safe: Evidence of safety, for each share that is still ahead.
        safe_threshold: log(1 / beta), or log(2 / beta) where a metric has a floor as a second way.
        superior_log_e: Evidence of being better, where the goal requires it.
        interactions_to_go: About how many more interactions of both arms the next step needs; None if unknown.
    """

    metric: str
    role: Role
    stable_observations: int
    candidate_observations: int
    stable_level: float | None
    candidate_level: float | None
    estimate: float | None
    lower: float | None
    upper: float | None
    margin: float
    harm: float
    harm_log_e: float
    harm_threshold: float
    safe: tuple[SafeFigure, ...]
    safe_threshold: float
    superior_log_e: float | None = None
    interactions_to_go: float | None = None


class Assessment(msgspec.Struct, frozen=True):
    """All that a decision is made of.

    Attributes:
        metrics: In the order of the policy's rules; of the running phase (shadow, ramp or holdback).
        sample_ratio_log_e: Evidence that units do not arrive at the shares set; alarm at log(1000).
        stage_units: Units of stable and candidate first exposed in the running stage.
        stage_interactions: Interactions of stable and candidate in the running stage.
        interactions: Interactions of stable and candidate in the whole rollout.
        safety_events: Refused or filtered interactions of the candidate, all told.
        first_failures: Failures among the candidate's first interactions (the policy's ``kill_switch.of_first``); of
            the tick that goes beyond them, a part of its failures.
        provider_changed: In this stage a deployment has answered with another model than ever before
            in the rollout.
    """

    metrics: tuple[MetricFigures, ...] = ()
    sample_ratio_log_e: float = 0.0
    stage_units: tuple[int, int] = (0, 0)
    stage_interactions: tuple[int, int] = (0, 0)
    interactions: tuple[int, int] = (0, 0)
    safety_events: int = 0
    first_failures: int = 0
    provider_changed: bool = False
