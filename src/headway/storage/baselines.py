"""Baselines: what the stable release was like in the last days, and how much traffic there is to learn from.

Read from a sample that costs the same however much is recorded: the newest rows of each hour of the last seven days.
Nothing read here is evidence: levels, thresholds and variances from before a rollout only say where to look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from psycopg import sql
from psycopg.rows import dict_row

from headway.clock import utc
from headway.domain.metric import (
    EVENT_METRICS,
    FEEDBACK_RATE,
    MEASURED,
    REPORT_RATE,
    SLOW_RATE,
    FeedbackMetric,
    Metric,
    find_metric,
)
from headway.domain.policy import Policy
from headway.domain.recording import Baseline, MetricBaseline
from headway.domain.rollout import BASELINE_INTERACTIONS, BASELINE_RATINGS
from headway.domain.snapshot import Unit
from headway.ids import Arm, Kind
from headway.stats.ratio import RatioStatistics, ratio_variance
from headway.storage.database import Connection

DAYS = 7
SAMPLED_ROWS = 50_000
"""Rows read at most, of interactions and of feedback each."""

_RESPONSE_ROWS = 10_000  # of the sample for feedback and report rates, where each row is looked up
_KINDS = [int(Kind.RANDOMISED), int(Kind.MANUAL), int(Kind.HOLDBACK)]
_LATENCY_P95 = "latency_p95"

Column = npt.NDArray[np.float64]


class Traffic(msgspec.Struct, frozen=True):
    """What arrives at an application, estimated from its stable release.

    Attributes:
        interactions_per_hour: In the last 24 hours, or since the first interaction.
        units_per_hour: Different units in that time, per hour.
        unit_growth: How the number of different units grows with time t, as t to this power: 1 where all are new, near
            0 where the same ones come back.
        ratings_per_unit: Units that rate, per unit, by name of the metric; without those that nobody has rated.
    """

    interactions_per_hour: float
    units_per_hour: float
    unit_growth: float = 1.0
    ratings_per_unit: dict[str, float] = {}


class Survey(msgspec.Struct, frozen=True):
    """A baseline and the traffic it comes from; no traffic is None."""

    baseline: Baseline
    traffic: Traffic | None


async def measure(
    connection: Connection,
    application: int,
    release: int,
    policy: Policy,
    feedback: Mapping[str, FeedbackMetric],
    unit: Unit,
    now_ms: int,
) -> Baseline:
    """Measure the stable release's baseline; see ``survey``."""
    return (await survey(connection, application, release, policy, feedback, unit, now_ms)).baseline


async def survey(
    connection: Connection,
    application: int,
    release: int,
    policy: Policy,
    feedback: Mapping[str, FeedbackMetric],
    unit: Unit,
    now_ms: int,
) -> Survey:
    """Measure what the stable release was like in the last seven days, and its traffic.

    Only assigned traffic of the stable arm counts: nothing pinned, mirrored, or of the time when the release was itself
    a candidate. What too little is recorded of is taken from the policy's declared baselines;
    ``headway.domain.rollout.baseline_gaps`` says what neither gives.

    Args:
        connection: Reads only.
        application: Number of the application.
        release: Number of its stable release.
        policy: Names the metrics, and declares baselines.
        feedback: The application's feedback metrics.
        unit: What is assigned to an arm.
        now_ms: Unix milliseconds.
    """
    now = utc(now_ms)
    named = {rule.metric for rule in policy.rules}
    place = {
        "application": application,
        "release": release,
        "now": now,
        "since": now - timedelta(days=DAYS),
        "rows": SAMPLED_ROWS,
        "kinds": _KINDS,
        "stable": int(Arm.STABLE),
        "conversations": unit == "conversation",
    }
    rows = await _fetch(connection, _INTERACTIONS, place)
    metrics = _of_interactions(rows)
    count = int(sum(row["n"] for row in rows))
    rated = {name: declared for name, declared in feedback.items() if name in named and name not in MEASURED}
    raters: dict[str, float] = {}
    if rated:
        positive = [name for name, declared in rated.items() if declared.kind == "positive"]
        given = await _fetch(connection, _RATINGS, place | {"metrics": list(rated), "positive": positive})
        metrics |= _of_ratings(given, rated)
        for row in given:
            raters[row["metric"]] = raters.get(row["metric"], 0.0) + row["weight"]
    if count and named & {FEEDBACK_RATE.name, REPORT_RATE.name}:
        exposed_until = now - timedelta(seconds=policy.feedback_window_seconds)
        values = place | {"rows": _RESPONSE_ROWS, "exposed_until": exposed_until}
        metrics |= _of_responses(await _fetch(connection, _RESPONSES, values))
    baseline = Baseline(count, _declare(metrics, policy, feedback))
    return Survey(baseline, _traffic(rows[0], now, raters) if rows else None)


# --- the sample ----------------------------------------------------------------------------------------------------

# The rows that may be read are shared out evenly among the hours that have any; a row stands for `weight` rows of its
# hour. What does not count is left out only afterwards: looking for what does could take for ever. Each LIMIT keeps the
# planner on the index also where a day's partition has no statistics yet.
_SAMPLE = sql.SQL("""
    hours AS (
        SELECT since, least(since + interval '1 hour', %(now)s) AS until
        FROM generate_series(%(since)s::timestamptz, %(now)s::timestamptz - interval '1 us', interval '1 hour') AS since
    ), busy AS MATERIALIZED (
        SELECT since, until, greatest(%(rows)s / count(*) OVER (), 1) AS most FROM hours CROSS JOIN LATERAL (
            SELECT 1 FROM {table} WHERE {place} AND at >= hours.since AND at < hours.until ORDER BY at DESC LIMIT 1
        ) any_row
    ), newest AS MATERIALIZED (
        SELECT busy.*, found.* FROM busy CROSS JOIN LATERAL (
            SELECT {columns} FROM {table} WHERE {place} AND at >= busy.since AND at < busy.until
            ORDER BY at DESC LIMIT busy.most
        ) found
    ), sample AS MATERIALIZED (
        SELECT *, get_byte(unit, length(unit) - 1) AS bucket,
               floor(extract(epoch FROM %(now)s - at) / 86400)::int AS day,
               CASE WHEN rows < most THEN 1.0
                    ELSE extract(epoch FROM until - since) / greatest(extract(epoch FROM until - oldest), 0.001)
               END::float8 AS weight
        FROM (SELECT *, count(*) OVER hour AS rows, min(at) OVER hour AS oldest
              FROM newest WINDOW hour AS (PARTITION BY since)) counted
        WHERE kind = ANY(%(kinds)s) AND arm = %(stable)s AND release = %(release)s
    )""")

_INTERACTION_SAMPLE = _SAMPLE.format(
    table=sql.SQL("interaction"),
    place=sql.SQL("application = %(application)s AND release = %(release)s AND at >= %(since)s AND at < %(now)s"),
    columns=sql.SQL(
        "at, id, release, conversation, unit, kind, arm, error, release_error, attempt_errors, fallback, refused,"
        " filtered, aborted, total_ms::float8, first_token_ms::float8,"
        " CASE WHEN cost_usd BETWEEN 0 AND 1e15 THEN cost_usd END AS cost,"
        " input_tokens::float8, output_tokens::float8,"
        " retrieval_ms::float8, retrieval_error, passages, context_tokens::float8, cited"
    ),
)
_RATING_SAMPLE = _SAMPLE.format(
    table=sql.SQL("feedback"),
    place=sql.SQL("application = %(application)s"),
    columns=sql.SQL("at, id, release, arm, kind, unit, metric, number, target"),
)

_INTERACTIONS = sql.SQL("""
    WITH {sample}, limits AS MATERIALIZED (
        SELECT percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY total_ms)
                   FILTER (WHERE error IS NULL AND NOT aborted) AS latency,
               percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY first_token_ms) AS first_token,
               percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY retrieval_ms)
                   FILTER (WHERE retrieval_error IS NULL) AS retrieval,
               percentile_disc(0.999) WITHIN GROUP (ORDER BY cost) AS cost,
               percentile_disc(0.999) WITHIN GROUP (ORDER BY input_tokens) AS input_tokens,
               percentile_disc(0.999) WITHIN GROUP (ORDER BY output_tokens) AS output_tokens,
               percentile_disc(0.999) WITHIN GROUP (ORDER BY context_tokens) AS context_tokens
        FROM sample
    ), units AS MATERIALIZED (
        SELECT day, unit, avg(weight) AS weight FROM sample GROUP BY day, unit
    ), traffic AS MATERIALIZED (
        SELECT (SELECT min(at) FROM sample) AS first_at,
               (SELECT sum(weight) FROM sample) AS interactions,
               (SELECT sum(weight) FROM sample WHERE day = 0) AS interactions_today,
               (SELECT sum(weight) FROM units WHERE day = 0) AS units_today,
               (SELECT count(DISTINCT day) FROM units) AS days,
               (SELECT sum(weight) FROM units) AS units_by_day,
               (SELECT sum(weight) FROM (SELECT avg(weight) AS weight FROM units GROUP BY unit) u) AS units
    ), sums AS (
        SELECT s.day, s.bucket, count(*) AS n,
               sum(s.release_error::int) AS error_rate, sum((s.attempt_errors > 0)::int) AS attempt_error_rate,
               sum(s.fallback::int) AS fallback_rate, sum(s.refused::int) AS refusal_rate,
               sum(s.filtered::int) AS content_filter_rate, sum(s.aborted::int) AS abort_rate,
               count(*) FILTER (WHERE s.error IS NULL AND NOT s.aborted) AS complete,
               sum((s.release_error OR s.total_ms > l.latency[1])::int) AS latency_p50,
               sum((s.release_error OR s.total_ms > l.latency[2])::int) AS latency_p95,
               count(s.first_token_ms) AS first_token_n,
               sum((s.first_token_ms > l.first_token[1])::int) AS first_token_p50,
               sum((s.first_token_ms > l.first_token[2])::int) AS first_token_p95,
               count(s.cost) AS cost_n,
               sum(least(s.cost, l.cost)) FILTER (WHERE s.cost IS NOT NULL) AS cost,
               count(s.input_tokens) AS input_tokens_n,
               sum(least(s.input_tokens, l.input_tokens)) FILTER (WHERE s.input_tokens IS NOT NULL) AS input_tokens,
               count(s.output_tokens) AS output_tokens_n,
               sum(least(s.output_tokens, l.output_tokens)) FILTER (WHERE s.output_tokens IS NOT NULL) AS output_tokens,
               count(s.retrieval_ms) AS retrieval_error_rate_n, count(s.retrieval_error) AS retrieval_error_rate,
               count(s.passages) AS empty_result_rate_n, sum((s.passages = 0)::int) AS empty_result_rate,
               count(s.cited) AS cited_answer_rate_n, sum(s.cited::int) AS cited_answer_rate,
               count(s.retrieval_ms) FILTER (WHERE s.retrieval_error IS NULL) AS retrieval_n,
               sum((s.retrieval_error IS NOT NULL OR s.retrieval_ms > l.retrieval[1])::int) AS retrieval_p50,
               sum((s.retrieval_error IS NOT NULL OR s.retrieval_ms > l.retrieval[2])::int) AS retrieval_p95,
               count(s.context_tokens) AS context_tokens_n,
               sum(least(s.context_tokens, l.context_tokens)) FILTER (WHERE s.context_tokens IS NOT NULL)
                   AS context_tokens
        FROM sample s CROSS JOIN limits l GROUP BY s.day, s.bucket
    )
    SELECT s.*, l.latency, l.first_token, l.retrieval, l.cost AS cost_limit, l.input_tokens AS input_tokens_limit,
           l.output_tokens AS output_tokens_limit, l.context_tokens AS context_tokens_limit, t.*
    FROM sums s CROSS JOIN limits l CROSS JOIN traffic t ORDER BY s.day""").format(sample=_INTERACTION_SAMPLE)

_RATINGS = sql.SQL("""
    WITH {sample}, ratings AS MATERIALIZED (
        SELECT DISTINCT ON (metric, unit) * FROM sample
        WHERE metric = ANY(%(metrics)s) AND number IS NOT NULL AND (target = 'interaction' OR %(conversations)s)
        ORDER BY metric, unit, at, id
    ), limits AS MATERIALIZED (
        SELECT metric, percentile_disc(0.999) WITHIN GROUP (ORDER BY number) AS highest FROM ratings
        WHERE metric = ANY(%(positive)s) GROUP BY metric
    )
    SELECT metric, day, count(*) AS n, sum(least(number, highest)) AS total, sum(least(number, highest) ^ 2) AS squares,
           sum(weight) AS weight, min(highest) AS highest
    FROM ratings LEFT JOIN limits USING (metric) GROUP BY metric, day, bucket ORDER BY metric, day""").format(
    sample=_RATING_SAMPLE
)

_RESPONSES = sql.SQL("""
    WITH {sample}, units AS (
        SELECT s.since, s.unit, count(*) AS n,
               bool_or(EXISTS (
                   SELECT FROM feedback f WHERE f.target_id IN (s.id::text, s.conversation) AND f.unit = s.unit
                       AND f.release = s.release)) AS gave,
               bool_or(s.id IN (SELECT interaction FROM report_interaction WHERE release = %(release)s)) AS reported
        FROM sample s WHERE s.at < %(exposed_until)s GROUP BY s.since, s.unit
    )
    SELECT coalesce(sum(n), 0) AS n, count(*) AS units, count(*) FILTER (WHERE gave) AS feedback_rate,
           count(*) FILTER (WHERE reported) AS report_rate FROM units""").format(sample=_INTERACTION_SAMPLE)


async def _fetch(connection: Connection, query: sql.Composed, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query, values)
        return await cursor.fetchall()


# --- from sums by day and bucket of units to baselines -------------------------------------------------------------

# Columns: of a time, of how many were observed, and of how many could have been slow (None for all interactions).
_TIMES = (
    ("latency", "complete", None),
    ("first_token", "first_token_n", "first_token_n"),
    ("retrieval", "retrieval_n", "retrieval_error_rate_n"),
)


def _of_interactions(rows: Sequence[Mapping[str, Any]]) -> dict[str, MetricBaseline]:
    if not rows:
        return {}
    days, counts = _column(rows, "day"), _column(rows, "n")
    metrics = {}
    for event in EVENT_METRICS:
        told = counts if event.observed is None else _column(rows, f"{event.name}_n")
        if told.any():
            metrics[event.name] = _rate(days, _column(rows, event.name), told)
    limits = rows[0]
    for value, observed, risk in _TIMES:
        at_risk = counts if risk is None else _column(rows, risk)
        complete = int(_column(rows, observed).sum())
        for index, name in enumerate((f"{value}_p50", f"{value}_p95")):
            if complete:
                slow = _rate(days, _column(rows, name), at_risk)
                level = float(limits[value][index])
                metrics[name] = msgspec.structs.replace(slow, observations=complete, level=level)
    if _LATENCY_P95 in metrics:
        metrics[SLOW_RATE.name] = _rate(days, _column(rows, _LATENCY_P95), counts)
    for name in ("cost", "input_tokens", "output_tokens", "context_tokens"):
        observed_counts = _column(rows, f"{name}_n")
        if observed_counts.any():
            metrics[name] = _mean(days, _column(rows, name), observed_counts, float(limits[f"{name}_limit"]))
    return metrics


def _of_ratings(rows: Sequence[Mapping[str, Any]], rated: Mapping[str, FeedbackMetric]) -> dict[str, MetricBaseline]:
    metrics = {}
    for name, declared in rated.items():
        own = [row for row in rows if row["metric"] == name]
        if not own:
            continue
        counts, totals = _column(own, "n"), _column(own, "total")
        if declared.kind == "positive":
            metrics[name] = _mean(_column(own, "day"), totals, counts, float(own[0]["highest"]))
            continue
        count, level = int(counts.sum()), float(totals.sum() / counts.sum())
        variance = max(float(_column(own, "squares").sum()) / count - level**2, 0.0)
        metrics[name] = MetricBaseline(count, level, unit_variance=variance, bucket_interactions=1.0)
    return metrics


def _of_responses(rows: Sequence[Mapping[str, Any]]) -> dict[str, MetricBaseline]:
    row = rows[0]
    if not row["units"]:
        return {}
    metrics = {}
    for name in (FEEDBACK_RATE.name, REPORT_RATE.name):
        level = row[name] / row["units"]
        variance = _bernoulli(row[name], row["units"])
        metrics[name] = MetricBaseline(int(row["n"]), level, unit_variance=variance, bucket_interactions=1.0)
    return metrics


def _rate(days: Column, events: Column, counts: Column) -> MetricBaseline:
    """A rate; its buckets vary at least as much as those of independent interactions."""
    count, hits = float(counts.sum()), float(events.sum())
    variance, size = _unit_variance(days, events, counts)
    least = _bernoulli(hits, count) / size
    return MetricBaseline(
        int(count), hits / count if count else 0.0, unit_variance=max(variance or 0.0, least), bucket_interactions=size
    )


def _mean(days: Column, totals: Column, counts: Column, limit: float) -> MetricBaseline:
    variance, size = _unit_variance(days, totals, counts)
    count = int(counts.sum())
    return MetricBaseline(count, float(totals.sum()) / count, limit, variance, size)


def _unit_variance(days: Column, y: Column, m: Column) -> tuple[float | None, float]:
    """Measure s0^2 over the buckets of each day; days weigh in with their buckets.

    Returns:
        The variance of a bucket's ratio (None with one bucket a day), and interactions per bucket.
    """
    spread = freedom = 0.0
    for day in np.unique(days):
        stats = RatioStatistics.from_units(y[days == day], m[days == day])
        buckets, total = float(np.asarray(stats.n)), float(np.asarray(stats.sm))
        if buckets > 1:
            # Per interaction, so that days of different traffic can be averaged.
            spread += (buckets - 1) * float(ratio_variance(stats).variance) * total
            freedom += buckets - 1
    size = float(m.sum() / max((m > 0).sum(), 1)) or 1.0
    return (spread / freedom / size if freedom else None), size


def _bernoulli(hits: float, count: float) -> float:
    """The variance of a yes or no, that of a rate of nought not being nought."""
    rate = (hits + 0.5) / (count + 1)
    return rate * (1 - rate)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> Column:
    return np.array([row[name] or 0 for row in rows], dtype=np.float64)


def _declare(
    measured: Mapping[str, MetricBaseline], policy: Policy, feedback: Mapping[str, FeedbackMetric]
) -> dict[str, MetricBaseline]:
    """Put declared levels where too little is recorded, and leave out what nothing can be compared with."""
    metrics = dict(measured)
    for name, declared in policy.baselines.items():
        if not _is_known(name, metrics):
            variance = _assumed_variance(find_metric(name, feedback), declared.level)
            metrics[name] = MetricBaseline(0, declared.level, declared.limit, variance, 1.0)
    if _is_known(SLOW_RATE.name, metrics) and not _is_known(_LATENCY_P95, metrics):
        del metrics[SLOW_RATE.name]  # slow is what is slower than that
    return {
        name: known
        for name, known in metrics.items()
        if known.level > 0 or find_metric(name, feedback).kind not in ("positive", "quantile")
    }


def _is_known(name: str, metrics: Mapping[str, MetricBaseline]) -> bool:
    known = metrics.get(name)
    least = BASELINE_INTERACTIONS if name in MEASURED else BASELINE_RATINGS
    return known is not None and (known.observations == 0 or known.observations >= least)


def _assumed_variance(metric: Metric, level: float) -> float:
    """The variance of one observation, where only its level is known."""
    if metric.kind == "quantile":
        assert metric.quantile is not None
        return metric.quantile * (1 - metric.quantile)
    if metric.kind == "positive":
        return level * level
    if metric.kind == "bounded":
        return max(metric.maximum - level, 0.0) * max(level - metric.minimum, 0.0)
    return _bernoulli(level * BASELINE_INTERACTIONS, BASELINE_INTERACTIONS)


def _traffic(row: Mapping[str, Any], now: datetime, raters: Mapping[str, float]) -> Traffic | None:
    """Work out rates from the sums of the sample; None where a single interaction tells none."""
    seconds = (now - row["first_at"]).total_seconds()
    interactions, units = row["interactions"], row["units_by_day"]
    if row["interactions_today"]:
        seconds, interactions, units = min(seconds, 86_400.0), row["interactions_today"], row["units_today"]
    if interactions <= 1 or seconds <= 0:
        return None
    # The first interaction began the time that is measured.
    per_hour = (interactions - 1 if seconds < 86_400.0 else interactions) * 3600 / seconds
    growth = 1.0
    if row["days"] > 1:
        growth = math.log(row["units"] / (row["units_by_day"] / row["days"])) / math.log(row["days"])
    return Traffic(
        interactions_per_hour=per_hour,
        units_per_hour=per_hour * units / interactions,
        unit_growth=min(max(growth, 0.0), 1.0),
        ratings_per_unit={name: count / row["units"] for name, count in raters.items()},
    )
