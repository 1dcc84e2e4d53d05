"""The last hour of an application, added up as far as that is cheap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from headway.clock import Clock, utc
from headway.domain.display import NO_DATA, format_rate
from headway.domain.metric import LATENCY, FeedbackMetric, find_metric
from headway.errors import LimitError
from headway.storage import records
from headway.storage.database import Database

_SPANS_MINUTES = (60, 5)
_SECONDS = 0.5  # of the database's time, for each span
_KEPT_SECONDS = 10.0


@dataclass(frozen=True)
class ReleaseHour:
    """What one release did, in words. ``rating`` is the metric and its mean; ``raters`` how many values it has."""

    release: str
    role: str
    per_minute: str
    error_rate: str
    latency_p50: str
    latency_p95: str
    rating: str
    raters: str


@dataclass(frozen=True)
class Hour:
    """What an application's releases did in the last minutes; None of them where there was too much to add up."""

    minutes: int
    releases: tuple[ReleaseHour, ...] | None


class Hours:
    """Adds up the last hour of applications, each at most every ten seconds, however many people look."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._kept: dict[str, tuple[float, Hour]] = {}

    async def of(self, application: Mapping[str, Any]) -> Hour:
        """Give the last hour of an application (a row of ``records.APPLICATIONS``), less where that is a lot."""
        name, now = application["name"], self._clock.monotonic_seconds()
        kept = self._kept.get(name)
        if kept is not None and now - kept[0] < _KEPT_SECONDS:
            return kept[1]
        hour = await self._add_up(application)
        self._kept[name] = (now, hour)
        return hour

    async def _add_up(self, application: Mapping[str, Any]) -> Hour:
        until = utc(self._clock.unix_ms())
        for minutes in _SPANS_MINUTES:
            since = until - timedelta(minutes=minutes)
            try:
                async with self._database.connection() as connection:
                    found = await records.summarise(connection, application["number"], since, until, seconds=_SECONDS)
            except LimitError:
                continue
            releases = [_describe(application, row, minutes) for row in found if row["interactions"]]
            releases.sort(key=lambda each: ("stable", "candidate", "").index(each.role))
            return Hour(minutes, tuple(releases))
        return Hour(_SPANS_MINUTES[-1], None)


def _describe(application: Mapping[str, Any], row: Mapping[str, Any], minutes: int) -> ReleaseHour:
    per_minute = row["interactions"] / minutes
    rating, raters = _rating(application["metrics"], row.get("feedback", ()))
    name = row["release"]
    return ReleaseHour(
        release=name or "unknown",
        role="stable" if name == application["stable"] else "candidate" if name == application["candidate"] else "",
        per_minute=f"{per_minute:,.0f}" if per_minute >= 10 else f"{per_minute:.1f}",
        error_rate=NO_DATA if row["error_rate"] is None else format_rate(row["error_rate"]),
        latency_p50=_milliseconds(row["latency_p50_ms"]),
        latency_p95=_milliseconds(row["latency_p95_ms"]),
        rating=rating,
        raters=raters,
    )


def _milliseconds(value: float | None) -> str:
    return NO_DATA if value is None else f"{value:,.0f} {LATENCY.unit}"


def _rating(metrics: Mapping[str, Any], feedback: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The most frequent of the ratings that are yes or no, or on a scale; its values from all sources together."""
    totals: dict[str, tuple[int, float]] = {}
    for row in feedback:
        kind = metrics.get(row["metric"], {}).get("kind")
        if kind in ("binary", "bounded") and row["mean"] is not None:
            count, total = totals.get(row["metric"], (0, 0.0))
            totals[row["metric"]] = (count + row["values"], total + row["values"] * row["mean"])
    if not totals:
        return NO_DATA, ""
    name, (count, total) = max(totals.items(), key=lambda item: item[1][0])
    is_rate = metrics[name]["kind"] == "binary"
    label = find_metric(name, {name: FeedbackMetric(metrics[name]["kind"])}).label
    mean = total / count
    return f"{label} {format_rate(mean) if is_rate else f'{mean:.2f}'}", f"{count:,}"
