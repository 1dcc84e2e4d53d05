"""What the recorder is told to count."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.metric import MEASURED
from headway.domain.policy import Policy, StageRule
from headway.domain.recording import Baseline, MetricBaseline, Recording, SlowTest, cut_off, plan_recording
from headway.stats import GAMMA, log_histogram_bin
from tests.ledger_cases import make_rule, make_terms

EDGE = log_histogram_bin(1_000.0)  # of the baseline's latency_p95


def test_a_quantile_has_a_test_for_harm_and_one_for_each_share_but_the_first() -> None:
    recording = make_terms(make_rule("latency_p95", 1.2)).recording
    assert [test.name for test in recording.slow] == [
        "latency_p95:harm",
        *(f"latency_p95:{share}" for share in ("0.05", "0.25", "0.5", "1.0")),
    ]
    assert {(test.value, test.stable_bin) for test in recording.slow} == {("latency", EDGE)}


def test_a_threshold_of_harm_is_rounded_up_and_one_of_a_share_down() -> None:
    recording = make_terms(make_rule("latency_p95", 1.2)).recording
    edge = GAMMA**EDGE
    harm, *_, whole = recording.slow
    assert GAMMA ** (harm.candidate_bin - 1) < 1.1 * edge <= GAMMA**harm.candidate_bin
    assert GAMMA**whole.candidate_bin <= 1.2 * edge < GAMMA ** (whole.candidate_bin + 1)
    assert recording.slow[1].candidate_bin - EDGE == math.floor(math.log(1 + 0.2 / 0.05) / math.log(GAMMA))


@given(st.integers(-100, 900))
def test_a_level_on_an_edge_stays_there(place: int) -> None:
    policy = Policy("test", (StageRule(0.5), StageRule(1.0)), (make_rule("slow_rate", 1.5),))
    baseline = Baseline(1000, {"latency_p95": MetricBaseline(1000, GAMMA**place)})
    assert plan_recording(policy, baseline).slow == (SlowTest("slow_rate", "latency", place, place),)


def test_a_goal_that_must_be_better_has_a_test_at_equal_thresholds() -> None:
    recording = make_terms(make_rule("latency_p95", 1.2, require="superior")).recording
    assert recording.slow[-1] == SlowTest("latency_p95:superior", "latency", EDGE, EDGE)


def test_what_the_baseline_does_not_tell_is_not_recorded() -> None:
    policy = Policy("test", (StageRule(0.5), StageRule(1.0)), (make_rule("latency_p95", 1.2), make_rule("cost", 1.1)))
    assert plan_recording(policy, Baseline()) == Recording()


def test_limits_are_in_small_units_and_leave_room_for_the_margin() -> None:
    for margin, limit in ((1.1, 11_000_000), (3.0, 30_000_000)):
        assert make_terms(make_rule("cost", margin)).recording.limits == {"cost": limit}
    assert (cut_off(5.0, 1.5), cut_off(5.0, 0.8)) == (7.5, 5.0)


@pytest.mark.parametrize(("window", "period"), [(3600.0, 3600), (86_400.0, 3600), (90.0, 90), (0.0, 1)])
def test_periods_are_no_longer_than_the_window(window: float, period: int) -> None:
    terms = make_terms(make_rule("cost", 1.1), feedback_window_seconds=window)
    assert terms.recording.period_seconds == period


@pytest.mark.parametrize("name", [name for name, metric in MEASURED.items() if metric.kind == "quantile"])
def test_every_quantile_can_be_recorded(name: str) -> None:
    policy = Policy("test", (StageRule(0.5), StageRule(1.0)), (make_rule(name, 1.5),))
    recording = plan_recording(policy, Baseline(1000, {name: MetricBaseline(1000, 80.0)}))
    assert {test.value for test in recording.slow} == {MEASURED[name].value}
