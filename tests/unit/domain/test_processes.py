"""What each rule is tested by, beside direct use of the statistics on the same blocks."""

from collections.abc import Sequence

import numpy as np
import pytest
from msgspec.structs import replace

from headway.domain.policy import MetricRule
from headway.domain.processes import CATEGORIES, HARM, SUPERIOR, Bank, RulePlan, plan_rule, rating_counts
from headway.domain.recording import MetricBaseline
from headway.domain.rollout import Phase
from headway.stats import betting_log_e, event_ratio_log_e, two_sample_log_e
from headway.stats.events import PROMOTE_EXPONENTS, SLOW_CALL_PROMOTE_RATIOS
from headway.stats.two_sample import HARM_MULTIPLES, PROMOTE_MULTIPLES
from tests.ledger_cases import FEEDBACK, KNOWN, SHARES, make_rule, make_terms

AHEAD = tuple(map(repr, SHARES[1:]))
ROWS = [(120, 9, 40, 5), (60, 2, 61, 4), (5, 0, 300, 12)]


def plan(rule: MetricRule, phase: Phase = "ramp") -> RulePlan:
    return plan_rule(make_terms(rule), rule, phase)


def weigh(bank: Bank, test: str, rows: Sequence[Sequence[int]]) -> float:
    return bank.log_e(bank.price(np.array(rows, dtype=np.float64)).sum(axis=0), test)


def shares_of(rows: list[tuple[int, int, int, int]]) -> list[float]:
    return [candidate / (stable + candidate) for stable, _, candidate, _ in rows]


@pytest.mark.parametrize("margin", [1.5, 1.1, 3.0])
def test_events_are_tested_by_the_ratio_of_their_rates(margin: float) -> None:
    bank = plan(make_rule("error_rate", margin, require="superior")).banks["error_rate"]
    blocks = [(row[1], row[3], pi) for row, pi in zip(ROWS, shares_of(ROWS), strict=True)]
    assert weigh(bank, HARM, ROWS) == pytest.approx(event_ratio_log_e(blocks, 1 + (margin - 1) / 2))
    for share in SHARES[1:]:
        tolerance = 1 + (margin - 1) / share
        bets = [tolerance**-exponent for exponent in PROMOTE_EXPONENTS]
        assert weigh(bank, repr(share), ROWS) == pytest.approx(event_ratio_log_e(blocks, tolerance, bets))
    bets = [margin**-exponent for exponent in PROMOTE_EXPONENTS]
    assert weigh(bank, SUPERIOR, ROWS) == pytest.approx(event_ratio_log_e(blocks, 1.0, bets))


def test_where_more_events_are_better_the_arms_are_swapped() -> None:
    bank = plan(make_rule("feedback_rate", 0.8)).banks["feedback_rate"]
    blocks = [(row[3], row[1], 1 - pi) for row, pi in zip(ROWS, shares_of(ROWS), strict=True)]
    assert weigh(bank, HARM, ROWS) == pytest.approx(event_ratio_log_e(blocks, 1 / 0.9))
    tolerance = 1 + (1 / 0.8 - 1) / 0.25
    bets = [tolerance**-exponent for exponent in PROMOTE_EXPONENTS]
    assert weigh(bank, "0.25", ROWS) == pytest.approx(event_ratio_log_e(blocks, tolerance, bets))


def test_slow_calls_are_compared_at_a_ratio_of_one_each_at_its_own_thresholds() -> None:
    found = plan(make_rule("latency_p95", 1.2, require="superior"))
    assert list(found.banks) == [f"latency_p95:{test}" for test in (HARM, *AHEAD, SUPERIOR)]
    blocks = [(row[1], row[3], pi) for row, pi in zip(ROWS, shares_of(ROWS), strict=True)]
    assert weigh(found.banks["latency_p95:harm"], HARM, ROWS) == pytest.approx(event_ratio_log_e(blocks))
    for test in (*AHEAD, SUPERIOR):
        expected = event_ratio_log_e(blocks, 1.0, SLOW_CALL_PROMOTE_RATIOS)
        assert weigh(found.banks[f"latency_p95:{test}"], test, ROWS) == pytest.approx(expected)


@pytest.mark.parametrize(("metric", "rate"), [("thumbs_up", 0.7), ("complaint", 0.9)])
def test_rates_of_ratings_are_tested_on_the_better_outcome(metric: str, rate: float) -> None:
    higher = FEEDBACK[metric].direction == "higher"
    found = plan(make_rule(metric, 0.05, require="superior"))
    good = [(a, x if higher else a - x, b, y if higher else b - y, None) for a, x, b, y in ROWS]
    bad = [(a, a - x, b, b - y, None) for a, x, b, y, _ in good]
    harm, safe = found.banks[f"{metric}:harm"], found.banks[f"{metric}:safe"]
    expected = two_sample_log_e(good, rate, [0.05 * each for each in HARM_MULTIPLES], 0.025)
    assert weigh(harm, HARM, ROWS) == pytest.approx(expected)
    for share in (0.25, 0.5, 1.0):
        deltas = [min(0.05 / share, 0.1) * each for each in PROMOTE_MULTIPLES]
        assert weigh(safe, repr(share), ROWS) == pytest.approx(two_sample_log_e(bad, 1 - rate, deltas, -0.05 / share))
    deltas = [0.05 * each for each in PROMOTE_MULTIPLES]
    assert weigh(safe, SUPERIOR, ROWS) == pytest.approx(two_sample_log_e(bad, 1 - rate, deltas))


def test_stars_are_tested_by_bets_on_their_values() -> None:
    found = plan(make_rule("stars", 0.15, require="superior"))
    values = np.linspace(1, 5, CATEGORIES)
    chance = np.random.default_rng(1)
    rows, blocks = [], []
    for size in (12, 40):
        arms = [np.bincount(chance.integers(0, 5, size) * 10, minlength=CATEGORIES) for _ in range(2)]
        rows.append([size, *arms[0].tolist(), size, *arms[1].tolist()])
        blocks.append((arms[0], arms[1], None))
    harm, safe = found.banks["stars:harm"], found.banks["stars:safe"]
    assert weigh(harm, HARM, rows) == pytest.approx(betting_log_e(blocks, values, 3.8, -0.075))
    for share in SHARES[1:]:
        if repr(share) not in found.vacuous:
            expected = betting_log_e(blocks, -values, -3.8, 0.15 / share)
            assert weigh(safe, repr(share), rows) == pytest.approx(expected)
    assert weigh(safe, SUPERIOR, rows) == pytest.approx(betting_log_e(blocks, -values, -3.8, 0.0))


@pytest.mark.parametrize(
    ("metric", "margin", "vacuous"),
    [
        ("thumbs_up", 0.05, {"0.05"}),  # 1.0 >= 0.7
        ("complaint", 0.05, {"0.05"}),  # 1.0 >= 0.9: all could complain
        ("thumbs_up", 0.2, {"0.05", "0.25"}),
        ("stars", 0.15, {"0.05"}),  # 3.0 >= 3.8 - 1
        ("stars", 0.13, set()),
    ],
)
def test_a_tolerance_as_wide_as_the_metric_is_vacuous(metric: str, margin: float, vacuous: set[str]) -> None:
    assert plan(make_rule(metric, margin)).vacuous == vacuous


@pytest.mark.parametrize(("metric", "margin"), [("error_rate", 50.0), ("latency_p95", 9.0), ("feedback_rate", 0.01)])
def test_a_ratio_is_never_vacuous(metric: str, margin: float) -> None:
    found = plan(make_rule(metric, margin))
    assert found.vacuous == frozenset()
    assert {test for bank in found.banks.values() for test in bank.tests} == {HARM, *AHEAD}


@pytest.mark.parametrize("phase", ["shadow", "holdback"])
@pytest.mark.parametrize("metric", ["error_rate", "latency_p95", "thumbs_up", "stars", "feedback_rate"])
def test_outside_the_ramp_only_harm_is_tested(metric: str, phase: Phase) -> None:
    found = plan(make_rule(metric, 0.8 if metric == "feedback_rate" else 1.5, require="superior"), phase)
    assert [test for bank in found.banks.values() for test in bank.tests] == [HARM]


def test_means_have_no_blocks() -> None:
    assert plan(make_rule("cost", 1.1)).banks == {}


def test_a_rating_is_put_in_its_category() -> None:
    stars = plan(make_rule("stars", 0.15)).metric
    for value, place in ((1.0, 0), (3.0, 20), (4.5, 35), (5.0, 40), (4.04, 30)):
        counts = rating_counts(stars, value)
        assert (counts[0], counts[1 + place], sum(counts)) == (1, 1, 2)
    thumbs = plan(make_rule("thumbs_up", 0.05)).metric
    assert (rating_counts(thumbs, 1.0), rating_counts(thumbs, 0.0)) == ([1, 1], [1, 0])


def test_a_price_is_linear_in_the_counts_of_a_block_at_its_share() -> None:
    for rule in (make_rule("error_rate", 1.5), make_rule("thumbs_up", 0.05)):
        for bank in plan(rule).banks.values():
            once, thrice = bank.price(np.array([ROWS[0], [3 * each for each in ROWS[0]]], dtype=np.float64))
            assert thrice == pytest.approx(3 * once)


@pytest.mark.parametrize(("metric", "level"), [("thumbs_up", 0.0), ("thumbs_up", 1.0), ("stars", 1.0), ("stars", 5.0)])
def test_a_baseline_at_the_end_of_its_range_breaks_nothing(metric: str, level: float) -> None:
    rule = make_rule(metric, 0.05, require="superior")
    terms = make_terms(rule)
    known = replace(terms.baseline, metrics={metric: MetricBaseline(1_000, level)})
    found = plan_rule(replace(terms, baseline=known), rule, "ramp")
    width = 2 if metric == "thumbs_up" else 1 + CATEGORIES
    for bank in found.banks.values():
        assert np.isfinite(bank.price(np.array([[9, 9, *[0] * (width - 2)] * 2], dtype=np.float64))).all()


def test_the_baseline_is_what_bets_are_made_on() -> None:
    assert plan(make_rule("thumbs_up", 0.05)).level == KNOWN["thumbs_up"].level == 0.7
