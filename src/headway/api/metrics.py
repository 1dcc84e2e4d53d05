"""Prometheus metrics: what all workers of this host have counted, in the text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headway.config.settings import Settings
from headway.domain.snapshot import decode_snapshot
from headway.gateway.measurements import FAMILIES, Family, Series, Values, sum_measurements
from headway.gateway.recorder import measurements_folder
from headway.gateway.scoreboard import Scoreboard, WorkerState

_SNAPSHOTS = ("snapshot.json", "snapshot-control.json")
_COUNTERS = (
    ("accepted", "Interactions that were handed to the recorder."),
    ("recorded", "Interactions that were written or spooled."),
    ("dropped", "Interactions dropped: the queue or the disk was full, or the database refused them."),
    ("lost", "Interactions that killed workers had accepted and not recorded yet."),
)
_GAUGES = (
    ("in_flight", "headway_requests_in_flight", "Requests being answered."),
    ("queue", "headway_recorder_queue", "Interactions that wait in memory."),
    ("spool_bytes", "headway_spool_bytes", "Bytes that wait on disk for the database."),
    ("spool_records", "headway_spool_batches", "Batches that wait on disk for the database."),
)


def render_metrics(settings: Settings) -> bytes:
    """Write the metrics of all workers that share a home: counters of dead ones too, gauges of living ones."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(settings.home))
    return generate_latest(registry)


class _Collected(Collector):
    def __init__(self, home: Path) -> None:
        self._home = home

    def collect(self) -> Iterator[Metric]:
        series = sum_measurements(measurements_folder(self._home))
        names = _Names(self._home)
        for family in FAMILIES:
            yield _metric(family, series, names)
        yield from _workers(self._home)


class _Names:
    """Names of applications and releases, from the newest snapshot on disk."""

    def __init__(self, home: Path) -> None:
        self._applications: dict[str, str] = {}
        self._releases: dict[str, str] = {}
        for name in _SNAPSHOTS:
            try:
                snapshot = decode_snapshot((home / name).read_bytes())
            except (OSError, msgspec.DecodeError):
                continue
            self._applications.update({str(each.number): each.name for each in snapshot.applications.values()})
            self._releases.update({str(each.number): each.name for each in snapshot.releases.values()})

    def show(self, family: Family, labels: tuple[str, ...]) -> list[str]:
        if family.labels[:2] != ("application", "release"):
            return list(labels)
        application, release, *others = labels
        return [self._applications.get(application, application), self._releases.get(release, release), *others]


def _metric(family: Family, series: Series, names: _Names) -> Metric:
    found: Iterable[tuple[tuple[str, ...], Values]] = sorted(series.get(family.name, {}).items())
    if not family.edges:
        counter = CounterMetricFamily(family.name, family.help, labels=family.labels)
        for labels, values in found:
            counter.add_metric(names.show(family, labels), values[0])
        return counter
    histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    for labels, values in found:
        histogram.add_metric(names.show(family, labels), _cumulated(family, values), values[-1])
    return histogram


def _cumulated(family: Family, values: Values) -> list[tuple[str, float]]:
    total, buckets = 0.0, []
    for edge, count in zip((*map(str, family.edges), "+Inf"), values[:-1], strict=True):
        total += count
        buckets.append((edge, total))
    return buckets


def _workers(home: Path) -> Iterator[Metric]:
    scoreboard = Scoreboard.watch(home)
    try:
        states: list[WorkerState] = scoreboard.workers()
    finally:
        scoreboard.close()
    for field, help_text in _COUNTERS:
        total = sum(getattr(state, field) for state in states)
        yield CounterMetricFamily(f"headway_interactions_{field}", help_text, value=total)
    for field, name, help_text in _GAUGES:
        yield GaugeMetricFamily(name, help_text, value=sum(getattr(state, field) for state in states))
    yield GaugeMetricFamily("headway_workers", "Workers alive.", value=sum(state.alive for state in states))
