"""The books of one rollout: evidence comes in, blocks close, E-processes advance (statistics, sections 3 and 4b).

Blocks close at ticks and are never regrouped: everything that a decision sees follows from the closed blocks alone, so
that it can be replayed from them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, get_args

import msgspec
import numpy as np

from headway.domain.assessment import Assessment, MetricFigures
from headway.domain.blocks import Closed, OpenBlocks, Sums, Traffic, add_counts, deflate, inflate
from headway.domain.evidence import Counts, ExposureKey, bucket
from headway.domain.figures import describe
from headway.domain.metric import FEEDBACK_RATE, REPORT_RATE
from headway.domain.processes import Bank, RulePlan, harm_stream, plan_rule, rating_counts, safe_stream
from headway.domain.recording import Terms, cut_off
from headway.domain.rollout import Phase, Status, phase_of, shares_ahead
from headway.domain.strata import BucketSums, Strata, StrataState
from headway.domain.weighing import TRAFFIC, FloatArray, PhaseBooks, Weighing
from headway.stats import sample_ratio_log_e

_QUICKEST_MS = 60_000
_PROVIDERS = 16  # per deployment and arm: one that names itself anew in every answer tells nothing
_LATE = (FEEDBACK_RATE.name, REPORT_RATE.name)  # the order of Intake.responses


class Stratum(msgspec.Struct, frozen=True):
    """A period of constant share: one stage, as interactions are booked under it."""

    stage: int
    phase: Phase
    share: float
    ratio_epoch: int = 0


class Rating(NamedTuple):
    """A unit's first value of a metric, settled. ``period`` is the Unix second at which its exposure period begins."""

    metric: str
    value: float
    unit: bytes
    stage: int
    period: int
    arm: int


class ResponseKey(NamedTuple):
    """Units first exposed in a stage, period and arm."""

    stage: int
    period: int
    arm: int


class Intake(msgspec.Struct):
    """What a tick claims.

    Attributes:
        evidence: Merged counts by exposure key.
        ratings: Ratings that have settled since the last tick.
        responses: For each key that ``Books.due`` named: how many of its units gave feedback, and reported.
    """

    evidence: Mapping[ExposureKey, Counts] = {}
    ratings: Sequence[Rating] = ()
    responses: Mapping[ResponseKey, tuple[int, int]] = {}


class _Feed:
    """Where the evidence of a phase goes: its rules, and the streams that they read."""

    def __init__(self, terms: Terms, phase: Phase) -> None:
        self.plans = [plan_rule(terms, rule, phase) for rule in terms.policy.rules]
        self.is_ramp = phase == "ramp"
        self.banks: dict[str, Bank] = {}
        self.events: list[str] = []
        self.late: list[str] = []
        self.columns: list[str] = []
        self.means: list[str] = []
        self.times: list[str] = []
        self.ratings: dict[str, RulePlan] = {}
        for plan in self.plans:
            self._add(plan, comes_back=self.is_ramp and terms.unit != "request")

    def _add(self, plan: RulePlan, *, comes_back: bool) -> None:
        metric = plan.metric
        self.banks |= plan.banks
        if metric.per == "rater":
            self.ratings[metric.name] = plan
        elif metric.per == "unit":
            self.late.append(metric.name)
        elif metric.kind == "positive":
            self.means.append(metric.name)
        else:
            self.events += plan.banks
            if comes_back:
                self.columns += [name for name in plan.banks if name != harm_stream(metric.name)]
        if metric.kind == "quantile" and metric.value not in self.times:
            self.times.append(metric.value or "")


class _State(msgspec.Struct, array_like=True):
    """Books as they are written."""

    wealth: list[tuple[str, str, bytes]]
    totals: dict[str, dict[int, list[int]]]
    open: list[tuple[str, int, list[int]]]
    young: list[tuple[str, int, int, list[int]]]
    young_sums: list[Sums]
    units: list[tuple[ResponseKey, int]]
    responses_through: int
    strata: StrataState
    traffic: list[tuple[int, int, Traffic]]
    providers: list[tuple[int, str]]
    changed_stage: int
    first: list[tuple[int, int]]
    rated: list[tuple[int, int, str]]


class Books:
    """See the module. One object per rollout and tick, read from and written to ``encode``'s bytes in between."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._feeds: dict[str, _Feed] = {phase: _Feed(terms, phase) for phase in get_args(Phase)}
        policy = terms.policy
        self._window_seconds = policy.period_seconds + policy.feedback_window_seconds
        self._wealth: dict[tuple[str, str], FloatArray] = {}
        self._totals: dict[str, dict[int, list[int]]] = {}
        self._open = OpenBlocks({})
        # Ratings that still have to grow old (rule 6), by stream, stage and period.
        self._young: dict[tuple[str, int, int], list[int]] = {}
        self._young_sums: dict[tuple[str, int, int], BucketSums] = {}
        self._units: dict[ResponseKey, int] = {}
        self._responses_through = -1
        self._strata = Strata(min(_QUICKEST_MS, policy.dwell_seconds * 100))
        self._traffic: dict[tuple[int, int], Traffic] = {}
        self._providers: dict[int, set[str]] = {0: set(), 1: set()}
        self._changed_stage = -1
        self._first = [(0, 0), (0, 0)]  # of the rollout, and of its shadow stage
        self._rated: set[tuple[int, int, str]] = set()

    @classmethod
    def fresh(cls, terms: Terms) -> Books:
        """Open the books of a new rollout."""
        return cls(terms)

    @classmethod
    def decode(cls, terms: Terms, body: bytes) -> Books:
        """Read books back."""
        state = msgspec.msgpack.decode(inflate(body), type=_State)
        books = cls(terms)
        books._wealth = {
            (phase, stream): np.frombuffer(wealth, np.float64).copy() for phase, stream, wealth in state.wealth
        }
        books._totals = state.totals
        books._open = OpenBlocks({(stream, stage): row for stream, stage, row in state.open})
        books._young = {(stream, stage, period): row for stream, stage, period, row in state.young}
        books._young_sums = {(each.stream, each.stage, each.part): BucketSums.read(each) for each in state.young_sums}
        books._units = dict(state.units)
        books._responses_through = state.responses_through
        books._strata.restore(state.strata)
        books._traffic = {(stage, arm): traffic for stage, arm, traffic in state.traffic}
        for arm, provider in state.providers:
            books._providers[arm].add(provider)
        books._changed_stage = state.changed_stage
        books._first = state.first
        books._rated = set(state.rated)
        return books

    @classmethod
    def replay(cls, terms: Terms, closed: Iterable[bytes], strata: Sequence[Stratum]) -> Books:
        """Rebuild the books from the closed blocks of each tick, in order: the same figures to the last bit."""
        books = cls(terms)
        for body in closed:
            books.post(body, strata)
        return books

    def post(self, closed: bytes, strata: Sequence[Stratum]) -> None:
        """Add the closed blocks of the next tick, in a replay."""
        self._post(msgspec.msgpack.decode(inflate(closed), type=Closed), _phases(strata))

    def encode(self) -> bytes:
        """Write the books, open blocks included, as MessagePack."""
        state = _State(
            [(*place, wealth.tobytes()) for place, wealth in self._wealth.items()],
            self._totals,
            [(*place, row) for place, row in self._open.rows.items()],
            [(*place, row) for place, row in self._young.items()],
            [sums.close(*place) for place, sums in self._young_sums.items()],
            list(self._units.items()),
            self._responses_through,
            self._strata.state(),
            [(*place, traffic) for place, traffic in self._traffic.items()],
            [(arm, provider) for arm, seen in self._providers.items() for provider in sorted(seen)],
            self._changed_stage,
            self._first,
            sorted(self._rated),
        )
        return deflate(msgspec.msgpack.encode(state))

    def due(self, now_ms: int) -> list[ResponseKey]:
        """Name the keys whose period is old enough to book late events (booking rule 5)."""
        return sorted(key for key in self._units if self._is_old(key.period, now_ms))

    def new_fingerprints(self, evidence: Mapping[ExposureKey, Counts]) -> list[str]:
        """Name who answers, of what a tick has claimed, by a model that is known, and a fingerprint that is not."""
        found = set()
        for key, counts in evidence.items():
            seen = self._providers[key.arm]
            models = Counter(map(_model, seen))
            found |= {each for each in counts.providers if each not in seen and 0 < models[_model(each)] < _PROVIDERS}
        return sorted(found)

    def collect(self, intake: Intake, strata: Sequence[Stratum], now_ms: int) -> bytes | None:
        """Book what a tick has claimed, and close the blocks that are due.

        Args:
            intake: What it has claimed; evidence of a stage that is not among the strata is passed over.
            strata: All strata of the rollout so far.
            now_ms: Unix milliseconds.

        Returns:
            The blocks that have closed, to be stored for ever; None when none has.
        """
        phases = _phases(strata)
        traffic: dict[tuple[int, int], Traffic] = {}
        providers: list[tuple[int, int, str]] = []
        rated: set[tuple[int, int, str]] = set()
        for key in sorted(intake.evidence):
            if key.stage in phases:
                counts = intake.evidence[key]
                traffic.setdefault((key.stage, key.arm), Traffic()).add(_traffic(counts))
                providers += [
                    (key.stage, key.arm, each) for each in counts.providers if each not in self._providers[key.arm]
                ]
                self._book_counts(key, counts, self._feeds[phases[key.stage]])
        for rating in sorted(intake.ratings):  # sums of fractions depend on their order, if only in the last bit
            if rating.stage in phases:
                rated.add((rating.stage, rating.arm, rating.metric))
                self._book_rating(rating, self._feeds[phases[rating.stage]])
        self._book_old_ratings(now_ms)
        for late, responses in sorted(intake.responses.items()):
            if late.stage in phases:
                self._book_responses(late, responses, self._feeds[phases[late.stage]])
        sums, histograms = self._strata.close(now_ms)
        closed = Closed(
            self._open.close(),
            sums,
            histograms,
            [(*place, traffic[place]) for place in sorted(traffic)],
            providers,
            sorted(rated - self._rated),
        )
        if not closed:
            return None
        self._post(closed, phases)
        return deflate(msgspec.msgpack.encode(closed))

    def assess(self, status: Status, strata: Sequence[Stratum], *, display: bool = True) -> Assessment:
        """Say what the closed blocks mean for a rollout that stands there.

        Args:
            status: Where it stands.
            strata: All strata of the rollout so far.
            display: Whether levels, estimates, intervals and what is to go are wanted: they decide nothing, and take
                most of the time.
        """
        phases = _phases(strata)
        phase = phase_of(status) or phases.get(status.stage)
        stage = [self._traffic.get((status.stage, arm), Traffic()) for arm in (0, 1)]
        counted = [place for place in self._traffic if (phases.get(place[0]) == "shadow") == (phase == "shadow")]
        unsafe = sum(self._traffic[place].unsafe for place in counted if place[1] == 1)
        books = None if phase is None else self._phase_books(phase, phases)
        per_arm = [sum(self._traffic[place].interactions for place in counted if place[1] == arm) for arm in (0, 1)]
        return Assessment(
            metrics=() if books is None else self._figures(books, status, display=display),
            sample_ratio_log_e=self._sample_ratio(status, strata),
            stage_units=(stage[0].units, stage[1].units),
            stage_interactions=(stage[0].interactions, stage[1].interactions),
            interactions=(per_arm[0], per_arm[1]),
            safety_events=unsafe,
            first_failures=self._first[phase == "shadow"][1],
            provider_changed=self._changed_stage == status.stage,
        )

    # --- booking ---

    def _book_counts(self, key: ExposureKey, counts: Counts, feed: _Feed) -> None:
        for name in feed.events:
            event = counts.events.get(name)
            if event is not None and event.at_risk:
                self._open.add(name, key.stage, key.arm, (event.at_risk, event.first))
        if feed.columns:
            sums = self._strata.open(TRAFFIC, key.stage, len(feed.columns))
            sums.count(key.arm, counts.buckets)
            for column, name in enumerate(feed.columns):
                if name in counts.events:
                    sums.sum_up(column, key.arm, counts.events[name].buckets)
        for name in feed.means:
            value = counts.values.get(name)
            if value is not None and value.count:
                sums = self._strata.open(name, key.stage, 1)
                sums.count(key.arm, {cell: count for cell, (count, _) in value.buckets.items()})
                sums.sum_up(0, key.arm, {cell: total for cell, (_, total) in value.buckets.items()})
        for name in feed.times:
            value = counts.values.get(name)
            if value is not None and value.histogram:
                self._strata.add_bins(name, key.stage, key.arm, value.histogram)
        if feed.late and counts.units and key.period > self._responses_through:
            late = ResponseKey(key.stage, key.period, key.arm)
            self._units[late] = self._units.get(late, 0) + counts.units

    def _book_rating(self, rating: Rating, feed: _Feed) -> None:
        plan = feed.ratings.get(rating.metric)
        if plan is None:
            return
        harm, safe = harm_stream(rating.metric), safe_stream(rating.metric)
        stage, period, arm = rating.stage, rating.period, rating.arm
        if plan.metric.kind == "positive":
            limit = None if plan.known is None else plan.known.limit
            value = rating.value if limit is None else min(rating.value, cut_off(limit, plan.rule.margin))
            cell = bucket(rating.unit)
            self._add_mean(self._strata.open(harm, stage, 1), arm, cell, value)
            if feed.is_ramp:
                young = self._young_sums.setdefault((safe, stage, period), BucketSums.empty(1))
                self._add_mean(young, arm, cell, value)
            return
        counts = rating_counts(plan.metric, rating.value)
        self._open.add(harm, stage, arm, counts)
        if safe in feed.banks:
            row = self._young.setdefault((safe, stage, period), [0] * (2 * len(counts)))
            for place, count in enumerate(counts, len(counts) * arm):
                row[place] += count

    def _add_mean(self, sums: BucketSums, arm: int, cell: int, value: float) -> None:
        sums.count(arm, {cell: 1})
        sums.sum_up(0, arm, {cell: value})

    def _book_old_ratings(self, now_ms: int) -> None:
        for place in sorted(place for place in self._young if self._is_old(place[2], now_ms)):
            stream, stage, _ = place
            row = self._young.pop(place)
            half = len(row) // 2
            self._open.add(stream, stage, 0, row[:half])
            self._open.add(stream, stage, 1, row[half:])
        for place in sorted(place for place in self._young_sums if self._is_old(place[2], now_ms)):
            self._strata.open(place[0], place[1], 1).add(self._young_sums.pop(place))

    def _book_responses(self, key: ResponseKey, responses: tuple[int, int], feed: _Feed) -> None:
        units = self._units.pop(key, 0)
        self._responses_through = max(self._responses_through, key.period)
        for name, responded in zip(_LATE, responses, strict=True):
            if units and name in feed.late:
                self._open.add(name, key.stage, key.arm, (units, min(responded, units)))

    def _is_old(self, period: int, now_ms: int) -> bool:
        return (period + self._window_seconds) * 1000 <= now_ms

    # --- posting what has closed ---

    def _post(self, closed: Closed, phases: Mapping[int, Phase]) -> None:
        """Add closed blocks: the one way in which the books' figures ever change, live and in a replay."""
        rows: dict[tuple[Phase, str], list[list[int]]] = {}
        for block in closed.blocks:
            totals = self._totals.setdefault(block.stream, {})
            totals[block.stage] = add_counts(totals.get(block.stage), block.counts)
            rows.setdefault((phases[block.stage], block.stream), []).append(block.counts)
        for (phase, stream), counts in rows.items():
            bank = self._feeds[phase].banks.get(stream)
            if bank is not None and bank.size:
                wealth = self._wealth.setdefault((phase, stream), np.zeros(bank.size))
                for factors in bank.price(np.array(counts, dtype=np.float64)):
                    wealth += factors
        self._strata.post(closed.sums, closed.histograms)
        for stage, arm, traffic in closed.traffic:
            self._traffic.setdefault((stage, arm), Traffic()).add(traffic)
            if arm == 1:
                self._count_first(traffic, shadow=phases[stage] == "shadow")
        for stage, arm, provider in closed.providers:
            self._note_provider(stage, arm, provider)
        self._rated.update(closed.rated)

    def _count_first(self, traffic: Traffic, *, shadow: bool) -> None:
        """Count failures among the candidate's first interactions; of a tick that goes beyond them, a part."""
        seen, failed = self._first[shadow]
        left = self._terms.policy.kill_switch.of_first - seen
        if left > 0 and traffic.interactions:
            taken = min(left, traffic.interactions)
            self._first[shadow] = (seen + taken, failed + traffic.failures * taken // traffic.interactions)

    def _note_provider(self, stage: int, arm: int, provider: str) -> None:
        """Note who answers; another model of the same deployment than ever before is a change (booking rule 13)."""
        seen = self._providers[arm]
        own = [each for each in seen if each.split(" ", 1)[0] == provider.split(" ", 1)[0]]
        if provider in seen or len(own) >= _PROVIDERS:
            return
        seen.add(provider)
        if own and _model(provider) not in map(_model, own):
            self._changed_stage = max(self._changed_stage, stage)

    # --- assessing ---

    def _phase_books(self, phase: Phase, phases: Mapping[int, Phase]) -> PhaseBooks:
        stages = tuple(sorted(stage for stage, own in phases.items() if own == phase))
        columns = self._feeds[phase].columns
        rated = {(arm, metric) for stage, arm, metric in self._rated if stage in stages}
        return PhaseBooks(
            self._terms, phase, stages, self._wealth, self._totals, self._strata, columns, self._traffic, rated
        )

    def _figures(self, books: PhaseBooks, status: Status, *, display: bool) -> tuple[MetricFigures, ...]:
        policy, holdback = self._terms.policy, self._terms.policy.holdback
        alpha = holdback.alpha if books.phase == "holdback" and holdback is not None else policy.alpha
        ahead = shares_ahead(policy, status) if books.phase == "ramp" else ()
        found = []
        for plan in self._feeds[books.phase].plans:
            weighing = Weighing(books, plan)
            figures = weighing.figures(ahead, alpha)
            found.append(describe(figures, weighing, status.stage) if display else figures)
        return tuple(found)

    def _sample_ratio(self, status: Status, strata: Sequence[Stratum]) -> float:
        rows: list[list[int]] = []
        shares: list[list[float]] = []
        for stratum in strata:
            units = [self._traffic.get((stratum.stage, arm), Traffic()).units for arm in (0, 1)]
            counts = stratum.phase != "shadow" and stratum.ratio_epoch == status.ratio_epoch
            if counts and 0 < stratum.share < 1 and any(units):
                rows.append(units)
                shares.append([1 - stratum.share, stratum.share])
        return sample_ratio_log_e(rows, shares) if rows else 0.0


def _phases(strata: Iterable[Stratum]) -> dict[int, Phase]:
    return {stratum.stage: stratum.phase for stratum in strata}


def _model(provider: str) -> str:
    """Leave the fingerprint off."""
    return provider.rpartition(" ")[0]


def _traffic(counts: Counts) -> Traffic:
    failures = counts.events.get("error_rate")
    return Traffic(counts.interactions, counts.units, counts.unsafe, 0 if failures is None else failures.count)
