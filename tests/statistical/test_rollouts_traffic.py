"""The simulated traffic is what the scenarios say: otherwise all figures of the simulation are about something else."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from headway.domain.assignment import is_candidate, position
from headway.domain.evidence import fold
from headway.domain.rollout import Status
from headway.rollouts.simulation.catalogue import SCENARIOS, slower
from headway.rollouts.simulation.history import agree_terms, measure
from headway.rollouts.simulation.population import CHUNK, Chunk, Population
from headway.rollouts.simulation.scenarios import STABLE_P95_MS, Raters, Release, Scenario, Wiring
from headway.rollouts.simulation.stream import Stream
from headway.stats import log_histogram_bin

IDENTICAL = SCENARIOS["identical"]
USERS = SCENARIOS["users"]


def status(share: float, stage: int = 1) -> Status:
    return Status(state="ramp", step=0, stage=stage, share=share, since_ms=0, started_ms=0)


def chunks(scenario: Scenario, count: int = 1, seed: int = 3) -> list[Chunk]:
    population = Population(scenario, seed)
    return [population.draw() for _ in range(count)]


def near(rate: float, size: int, errors: float = 4.0) -> object:
    return pytest.approx(rate, abs=errors * math.sqrt(rate * (1 - rate) / size))


def test_rates_are_those_of_the_releases() -> None:
    worse = Release(thumbs_up=0.6, errors=0.05, refusals=0.04, attempt_errors=1.0, fallbacks=1.0, latency=slower(2.0))
    (chunk,) = chunks(replace(IDENTICAL, candidate=worse))
    stable, candidate = chunk.outcomes
    for name, before, after in (
        ("failed", 0.005, 0.05),
        ("refused", 0.02, 0.04),
        ("filtered", 0.05, 0.05),
        ("attempt_failed", 0.01, 1.0),
        ("fell_back", 0.005, 1.0),
        ("likes", 0.7, 0.6),
        ("rates", 0.05, 0.05),
    ):
        assert getattr(stable, name).mean() == near(before, CHUNK), name
        assert getattr(candidate, name).mean() == near(after, CHUNK), name
    assert (stable.total_ms > STABLE_P95_MS).mean() == near(0.05, CHUNK)
    assert (candidate.total_ms > STABLE_P95_MS).mean() == near(0.10, CHUNK)
    # The same luck under both: whom the better release fails, the worse one fails too.
    assert not (stable.failed & ~candidate.failed).any()


def test_a_slow_call_is_one_beyond_an_edge_of_the_histogram() -> None:
    assert log_histogram_bin(STABLE_P95_MS * 0.999_999) == 399
    assert log_histogram_bin(STABLE_P95_MS * 1.000_001) == 400
    assert [test.stable_bin for test in agree_terms(IDENTICAL).recording.slow] == [399]
    assert slower(2.03) == pytest.approx(1.25, abs=0.001)


def test_units_are_placed_by_the_real_assignment() -> None:
    population = Population(USERS, 3)
    chunk = population.draw()
    for number, place in zip(chunk.numbers[:500].tolist(), chunk.positions[:500].tolist(), strict=True):
        assert place == position(population.salt, f"unit-{number}")
        assert (place < 0.05) == is_candidate(population.salt, f"unit-{number}", 0.05)
    spread = np.histogram(chunk.positions, 10, (0, 1))[0] / CHUNK
    assert spread == pytest.approx(np.full(10, 0.1), abs=0.02)


def test_users_come_back_and_leave() -> None:
    parts = chunks(USERS, 10)
    numbers = np.concatenate([chunk.numbers for chunk in parts])
    known = numbers[: 5 * CHUNK]  # of those who have had the time to leave
    first, calls = np.unique(known, return_counts=True)[0], np.unique(numbers, return_counts=True)
    lived = np.isin(calls[0], first)
    assert calls[1][lived].mean() == pytest.approx(20, rel=0.1)
    hashes: dict[int, bytes] = {}
    for chunk in parts:
        for index in range(0, CHUNK, 97):
            unit = chunk.units[8 * index : 8 * index + 8]
            assert hashes.setdefault(int(chunk.numbers[index]), unit) == unit


def test_ratings_of_a_user_are_correlated() -> None:
    parts = chunks(USERS, 10)
    numbers = np.concatenate([chunk.numbers for chunk in parts])
    likes = np.concatenate([chunk.outcomes[0].likes for chunk in parts]).astype(float)
    sizes, totals = np.bincount(numbers), np.bincount(numbers, likes)
    pairs = (sizes * (sizes - 1)).sum()
    both = (totals * (totals - 1)).sum() / pairs  # of two answers to one user, both are liked
    one = (totals * (sizes - 1)).sum() / pairs
    assert (both - one**2) / (one * (1 - one)) == pytest.approx(0.2, abs=0.03)


def test_a_few_users_have_all_the_errors() -> None:
    parts = chunks(SCENARIOS["few-users"], 5)
    numbers = np.concatenate([chunk.numbers for chunk in parts])
    failed = np.concatenate([chunk.outcomes[0].failed for chunk in parts])
    assert failed.mean() == near(0.005, failed.size, errors=10)
    assert np.unique(numbers[failed]).size <= 0.06 * np.unique(numbers).size


def test_hard_questions_become_more() -> None:
    parts = chunks(SCENARIOS["drift"], 6)
    liked = [float(chunk.outcomes[0].likes.mean()) for chunk in parts]
    assert liked[0] == pytest.approx(0.7 - 0.3 * 0.16, abs=0.02)
    assert liked[5] == pytest.approx(0.7 - 0.3 * 0.7, abs=0.02)


def test_streams_depend_on_the_seed_alone() -> None:
    one, same, other = (Population(IDENTICAL, seed).draw() for seed in ((1, 2), (1, 2), (1, 3)))
    assert one.units == same.units != other.units
    assert (one.outcomes[1].total_ms == same.outcomes[1].total_ms).all()


def test_growing_the_share_moves_nobody_back() -> None:
    stream, met = Stream(USERS, 4), set[bytes]()
    for stage, share in enumerate((0.01, 0.05, 0.25, 0.5, 0.98), start=1):
        for _ in range(20):
            for each in stream.take(status(share, stage)).interactions:
                assert each.stage == stage
                assert each.release == 1 + each.arm
                if each.arm:
                    met.add(each.unit)
                else:
                    assert each.unit not in met
    assert met


def test_what_happened_to_one_interaction_does_not_stick_to_the_next() -> None:
    """Objects are used again."""
    stream, now = Stream(replace(IDENTICAL, stable=Release(errors=0.3, refusals=0.3)), 5), status(0.01)
    ids, failed, refused, seen = set[bytes](), 0, 0, 0
    for _ in range(50):
        for each in stream.take(now).interactions:
            ids.add(each.id)
            seen += 1
            failed += each.release_error
            refused += each.refused
            assert (each.error is not None) == each.release_error == (each.status == 502)
    assert len(ids) == seen
    assert failed / seen == near(0.3, seen)
    assert refused / seen == near(0.3, seen)


def test_retries() -> None:
    scenario = replace(SCENARIOS["retries-x1.25"], traffic=replace(SCENARIOS["retries-x1.25"].traffic, per_tick=1000))
    stream, counts = Stream(scenario, 6), [0, 0]
    for _ in range(20):
        for each in stream.take(status(0.5)).interactions:
            counts[each.arm] += 1
    assert sum(counts) == pytest.approx(20_000 * 1.125, rel=0.02)
    assert counts[1] / counts[0] == pytest.approx(1.25, rel=0.1)


@pytest.mark.parametrize(("wiring", "arm", "release"), [("right", 0, 1), ("releases", 0, 2), ("arms", 1, 1)])
def test_wirings(wiring: Wiring, arm: int, release: int) -> None:
    stream = Stream(replace(SCENARIOS["identical"], wiring=wiring), 7)
    (only,) = {(each.arm, each.release) for each in stream.take(status(0.0)).interactions}
    assert only == (arm, release)


def test_ratings_follow_their_answers() -> None:
    raters = Raters(delay_seconds=3600, slips=0.5, changes=0.5)
    stream = Stream(replace(IDENTICAL, stable=Release(feedback=1.0, errors=0.0), raters=raters), 8)
    taken = stream.take(status(0.01))
    said: dict[bytes, list[tuple[int, float]]] = {}
    for each in taken.spoken:
        said.setdefault(each.target, []).append((each.unix_ms - each.exposed_unix_ms, each.value))
    assert said.keys() == {each.id for each in taken.interactions}
    slips = [values for values in said.values() if len(values) > 1 and values[1][0] == values[0][0] + 30_000]
    assert 0.3 < len(slips) / len(said) < 0.7
    assert all(values[0] == (3_600_000, 1 - values[1][1]) for values in slips)
    assert {values[-1][0] for values in said.values()} <= {3_600_000, 3_630_000, 3_600_000 + 7_200_000}


def test_the_baseline_is_near_the_truth() -> None:
    metrics = measure(SCENARIOS["conversations"]).metrics
    assert metrics["thumbs_up"].level == pytest.approx(0.7, abs=0.02)
    assert metrics["error_rate"].level == pytest.approx(0.005, abs=0.001)
    assert metrics["latency_p95"].level == pytest.approx(STABLE_P95_MS, rel=0.02)
    assert metrics["cost"].level == pytest.approx(0.002 * math.exp(0.18), rel=0.02)
    assert metrics["attempt_error_rate"].level == pytest.approx(1 - 0.995 * 0.99 * 0.995, abs=0.002)
    # A bucket of units without correlation varies as independent interactions do.
    refusals = metrics["refusal_rate"]
    assert refusals.unit_variance is not None
    assert refusals.bucket_interactions is not None
    assert refusals.unit_variance * refusals.bucket_interactions == pytest.approx(0.02 * 0.98, rel=0.3)


def test_evidence_counts_what_was_drawn() -> None:
    stream, terms = Stream(IDENTICAL, 9), agree_terms(IDENTICAL)
    counts, _ = fold(stream.take(status(0.5)).interactions, {}, {1: terms.recording})
    assert sum(each.interactions for each in counts.values()) == IDENTICAL.traffic.per_tick
    assert all("slow_rate" in each.events for each in counts.values())
