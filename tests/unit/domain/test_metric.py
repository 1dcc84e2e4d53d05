"""The catalogue of metrics, and how each kind is tested."""

import itertools
from typing import get_args

import pytest

from headway.domain.metric import (
    BUILT_IN_FEEDBACK,
    EVENT_METRICS,
    MEASURED,
    RETRIEVAL_METRICS,
    VALUE_METRICS,
    FeedbackMetric,
    Form,
    MetricKind,
    find_metric,
    method_for,
)
from headway.errors import ConfigurationError

METHODS = {
    ("binary", "points"): "two_sample",
    ("event", "ratio"): "event_ratio",
    ("bounded", "points"): "betting",
    ("positive", "ratio"): "normal_mixture",
    ("quantile", "ratio"): "slow_calls",
}


@pytest.mark.parametrize(("kind", "form"), [*itertools.product(get_args(MetricKind), get_args(Form))])
def test_each_kind_has_one_method_and_every_other_pair_is_an_error(kind: MetricKind, form: Form) -> None:
    if (kind, form) in METHODS:
        assert method_for(kind, form) == METHODS[kind, form]
    else:
        with pytest.raises(ConfigurationError, match=r"ratio|difference|no number"):
            method_for(kind, form)


def test_the_catalogue_names_what_is_measured() -> None:
    assert set(MEASURED) == {
        *(metric.name for metric in EVENT_METRICS),
        *("slow_rate", "feedback_rate", "report_rate", "cost", "input_tokens", "output_tokens"),
        *("latency_p50", "latency_p95", "first_token_p50", "first_token_p95"),
        *("context_tokens", "retrieval_p50", "retrieval_p95"),
    }
    assert MEASURED.keys() >= RETRIEVAL_METRICS
    assert all(metric.label and metric.name == name for name, metric in MEASURED.items())
    assert {metric.value for metric in MEASURED.values()} - {None} == {metric.name for metric in VALUE_METRICS}
    assert MEASURED["feedback_rate"].direction == "higher"


def test_a_metric_is_found_by_name() -> None:
    assert find_metric("latency_p95", {}).quantile == 0.95
    stars = find_metric("stars", BUILT_IN_FEEDBACK)
    assert (stars.kind, stars.per, stars.minimum, stars.maximum) == ("bounded", "rater", 1.0, 5.0)
    solved = find_metric("was_solved", {"was_solved": FeedbackMetric("binary", "lower")})
    assert (solved.label, solved.direction, solved.kind) == ("Was solved", "lower", "binary")


def test_an_unknown_metric_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"no metric 'latency'; .*latency_p95.*thumbs_up") as caught:
        find_metric("latency", BUILT_IN_FEEDBACK)
    assert "comment" not in str(caught.value)
