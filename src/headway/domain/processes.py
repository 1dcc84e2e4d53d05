"""E-processes: one per rule for harm, and one per rule and share ahead for safety (statistics, sections 3 and 4).

The tests that read one stream of blocks share their bets: the state of a stream is one log wealth per bet, and each
test is the mean over some of them. A block is priced for all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from headway.domain.metric import Metric, find_metric
from headway.domain.policy import MetricRule
from headway.domain.recording import MetricBaseline, Terms, slow_test_name
from headway.domain.rollout import Phase
from headway.stats import betting_log_factors, event_ratio_log_factors, log_mean_exp, two_sample_log_factors
from headway.stats.events import HARM_RATIOS, PROMOTE_EXPONENTS, SLOW_CALL_PROMOTE_RATIOS
from headway.stats.two_sample import HARM_MULTIPLES, PROMOTE_MULTIPLES

HARM, SUPERIOR = "harm", "superior"
"""Names of tests; that of entering a share is its ``repr``."""

CATEGORIES = 41
"""Values of a bounded metric are rounded to a fortieth of its range; stars and tens are kept as they are."""

_WIDEST_DELTA = 0.1

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bank:
    """The tests that read one stream.

    Attributes:
        tests: Which bets are whose.
        size: How many bets.
        price: Turns rows of counts (``blocks.Block``) into log factors, of shape (blocks, bets). Linear in the counts
            of a row at a fixed share, so that it also prices what is to be expected.
    """

    tests: dict[str, slice]
    size: int
    price: Callable[[FloatArray], FloatArray]

    def log_e(self, wealth: FloatArray, test: str) -> float:
        """Read a test: the log of its E-value."""
        return float(log_mean_exp(wealth[self.tests[test]]))


@dataclass(frozen=True)
class RulePlan:
    """A rule of the policy with all that it is tested by.

    Attributes:
        rule: The rule.
        metric: What it is about.
        known: The stable release's level; None where none is known.
        harm, margin: Of what is compared, higher being worse for ratios: inverted where higher is better.
        swapped: The arms change places: higher is better and the margin is a ratio.
        vacuous: Tests whose tolerance is as wide as the metric itself.
        banks: By stream.
    """

    rule: MetricRule
    metric: Metric
    known: MetricBaseline | None
    harm: float
    margin: float
    swapped: bool
    vacuous: frozenset[str] = frozenset()
    banks: dict[str, Bank] = field(default_factory=dict)

    def bank(self, test: str) -> tuple[str, Bank]:
        """Find the stream that a test reads, and its bets.

        Raises:
            KeyError: It reads sums, or there is no such test.
        """
        for stream, bank in self.banks.items():
            if test in bank.tests:
                return stream, bank
        raise KeyError(test)

    @property
    def level(self) -> float:
        """The stable release's level: frozen, a wrong one costs power, never validity."""
        if self.known is not None:
            return self.known.level
        return (self.metric.minimum + self.metric.maximum) / 2


def plan_rule(terms: Terms, rule: MetricRule, phase: Phase) -> RulePlan:
    """Say what a rule is tested by in a phase: of harm in all of them, of safety in the ramp."""
    metric = find_metric(rule.metric, terms.feedback)
    swapped = rule.form == "ratio" and rule.direction == "higher"
    harm, margin = (1 / rule.harm, 1 / rule.margin) if swapped else (rule.harm, rule.margin)
    shares = [stage.share for stage in terms.policy.stages[1:]] if phase == "ramp" else []
    superior = phase == "ramp" and rule.require == SUPERIOR
    plan = RulePlan(rule, metric, terms.baseline.metrics.get(rule.metric), harm, margin, swapped)
    tolerances = {repr(share): _tolerance(rule, margin, share) for share in shares}
    if rule.method == "event_ratio":
        return replace(plan, banks={metric.name: _ratio_bank(plan, tolerances, superior=superior)})
    if rule.method == "slow_calls":
        return replace(plan, banks=_slow_call_banks(rule.metric, tolerances, superior=superior))
    return plan if rule.method == "normal_mixture" else _plan_ratings(plan, tolerances, superior=superior)


def _tolerance(rule: MetricRule, margin: float, share: float) -> float:
    return margin / share if rule.form == "points" else 1 + (margin - 1) / share


# --- F3: first events ----------------------------------------------------------------------------------------------


def _ratio_bank(plan: RulePlan, tolerances: dict[str, float], *, superior: bool) -> Bank:
    promote = np.asarray(PROMOTE_EXPONENTS)
    tests = {HARM: (plan.harm, np.asarray(HARM_RATIOS))}
    tests |= {name: (tolerance, tolerance**-promote) for name, tolerance in tolerances.items()}
    if superior:
        tests[SUPERIOR] = (1.0, plan.margin**-promote)
    return _ratio_bets(tests, swapped=plan.swapped)


def _slow_call_banks(metric: str, tests: Iterable[str], *, superior: bool) -> dict[str, Bank]:
    """Slow calls have their thresholds in the streams: each its own, and the ratio tested is 1."""
    slow = np.asarray(SLOW_CALL_PROMOTE_RATIOS)
    banks = {slow_test_name(metric, HARM): _ratio_bets({HARM: (1.0, np.asarray(HARM_RATIOS))})}
    for test in (*tests, *((SUPERIOR,) if superior else ())):
        banks[slow_test_name(metric, test)] = _ratio_bets({test: (1.0, slow)})
    return banks


def _ratio_bets(tests: dict[str, tuple[float, FloatArray]], *, swapped: bool = False) -> Bank:
    slices, size = _slices((name, len(ratios)) for name, (_, ratios) in tests.items())
    nulls = np.concatenate([np.full(len(ratios), null) for null, ratios in tests.values()])
    bets = np.concatenate([ratios for _, ratios in tests.values()])

    def price(rows: FloatArray) -> FloatArray:
        at_risk, events = (rows[:, (2, 0)], rows[:, (3, 1)]) if swapped else (rows[:, (0, 2)], rows[:, (1, 3)])
        pi = at_risk[:, 1] / at_risk.sum(axis=1)
        return event_ratio_log_factors(np.column_stack([events, pi]), nulls, bets)

    return Bank(slices, size, price)


# --- F2 and F4: ratings --------------------------------------------------------------------------------------------


def harm_stream(metric: str) -> str:
    """Name the stream of ratings that have settled."""
    return f"{metric}:{HARM}"


def safe_stream(metric: str) -> str:
    """Name the stream of ratings whose exposure is as old as the feedback window (booking rule 6)."""
    return f"{metric}:safe"


def _plan_ratings(plan: RulePlan, tolerances: dict[str, float], *, superior: bool) -> RulePlan:
    higher, metric, binary = plan.rule.direction == "higher", plan.metric, plan.rule.method == "two_sample"
    if binary:
        widest = plan.level if higher else 1 - plan.level
    else:
        widest = plan.level - metric.minimum if higher else metric.maximum - plan.level
    make = _two_sample_bank if binary else _betting_bank
    vacuous = frozenset(name for name, tolerance in tolerances.items() if tolerance >= widest)
    safe = {name: tolerance for name, tolerance in tolerances.items() if name not in vacuous}
    if superior:
        safe[SUPERIOR] = 0.0
    banks = {harm_stream(metric.name): make(plan, {HARM: plan.harm}, harm=True)}
    if safe:
        banks[safe_stream(metric.name)] = make(plan, safe, harm=False)
    return replace(plan, vacuous=vacuous, banks=banks)


def _two_sample_bank(plan: RulePlan, lines: dict[str, float], *, harm: bool) -> Bank:
    """Successes are the better outcome for harm, and the worse one for safety."""
    counts_yes = (plan.rule.direction == "higher") == harm
    rate = plan.level if counts_yes else 1 - plan.level
    bets: list[tuple[FloatArray, float]] = []
    for line in lines.values():
        reach = plan.margin if harm or line == 0 else line
        multiples = np.asarray(HARM_MULTIPLES if harm else PROMOTE_MULTIPLES)
        bets.append(((reach if harm else min(reach, _WIDEST_DELTA)) * multiples, line if harm else -line))
    slices, size = _slices((name, len(deltas)) for name, (deltas, _) in zip(lines, bets, strict=True))

    def price(rows: FloatArray) -> FloatArray:
        stable, candidate = rows[:, 0:2], rows[:, 2:4]
        hits = [arm[:, 1] if counts_yes else arm[:, 0] - arm[:, 1] for arm in (stable, candidate)]
        pi = candidate[:, 0] / (stable[:, 0] + candidate[:, 0])
        blocks = np.column_stack([stable[:, 0], hits[0], candidate[:, 0], hits[1], pi])
        found = [two_sample_log_factors(blocks, rate, deltas, h) for deltas, h in bets]
        return np.concatenate(found, axis=1) if found else np.zeros((len(rows), 0))

    return Bank(slices, size, price)


def _betting_bank(plan: RulePlan, lines: dict[str, float], *, harm: bool) -> Bank:
    sign = 1.0 if (plan.rule.direction == "higher") == harm else -1.0
    values = sign * np.linspace(plan.metric.minimum, plan.metric.maximum, CATEGORIES)
    center = sign * plan.level
    one = betting_log_factors([], values, center).shape[1]
    slices, size = _slices((name, one) for name in lines)

    def price(rows: FloatArray) -> FloatArray:
        half = rows.shape[1] // 2
        blocks = [(row[1:half], row[half + 1 :], row[half] / (row[0] + row[half])) for row in rows]
        found = [betting_log_factors(blocks, values, center, -line if harm else line) for line in lines.values()]
        return np.concatenate(found, axis=1) if found else np.zeros((len(rows), 0))

    return Bank(slices, size, price)


def rating_counts(metric: Metric, value: float) -> list[int]:
    """Give what one rating adds to an arm of its block: one observation, and its value."""
    if metric.kind == "binary":
        return [1, int(value >= 0.5)]
    counts = [0] * (1 + CATEGORIES)
    span = metric.maximum - metric.minimum
    place = round((value - metric.minimum) / span * (CATEGORIES - 1)) if span > 0 else 0
    counts[0] = counts[1 + min(max(place, 0), CATEGORIES - 1)] = 1
    return counts


def _slices(sizes: Iterable[tuple[str, int]]) -> tuple[dict[str, slice], int]:
    slices, size = {}, 0
    for name, length in sizes:
        slices[name] = slice(size, size + length)
        size += length
    return slices, size
