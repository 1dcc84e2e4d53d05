"""The booking rules of statistics, section 4b: what counts, once, and when."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from headway.domain.assessment import Assessment, MetricFigures
from headway.domain.books import Books, Intake, ResponseKey, Stratum
from headway.domain.evidence import Counts, EventCounts, ExposureKey
from headway.domain.rollout import Status
from headway.stats import (
    event_floor_log_e,
    event_ratio_log_e,
    normal_mixture_log_e,
    sample_ratio_log_e,
    two_sample_log_e,
)
from headway.stats.two_sample import HARM_MULTIPLES, PROMOTE_MULTIPLES
from tests.ledger_cases import (
    RAMP,
    SHARES,
    STATUS,
    both_arms,
    closed_blocks,
    feed,
    make_counts,
    make_rule,
    make_terms,
    make_values,
    rate,
)

ERRORS = make_rule("error_rate", 1.5)
THUMBS = make_rule("thumbs_up", 0.05)
HOUR_MS = 3_600_000


def assess(books: Books, status: Status = STATUS, strata: tuple[Stratum, ...] = (RAMP,)) -> Assessment:
    return books.assess(status, strata)


def figures(books: Books, metric: str, status: Status = STATUS, strata: tuple[Stratum, ...] = (RAMP,)) -> MetricFigures:
    return next(each for each in assess(books, status, strata).metrics if each.metric == metric)


def errors(interactions: int, hits: int) -> Counts:
    return make_counts(interactions, {"error_rate": hits})


# --- rule 3: first events, and all events ---


def test_rule_3_events_count_firsts_among_interactions_at_risk() -> None:
    books = Books.fresh(make_terms(ERRORS))
    stable = make_counts(100, events={}, units=3)
    stable.events["error_rate"] = EventCounts(count=40, at_risk=60, first=4, buckets={1: 40})
    feed(books, both_arms(stable, errors(50, 5)))
    found = figures(books, "error_rate")
    assert (found.stable_observations, found.candidate_observations) == (60, 50)
    assert found.harm_log_e == pytest.approx(event_ratio_log_e([(4, 5, 50 / 110)], 1.25))
    assert [found.stable_level, found.candidate_level] == pytest.approx([4 / 60, 0.1])


def saturated(books: Books) -> None:
    """Few units cause all errors, and each counts once: the first events look equal, all events do not."""
    stable, candidate = make_counts(20_000), make_counts(20_000)
    stable.events["error_rate"] = EventCounts(400, 15_000, 100, dict.fromkeys(range(0, 200, 10), 20))
    candidate.events["error_rate"] = EventCounts(1_200, 15_000, 100, dict.fromkeys(range(0, 200, 10), 60))
    feed(books, both_arms(stable, candidate), *[Intake()] * 40)


@pytest.mark.parametrize(("unit", "passes"), [("request", True), ("conversation", False), ("user", False)])
def test_rule_3_where_units_come_back_all_events_have_to_agree_before_promotion(unit: str, passes: bool) -> None:
    books = Books.fresh(make_terms(make_rule("error_rate", 1.5, floor=0.0), unit=unit))
    saturated(books)
    found = figures(books, "error_rate")
    assert (found.safe[-1].log_e >= found.safe_threshold) is passes


def test_rule_3_the_floor_too_needs_all_events() -> None:
    quiet = make_counts(40_000)
    noisy = make_counts(40_000)
    quiet.events["error_rate"] = EventCounts(4, 40_000, 4, {1: 4})
    noisy.events["error_rate"] = EventCounts(400, 40_000, 4, dict.fromkeys(range(5), 80))
    passed = []
    for unit in ("request", "user"):
        books = Books.fresh(make_terms(ERRORS, unit=unit))
        feed(books, both_arms(quiet, noisy), *[Intake()] * 40)
        found = figures(books, "error_rate")
        passed.append(found.safe[-1].log_e >= found.safe_threshold)
    assert passed == [True, False]


def test_rule_3_slow_calls_need_all_events_too() -> None:
    books = Books.fresh(make_terms(make_rule("latency_p95", 1.5), unit="user"))
    stable, candidate = make_counts(20_000), make_counts(20_000)
    for name in ("latency_p95:harm", "latency_p95:1.0"):
        stable.events[name] = EventCounts(1_000, 10_000, 500, dict.fromkeys(range(200), 5))
        candidate.events[name] = EventCounts(2_000, 10_000, 300, dict.fromkeys(range(200), 10))
    feed(books, both_arms(stable, candidate), *[Intake()] * 40)
    found = figures(books, "latency_p95")
    assert found.safe[-1].share == 1.0
    assert found.safe[-1].log_e < 0 < found.safe_threshold


def test_the_floor_is_a_second_way_and_costs_a_factor_of_two() -> None:
    books = Books.fresh(make_terms(ERRORS))
    feed(books, both_arms(errors(9_000, 0), errors(9_000, 0)))
    found = figures(books, "error_rate")
    assert found.safe_threshold == pytest.approx(math.log(40))
    assert found.safe[-1].log_e == pytest.approx(event_floor_log_e(0, 9_000, 0.001))
    assert found.safe[0].log_e == pytest.approx(event_floor_log_e(0, 9_000, 0.02))
    without = Books.fresh(make_terms(make_rule("error_rate", 1.5, floor=0.0)))
    feed(without, both_arms(errors(9_000, 0), errors(9_000, 0)))
    found = figures(without, "error_rate")
    assert [found.safe_threshold, found.safe[-1].log_e] == pytest.approx([math.log(20), 0.0])


def test_no_events_among_interactions_at_risk_is_data() -> None:
    books = Books.fresh(make_terms(ERRORS))
    feed(books, both_arms(errors(90, 0), errors(90, 0)))
    found = figures(books, "error_rate")
    assert (found.stable_observations, found.candidate_observations) == (90, 90)
    assert (found.stable_level, found.candidate_level, found.estimate) == (0.0, 0.0, None)


def test_without_data_there_is_no_figure() -> None:
    rules = [make_rule(name, margin) for name, margin in (("error_rate", 1.5), ("thumbs_up", 0.05), ("cost", 1.1))]
    rules += [make_rule("latency_p95", 1.2), make_rule("stars", 0.15), make_rule("feedback_rate", 0.8)]
    for found in assess(Books.fresh(make_terms(*rules))).metrics:
        assert (found.stable_observations, found.candidate_observations) == (0, 0)
        shown = (found.stable_level, found.candidate_level, found.estimate, found.lower, found.upper)
        assert shown == (None,) * 5
        assert (found.harm_log_e, {each.log_e for each in found.safe}) == (0.0, {0.0})
        assert found.interactions_to_go is None


def test_a_rating_is_data_before_its_block_is_complete() -> None:
    """At a share of 1 % five ratings of the candidate take long; what is there is there, in a replay too."""
    terms = make_terms(THUMBS)
    books = Books.fresh(terms)
    closed = feed(books, Intake(ratings=rate("thumbs_up", ([1.0], [0.0]))))
    for each in (books, Books.decode(terms, books.encode()), Books.replay(terms, closed, (RAMP,))):
        found = figures(each, "thumbs_up")
        assert (found.stable_observations, found.candidate_observations) == (1, 1)
        assert (found.estimate, found.harm_log_e) == (None, 0.0)


# --- rules 4 and 6: ratings ---


def test_rule_4_settled_ratings_count_for_harm_at_once() -> None:
    books = Books.fresh(make_terms(THUMBS))
    ratings = rate("thumbs_up", ([1.0] * 14 + [0.0] * 6, [1.0] * 4 + [0.0] * 16))
    feed(books, Intake(ratings=ratings))
    found = figures(books, "thumbs_up")
    expected = two_sample_log_e([(20, 14, 20, 4, None)], 0.7, [0.05 * each for each in HARM_MULTIPLES], 0.025)
    assert found.harm_log_e == pytest.approx(expected)
    assert (found.stable_observations, found.candidate_observations) == (20, 20)
    assert (found.margin, found.harm) == (-0.05, -0.025)


def test_rule_6_for_promotion_ratings_wait_until_their_exposure_is_as_old_as_the_window() -> None:
    books = Books.fresh(make_terms(THUMBS))
    ratings = rate("thumbs_up", ([1.0] * 14 + [0.0] * 6, [1.0] * 18 + [0.0] * 2))
    feed(books, Intake(ratings=ratings))
    books.collect(Intake(), [RAMP], 2 * HOUR_MS - 1)
    assert [each.log_e for each in figures(books, "thumbs_up").safe if not each.vacuous] == [0.0, 0.0, 0.0]
    books.collect(Intake(), [RAMP], 2 * HOUR_MS)
    safe = {each.share: each for each in figures(books, "thumbs_up").safe}
    for share in (0.25, 0.5, 1.0):
        tolerance = 0.05 / share
        deltas = [min(tolerance, 0.1) * each for each in PROMOTE_MULTIPLES]
        expected = two_sample_log_e([(20, 6, 20, 2, None)], 1 - 0.7, deltas, -tolerance)
        assert safe[share].log_e == pytest.approx(expected)
    assert safe[0.05].vacuous
    assert not any(safe[share].vacuous for share in (0.25, 0.5, 1.0))


def test_rule_6_ratings_that_come_when_their_exposure_is_old_count_at_once() -> None:
    books = Books.fresh(make_terms(THUMBS))
    ratings = rate("thumbs_up", ([1.0] * 9, [1.0] * 9))
    feed(books, Intake(ratings=ratings), start_ms=2 * HOUR_MS)
    assert figures(books, "thumbs_up").safe[-1].log_e > 0


def test_rule_6_holds_for_positive_feedback() -> None:
    books = Books.fresh(make_terms(make_rule("minutes_saved", 0.8)))
    values = [float(2 + place % 7) for place in range(500)]
    feed(books, Intake(ratings=rate("minutes_saved", (values, values))), *[Intake()] * 20)
    found = figures(books, "minutes_saved")
    assert found.stable_observations == 500
    assert found.harm_log_e < 0
    assert {each.log_e for each in found.safe} == {0.0}
    for minute in range(5):
        books.collect(Intake(), [RAMP], 2 * HOUR_MS + minute * 60_000)
    assert figures(books, "minutes_saved").safe[0].log_e > 0


def test_positive_feedback_is_cut_off_at_the_frozen_limit() -> None:
    shown = []
    for largest in (60.0, 1e9):
        books = Books.fresh(make_terms(make_rule("minutes_saved", 0.8)))
        values = [*(float(2 + place % 7) for place in range(200)), largest]
        feed(books, Intake(ratings=rate("minutes_saved", (values, values))), *[Intake()] * 20)
        shown.append(figures(books, "minutes_saved"))
    assert shown[0] == shown[1]


# --- rule 5: late events ---


def responses_of(books: Books, counts: tuple[int, int], now_ms: int) -> dict[ResponseKey, tuple[int, int]]:
    return {key: (counts[key.arm], 0) for key in books.due(now_ms)}


def test_rule_5_late_events_are_booked_with_their_denominators_when_the_period_is_old() -> None:
    books = Books.fresh(make_terms(make_rule("feedback_rate", 0.8)))
    feed(books, both_arms(make_counts(100), make_counts(80)))
    assert books.due(2 * HOUR_MS - 1) == []
    assert books.due(2 * HOUR_MS) == [ResponseKey(1, 0, 0), ResponseKey(1, 0, 1)]
    assert figures(books, "feedback_rate").stable_observations == 0
    books.collect(Intake(responses=responses_of(books, (30, 8), 2 * HOUR_MS)), [RAMP], 2 * HOUR_MS)
    found = figures(books, "feedback_rate")
    assert (found.stable_observations, found.candidate_observations) == (100, 80)
    assert found.estimate == pytest.approx(0.1 / 0.3)
    # Higher is better: stable's events are the candidate's harm.
    assert found.harm_log_e == pytest.approx(event_ratio_log_e([(8, 30, 100 / 180)], 1 / 0.9))
    assert found.harm_log_e > 0
    assert books.due(9 * HOUR_MS) == []


def test_rule_5_units_that_come_after_their_period_was_booked_are_left_out() -> None:
    books = Books.fresh(make_terms(make_rule("feedback_rate", 0.8)))
    feed(books, both_arms(make_counts(100), make_counts(80)))
    books.collect(Intake(responses=responses_of(books, (30, 8), 2 * HOUR_MS)), [RAMP], 2 * HOUR_MS)
    books.collect(both_arms(make_counts(50), make_counts(50)), [RAMP], 2 * HOUR_MS + 5_000)
    assert books.due(9 * HOUR_MS) == []


def test_rule_5_nobody_answers_more_often_than_there_are_units() -> None:
    books = Books.fresh(make_terms(make_rule("report_rate", 1.5)))
    feed(books, both_arms(make_counts(10), make_counts(10)))
    claimed = dict.fromkeys(books.due(2 * HOUR_MS), (0, 12))
    books.collect(Intake(responses=claimed), [RAMP], 2 * HOUR_MS)
    assert figures(books, "report_rate").candidate_level == 1.0


# --- rule 9: blocks ---


def test_rule_9_a_block_closes_with_one_of_stable_and_five_of_the_candidate() -> None:
    books = Books.fresh(make_terms(ERRORS))
    bodies = feed(books, both_arms(errors(100, 1), errors(4, 4)), Intake())
    assert closed_blocks(bodies) == []
    assert figures(books, "error_rate").harm_log_e == 0.0
    bodies = feed(books, Intake({ExposureKey(1, 1, 0, 1): errors(1, 0)}), Intake())
    assert closed_blocks(bodies) == [("error_rate", 1, [100, 1, 5, 4])]
    books = Books.fresh(make_terms(ERRORS))
    assert closed_blocks(feed(books, Intake({ExposureKey(1, 1, 0, 1): errors(50, 9)}))) == []


def test_rule_9_closed_blocks_are_priced_at_their_own_share() -> None:
    books = Books.fresh(make_terms(ERRORS))
    feed(books, both_arms(errors(50, 1), errors(50, 3)), both_arms(errors(95, 2), errors(5, 2)))
    expected = event_ratio_log_e([(1, 3, 0.5), (2, 2, 0.05)], 1.25)
    assert figures(books, "error_rate").harm_log_e == pytest.approx(expected)
    assert expected != pytest.approx(event_ratio_log_e([(3, 5, 55 / 200)], 1.25))


def test_rule_9_a_block_belongs_to_one_stage_and_fills_up_after_it_has_ended() -> None:
    strata = (Stratum(1, "ramp", 0.01), Stratum(2, "ramp", 0.5))
    books = Books.fresh(make_terms(ERRORS))
    bodies = feed(
        books,
        both_arms(errors(99, 1), errors(3, 3)),
        both_arms(errors(50, 0), errors(50, 0), stage=2),
        Intake({ExposureKey(1, 1, 0, 1): errors(2, 0)}),
        strata=strata,
    )
    assert closed_blocks(bodies) == [("error_rate", 2, [50, 0, 50, 0]), ("error_rate", 1, [99, 1, 5, 3])]


def test_rule_9_harm_and_promotion_keep_their_own_blocks() -> None:
    books = Books.fresh(make_terms(THUMBS))
    first, second = rate("thumbs_up", ([1.0], [1.0] * 5)), rate("thumbs_up", ([1.0] * 2, [0.0] * 5))
    bodies = feed(books, Intake(ratings=first), Intake(ratings=second))
    late = books.collect(Intake(), [RAMP], 2 * HOUR_MS)
    assert late is not None
    assert closed_blocks([*bodies, late]) == [
        ("thumbs_up:harm", 1, [1, 1, 5, 5]),
        ("thumbs_up:harm", 1, [2, 2, 5, 0]),
        ("thumbs_up:safe", 1, [3, 3, 10, 5]),
    ]


def test_rule_9_each_slow_test_fills_blocks_of_its_own() -> None:
    books = Books.fresh(make_terms(make_rule("latency_p95", 1.2)))
    stable, candidate = make_counts(100), make_counts(100)
    stable.events = {"latency_p95:harm": EventCounts(5, 100, 5), "latency_p95:0.5": EventCounts(5, 100, 5)}
    candidate.events = {"latency_p95:harm": EventCounts(20, 100, 20), "latency_p95:0.5": EventCounts(2, 100, 2)}
    feed(books, both_arms(stable, candidate))
    found = figures(books, "latency_p95")
    assert found.harm_log_e == pytest.approx(event_ratio_log_e([(5, 20, 0.5)]))
    safe = {each.share: each.log_e for each in found.safe}
    assert safe[0.5] == pytest.approx(event_ratio_log_e([(5, 2, 0.5)], 1.0, (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)))
    assert safe[1.0] == 0.0


# --- rules 10, 12, 13, 14 ---


def test_rule_10_units_are_held_against_the_share_of_the_stage_of_their_first_exposure() -> None:
    strata = (Stratum(1, "ramp", 0.05), Stratum(2, "ramp", 0.5), Stratum(3, "holdback", 0.98))
    books = Books.fresh(make_terms(ERRORS))
    rows = [(930, 70), (480, 520), (3, 97)]
    for stage, (stable, candidate) in enumerate(rows, 1):
        feed(books, both_arms(make_counts(stable), make_counts(candidate), stage=stage), strata=strata)
    status = Status("ramp", 1, 2, 0.5, 0, 0)
    expected = sample_ratio_log_e(rows, [(0.95, 0.05), (0.5, 0.5), (0.02, 0.98)])
    assert assess(books, status, strata).sample_ratio_log_e == pytest.approx(expected)
    assert assess(books, status, strata).stage_units == (480, 520)


def test_rule_10_after_a_pause_for_it_the_sample_ratio_begins_anew() -> None:
    strata = (Stratum(1, "ramp", 0.5), Stratum(2, "ramp", 0.5, ratio_epoch=1))
    books = Books.fresh(make_terms(ERRORS))
    feed(books, both_arms(make_counts(1000), make_counts(100)), strata=strata)
    assert assess(books, strata=strata).sample_ratio_log_e > math.log(1000)
    resumed = Status("ramp", 0, 2, 0.5, 0, 0, ratio_epoch=1)
    assert assess(books, resumed, strata).sample_ratio_log_e == 0.0


def test_rule_10_interactions_of_known_units_are_no_units() -> None:
    books = Books.fresh(make_terms(ERRORS))
    feed(books, both_arms(make_counts(1000, units=0), make_counts(10, units=0)))
    assert assess(books).sample_ratio_log_e == 0.0
    assert assess(books).stage_interactions == (1000, 10)


def test_rule_12_each_phase_has_processes_of_its_own() -> None:
    strata = (Stratum(0, "shadow", 0.0), Stratum(1, "ramp", 0.5), Stratum(2, "holdback", 0.98))
    terms = make_terms(ERRORS, THUMBS)
    books = Books.fresh(terms)
    for stage, hits in ((0, 40), (1, 5), (2, 20)):
        feed(books, both_arms(errors(100, 5), errors(100, hits), stage=stage), strata=strata)
    found = {}
    states = {0: "shadow", 1: "ramp", 2: "holdback"}
    for stage, state in states.items():
        status = Status(state, 4 if stage == 2 else stage - 1, stage, 0.5, 0, 0)  # type: ignore[arg-type]
        found[stage] = figures(books, "error_rate", status, strata)
    for stage, hits in ((0, 40), (1, 5), (2, 20)):
        assert found[stage].harm_log_e == pytest.approx(event_ratio_log_e([(5, hits, 0.5)], 1.25))
        assert found[stage].candidate_observations == 100
    thresholds = [found[stage].harm_threshold for stage in states]
    assert thresholds == [pytest.approx(-math.log(alpha * 0.25)) for alpha in (0.05, 0.05, 0.01)]
    assert [len(found[stage].safe) for stage in states] == [0, 4, 0]


def test_rule_12_the_shadow_stage_counts_no_units_and_apart() -> None:
    strata = (Stratum(0, "shadow", 0.0), Stratum(1, "ramp", 0.5))
    books = Books.fresh(make_terms(ERRORS))
    shadow = make_counts(10, {"error_rate": 6}, units=0, unsafe=7)
    feed(books, both_arms(make_counts(600, units=0), shadow, stage=0), strata=strata)
    before = assess(books, Status("shadow", -1, 0, 0.0, 0, 0), strata)
    assert (before.stage_interactions, before.interactions) == ((600, 10), (600, 10))
    assert (before.safety_events, before.first_failures) == (7, 6)
    assert before.sample_ratio_log_e == 0.0
    feed(books, both_arms(make_counts(9), make_counts(8)), strata=strata)
    after = assess(books, STATUS, strata)
    assert (after.interactions, after.safety_events, after.first_failures) == ((9, 8), 0, 0)


def test_rule_13_another_model_under_the_same_name_is_a_change_in_that_stage() -> None:
    strata = (Stratum(1, "ramp", 0.5), Stratum(2, "ramp", 0.5))
    books = Books.fresh(make_terms(ERRORS))

    def answered(stage: int, *providers: str) -> Assessment:
        counts = both_arms(make_counts(9, providers=providers), make_counts(9, providers=("b m3 ",)), stage=stage)
        feed(books, counts, strata=strata)
        return assess(books, Status("ramp", 0, stage, 0.5, 0, 0), strata)

    assert not answered(1, "a m1 ").provider_changed
    assert not answered(1, "a m1 ", "fallback m9 ").provider_changed
    assert answered(1, "a m2 ").provider_changed
    assert answered(1, "a m1 ").provider_changed
    assert not answered(2, "a m1 ", "a m2 ").provider_changed
    assert not answered(2, "a m2 f").provider_changed  # a fingerprint is told, and changes nothing


def test_rule_13_another_fingerprint_of_a_known_model_is_told_once() -> None:
    books = Books.fresh(make_terms(ERRORS))

    def told(*providers: str) -> list[str]:
        counts = both_arms(make_counts(9, providers=providers), make_counts(9))
        found = books.new_fingerprints(counts.evidence)
        feed(books, counts)
        return found

    assert told("a m1 f", "a m1 g") == []  # who answers from the beginning is no news
    assert told("a m1 f", "a m2 f") == []  # another model is
    assert told("a m1 h", "a m1 f") == ["a m1 h"]
    assert told("a m1 h") == []


def test_rule_13_a_provider_that_names_itself_anew_each_time_is_left_alone() -> None:
    strata = tuple(Stratum(stage, "ramp", 0.5) for stage in range(1, 40))
    books = Books.fresh(make_terms(ERRORS))
    for stage in range(1, 39):
        feed(books, both_arms(make_counts(9, providers=(f"a m{stage} ",)), make_counts(9), stage=stage), strata=strata)
    assert not assess(books, Status("ramp", 0, 38, 0.5, 0, 0), strata).provider_changed


# --- what stands beside the guarantee ---


def test_unsafe_answers_of_the_candidate_are_counted() -> None:
    books = Books.fresh(make_terms(ERRORS))
    feed(books, both_arms(make_counts(9, unsafe=4), make_counts(9, unsafe=3)), both_arms(Counts(), Counts(unsafe=1)))
    assert assess(books).safety_events == 4


def test_failures_among_the_first_interactions_are_counted_and_no_others() -> None:
    books = Books.fresh(make_terms(ERRORS))
    feed(books, both_arms(errors(50, 50), errors(15, 9)))
    assert assess(books).first_failures == 9
    feed(books, both_arms(errors(50, 50), errors(50, 30)))  # 5 of 50 are among the first 20
    assert assess(books).first_failures == 12
    feed(books, both_arms(errors(50, 50), errors(50, 50)))
    assert assess(books).first_failures == 12


# --- means ---


def test_means_are_compared_once_their_sums_have_closed() -> None:
    books = Books.fresh(make_terms(make_rule("cost", 1.1)))
    values = {cell: (4, 4_000_000 + 10_000 * (cell % 13)) for cell in range(256)}
    dearer = {cell: (count, round(total * 1.3)) for cell, (count, total) in values.items()}
    intake = both_arms(
        make_counts(1024, values={"cost": make_values(values)}),
        make_counts(1024, values={"cost": make_values(dearer)}),
    )
    bodies = feed(books, intake, *[Intake()] * 11)
    assert figures(books, "cost").stable_observations == 0
    bodies = feed(books, Intake(), start_ms=60_000)
    assert len(bodies) == 1
    found = figures(books, "cost")
    assert found.stable_observations == 1024
    assert found.estimate == pytest.approx(1.3, rel=1e-3)
    assert found.lower is not None
    assert found.upper is not None
    assert 1.2 < found.lower < 1.3 < found.upper < 1.4
    assert found.harm_log_e > found.harm_threshold
    assert found.safe[-1].log_e < 0 < found.safe[0].log_e


def test_a_relative_margin_is_inside_the_contrast_and_nothing_is_added() -> None:
    books = Books.fresh(make_terms(make_rule("cost", 1.1)))
    values = {cell: (4, 4_000_000 + 100_000 * (cell % 13)) for cell in range(256)}
    at_margin = {cell: (count, round(total * 1.1)) for cell, (count, total) in values.items()}
    stable, candidate = (make_counts(1024, values={"cost": make_values(each)}) for each in (values, at_margin))
    feed(books, both_arms(stable, candidate), *[Intake()] * 13)
    found = figures(books, "cost")
    information = 1 / normal_information(values, at_margin, 1.1)
    expected = normal_mixture_log_e(0.0, information, 2 * 0.1 * 0.001 * 1e9)
    assert found.safe[-1].log_e == pytest.approx(expected, rel=1e-6)


def normal_information(stable: dict[int, tuple[int, int]], candidate: dict[int, tuple[int, int]], f: float) -> float:
    """The variance of R_B - f R_A with the prior of the tests' baseline, buckets of four interactions each."""
    variances = []
    for arm, prior in ((stable, 1e-6), (candidate, 1e-6 * f * f)):
        y = np.array([total for _, total in arm.values()], dtype=np.float64)
        spread = float(((y - y.mean()) ** 2).sum()) / 16
        variances.append((spread + 30 * prior * 1e18 / 4) / (255 + 30) / 256)
    return variances[1] + f * f * variances[0]


# --- what is assessed ---


def test_the_figures_without_display_are_those_that_decide() -> None:
    books = Books.fresh(make_terms(ERRORS, THUMBS))
    feed(books, both_arms(errors(900, 9), errors(900, 12)))
    shown, bare = books.assess(STATUS, [RAMP]), books.assess(STATUS, [RAMP], display=False)
    hidden: dict[str, Any] = dict.fromkeys(
        ("stable_level", "candidate_level", "estimate", "lower", "upper", "interactions_to_go")
    )
    assert tuple(msgspec.structs.replace(each, **hidden) for each in shown.metrics) == bare.metrics
    assert shown.metrics != bare.metrics


def test_a_stage_that_nobody_knows_is_passed_over() -> None:
    books = Books.fresh(make_terms(ERRORS))
    assert feed(books, both_arms(errors(50, 1), errors(50, 1), stage=7)) == []


def test_only_shares_ahead_are_weighed() -> None:
    books = Books.fresh(make_terms(ERRORS))
    assert [each.share for each in figures(books, "error_rate").safe] == list(SHARES[1:])
    third = Status("ramp", 2, 3, 0.25, 0, 0)
    assert [each.share for each in figures(books, "error_rate", third).safe] == [0.5, 1.0]
