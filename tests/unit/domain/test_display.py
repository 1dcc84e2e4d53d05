"""How figures are written for people, and where they are drawn."""

import doctest
import math
from typing import Any

import pytest

from headway.domain import display
from headway.domain.assessment import Assessment, MetricFigures, SafeFigure
from headway.domain.display import describe_metric, pace, scale_of
from headway.domain.metric import BUILT_IN_FEEDBACK, Direction, FeedbackMetric, Form, Method
from headway.domain.policy import MetricRule, Policy, StageRule
from headway.domain.recording import Terms

FEEDBACK = {**BUILT_IN_FEEDBACK, "mishap": FeedbackMetric(kind="binary", direction="lower")}


def rule(metric: str, margin: float, harm: float, form: Form = "ratio", direction: Direction = "lower") -> MetricRule:
    method: Method = "event_ratio" if form == "ratio" else "two_sample"
    return MetricRule(metric, "guardrail", method, form, direction, margin, harm, weight=0.5)


THUMBS = rule("thumbs_up", 0.05, 0.025, "points", "higher")
ERRORS = rule("error_rate", 1.5, 1.25)
TERMS = Terms(Policy("careful", (StageRule(0.1), StageRule(1.0)), (THUMBS, ERRORS)), "conversation", FEEDBACK)


def figures(**changes: Any) -> MetricFigures:
    values: dict[str, Any] = {
        "metric": "thumbs_up",
        "role": "goal",
        "stable_observations": 1204,
        "candidate_observations": 61,
        "stable_level": 0.702,
        "candidate_level": 0.689,
        "estimate": -0.013,
        "lower": -0.041,
        "upper": 0.016,
        "margin": -0.05,
        "harm": -0.025,
        "harm_log_e": math.log(4),
        "harm_threshold": math.log(133.3),
        "safe": (SafeFigure(0.25, math.log(2.0)), SafeFigure(0.5, math.log(1.5))),
        "safe_threshold": math.log(20),
        **changes,
    }
    return MetricFigures(**values)


def test_examples() -> None:
    assert doctest.testmod(display).failed == 0


@pytest.mark.parametrize(
    ("metric", "level", "written"),
    [
        (rule("error_rate", 1.5, 1.25), 0.00423, "0.42%"),
        (rule("error_rate", 1.5, 1.25), 0.0, "0%"),
        (rule("latency_p95", 1.15, 1.07), 1240.3, "1,240 ms"),
        (rule("first_token_p50", 1.15, 1.07), 4.31, "4.3 ms"),
        (rule("cost", 1.1, 1.05), 0.000423, "$0.000423"),
        (rule("output_tokens", 1.1, 1.05), 412.4, "412 tokens"),
        (THUMBS, 0.702, "70.2%"),
        (rule("stars", 0.2, 0.1, "points", "higher"), 3.814, "3.81"),
        (THUMBS, None, "no data"),
        (THUMBS, math.nan, "no data"),
    ],
)
def test_levels(metric: MetricRule, level: float | None, written: str) -> None:
    assert scale_of(metric, FEEDBACK).level(level) == written


@pytest.mark.parametrize(
    ("metric", "effect", "written"),
    [
        (THUMBS, -0.0132, "-1.3 pp"),
        (THUMBS, 0.0, "0.0 pp"),
        (THUMBS, -0.0001, "0.0 pp"),
        (rule("thumbs_up", 0.005, 0.0025, "points", "higher"), 0.00123, "+0.12 pp"),
        (rule("stars", 0.2, 0.1, "points", "higher"), -0.123, "-0.12 stars"),
        (ERRORS, 1.123, "×1.12"),
        (ERRORS, 31.0, "×31.0"),
        (ERRORS, math.inf, "×∞"),
        (ERRORS, None, "no data"),
    ],
)
def test_effects(metric: MetricRule, effect: float | None, written: str) -> None:
    assert scale_of(metric, FEEDBACK).effect(effect) == written


def test_intervals() -> None:
    points, ratio = scale_of(THUMBS, FEEDBACK), scale_of(ERRORS, FEEDBACK)
    assert points.interval(-0.041, 0.016) == "-4.1 to +1.6 pp"
    assert ratio.interval(0.92, 1.31) == "×0.92 to ×1.31"
    assert ratio.interval(None, 1.31) == "at most ×1.31"
    assert ratio.interval(0.92, math.inf) == "at least ×0.92"
    assert ratio.interval(None, None) == "no interval yet"


def test_places_are_measured_in_margins_and_worse_is_to_the_left() -> None:
    mishaps = scale_of(rule("mishap", 0.04, 0.02, "points"), FEEDBACK)
    ratings = scale_of(rule("feedback_rate", 0.8, 0.9, "ratio", "higher"), FEEDBACK)
    thumbs, errors = scale_of(THUMBS, FEEDBACK), scale_of(ERRORS, FEEDBACK)
    for scale, margin, none in ((mishaps, 0.04, 0.0), (ratings, 0.8, 1.0), (thumbs, -0.05, 0.0), (errors, 1.5, 1.0)):
        assert scale.place(margin) == pytest.approx(-1)
        assert scale.place(none) == 0
        assert scale.place(None) is None
    assert thumbs.place(0.025) == pytest.approx(0.5)
    assert errors.place(2.25) == pytest.approx(-2)
    assert errors.place(0.0) == math.inf
    assert ratings.place(0.0) == -math.inf
    assert errors.place(math.inf) == -math.inf


def test_a_metric_in_words() -> None:
    text = describe_metric(TERMS, figures())
    assert text.standing == "undecided"
    assert text.summary == "Thumbs up: -1.3 pp (-4.1 to +1.6 pp), not yet shown to be safe at 25%"
    assert (text.margin, text.harm, text.observations) == ("-5.0 pp", "-2.5 pp", "1,204 / 61")
    assert text.harm_place == pytest.approx(-0.5)
    assert text.safe_share == 0.25
    assert text.safe_evidence is not None
    assert (text.safe_evidence.e, text.safe_evidence.threshold) == ("2", "20")
    assert text.superior_evidence is None


def test_where_a_metric_stands() -> None:
    def standing(**changes: Any) -> str:
        return describe_metric(TERMS, figures(**changes)).standing

    assert standing(candidate_observations=0, estimate=None) == "no_data"
    assert standing(harm_log_e=6.0) == "harmful"
    assert standing(safe=(SafeFigure(0.25, 3.0),)) == "safe"
    assert standing(safe=(SafeFigure(0.01, 0.0, vacuous=True),)) == "safe"
    assert standing(candidate_observations=0, safe=(SafeFigure(0.01, 9.0, vacuous=True),)) == "no_data"
    assert standing(safe=()) == "undecided"


def test_without_observations_there_is_no_data() -> None:
    text = describe_metric(
        TERMS, figures(stable_observations=0, estimate=None, lower=None, upper=None, stable_level=None)
    )
    assert text.summary == "Thumbs up: no data yet"
    assert (text.estimate, text.stable_level) == ("no data", "no data")
    assert text.estimate_place is None


def test_zero_events_are_data() -> None:
    none = {
        "estimate": None,
        "lower": None,
        "upper": 3.0,
        "margin": 1.5,
        "harm": 1.25,
        "safe": (SafeFigure(0.25, 4.0),),
    }
    text = describe_metric(
        TERMS, figures(metric="error_rate", stable_level=0.0, candidate_level=0.0, safe_threshold=3.7, **none)
    )
    assert (text.standing, text.estimate, text.estimate_place) == ("safe", "no events", None)
    assert text.summary == "Error rate: no events (at most ×3.00), safe at 25%"
    text = describe_metric(TERMS, figures(metric="error_rate", stable_level=0.0, candidate_level=0.1, **none))
    assert text.estimate == "no estimate"


def test_progress_of_evidence() -> None:
    assert display.describe_evidence(-3.0, math.log(20)).progress == 0
    assert display.describe_evidence(math.log(400), math.log(20)).progress == 1
    assert display.describe_evidence(math.inf, math.log(20)).e == "∞"


def test_pace() -> None:
    early, late = Assessment(interactions=(900, 100)), Assessment(interactions=(1800, 200))
    assert pace([(0, early), (500_000, late)]) == 2.0
    assert pace([(0, early)]) is None
    assert pace([(0, early), (1000, early)]) is None
