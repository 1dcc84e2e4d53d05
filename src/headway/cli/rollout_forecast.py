"""The forecast of a rollout, as `headway plan` shows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from headway.config.spec import ApplicationSpec
from headway.domain.difference import explain_difference
from headway.domain.display import NO_DATA, Scale, format_count, format_rate, format_seconds, format_share, scale_of
from headway.domain.policy import Policy
from headway.rollouts.applying import RolloutPlan
from headway.rollouts.forecasting import Forecast, MetricForecast

_INDENT = (0, 0, 0, 4)
_NEVER = "never"


def draw_forecast(plan: RolloutPlan, policy: Policy, wanted: ApplicationSpec) -> Iterator[RenderableType]:
    """Draw a rollout that would be started: its stages, and what each metric needs and shows in them.

    Args:
        plan: The rollout.
        policy: It is started under.
        wanted: The application as the file has it.
    """
    forecast = plan.forecast
    yield _line(f"from {plan.stable}, under the policy {plan.policy}")
    if plan.difference.parts:
        yield _line(explain_difference(plan.difference), "yellow" if len(plan.difference.parts) > 1 else "")
    if forecast.traffic is not None:
        yield _line(_traffic(forecast, wanted.unit))
    yield Padding(_stages(forecast), _INDENT, expand=False)
    yield _line(_length(forecast, policy))
    scales = {rule.metric: scale_of(rule, wanted.metrics) for rule in policy.rules}
    yield Padding(_metrics(forecast, scales), _INDENT, expand=False)
    if forecast.traffic is not None:
        shares = [format_share(stage.share) for stage in policy.stages[:-1]]
        yield _line("interactions that a stage needs for it, when the candidate equals stable:")
        yield _by_stage(forecast, shares, lambda metric: [_known(each, format_count) for each in metric.interactions])
        yield _line("smallest loss that is rolled back before the stage is left, 4 times out of 5:")
        yield _by_stage(forecast, shares, lambda metric: _losses(metric, scales[metric.metric]))
    for note in forecast.notes:
        yield _line(f"note: {note}", "yellow")


def _line(text: str, style: str = "") -> RenderableType:
    return Padding(Text(text, style=style), _INDENT, expand=False)


def _traffic(forecast: Forecast, unit: str) -> str:
    traffic = forecast.traffic
    assert traffic is not None
    arriving = f"{format_count(traffic.interactions_per_hour)} interactions an hour"
    if unit != "request":
        arriving += f" of {format_count(traffic.units_per_hour)} {unit}s"
    rated = [f"{name} from {format_rate(rate)}" for name, rate in traffic.ratings_per_unit.items()]
    return f"now {arriving}" + (f"; {', '.join(rated)} of them" if rated else "")


def _length(forecast: Forecast, policy: Policy) -> str:
    limit = f"max_duration is {format_seconds(policy.max_duration_seconds)}"
    if forecast.seconds is None:
        return f"how long it takes: {NO_DATA}; {limit}"
    waits = ", and as long as approvals take" if any(stage.approval for stage in forecast.stages) else ""
    length = "it never ends" if math.isinf(forecast.seconds) else f"about {format_seconds(forecast.seconds)}"
    return f"{length}{waits}; {limit}"


def _stages(forecast: Forecast) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", "share", "takes about", "waits for"):
        table.add_column(column, justify="right" if column == "share" else "left")
    for stage in forecast.stages:
        waits_for = ", ".join(filter(None, (stage.waits_for, "approval" if stage.approval else "")))
        table.add_row(stage.phase, format_share(stage.share), _known(stage.seconds, format_seconds), waits_for)
    return table


def _metrics(forecast: Forecast, scales: dict[str, Scale]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("metric", "role", "stable", "margin", "harm line", "twice the margin is rolled back after"):
        table.add_column(column)
    for metric in forecast.metrics:
        scale = scales[metric.metric]
        table.add_row(
            metric.metric,
            metric.role,
            scale.level(metric.level),
            scale.effect(metric.margin),
            scale.effect(metric.harm),
            "not in time" if metric.caught_seconds == math.inf else _known(metric.caught_seconds, format_seconds),
        )
    return table


def _by_stage(forecast: Forecast, shares: list[str], cells: Callable[[MetricForecast], list[str]]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric")
    for share in shares:
        table.add_column(share, justify="right")
    for metric in forecast.metrics:
        table.add_row(metric.metric, *cells(metric))
    return Padding(table, _INDENT, expand=False)


def _losses(metric: MetricForecast, scale: Scale) -> list[str]:
    if metric.level == 0 and metric.compared_to is not None:
        compared_to = metric.compared_to  # a ratio to nothing says nothing: show the rate
        return [_known(each, lambda ratio: scale.level(ratio * compared_to)) for each in metric.detectable]
    return [_known(each, scale.effect) for each in metric.detectable]


def _known(value: float | None, write: Callable[[float], str]) -> str:
    if value is None:
        return NO_DATA
    return _NEVER if math.isinf(value) else write(value)
