"""Rates of which more is better, read from interactions: cited answers."""

import pytest

from headway.domain.assessment import MetricFigures
from headway.domain.books import Books, Intake
from headway.domain.evidence import Counts, EventCounts
from headway.domain.metric import RETRIEVAL_METRICS, find_metric
from headway.domain.rollout import Status
from tests.ledger_cases import RAMP, STATUS, both_arms, feed, make_counts, make_rule, make_terms

CITED = make_rule("cited_answer_rate", 0.9)


def cited(interactions: int, answers: int, first: int) -> Counts:
    """So many of the interactions cite, spread over all buckets; ``first`` of them are their units' first."""
    counts = make_counts(interactions)
    share, rest = divmod(answers, 256)
    buckets = {bucket: share + (bucket < rest) for bucket in range(256)}
    counts.events["cited_answer_rate"] = EventCounts(answers, interactions // 2, first, buckets)
    return counts


def figures(stable: Counts, candidate: Counts, unit: str = "conversation", status: Status = STATUS) -> MetricFigures:
    books = Books.fresh(make_terms(CITED, unit=unit))
    feed(books, both_arms(stable, candidate), *[Intake()] * 40)
    (found,) = books.assess(status, (RAMP,)).metrics
    return found


def test_more_cited_answers_pass_and_fewer_are_harm() -> None:
    more = figures(cited(20_000, 12_000, 6_000), cited(20_000, 13_000, 6_500))
    assert more.safe[-1].log_e >= more.safe_threshold
    assert more.harm_log_e < 0
    fewer = figures(cited(20_000, 12_000, 6_000), cited(20_000, 6_000, 3_000))
    assert fewer.harm_log_e >= fewer.harm_threshold
    assert fewer.safe[-1].log_e < 0
    assert (fewer.stable_level, fewer.candidate_level) == (0.6, 0.3)
    assert fewer.estimate == pytest.approx(0.5)


@pytest.mark.parametrize(("unit", "passes"), [("request", True), ("conversation", False)])
def test_where_units_come_back_all_cited_answers_have_to_agree_and_in_the_right_direction(
    unit: str, passes: bool
) -> None:
    equal = cited(20_000, 12_000, 6_000)
    later_turns_lose = figures(equal, cited(20_000, 6_000, 6_000), unit)
    assert (later_turns_lose.safe[-1].log_e >= later_turns_lose.safe_threshold) is passes
    later_turns_gain = figures(equal, cited(20_000, 18_000, 6_000), unit)
    assert later_turns_gain.safe[-1].log_e >= later_turns_gain.safe_threshold


def test_what_only_some_releases_have_is_known_by_name() -> None:
    assert {find_metric(name, {}).name for name in RETRIEVAL_METRICS} == {
        *("empty_result_rate", "retrieval_error_rate", "cited_answer_rate"),
        *("context_tokens", "retrieval_p50", "retrieval_p95"),
    }
