"""The table of docs/howto/choose-margins.md, foretold again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from headway.domain.metric import BUILT_IN_FEEDBACK, Form, find_metric, method_for
from headway.domain.policy import DEFAULT_STAGES, MetricRule, Policy, StageRule, half_way
from headway.domain.recording import Baseline, MetricBaseline, Terms, plan_recording
from headway.rollouts.forecasting import forecast
from headway.storage.baselines import Traffic

PAGE = (Path(__file__).parents[3] / "docs" / "howto" / "choose-margins.md").read_text()
RAMPS = (DEFAULT_STAGES, tuple(StageRule(share) for share in (0.1, 0.5, 1.0)))
TRAFFIC = Traffic(1_000.0, 1_000 / 3, ratings_per_unit={"thumbs_up": 0.15})
THUMBS = {"thumbs_up": BUILT_IN_FEEDBACK["thumbs_up"]}
_CALLS = 200.0  # per bucket


def rate(level: float) -> MetricBaseline:
    return MetricBaseline(50_000, level, None, max(level * (1 - level), 1e-5) / _CALLS, _CALLS)


STABLE = {
    "thumbs_up": MetricBaseline(5_000, 0.7, None, 0.21, 1.0),
    "error_rate": rate(0.01),
    "latency_p50": replace(rate(0.5), level=800.0),
    "latency_p95": replace(rate(0.05), level=2_100.0),
    "cost": MetricBaseline(50_000, 0.003, 0.03, 0.003**2 / _CALLS, _CALLS),
}


def interactions(metric: str, margin: str, stages: tuple[StageRule, ...], **levels: MetricBaseline) -> float:
    """How many until 100 %, for a candidate that equals stable, with this metric alone."""
    found = find_metric(metric, THUMBS)
    form: Form = "points" if margin.endswith("pp") else "ratio"
    value = float(margin.removesuffix("pp")) / 100 if form == "points" else float(margin.removeprefix("ratio "))
    method = method_for(found.kind, form)
    rule = MetricRule(metric, "goal", method, form, found.direction, value, half_way(form, value), 1.0)
    policy = Policy("page", stages, (rule,), dwell_seconds=1.0, feedback_window_seconds=1.0)
    baseline = Baseline(50_000, STABLE | levels)
    terms = Terms(policy, "conversation", THUMBS, baseline, plan_recording(policy, baseline))
    seconds = forecast(terms, TRAFFIC).seconds
    assert seconds is not None
    return seconds / 3600 * TRAFFIC.interactions_per_hour


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_table() -> None:
    checked, metric = 0, ""
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 5 or not re.fullmatch(r"[\d,]+", cells[4]):
            continue
        metric = cells[0] or metric
        for stages, told in zip(RAMPS, cells[3:], strict=True):
            assert number(told) == pytest.approx(interactions(metric, cells[2], stages), rel=0.05), line
        checked += 1
    assert checked == 11


def test_rare_events() -> None:
    none = re.search(r"needs about ([\d,]+) interactions over.*?and\s+([\d,]+) over 10", PAGE, re.DOTALL)
    assert none is not None
    for stages, told in zip(RAMPS, none.groups(), strict=True):
        found = interactions("fallback_rate", "ratio 1.5", stages, fallback_rate=rate(0.0))
        assert number(told) == pytest.approx(found, rel=0.05)
    worst = re.search(r"at the floor: ([\d,]+) at 0.1", PAGE)
    assert worst is not None
    found = interactions("fallback_rate", "ratio 1.5", RAMPS[0], fallback_rate=rate(0.001))
    assert number(worst[1]) == pytest.approx(found, rel=0.05)
