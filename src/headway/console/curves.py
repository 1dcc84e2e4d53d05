"""A rollout's figures over time, as the page's charts take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headway.domain.display import format_share, scale_of
from headway.domain.recording import Terms
from headway.domain.rollout import phase_of
from headway.storage.rollouts import Figure, Stage


def draw(terms: Terms, figures: Sequence[Figure], stages: Sequence[Stage]) -> dict[str, Any]:
    """Give the charts of all metrics.

    Args:
        terms: What the rollout is decided by.
        figures: Oldest first. Where one phase follows another, the lines break: each has its own processes.
        stages: Marked in the charts.

    Returns:
        ``times`` in Unix seconds; per metric its lines and, aligned with the times, estimate and interval, None where
        there is none.
    """
    rows: list[Figure | float] = []
    for number, figure in enumerate(figures):
        if number and phase_of(figures[number - 1].status) != phase_of(figure.status):
            rows.append(figures[number - 1].at.timestamp() + 0.001)
        rows.append(figure)
    return {
        "times": [row if isinstance(row, float) else row.at.timestamp() for row in rows],
        "stages": [{"at": stage.since.timestamp(), "label": _label(stage)} for stage in stages],
        "metrics": [_curve(terms, rule.metric, rows) for rule in terms.policy.rules],
    }


def _label(stage: Stage) -> str:
    return "shadow" if stage.phase == "shadow" else format_share(stage.share)


def _curve(terms: Terms, metric: str, rows: Sequence[Figure | float]) -> dict[str, Any]:
    rule = next(rule for rule in terms.policy.rules if rule.metric == metric)
    scale = scale_of(rule, terms.feedback)
    points = [_point(row, metric) for row in rows]
    harm = -rule.harm if rule.form == "points" and rule.direction == "higher" else rule.harm
    return {
        "name": metric,
        "label": scale.metric.label,
        "form": rule.form,
        "unit": scale.unit,
        "factor": 100 if scale.unit == "pp" else 1,
        "margin": scale.margin,
        "harm": harm,
        "estimate": [point[0] for point in points],
        "lower": [point[1] for point in points],
        "upper": [point[2] for point in points],
    }


def _point(row: Figure | float, metric: str) -> tuple[float | None, float | None, float | None]:
    if isinstance(row, float):
        return None, None, None
    found = next((each for each in row.assessment.metrics if each.metric == metric), None)
    return (None, None, None) if found is None else (found.estimate, found.lower, found.upper)
