"""What closed blocks weigh: the evidence that decides about each rule of a policy."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headway.domain.assessment import MetricFigures, SafeFigure
from headway.domain.blocks import Traffic
from headway.domain.metric import VALUE_METRICS
from headway.domain.processes import HARM, SUPERIOR, RulePlan, harm_stream, safe_stream
from headway.domain.recording import Terms, slow_test_name
from headway.domain.rollout import Phase
from headway.domain.strata import MeanComparison, Prior, Strata
from headway.stats import event_floor_log_e

TRAFFIC = "traffic"
"""Stream of the sums of events: interactions by bucket, and a column for each event."""

_HIGHEST_FLOOR = 0.5
_RAREST_LEVEL = 1e-6  # of an event that the baseline never saw, where a scale must be positive
_SMALL_UNITS = {metric.name: metric.per_unit for metric in VALUE_METRICS}

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PhaseBooks:
    """What the closed blocks of a phase add up to.

    Attributes:
        terms: Of the rollout.
        phase: Which one.
        stages: Its stages, rising.
        wealth: Log wealth of the bets, by phase and stream.
        totals: Counts of the closed blocks, by stream and stage.
        strata: Sums by bucket.
        columns: Columns of the stream of the sums of events.
        traffic: By stage and arm.
        rated: Arms and metrics of which a rating has come, if only into a block that is still open.
    """

    terms: Terms
    phase: Phase
    stages: tuple[int, ...]
    wealth: Mapping[tuple[str, str], FloatArray]
    totals: Mapping[str, Mapping[int, list[int]]]
    strata: Strata
    columns: Sequence[str]
    traffic: Mapping[tuple[int, int], Traffic]
    rated: Collection[tuple[int, str]] = ()

    def rows(self, stream: str) -> list[tuple[int, list[int]]]:
        """Give the counts of a stream with their stages."""
        found = self.totals.get(stream, {})
        return [(stage, found[stage]) for stage in self.stages if stage in found]

    def interactions(self, stage: int) -> int:
        """Count the interactions of both arms in a stage."""
        return sum(self.traffic[stage, arm].interactions for arm in (0, 1) if (stage, arm) in self.traffic)


class Weighing:
    """The evidence about one rule, in the books of one phase."""

    def __init__(self, books: PhaseBooks, plan: RulePlan) -> None:
        self.books = books
        self.plan = plan
        rule = plan.rule
        self.floor = 0.0 if rule.method != "event_ratio" or plan.swapped else max(rule.floor, 0.0)
        # First events saturate where units come back: then all events have to agree (booking rule 3).
        self.needs_means = (
            rule.method in {"event_ratio", "slow_calls"}
            and plan.metric.per == "interaction"
            and books.terms.unit != "request"
        )

    @property
    def small_unit(self) -> int:
        """How many of the units that sums are counted in make one of the metric's: slow calls are only counted."""
        return _SMALL_UNITS.get(self.plan.metric.name, 1)

    @property
    def safe_threshold(self) -> float:
        """What evidence of safety has to reach: two ways of passing cost a factor of two."""
        return math.log((2 if self.floor else 1) / self.books.terms.policy.beta)

    def figures(self, ahead: Sequence[float], alpha: float) -> MetricFigures:
        """Say what decides about the rule; ``headway.domain.figures`` adds what people look at.

        Args:
            ahead: The shares that still have to be shown safe, the next one first.
            alpha: Of the harm tests of the phase.
        """
        rule = self.plan.rule
        observations = self.observations()
        loss = -1.0 if rule.form == "points" and rule.direction == "higher" else 1.0
        return MetricFigures(
            metric=rule.metric,
            role=rule.role,
            stable_observations=observations[0],
            candidate_observations=observations[1],
            stable_level=None,
            candidate_level=None,
            estimate=None,
            lower=None,
            upper=None,
            margin=loss * rule.margin,
            harm=loss * rule.harm,
            harm_log_e=self.harm(),
            harm_threshold=-math.log(alpha * rule.weight),
            safe=tuple(map(self.safe, ahead)),
            safe_threshold=self.safe_threshold,
            superior_log_e=self.superior() if rule.require == SUPERIOR and self.books.phase == "ramp" else None,
        )

    def observations(self) -> tuple[int, int]:
        """Count what was observed of stable and of the candidate: interactions at risk, units, raters, values.

        Of a metric that people rate it is at least 1 from the first rating on: that is data, though its block is open.
        """
        if self.plan.rule.method == "normal_mixture":
            strata = self.books.strata.closed(self.stream, self.books.stages)
            sums = [each.denominators.sum(axis=1) for _, each in strata]
            counts = [int(sum(each[arm] for each in sums)) for arm in (0, 1)]
        else:
            rows = [row for _, row in self.books.rows(self.stream)]
            counts = [sum(row[0] for row in rows), sum(row[len(row) // 2] for row in rows)]
        stable, candidate = (
            max(count, int((arm, self.plan.metric.name) in self.books.rated)) for arm, count in enumerate(counts)
        )
        return stable, candidate

    @property
    def stream(self) -> str:
        """The stream that harm is read from: it has all observations."""
        plan = self.plan
        if plan.rule.method != "normal_mixture":
            return plan.bank(HARM)[0]
        return harm_stream(plan.metric.name) if plan.metric.per == "rater" else plan.metric.name

    def harm(self) -> float:
        """Weigh that the candidate is beyond the harm line: log E."""
        if self.plan.rule.method == "normal_mixture":
            return self.means(HARM).weigh(1.0, self.plan.harm, self.rho())
        return self._blocks(HARM)

    def safe(self, share: float) -> SafeFigure:
        """Weigh that the candidate is within its tolerance at a share."""
        test = repr(share)
        if test in self.plan.vacuous:
            return SafeFigure(share, 0.0, vacuous=True)
        if self.plan.rule.method == "normal_mixture":
            return SafeFigure(share, self.means(test).weigh(-1.0, self.tolerance(share), self.rho()))
        log_e = self._first_and_all(test, self.tolerance(share))
        if self.floor:
            log_e = max(log_e, self._below(self.floor_at(share)))
        return SafeFigure(share, log_e)

    def tolerance(self, share: float) -> float:
        """Give the ratio of means that is tolerated at a share; slow calls have it in their thresholds."""
        return 1.0 if self.plan.rule.method == "slow_calls" else 1 + (self.plan.margin - 1) / share

    def floor_at(self, share: float) -> float:
        """Give the rate below which the candidate may enter a share whatever stable's is."""
        return min(self.floor / share, _HIGHEST_FLOOR)

    def superior(self) -> float:
        """Weigh that the candidate is better than stable: log E."""
        if self.plan.rule.method == "normal_mixture":
            return self.means(SUPERIOR).weigh(-1.0, 1.0, self.rho())
        return self._first_and_all(SUPERIOR, 1.0)

    def means(self, test: str) -> MeanComparison:
        """Compare the means that a test is about."""
        books, plan = self.books, self.plan
        if plan.rule.method == "normal_mixture":
            stream = self.stream
            if plan.metric.per == "rater" and test != HARM:
                stream = safe_stream(plan.metric.name)
            return books.strata.compare(stream, 0, books.stages, self._prior(), swapped=plan.swapped)
        name = slow_test_name(plan.metric.name, test) if plan.rule.method == "slow_calls" else plan.metric.name
        return books.strata.compare(
            TRAFFIC, books.columns.index(name), books.stages, self._prior(), swapped=plan.swapped
        )

    def rho(self) -> float:
        """Give the scale of the alternatives of the normal mixture, in the unit that sums are counted in."""
        plan = self.plan
        if plan.rule.method == "slow_calls":
            # A shift of the whole distribution moves the slow rate more than the quantile.
            rate = 1 - (plan.metric.quantile or 0.5)
            return rate * min(4 * (plan.margin - 1), 1.0)
        level = plan.level if plan.level > 0 else max(self.floor, _RAREST_LEVEL)
        return 2 * (plan.margin - 1) * level * self.small_unit

    def _blocks(self, test: str) -> float:
        stream, bank = self.plan.bank(test)
        wealth = self.books.wealth.get((self.books.phase, stream))
        return 0.0 if wealth is None else bank.log_e(wealth, test)

    def _first_and_all(self, test: str, tolerance: float) -> float:
        log_e = self._blocks(test)
        if not self.needs_means:
            return log_e
        return min(log_e, self.means(test).weigh(-1.0, tolerance, self.rho()))

    def _below(self, floor: float) -> float:
        """Weigh that the candidate's rate is below a floor, whatever that of stable: log E."""
        name, books = self.plan.metric.name, self.books
        rows = books.rows(name)
        log_e = event_floor_log_e(sum(row[3] for _, row in rows), sum(row[2] for _, row in rows), floor)
        if not self.needs_means:
            return log_e
        known = self._prior()
        at_floor = floor * (1 - floor)
        variance = at_floor if known is None else max(known.variance * known.observations, at_floor)
        means = books.strata.compare(TRAFFIC, books.columns.index(name), books.stages, Prior(variance, 1.0))
        return min(log_e, means.weigh(-1.0, 0.0, floor, floor))

    def _prior(self) -> Prior | None:
        known = self.plan.known
        if known is None or known.unit_variance is None:
            return None
        power = 2.0 if self.plan.rule.method == "normal_mixture" else 1.0
        return Prior(known.unit_variance * self.small_unit**2, known.bucket_interactions or 1.0, power)
