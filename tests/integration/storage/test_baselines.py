"""Baselines: what counts, what it adds up to, and what little of it is read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from headway.domain.metric import BUILT_IN_FEEDBACK, EVENT_METRICS, MEASURED, FeedbackMetric, find_metric, method_for
from headway.domain.policy import DEFAULT_STAGES, DeclaredBaseline, MetricRule, Policy, half_way
from headway.domain.recording import Terms
from headway.domain.rollout import baseline_gaps
from headway.domain.snapshot import Unit
from headway.ids import Kind
from headway.stats import RatioStatistics, ratio_variance
from headway.storage import baselines
from headway.storage.baselines import Survey
from headway.storage.database import Connection, Database
from tests.history import Record, write

NOW = datetime(2026, 3, 20, 15, 30, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
FEEDBACK = BUILT_IN_FEEDBACK | {"minutes_saved": FeedbackMetric(kind="positive")}
STABLE = Record(application=1, release=1, until=NOW, count=2_000, turns=4)


def make_policy(*metrics: str, **changes: Any) -> Policy:
    rules = []
    for name in metrics:
        metric = find_metric(name, FEEDBACK)
        form = "points" if metric.kind in ("binary", "bounded") else "ratio"
        margin = 0.05 if form == "points" else 1.5 if metric.direction == "lower" else 0.8
        method = method_for(metric.kind, form)  # type: ignore[arg-type]  # one of the two
        rule = MetricRule(
            name,
            "guardrail",
            method,
            form,  # type: ignore[arg-type]
            metric.direction,
            margin,
            half_way(form, margin),  # type: ignore[arg-type]
            1 / len(metrics),
        )
        rules.append(rule)
    return Policy("careful", DEFAULT_STAGES, tuple(rules), **changes)


async def survey(connection: Connection, *metrics: str, unit: Unit = "conversation", **changes: Any) -> Survey:
    policy = make_policy(*(metrics or ("error_rate", "thumbs_up")), **changes)
    return await baselines.survey(connection, 1, 1, policy, FEEDBACK, unit, NOW_MS)


async def test_without_traffic_there_is_no_data(database: Database) -> None:
    async with database.connection() as connection:
        found = await survey(connection, "error_rate", "thumbs_up", "feedback_rate")
    assert found.traffic is None
    assert found.baseline.interactions == 0
    assert found.baseline.metrics == {}


async def test_levels_are_those_of_the_definitions(database: Database) -> None:
    columns = (
        ("error", "CASE WHEN g %% 100 = 0 THEN 'provider_error' END"),
        ("release_error", "g %% 100 = 0"),
        ("attempt_errors", "(g %% 50 = 0)::int * 2"),
        ("fallback", "g %% 40 = 0"),
        ("refused", "g %% 20 = 0"),
        ("filtered", "g %% 25 = 0"),
        ("aborted", "g %% 10 = 5"),
        ("cost_usd", "CASE WHEN g %% 2 = 0 THEN 0.001 * (1 + g %% 10) END"),
        ("total_ms", "1 + g %% 1000"),
        ("first_token_ms", "CASE WHEN g %% 4 = 0 THEN 1 + g %% 100 END"),
        ("retrieval_ms", "CASE WHEN g %% 2 = 0 THEN 1 + g %% 100 END"),
        ("retrieval_error", "CASE WHEN g %% 100 = 2 THEN 'retrieval_failed' END"),
        ("passages", "CASE WHEN g %% 2 = 0 AND g %% 100 <> 2 THEN (g %% 10)::int END"),
        ("context_tokens", "CASE WHEN g %% 2 = 0 AND g %% 100 <> 2 THEN 50 * (g %% 10) END"),
        ("cited", "CASE WHEN g %% 2 = 0 AND g %% 10 <> 8 THEN g %% 10 = 4 END"),
    )
    async with database.connection() as connection:
        await write(connection, STABLE.having(columns=columns))
        metrics = (await survey(connection)).baseline.metrics
    rates = {metric.name: metrics[metric.name].level for metric in EVENT_METRICS if metric.observed is None}
    assert rates == {
        "error_rate": 0.01,
        "attempt_error_rate": 0.02,
        "fallback_rate": 0.025,
        "refusal_rate": 0.05,
        "content_filter_rate": 0.04,
        "abort_rate": 0.1,
    }
    assert all(metrics[name].observations == 2_000 for name in rates)
    numbers = np.arange(2_000)
    complete = np.sort(1 + numbers[(numbers % 100 != 0) & (numbers % 10 != 5)] % 1000)
    assert metrics["latency_p95"].observations == complete.size == 1_780
    assert metrics["latency_p95"].level == complete[int(np.ceil(0.95 * complete.size)) - 1]
    assert metrics["latency_p50"].level == complete[int(np.ceil(0.5 * complete.size)) - 1]
    # Slow is what is slower than that, whoever broke it off, and what failed.
    slow = (1 + numbers % 1000 > metrics["latency_p95"].level) | (numbers % 100 == 0)
    assert metrics["slow_rate"].level == pytest.approx(slow.mean())
    assert metrics["first_token_p95"].observations == 500
    # Half of them were retrieved for; a hundredth of all failed there, and a tenth had no answer to cite in.
    assert (metrics["retrieval_error_rate"].observations, metrics["retrieval_error_rate"].level) == (1_000, 0.02)
    assert (metrics["empty_result_rate"].observations, metrics["empty_result_rate"].level) == (980, 200 / 980)
    assert (metrics["cited_answer_rate"].observations, metrics["cited_answer_rate"].level) == (800, 0.25)
    searches = numbers[(numbers % 2 == 0) & (numbers % 100 != 2)]
    searched = np.sort(1 + searches % 100)
    assert metrics["retrieval_p95"].observations == searched.size == 980
    assert metrics["retrieval_p95"].level == searched[int(np.ceil(0.95 * searched.size)) - 1]
    assert metrics["context_tokens"].observations == 980
    assert metrics["context_tokens"].level == pytest.approx((50 * (searches % 10)).mean())
    assert metrics["cost"].observations == 1_000
    assert metrics["cost"].level == pytest.approx(0.005)
    assert metrics["cost"].limit == pytest.approx(0.009)
    assert metrics["output_tokens"].level == 20
    assert metrics.keys() <= MEASURED.keys()


async def test_values_are_cut_off_at_their_limit(database: Database) -> None:
    async with database.connection() as connection:
        await write(connection, STABLE.having(columns=(("cost_usd", "CASE WHEN g = 7 THEN 1000 ELSE 0.001 END"),)))
        cost = (await survey(connection)).baseline.metrics["cost"]
    assert cost.level == pytest.approx(0.001)
    assert cost.limit == 0.001


async def test_only_assigned_traffic_of_the_stable_arm_counts(database: Database) -> None:
    bad = (("release_error", "true"),)
    async with database.connection() as connection:
        await write(connection, STABLE.having(count=400))
        await write(connection, STABLE.having(count=400, rollout=1, kind=int(Kind.MANUAL)))
        await write(connection, STABLE.having(count=400, rollout=1, kind=int(Kind.HOLDBACK)))
        for changes in (
            {"kind": int(Kind.PINNED)},
            {"kind": int(Kind.SHADOW)},
            {"arm": 1, "rollout": 1},
            {"release": 2},
            {"application": 2},
            {"until": NOW - timedelta(days=7, hours=1)},
        ):
            await write(connection, STABLE.having(count=100, columns=bad, thumbs=1.0, **changes))
        found = await survey(connection)
    assert found.baseline.interactions == 1_200
    assert found.baseline.metrics["error_rate"].level == 0
    assert "thumbs_up" not in found.baseline.metrics


async def test_a_unit_rates_once_by_its_first_value(database: Database) -> None:
    async with database.connection() as connection:
        await write(connection, STABLE.having(thumbs=1.0))
        await connection.execute(
            "INSERT INTO feedback (id, at, target, target_id, application, release, rollout, stage, arm, kind, unit,"
            " exposed_at, metric, number, source, author, key) SELECT gen_random_uuid(), at + interval '1 second',"
            " target, target_id || 'x', application, release, rollout, stage, arm, kind, unit, exposed_at, metric, 0,"
            " source, 'v', key FROM feedback"
        )
        found = await survey(connection)
    thumbs = found.baseline.metrics["thumbs_up"]
    assert thumbs.observations == 500
    assert thumbs.level == pytest.approx(0.7, abs=0.01)
    assert thumbs.unit_variance == pytest.approx(thumbs.level * (1 - thumbs.level))
    assert found.traffic is not None
    assert found.traffic.ratings_per_unit == {"thumbs_up": pytest.approx(1.0)}


async def test_ratings_of_whole_conversations_count_where_these_are_the_unit(database: Database) -> None:
    async with database.connection() as connection:
        await write(connection, STABLE.having(thumbs=1.0))
        await connection.execute("UPDATE feedback SET target = 'conversation'")
        assert (await survey(connection, unit="conversation")).baseline.metrics["thumbs_up"].observations == 500
        assert "thumbs_up" not in (await survey(connection, unit="user")).baseline.metrics


async def test_bounded_and_positive_ratings(database: Database) -> None:
    async with database.connection() as connection:
        await write(connection, STABLE.having(thumbs=1.0, turns=1))
        await connection.execute(
            "UPDATE feedback SET metric = 'stars', number = 1 + n.n %% 5 FROM"
            " (SELECT id, row_number() OVER (ORDER BY at) AS n FROM feedback) n WHERE n.id = feedback.id".replace(
                "%%", "%"
            )
        )
        stars = (await survey(connection, "stars")).baseline.metrics["stars"]
        assert (stars.observations, stars.level, stars.limit) == (2_000, 3.0, None)
        assert stars.unit_variance == pytest.approx(2.0)
        await connection.execute(
            "UPDATE feedback SET metric = 'minutes_saved', number = CASE number WHEN 5 THEN 9 ELSE 2 END"
        )
        saved = (await survey(connection, "minutes_saved")).baseline.metrics["minutes_saved"]
        assert (saved.observations, saved.limit) == (2_000, 9.0)
        assert saved.level == pytest.approx(0.8 * 2 + 0.2 * 9)


async def test_responses_are_counted_per_unit(database: Database) -> None:
    async with database.connection() as connection:
        await write(connection, STABLE.having(hours=20.0, thumbs=0.5))
        await connection.execute(
            "WITH r AS (INSERT INTO report (id, at, title, description, severity, status, author, key, updated_at)"
            " VALUES (gen_random_uuid(), now(), 't', '', 'low', 'open', 'a', 1, now()) RETURNING id)"
            " INSERT INTO report_interaction SELECT r.id, i.id, 'x', 1, i.at FROM r, interaction i"
            " WHERE get_byte(i.unit, 0) < 25"
        )
        metrics = (await survey(connection, "feedback_rate", "report_rate")).baseline.metrics
    # Those of the last hour have had no time to answer.
    assert 1_800 < metrics["feedback_rate"].observations < 2_000
    assert metrics["feedback_rate"].level == pytest.approx(0.5, abs=0.05)
    assert metrics["report_rate"].level == pytest.approx(0.1, abs=0.05)


async def test_variances_are_those_of_daily_buckets(database: Database) -> None:
    # All errors come from one conversation in eight: the buckets vary far more than independent calls would.
    columns = (("release_error", "g / 40 %% 8 = 0"),)
    async with database.connection() as connection:
        await write(connection, STABLE.having(count=20_000, hours=100.0, turns=40, columns=columns))
        error = (await survey(connection)).baseline.metrics["error_rate"]
        cursor = await connection.execute(
            "SELECT floor(extract(epoch FROM %s - at) / 86400)::int, get_byte(unit, 15), release_error"
            " FROM interaction",
            (NOW,),
        )
        rows = np.array(await cursor.fetchall(), dtype=float)
    spread, freedom, calls, cells = expected_variance(rows)
    assert error.bucket_interactions is not None
    assert error.unit_variance is not None
    assert error.bucket_interactions == pytest.approx(calls / cells)
    assert error.unit_variance == pytest.approx(spread / freedom / (calls / cells))
    independent = error.level * (1 - error.level) / error.bucket_interactions
    assert error.unit_variance > 5 * independent


def expected_variance(rows: Any) -> Sequence[float]:
    spread, freedom, cells = 0.0, 0.0, 0.0
    for day in np.unique(rows[:, 0]):
        today = rows[rows[:, 0] == day]
        m = np.bincount(today[:, 1].astype(int), minlength=256)
        y = np.bincount(today[:, 1].astype(int), today[:, 2], minlength=256)
        stats = RatioStatistics.from_units(y, m)
        buckets = float((m > 0).sum())
        spread += (buckets - 1) * float(ratio_variance(stats).variance) * m.sum()
        freedom += buckets - 1
        cells += buckets
    return spread, freedom, float(len(rows)), cells


async def test_a_rate_of_nought_still_varies(database: Database) -> None:
    async with database.connection() as connection:
        await write(connection, STABLE)
        error = (await survey(connection)).baseline.metrics["error_rate"]
    assert error.level == 0
    assert error.unit_variance is not None
    assert error.unit_variance > 0


async def test_declared_levels_fill_what_is_missing(database: Database) -> None:
    declared = {
        "thumbs_up": DeclaredBaseline(0.6),
        "error_rate": DeclaredBaseline(0.5),
        "cost": DeclaredBaseline(0.002, 0.05),
        "latency_p95": DeclaredBaseline(800.0),
    }
    names = ("thumbs_up", "error_rate", "cost", "latency_p95", "slow_rate", "stars")
    async with database.connection() as connection:
        await write(connection, STABLE.having(count=1_500, columns=(("cost_usd", "NULL"), ("aborted", "g %% 2 = 0"))))
        found = await survey(connection, *names, baselines=declared)
    metrics = found.baseline.metrics
    assert (metrics["thumbs_up"].observations, metrics["thumbs_up"].level) == (0, 0.6)
    assert metrics["thumbs_up"].unit_variance == pytest.approx(0.24, rel=0.01)
    assert (metrics["error_rate"].observations, metrics["error_rate"].level) == (1_500, 0.0)
    assert (metrics["cost"].observations, metrics["cost"].level, metrics["cost"].limit) == (0, 0.002, 0.05)
    assert (metrics["latency_p95"].observations, metrics["latency_p95"].level) == (0, 800.0)  # 750 are too few
    terms = Terms(make_policy(*names, baselines=declared), "conversation", FEEDBACK, found.baseline)
    assert [gap.metric for gap in baseline_gaps(terms)] == ["stars"]


async def test_what_is_nought_throughout_is_no_baseline(database: Database) -> None:
    async with database.connection() as connection:
        await write(connection, STABLE.having(columns=(("cost_usd", "0"), ("error", "'provider_error'"))))
        metrics = (await survey(connection, "cost", "slow_rate")).baseline.metrics
    assert "cost" not in metrics
    assert "latency_p95" not in metrics
    assert "slow_rate" not in metrics


async def test_traffic_is_that_of_the_last_day(database: Database) -> None:
    async with database.connection() as connection:
        await write(connection, STABLE.having(count=4_800, hours=96.0, thumbs=0.25))
        found = (await survey(connection)).traffic
    assert found is not None
    assert found.interactions_per_hour == pytest.approx(50)
    assert found.units_per_hour == pytest.approx(12.5, rel=0.01)
    assert found.unit_growth == pytest.approx(1.0, abs=0.01)
    assert found.ratings_per_unit["thumbs_up"] == pytest.approx(0.25, abs=0.05)


async def test_traffic_that_has_just_begun(database: Database) -> None:
    async with database.connection() as connection:
        await write(connection, STABLE.having(count=600, hours=1 / 60))
        found = (await survey(connection)).traffic
        assert found is not None
        assert found.interactions_per_hour == pytest.approx(36_000, rel=0.01)
        await connection.execute("DELETE FROM interaction WHERE at < (SELECT max(at) FROM interaction)")
        assert (await survey(connection)).traffic is None


async def test_users_who_come_back_are_told_from_new_ones(database: Database) -> None:
    async with database.connection() as connection:
        await write(connection, STABLE.having(count=7_000, hours=168.0, units=100))
        found = (await survey(connection, unit="user")).traffic
    assert found is not None
    assert found.units_per_hour * 24 == pytest.approx(100)
    assert found.unit_growth == pytest.approx(0.0, abs=0.01)


async def test_a_bounded_sample_stands_for_all(
    database: Database, proof: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 300_000 if proof else 30_000
    monkeypatch.setattr(baselines, "SAMPLED_ROWS", count // 6)
    columns = (("release_error", "g %% 97 = 0"),)
    async with database.connection() as connection:
        await write(connection, STABLE.having(count=count, hours=168.0, columns=columns, thumbs=0.2))
        await connection.commit()
        started = time.monotonic()
        found = await survey(connection)
        seconds = time.monotonic() - started
        print(f"{count:,} interactions: {seconds:.3f} s")
        assert seconds < 5  # without statistics of the tables, as after midnight
        place = {"application": 1, "release": 1, "now": NOW, "since": NOW - timedelta(days=7), "rows": count // 6}
        plan = await explain(connection, place | {"kinds": [1], "stable": 0})
    assert found.baseline.interactions == pytest.approx(count / 6, rel=0.03)
    assert found.traffic is not None
    assert found.traffic.interactions_per_hour == pytest.approx(count / 168, rel=0.02)
    assert found.baseline.metrics["error_rate"].level == pytest.approx(1 / 97, rel=0.2)
    assert found.baseline.metrics["thumbs_up"].level == pytest.approx(0.7, abs=0.02)
    assert "Seq Scan on interaction" not in plan
    assert "application_release_at_idx" in plan


async def explain(connection: Connection, values: dict[str, Any]) -> str:
    await connection.execute("ANALYZE interaction")
    cursor = await connection.execute(b"EXPLAIN " + baselines._INTERACTIONS.as_bytes(connection), values)
    return "\n".join(line for (line,) in await cursor.fetchall())
