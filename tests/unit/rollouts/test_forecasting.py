"""Forecasts: what is known, what never happens, and where they come from. Against simulation: tests/statistical."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from headway.domain.metric import BUILT_IN_FEEDBACK, FeedbackMetric, find_metric, method_for
from headway.domain.policy import HoldbackRule, MetricRule, Policy, ShadowRule, StageRule, half_way
from headway.domain.recording import Baseline, MetricBaseline, Terms, plan_recording
from headway.domain.snapshot import Unit
from headway.rollouts.forecasting import Forecast, expected_roll_back, forecast
from headway.rollouts.prospects import Prospects
from headway.stats import event_ratio_log_factors, information_to_decide
from headway.stats.events import HARM_RATIOS
from headway.storage.baselines import Traffic

FEEDBACK = BUILT_IN_FEEDBACK | {"minutes_saved": FeedbackMetric(kind="positive")}
TRAFFIC = Traffic(2_000.0, 1_000.0, ratings_per_unit={"thumbs_up": 0.2, "stars": 0.1, "minutes_saved": 0.1})
BASELINE = Baseline(
    50_000,
    {
        "thumbs_up": MetricBaseline(5_000, 0.7, None, 0.21, 1.0),
        "stars": MetricBaseline(5_000, 4.0, None, 1.2, 1.0),
        "minutes_saved": MetricBaseline(5_000, 10.0, 60.0, 2.0, 40.0),
        "error_rate": MetricBaseline(50_000, 0.01, None, 0.0001, 100.0),
        "fallback_rate": MetricBaseline(50_000, 0.0, None, 1e-7, 100.0),
        "feedback_rate": MetricBaseline(50_000, 0.25, None, 0.19, 1.0),
        "latency_p50": MetricBaseline(50_000, 800.0, None, 0.0025, 100.0),
        "latency_p95": MetricBaseline(50_000, 2_000.0, None, 0.0005, 100.0),
        "cost": MetricBaseline(50_000, 0.002, 0.02, 4e-8, 100.0),
    },
)
MARGINS = {"thumbs_up": 0.05, "stars": 0.2, "minutes_saved": 0.8, "feedback_rate": 0.8, "latency_p95": 1.2, "cost": 1.1}
STAGES = (StageRule(0.05), StageRule(0.25), StageRule(0.5), StageRule(1.0))


def rule(name: str, margin: float | None = None, **changes: Any) -> MetricRule:
    metric = find_metric(name, FEEDBACK)
    form: Any = "points" if metric.kind in ("binary", "bounded") else "ratio"
    margin = margin or MARGINS.get(name, 1.5)
    found = MetricRule(
        metric=name,
        role="guardrail",
        method=method_for(metric.kind, form),
        form=form,
        direction=metric.direction,
        margin=margin,
        harm=half_way(form, margin),
        weight=0.25,
    )
    return replace(found, **changes)


def terms(*rules: MetricRule, unit: Unit = "conversation", baseline: Baseline = BASELINE, **changes: Any) -> Terms:
    policy = Policy("careful", STAGES, rules, **changes)
    feedback = {each.metric: FEEDBACK[each.metric] for each in rules if each.metric in FEEDBACK}
    return Terms(policy, unit, feedback, baseline, plan_recording(policy, baseline))


def ramp(found: Forecast) -> list[float | None]:
    return [stage.seconds for stage in found.stages if stage.phase == "ramp"]


# --- where they come from ---


def test_means_take_the_information_that_a_decision_needs() -> None:
    found = terms(rule("cost"), unit="request", dwell_seconds=1.0, min_units=1)
    traffic = replace(TRAFFIC, units_per_hour=2_000.0)
    first = ramp(forecast(found, traffic))[0]
    tolerance = 1 + 0.1 / 0.25
    per_hour = 2_000 / (4e-6 * (tolerance**2 / 0.95 + 1 / 0.05))
    needed = information_to_decide((tolerance - 1) * 0.002, rho=2 * 0.1 * 0.002, alpha=0.05)
    assert first == pytest.approx(max(needed / per_hour, 30 / (2_000 * 0.05)) * 3600, rel=0.05)


def test_bets_grow_as_the_blocks_that_are_to_be_expected() -> None:
    prospects = Prospects.of(rule("error_rate"), terms(rule("error_rate"), unit="request"), TRAFFIC)
    assert prospects is not None
    mean, variance = prospects.harm(3.0).growth(0.05)
    factors = event_ratio_log_factors([(1, 0, 0.05), (0, 1, 0.05)], 1.25, HARM_RATIOS)
    events = 2_000 * np.array([0.95 * 0.01, 0.05 * 0.04])
    assert mean == pytest.approx(events @ factors)
    assert variance == pytest.approx(events @ factors**2, rel=0.05)  # of a binomial, which is nearly a Poisson


def test_units_that_come_back_have_one_first_event() -> None:
    alone = Prospects.of(rule("error_rate"), terms(rule("error_rate"), unit="request"), TRAFFIC)
    often = Prospects.of(rule("error_rate"), terms(rule("error_rate")), replace(TRAFFIC, units_per_hour=20.0))
    assert alone is not None
    assert often is not None
    first = (1 - 0.99**100) / 100
    assert often.harm(0.0).growth(0.5)[0] == pytest.approx(alone.harm(0.0).growth(0.5)[0] * first / 0.01, rel=0.01)


@pytest.mark.parametrize("name", list(MARGINS))
def test_an_equal_candidate_gets_through_and_a_bad_one_is_caught(name: str) -> None:
    found = terms(rule(name))
    foretold = forecast(found, TRAFFIC)
    assert foretold.seconds is not None
    assert math.isfinite(foretold.seconds)
    (metric,) = foretold.metrics
    detectable = [each for each in metric.detectable if each is not None]
    assert len(detectable) == 3
    no_loss = 0.0 if found.policy.rules[0].form == "points" else 1.0
    distances = [abs(math.log(each)) if no_loss else abs(each) for each in detectable]
    assert distances == sorted(distances, reverse=True)  # later stages see more
    better = metric.harm < no_loss
    assert all((each < metric.harm) == better for each in detectable)
    assert metric.caught_seconds is not None
    assert metric.caught_seconds < foretold.seconds * 3


@pytest.mark.parametrize("name", list(MARGINS))
def test_traffic_and_margins_shorten_it(name: str) -> None:
    quick: dict[str, Any] = {"dwell_seconds": 0.1, "feedback_window_seconds": 1.0, "min_units": 1}
    seconds = forecast(terms(rule(name), **quick), TRAFFIC).seconds
    busier = replace(TRAFFIC, interactions_per_hour=4_000.0, units_per_hour=2_000.0)
    twice = forecast(terms(rule(name), **quick), busier).seconds
    margin = MARGINS[name]
    wider = margin * 2 if margin < 0.5 else 1 + (margin - 1) * 1.8
    wide = forecast(terms(rule(name, wider), **quick), TRAFFIC).seconds
    assert seconds is not None
    assert twice is not None
    assert wide is not None
    assert twice == pytest.approx(seconds / 2, rel=0.05)
    assert wide < seconds


def test_the_slowest_condition_is_named() -> None:
    dwelling = forecast(terms(rule("error_rate"), dwell_seconds=1e6), TRAFFIC)
    assert [(stage.waits_for, round(stage.seconds or 0)) for stage in dwelling.stages[:3]] == [("dwell", 1_000_000)] * 3
    few = forecast(terms(rule("error_rate"), min_units=100_000), TRAFFIC)
    assert few.stages[0].waits_for == "units"
    assert few.stages[0].seconds == pytest.approx(100_000 / (1_000 * 0.05) * 3600, rel=0.01)
    assert forecast(terms(rule("thumbs_up", 0.02)), TRAFFIC).stages[1].waits_for == "thumbs_up"


def test_a_tolerance_as_wide_as_the_metric_needs_no_more_than_data() -> None:
    (metric,) = forecast(terms(rule("thumbs_up", 0.2)), TRAFFIC).metrics  # 20 points at 25 % are 80
    assert metric.interactions[0] == pytest.approx(5 / (200 * 0.05) * 2_000, rel=0.01)


def test_answers_wait_for_the_feedback_window() -> None:
    seconds = {
        (name, window): sum(
            each or 0.0 for each in ramp(forecast(terms(rule(name), feedback_window_seconds=window), TRAFFIC))
        )
        for name in ("thumbs_up", "error_rate")
        for window in (60.0, 36_000.0)
    }
    longer = 36_000 + 1_800 - 60 - 30  # and half a period
    assert seconds["thumbs_up", 36_000.0] - seconds["thumbs_up", 60.0] == pytest.approx(2 * longer, rel=0.05)
    assert seconds["error_rate", 36_000.0] == seconds["error_rate", 60.0]


def test_an_event_that_has_never_been_is_told_as_a_rate() -> None:
    (metric,) = forecast(terms(rule("fallback_rate")), TRAFFIC).metrics
    assert metric.level == 0
    assert metric.caught_seconds is None
    assert metric.compared_to is not None
    assert metric.compared_to == pytest.approx(1e-5, rel=0.01)
    rates = [each * metric.compared_to for each in metric.detectable if each is not None]
    assert all(1e-5 < rate < 0.2 for rate in rates)


# --- roll back ---


def test_a_worse_candidate_is_rolled_back_sooner_the_worse_it_is() -> None:
    found = terms(rule("thumbs_up"), rule("error_rate"))
    times = []
    for loss in (2.0, 4.0, 9.0):
        back = expected_roll_back(found, TRAFFIC, {"error_rate": loss})
        assert back is not None
        assert back.metric == "error_rate"
        times.append(back.seconds)
    assert times == sorted(times, reverse=True)
    assert expected_roll_back(found, TRAFFIC, {}) is None
    assert expected_roll_back(found, TRAFFIC, {"error_rate": 0.1}) is None  # within the harm line


def test_what_is_found_after_the_longest_duration_is_not_found() -> None:
    found = terms(rule("error_rate"), max_duration_seconds=3_600.0)
    assert expected_roll_back(found, TRAFFIC, {"error_rate": 1.0}) is None


# --- what is told ---


def test_without_traffic_there_is_no_data() -> None:
    found = forecast(terms(rule("thumbs_up"), rule("error_rate")), None)
    assert found.traffic is None
    assert found.seconds is None
    assert ramp(found) == [None, None, None]
    assert [metric.detectable for metric in found.metrics] == [(None, None, None)] * 2
    assert found.problems == ()
    assert "no data" in found.notes[0]


def test_without_ratings_nobody_knows_how_long() -> None:
    found = forecast(terms(rule("thumbs_up"), rule("error_rate")), replace(TRAFFIC, ratings_per_unit={}))
    assert found.seconds is None
    assert ramp(found) == [None]
    assert found.metrics[0].interactions == (None, None, None)
    assert found.metrics[1].interactions[0] is not None
    assert found.problems == ()
    assert found.notes == ("nobody has rated thumbs_up of stable in the last 7 days: no data on how long it takes",)


def test_all_stages_are_there() -> None:
    policy: dict[str, Any] = {"shadow": ShadowRule(sample=0.1, interactions=500), "holdback": HoldbackRule(0.02, 600.0)}
    baseline = Baseline(400, {"error_rate": MetricBaseline(400, 0.01, None, 0.001, 2.0)})
    found = forecast(terms(rule("error_rate"), baseline=baseline, **policy), TRAFFIC)
    assert [stage.phase for stage in found.stages] == ["baseline", "shadow", "ramp", "ramp", "ramp", "holdback"]
    collecting, shadow, *_, holdback = found.stages
    assert (collecting.seconds, collecting.waits_for) == (600 / 2_000 * 3600, "interactions")
    assert (shadow.seconds, shadow.waits_for) == (500 / 200 * 3600, "interactions")
    assert (holdback.seconds, holdback.share) == (600.0, 0.98)
    assert found.seconds == pytest.approx(sum(stage.seconds or 0.0 for stage in found.stages[:-1]))
    assert found.notes == ("error_rate: 400 of 1,000 interactions for the baseline, which is collected first",)


def test_approvals_are_marked_and_take_no_time() -> None:
    found = terms(rule("error_rate"))
    approved = replace(found, policy=replace(found.policy, stages=(*STAGES[:-1], StageRule(1.0, approve=True))))
    stages = [stage for stage in forecast(approved, TRAFFIC).stages if stage.phase == "ramp"]
    assert [stage.approval for stage in stages] == [False, False, True]
    assert [stage.seconds for stage in stages] == ramp(forecast(found, TRAFFIC))


def test_a_budget_that_is_too_small_is_told() -> None:
    shadow = ShadowRule(sample=0.1, budget_usd=0.5, interactions=500)
    (note,) = forecast(terms(rule("cost"), shadow=shadow), TRAFFIC).notes
    assert note == "500 mirrored answers cost about $1.00; the budget of $0.5 ends the mirroring before"


def test_what_must_be_superior_is_foretold_for_a_better_one() -> None:
    found = forecast(terms(rule("thumbs_up", require="superior")), TRAFFIC)
    assert found.seconds is not None
    assert math.isfinite(found.seconds)
    assert "foretold for +5.0 pp" in found.notes[0]
    ratio = forecast(terms(rule("cost", require="superior")), TRAFFIC)
    assert "foretold for ×0.91" in ratio.notes[0]


# --- what cannot finish ---


def test_a_rollout_that_is_too_long_says_where() -> None:
    found = forecast(terms(rule("thumbs_up", 0.02), max_duration_seconds=86_400.0), TRAFFIC)
    (problem,) = found.problems
    assert problem.startswith("it takes about")
    assert "max_duration is 24 h; 50% alone takes" in problem
    assert problem.endswith("for thumbs_up")
    assert forecast(terms(rule("thumbs_up", 0.02), max_duration_seconds=1e8), TRAFFIC).problems == ()


def test_the_baseline_and_the_holdback_are_not_limited() -> None:
    baseline = Baseline(1, {"error_rate": MetricBaseline(1, 0.01, None, 0.001, 2.0)})
    slow = replace(TRAFFIC, interactions_per_hour=10.0, units_per_hour=10.0)
    found = terms(rule("error_rate", 20.0, floor=0.3), baseline=baseline, min_units=1, dwell_seconds=1.0)
    foretold = forecast(found, slow)
    limit = sum(each or 0.0 for each in ramp(foretold)) + 1
    assert foretold.stages[0].seconds is not None
    assert foretold.stages[0].seconds > limit
    again = forecast(replace(found, policy=replace(found.policy, max_duration_seconds=limit)), slow)
    assert again.problems == ()


def test_users_who_have_all_been_seen_are_told() -> None:
    regulars = replace(TRAFFIC, units_per_hour=20.0, unit_growth=0.0)
    found = forecast(terms(rule("thumbs_up"), unit="user"), regulars)
    assert found.seconds == math.inf
    assert found.stages[0].waits_for == "units"
    assert found.problems[0] == "50 new units of the candidate never come together at 5%"
    assert any("the same users come back (480 in a day)" in note for note in found.notes)
    assert len([stage for stage in found.stages if stage.phase == "ramp"]) == 1
    new_ones = forecast(terms(rule("thumbs_up"), unit="user"), TRAFFIC)
    assert not any("come back" in note for note in new_ones.notes)
    assert new_ones.problems == ()
