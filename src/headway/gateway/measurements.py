"""Measurements for Prometheus: counted per batch by each worker, kept in a file per slot, summed by whoever is asked.

A file belongs to a slot of the scoreboard and goes on where the slot's last worker stopped, so counters never fall.
Applications and releases are numbers here; who shows them knows their names.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path

import msgspec

from headway.domain.interaction import Interaction
from headway.domain.metric import EVENT_METRICS, LATENCY
from headway.ids import Arm, Kind

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper edges of the histograms of provider times."""
OVERHEAD_SECONDS = (0.000_25, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 1.0)
"""Upper edges of the histogram of Headway's own time."""

RETRIEVALS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper edges of the histogram of times of searches, in seconds."""

_MOST_CODES = 100  # a provider makes up its codes; Prometheus must not drown in them
_OTHER = "other"


class Family(msgspec.Struct, frozen=True):
    """What a metric of Prometheus is called and how it is divided.

    Attributes:
        name: Without ``_total``.
        help: What it says.
        labels: Names of its labels.
        edges: Upper edges of a histogram's buckets; empty for a counter.
    """

    name: str
    help: str
    labels: tuple[str, ...]
    edges: tuple[float, ...] = ()


_RELEASE = ("application", "release")
REQUESTS = Family("headway_requests", "Requests, by class of HTTP status.", (*_RELEASE, "arm", "operation", "status"))
REJECTED = Family("headway_requests_rejected", "Requests turned away before they had a release, by code.", ("code",))
EVENTS = Family("headway_events", "Interactions with an event: what rollouts watch.", (*_RELEASE, "arm", "metric"))
ERRORS = Family("headway_errors", "Failed requests, by code.", (*_RELEASE, "code"))
TOKENS = Family("headway_tokens", "Tokens, as providers count them.", (*_RELEASE, "direction"))
COST = Family("headway_cost_usd", "Cost in US dollars.", _RELEASE)
ATTEMPTS = Family("headway_provider_calls", "Calls to a deployment, retries included.", ("deployment",))
ATTEMPT_ERRORS = Family("headway_provider_call_errors", "Failed calls to a deployment.", ("deployment",))
LATENCY_SECONDS = Family(
    "headway_latency_seconds", "Request in to last byte out, of complete answers.", (*_RELEASE, "operation"), SECONDS
)
FIRST_TOKEN_SECONDS = Family(
    "headway_first_token_seconds", "Request in to first content out.", (*_RELEASE, "operation"), SECONDS
)
OVERHEAD = Family("headway_overhead_seconds", "Time spent in Headway itself.", (), OVERHEAD_SECONDS)
RETRIEVAL_SECONDS = Family(
    "headway_retrieval_seconds", "Time spent on finding passages for grounded answers.", _RELEASE, RETRIEVALS
)
CONTEXT_TOKENS = Family("headway_context_tokens", "Tokens of the passages in front of the model.", _RELEASE)
SEARCHES = Family("headway_searches", "Searches by themselves, by what came of them.", ("index", "result"))
SEARCH_SECONDS = Family("headway_search_seconds", "Time that searches by themselves took.", ("index",), RETRIEVALS)
REFUSED = Family("headway_interactions_refused", "Interactions that the database refused, one by one.", ())
SPOOL_DROPPED = Family("headway_spool_dropped", "Interactions dropped from a spool that was full or too old.", ())
CONTENT_DROPPED = Family("headway_content_dropped", "Interactions recorded without content: memory was short.", ())
MIRRORED = Family(
    "headway_mirrored",
    "Requests mirrored to a candidate in its shadow stage, by status.",
    (*_RELEASE, "status"),
)
MIRRORED_COST = Family("headway_mirrored_cost_usd", "Cost of mirrored requests in US dollars.", _RELEASE)
MIRRORS_DROPPED = Family("headway_mirrors_dropped", "Mirrored requests given up: there was no room for them.", _RELEASE)
FAMILIES = (
    REQUESTS,
    REJECTED,
    EVENTS,
    ERRORS,
    TOKENS,
    COST,
    ATTEMPTS,
    ATTEMPT_ERRORS,
    LATENCY_SECONDS,
    FIRST_TOKEN_SECONDS,
    OVERHEAD,
    RETRIEVAL_SECONDS,
    CONTEXT_TOKENS,
    SEARCHES,
    SEARCH_SECONDS,
    REFUSED,
    SPOOL_DROPPED,
    CONTENT_DROPPED,
    MIRRORED,
    MIRRORED_COST,
    MIRRORS_DROPPED,
)

Values = list[float]
"""Of a counter, its value; of a histogram, the count of each bucket, of what is above them, and the sum."""
Series = dict[str, dict[tuple[str, ...], Values]]
"""By name of the family and values of its labels."""


class _Saved(msgspec.Struct):
    series: dict[str, list[tuple[tuple[str, ...], Values]]] = {}


class Measurements:
    """This worker's counters.

    Args:
        folder: Where the workers of this host keep their files.
        slot: This worker's slot of the scoreboard; nobody else may hold it.
    """

    def __init__(self, folder: Path, slot: int) -> None:
        self._path = folder / f"{slot}.json"
        self._series = _read(self._path)
        self._changed = True

    def observe(self, interactions: Iterable[Interaction]) -> None:
        """Count a batch."""
        self._changed = True
        groups: dict[tuple[int, int, int, str, int], list[Interaction]] = {}
        for each in interactions:
            if each.kind == Kind.SHADOW:
                self._count_mirrored(each)
                continue
            key = (each.application, each.release, each.arm, each.operation, each.status // 100)
            group = groups.get(key)
            if group is None:
                groups[key] = [each]
            else:
                group.append(each)
        for (application, release, arm, operation, status), group in groups.items():
            names = (str(application), str(release))
            self.count(REQUESTS, (*names, _ARMS[arm], operation, f"{status}xx"), len(group))
            self._count_events(group, (*names, _ARMS[arm]))
            self._count_errors(group, names)
            self._count_spending(group, names)
            latency = [value / 1000 for value in map(LATENCY.value, group) if value is not None]
            first_token = [value / 1000 for value in map(_first_token_ms, group) if value is not None]
            self._observe(LATENCY_SECONDS, (*names, operation), latency)
            self._observe(FIRST_TOKEN_SECONDS, (*names, operation), first_token)
            self._observe(OVERHEAD, (), [value / 1000 for value in map(_overhead_ms, group)])
            self._count_calls(group)
            self._count_retrievals(group, names)

    def count(self, family: Family, labels: tuple[str, ...], amount: float) -> None:
        """Add to a counter."""
        self._changed = True
        series = self._series.setdefault(family.name, {})
        values = series.get(labels)
        if values is None:
            series[labels] = [amount]
        else:
            values[0] += amount

    def observe_seconds(self, family: Family, labels: tuple[str, ...], seconds: float) -> None:
        """Add to a histogram."""
        self._changed = True
        self._observe(family, labels, [seconds])

    async def save(self) -> None:
        """Write the file, if anything has changed.

        Raises:
            OSError: The disk refuses.
        """
        if self._changed:
            self._changed = False
            saved = _Saved({name: list(series.items()) for name, series in self._series.items()})
            await asyncio.to_thread(self._write, msgspec.json.encode(saved))

    def _write(self, content: bytes) -> None:
        # Not in place: a worker killed half way must not take the counters along.
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._path.with_suffix(".new")
        draft.write_bytes(content)
        draft.replace(self._path)

    def _count_events(self, group: Sequence[Interaction], labels: tuple[str, ...]) -> None:
        for metric in EVENT_METRICS:
            occurred = sum(map(bool, map(metric.occurred, group)))
            if occurred:
                self.count(EVENTS, (*labels, metric.name), occurred)

    def _count_errors(self, group: Sequence[Interaction], names: tuple[str, str]) -> None:
        for code in map(_error, group):
            if code is not None:
                known = self._series.get(ERRORS.name, {})
                labels = (*names, code)
                if labels not in known and len(known) >= _MOST_CODES:
                    labels = (*names, _OTHER)
                self.count(ERRORS, labels, 1)

    def _count_spending(self, group: Sequence[Interaction], names: tuple[str, str]) -> None:
        for direction, read in _TOKENS:
            self.count(TOKENS, (*names, direction), sum(filter(None, map(read, group))))
        self.count(COST, names, sum(filter(None, map(_cost_usd, group))))

    def _count_retrievals(self, group: Sequence[Interaction], names: tuple[str, str]) -> None:
        seconds = [value / 1000 for value in map(_retrieval_ms, group) if value is not None]
        if seconds:
            self._observe(RETRIEVAL_SECONDS, names, seconds)
            self.count(CONTEXT_TOKENS, names, sum(filter(None, map(_context_tokens, group))))

    def _count_mirrored(self, mirrored: Interaction) -> None:
        names = (str(mirrored.application), str(mirrored.release))
        self.count(MIRRORED, (*names, f"{mirrored.status // 100}xx"), 1)
        self.count(MIRRORED_COST, names, mirrored.cost_usd or 0.0)
        self._count_calls([mirrored])

    def _count_calls(self, group: Sequence[Interaction]) -> None:
        calls: dict[str, list[int]] = {}
        for each in group:
            known = calls.get(each.deployment)
            if known is None:
                calls[each.deployment] = [each.attempts, each.attempt_errors]
            else:
                known[0] += each.attempts
                known[1] += each.attempt_errors
        for deployment, (attempts, errors) in calls.items():
            self.count(ATTEMPTS, (deployment,), attempts)
            self.count(ATTEMPT_ERRORS, (deployment,), errors)

    def _observe(self, family: Family, labels: tuple[str, ...], seconds: Sequence[float]) -> None:
        series = self._series.setdefault(family.name, {})
        edges = family.edges
        values = series.get(labels)
        if values is None or len(values) != len(edges) + 2:
            values = series[labels] = [0.0] * (len(edges) + 2)
        for value in seconds:
            values[bisect_left(edges, value)] += 1
        values[-1] += sum(seconds)


_ARMS = {int(arm): arm.name.lower() for arm in Arm}
_TOKENS = (
    ("input", attrgetter("input_tokens")),
    ("cached_input", attrgetter("cached_tokens")),
    ("output", attrgetter("output_tokens")),
)
_error = attrgetter("error")
_cost_usd = attrgetter("cost_usd")
_first_token_ms = attrgetter("first_token_ms")
_overhead_ms = attrgetter("overhead_ms")
_retrieval_ms = attrgetter("retrieval_ms")
_context_tokens = attrgetter("context_tokens")


def sum_measurements(folder: Path) -> Series:
    """Add up the files of all slots of this host, of dead workers too."""
    total: Series = {}
    for path in sorted(folder.glob("*.json")):
        for name, series in _read(path).items():
            into = total.setdefault(name, {})
            for labels, values in series.items():
                known = into.get(labels)
                if known is None or len(known) != len(values):
                    into[labels] = values
                else:
                    into[labels] = [one + other for one, other in zip(known, values, strict=True)]
    return total


def _read(path: Path) -> Series:
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=_Saved)
    except (FileNotFoundError, msgspec.DecodeError):
        return {}
    return {name: dict(series) for name, series in saved.series.items()}
