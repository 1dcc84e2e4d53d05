"""What Prometheus is told: the counts of all workers of a home, living and dead."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from headway.api.metrics import render_metrics
from headway.config.settings import Settings
from headway.domain.interaction import Interaction
from headway.domain.release import Bundle
from headway.domain.snapshot import ApplicationRoute, ReleaseRoute, SigningKeys, Snapshot, encode_snapshot
from headway.gateway.measurements import ERRORS, Measurements, sum_measurements
from headway.gateway.scoreboard import Column, Scoreboard
from headway.ids import Arm
from tests.interactions import make_interaction

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(home: Path) -> Samples:
    text = render_metrics(Settings(home=home)).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@pytest.fixture
def measurements(tmp_path: Path) -> Measurements:
    return Measurements(tmp_path / "metrics", 0)


def write_snapshot(home: Path) -> None:
    application = ApplicationRoute(1, "support", "conversation", 1, None, {"a": 1}, True, {}, 30)
    release = ReleaseRoute(1, "gentle", Bundle(()), ())
    snapshot = Snapshot(1, 0, {"support": application}, {1: release}, {}, (), SigningKeys({}, 0, b""))
    (home / "snapshot.json").write_bytes(encode_snapshot(snapshot))


async def test_a_batch_is_told_by_its_names(tmp_path: Path, measurements: Measurements) -> None:
    write_snapshot(tmp_path)
    measurements.observe(
        [
            make_interaction(total_ms=300.0, first_token_ms=80.0, overhead_ms=0.6),
            make_interaction(arm=Arm.CANDIDATE, release=2, total_ms=40.0),
            make_interaction(status=502, error="provider_cut", release_error=True, attempts=3, attempt_errors=3),
        ]
    )
    await measurements.save()
    samples = scrape(tmp_path)
    names = {"application": "support", "release": "gentle"}
    chat = {**names, "operation": "chat"}
    assert value(samples, "headway_requests_total", **chat, arm="stable", status="2xx") == 1
    assert value(samples, "headway_requests_total", **chat, arm="stable", status="5xx") == 1
    candidate = {"application": "support", "release": "2", "operation": "chat", "arm": "candidate"}
    assert value(samples, "headway_requests_total", **candidate, status="2xx") == 1
    assert value(samples, "headway_errors_total", **names, code="provider_cut") == 1
    assert value(samples, "headway_events_total", **names, arm="stable", metric="error_rate") == 1
    assert value(samples, "headway_tokens_total", **names, direction="output") == 68
    assert value(samples, "headway_cost_usd_total", **names) == pytest.approx(0.0005)
    assert value(samples, "headway_provider_calls_total", deployment="local") == 5
    assert value(samples, "headway_provider_call_errors_total", deployment="local") == 3
    assert value(samples, "headway_latency_seconds_bucket", **chat, le="0.25") == 0
    assert value(samples, "headway_latency_seconds_bucket", **chat, le="0.5") == 1
    assert value(samples, "headway_latency_seconds_bucket", **chat, le="+Inf") == 1
    assert value(samples, "headway_latency_seconds_count", **chat) == 1
    assert value(samples, "headway_latency_seconds_sum", **chat) == pytest.approx(0.3)
    assert value(samples, "headway_first_token_seconds_count", **chat) == 2
    assert value(samples, "headway_overhead_seconds_bucket", le="0.001") == 3


async def test_workers_are_summed_and_a_slots_next_worker_counts_on(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    for slot, count in ((0, 1), (1, 10), (0, 100)):
        measurements = Measurements(folder, slot)
        measurements.observe([make_interaction() for _ in range(count)])
        await measurements.save()
    samples = scrape(tmp_path)
    labels = {"application": "1", "release": "1", "operation": "chat"}
    assert value(samples, "headway_requests_total", **labels, arm="stable", status="2xx") == 111
    assert value(samples, "headway_latency_seconds_count", **labels) == 111


async def test_codes_that_providers_make_up_are_bounded(tmp_path: Path, measurements: Measurements) -> None:
    measurements.observe([make_interaction(error=f"made_up_{number}") for number in range(300)])
    await measurements.save()
    errors = sum_measurements(tmp_path / "metrics")[ERRORS.name]
    assert len(errors) == 101
    assert errors["1", "1", "other"] == [200]


@pytest.mark.parametrize("content", [b"", b"{", b'{"series": 5}'])
async def test_a_file_that_cannot_be_read_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "0.json").write_bytes(content)
    assert sum_measurements(tmp_path / "metrics") == {}
    measurements = Measurements(tmp_path / "metrics", 0)
    measurements.observe([make_interaction()])
    await measurements.save()
    assert sum_measurements(tmp_path / "metrics")


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Scoreboard]:
    with closing(Scoreboard.open(tmp_path)) as opened:
        yield opened


def test_counters_of_the_dead_are_kept_and_their_gauges_are_not(tmp_path: Path, board: Scoreboard) -> None:
    dead = Scoreboard.open(tmp_path)
    for worker in (board, dead):
        worker.add(Column.ACCEPTED, 10)
        worker.add(Column.RECORDED, 6)
        worker.add(Column.DROPPED, 1)
        worker.put(Column.SPOOL_BYTES, 500)
        worker.put(Column.SPOOL_RECORDS, 2)
        worker.begin(1, 0)
    dead.close()
    board.add(Column.LOST, 2)
    samples = scrape(tmp_path)
    assert value(samples, "headway_interactions_accepted_total") == 20
    assert value(samples, "headway_interactions_recorded_total") == 12
    assert value(samples, "headway_interactions_dropped_total") == 2
    assert value(samples, "headway_interactions_lost_total") == 2
    assert value(samples, "headway_recorder_queue") == 1
    assert value(samples, "headway_spool_bytes") == 500
    assert value(samples, "headway_spool_batches") == 2
    assert value(samples, "headway_requests_in_flight") == 1
    assert value(samples, "headway_workers") == 1


def test_nothing_recorded_yet_is_no_error(tmp_path: Path) -> None:
    samples = scrape(tmp_path / "new")
    assert value(samples, "headway_workers") == 0
    assert value(samples, "headway_interactions_lost_total") == 0


def test_every_field_of_an_interaction_survives_the_spool() -> None:
    one = make_interaction(request=b"\xff\0", error="x", cost_usd=None)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=Interaction) == one
