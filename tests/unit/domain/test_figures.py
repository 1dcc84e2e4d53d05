"""Figures for people: levels in one mix, intervals, quantiles, and what is to go."""

import math
from itertools import pairwise

import numpy as np
import pytest

from headway.domain.assessment import MetricFigures
from headway.domain.books import Books, Intake, Stratum
from headway.domain.evidence import Counts, EventCounts, ValueCounts
from headway.domain.policy import MetricRule
from headway.domain.rollout import Status
from headway.stats import event_ratio_confidence_sequence, log_histogram_bins, stratified_confidence_sequence
from tests.ledger_cases import RAMP, STATUS, both_arms, feed, make_counts, make_rule, make_terms, make_values, rate

ERRORS = make_rule("error_rate", 1.5)
TWO = (Stratum(1, "ramp", 0.05), Stratum(2, "ramp", 0.5))
SECOND = Status("ramp", 1, 2, 0.5, 0, 0)


def describe(
    rule: MetricRule, *intakes: Intake, strata: tuple[Stratum, ...] = (RAMP,), status: Status = STATUS
) -> MetricFigures:
    books = Books.fresh(make_terms(rule))
    feed(books, *intakes, *[Intake()] * 13, strata=strata)
    return books.assess(status, strata).metrics[0]


def errors(interactions: int, hits: int) -> Counts:
    return make_counts(interactions, {"error_rate": hits})


def test_a_drifting_mix_of_traffic_does_not_show_in_levels_and_estimate() -> None:
    # 1 % of errors in the first stage, 10 % in the second, the same in both arms.
    first = both_arms(errors(9_500, 95), errors(500, 5))
    second = both_arms(errors(5_000, 500), errors(5_000, 500), stage=2)
    found = describe(ERRORS, first, second, strata=TWO, status=SECOND)
    assert found.stable_level == pytest.approx(found.candidate_level)
    assert found.estimate == pytest.approx(1.0)
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower < 1.0 < found.upper


def test_the_interval_of_a_ratio_is_that_of_its_stages() -> None:
    first = [both_arms(errors(900, 9), errors(100, 2)) for _ in range(3)]
    second = both_arms(errors(500, 5), errors(500, 9), stage=2)
    found = describe(ERRORS, *first, second, strata=TWO, status=SECOND)
    expected = event_ratio_confidence_sequence([(27, 6, 0.1), (5, 9, 0.5)])
    assert (found.lower, found.upper) == pytest.approx((expected.lower, expected.upper))


def test_a_ratio_without_an_event_of_stable_counts_half_a_one() -> None:
    found = describe(ERRORS, both_arms(errors(100, 0), errors(100, 6)))
    assert found.estimate == pytest.approx(12.0)
    assert found.upper is None


def test_rates_of_ratings_are_compared_stage_by_stage() -> None:
    ratings = rate("thumbs_up", ([1.0] * 70 + [0.0] * 30, [1.0] * 60 + [0.0] * 40))
    found = describe(make_rule("thumbs_up", 0.05), Intake(ratings=ratings))
    expected = stratified_confidence_sequence([(100, 70, 100, 60)], 0.1, 0.05, 0.21).interval
    assert [found.stable_level, found.candidate_level, found.estimate] == pytest.approx([0.7, 0.6, -0.1])
    assert [found.lower, found.upper] == pytest.approx([expected.lower, expected.upper])


def test_a_small_sample_has_an_estimate_and_no_interval() -> None:
    found = describe(make_rule("thumbs_up", 0.05), Intake(ratings=rate("thumbs_up", ([1.0] * 9, [0.0] * 9))))
    assert (found.estimate, found.lower, found.upper) == (-1.0, None, None)


def test_means_of_stars_have_an_interval() -> None:
    stars = [1.0, 2.0, 4.0, 5.0, 5.0] * 20
    found = describe(make_rule("stars", 0.15), Intake(ratings=rate("stars", (stars, [4.0] * 100))))
    assert [found.stable_level, found.candidate_level] == pytest.approx([3.4, 4.0])
    assert found.estimate == pytest.approx(0.6)
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower < 0.6 < found.upper


@pytest.mark.parametrize(("metric", "factor", "margin"), [("cost", 1.2, 1.1), ("minutes_saved", 0.7, 0.8)])
def test_a_ratio_of_means_is_candidate_over_stable_whichever_way_is_better(
    metric: str, factor: float, margin: float
) -> None:
    if metric == "cost":
        values = {cell: (5, 5_000_000 + 20_000 * (cell % 7)) for cell in range(256)}
        other = {cell: (count, round(total * factor)) for cell, (count, total) in values.items()}
        intake = both_arms(
            make_counts(1280, values={"cost": make_values(values)}),
            make_counts(1280, values={"cost": make_values(other)}),
        )
    else:
        minutes = [4.0 + place % 5 for place in range(700)]
        intake = Intake(ratings=rate(metric, (minutes, [factor * each for each in minutes])))
    found = describe(make_rule(metric, margin), intake)
    assert found.estimate == pytest.approx(factor, rel=1e-3)
    assert found.stable_level is not None
    assert found.candidate_level == pytest.approx(factor * found.stable_level, rel=1e-3)
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower < factor < found.upper
    assert found.harm_log_e > 0 >= found.safe[-1].log_e


# --- quantiles ---


def latencies(size: int, median: float, seed: int) -> Counts:
    times = np.random.default_rng(seed).lognormal(math.log(median), 0.6, size)
    bins: dict[int, int] = {}
    for place in log_histogram_bins(times.tolist()):
        bins[place] = bins.get(place, 0) + 1
    counts = make_counts(size, values={"latency": ValueCounts(size, histogram=bins)})
    counts.events["latency_p95:harm"] = EventCounts(0, size, 0)
    return counts


def test_a_quantile_is_read_from_the_histograms_with_an_interval() -> None:
    intake = both_arms(latencies(8_000, 400.0, 1), latencies(8_000, 500.0, 2))
    found = describe(make_rule("latency_p95", 1.2), intake)
    truth = math.exp(1.645 * 0.6)
    assert found.stable_level == pytest.approx(400 * truth, rel=0.05)
    assert found.candidate_level == pytest.approx(500 * truth, rel=0.05)
    assert found.estimate == pytest.approx(1.25, rel=0.06)
    assert found.lower is not None
    assert found.upper is not None
    assert 1.0 < found.lower < 1.25 < found.upper < 1.5
    assert (found.stable_observations, found.candidate_observations) == (8_000, 8_000)


def test_a_quantile_under_a_drifting_mix_is_compared_in_the_mix_of_the_candidate() -> None:
    first = both_arms(latencies(9_500, 100.0, 1), latencies(500, 100.0, 2))
    second = both_arms(latencies(5_000, 900.0, 3), latencies(5_000, 900.0, 4), stage=2)
    found = describe(make_rule("latency_p50", 1.2), first, second, strata=TWO, status=SECOND)
    assert found.estimate == pytest.approx(1.0, rel=0.05)
    assert found.stable_level == pytest.approx(830.0, rel=0.06)


def test_a_few_times_have_a_quantile_and_no_interval() -> None:
    found = describe(make_rule("latency_p95", 1.2), both_arms(latencies(20, 400.0, 1), latencies(20, 400.0, 2)))
    assert found.estimate is not None
    assert (found.lower, found.upper) == (None, None)


# --- what is to go ---


def test_what_is_to_go_shrinks_and_comes_true() -> None:
    rule = make_rule("error_rate", 1.5, floor=0.0)
    books = Books.fresh(make_terms(rule))
    told: list[float] = []
    for _ in range(400):
        feed(books, both_arms(errors(200, 4), errors(200, 4)))
        found = books.assess(Status("ramp", 3, 1, 0.5, 0, 0), [RAMP]).metrics[0]
        assert found.interactions_to_go is not None
        told.append(found.interactions_to_go)
        if found.safe[0].log_e >= found.safe_threshold:
            break
    assert told[-1] == 0.0
    assert all(later < earlier for earlier, later in pairwise(told))
    assert told[0] == pytest.approx(400 * (len(told) - 1), rel=0.35)


def test_of_a_candidate_at_its_margin_nothing_is_foretold() -> None:
    rule = make_rule("error_rate", 1.5, floor=0.0)
    found = describe(rule, both_arms(errors(1_000, 20), errors(1_000, 60)), status=Status("ramp", 3, 1, 0.5, 0, 0))
    assert found.interactions_to_go is None


def test_the_floor_is_foretold_where_it_is_nearer() -> None:
    found = describe(ERRORS, both_arms(errors(1_000, 0), errors(1_000, 0)), status=Status("ramp", 3, 1, 0.5, 0, 0))
    needed = math.log(40) / (math.log1p(-0.0001) - math.log1p(-0.001))
    assert found.interactions_to_go == pytest.approx(2 * (needed - 1_000), rel=0.01)


def test_means_are_foretold_from_the_information_so_far() -> None:
    values = {cell: (1, 100_000 + 300_000 * (cell % 7)) for cell in range(256)}
    counts = make_counts(256, values={"cost": make_values(values)})
    found = describe(make_rule("cost", 1.1), both_arms(counts, counts), status=Status("ramp", 3, 1, 0.5, 0, 0))
    assert found.interactions_to_go is not None
    assert 0 < found.interactions_to_go < 100_000
