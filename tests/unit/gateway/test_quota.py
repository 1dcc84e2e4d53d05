"""Quotas of API keys, on a real scoreboard."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.clock import ManualClock
from headway.domain.snapshot import KeyRoute
from headway.errors import ConcurrencyLimitError, CostCapError, RateLimitError
from headway.gateway.quota import Quota, month_of
from headway.gateway.scoreboard import Scoreboard
from headway.storage.batches import KeyUsage
from tests.routes import make_key

MIDNIGHT = int(datetime(2026, 10, 1, tzinfo=UTC).timestamp() * 1000)
CAPPED = make_key(monthly_usd=1.0)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Scoreboard]:
    with closing(Scoreboard.open(tmp_path)) as opened:
        yield opened


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(MIDNIGHT - 3600_000)


@pytest.fixture
def quota(board: Scoreboard, clock: ManualClock) -> Quota:
    return Quota(board, clock)


def spend(quota: Quota, cost_usd: float | None) -> None:
    quota.admit(CAPPED)
    quota.leave(CAPPED, cost_usd)


def admit(quota: Quota, key: KeyRoute, times: int) -> None:
    for _ in range(times):
        quota.admit(key)


def recorded(total: float, batch: float, month: str = "2026-09") -> KeyUsage:
    return KeyUsage(CAPPED.number, month, 1, total, batch)


class TestConcurrency:
    def test_as_many_as_the_key_may_have(self, quota: Quota) -> None:
        key = make_key(concurrency=2)
        quota.admit(key)
        quota.admit(key)
        with pytest.raises(ConcurrencyLimitError, match="2 requests in flight") as caught:
            quota.admit(key)
        assert caught.value.retry_after_seconds
        quota.admit(make_key(number=8, concurrency=2))
        quota.leave(key, None)
        quota.admit(key)

    def test_workers_count_together(self, board: Scoreboard, clock: ManualClock, tmp_path: Path) -> None:
        key = make_key(concurrency=2)
        with closing(Scoreboard.open(tmp_path)) as other:
            Quota(board, clock).admit(key)
            Quota(other, clock).admit(key)
            with pytest.raises(ConcurrencyLimitError):
                Quota(board, clock).admit(key)

    def test_a_refused_request_takes_no_place(self, quota: Quota, board: Scoreboard) -> None:
        key = make_key(concurrency=1, requests_per_minute=1)
        quota.admit(key)
        quota.leave(key, None)
        for _ in range(3):
            with pytest.raises(RateLimitError):
                quota.admit(key)
        assert board.in_flight(key.number) == 0


class TestRate:
    def test_so_many_in_a_minute(self, quota: Quota, clock: ManualClock) -> None:
        key = make_key(requests_per_minute=3)
        admit(quota, key, 3)
        with pytest.raises(RateLimitError, match="3 requests per minute"):
            quota.admit(key)
        clock.advance(120)
        quota.admit(key)

    @given(limit=st.integers(1, 50), second=st.integers(0, 59), first=st.integers(0, 50))
    def test_it_says_truly_when_there_is_room(
        self, tmp_path_factory: pytest.TempPathFactory, limit: int, second: int, first: int
    ) -> None:
        clock = ManualClock(MIDNIGHT)
        key = make_key(requests_per_minute=limit)
        with closing(Scoreboard.open(tmp_path_factory.mktemp("board"))) as board:
            quota = Quota(board, clock)
            admit(quota, key, min(first, limit))
            clock.advance(60 + second)
            with pytest.raises(RateLimitError) as caught:
                admit(quota, key, limit + 1)
            wait = caught.value.retry_after_seconds
            assert wait is not None
            clock.advance(wait - 1)
            if wait > 1:
                with pytest.raises(RateLimitError):
                    quota.admit(key)
            clock.advance(1)
            quota.admit(key)

    def test_no_limit_is_no_limit(self, quota: Quota) -> None:
        admit(quota, make_key(), 5000)


class TestCost:
    def test_the_cap_is_hard(self, quota: Quota) -> None:
        spend(quota, 0.6)
        spend(quota, 0.6)  # was within when it came
        with pytest.raises(CostCapError, match=r"monthly cap of \$1"):
            spend(quota, 0.1)

    def test_a_cap_of_nothing_lets_nothing_in(self, quota: Quota) -> None:
        with pytest.raises(CostCapError):
            quota.admit(make_key(monthly_usd=0.0))

    def test_unknown_costs_cost_nothing(self, quota: Quota, clock: ManualClock) -> None:
        for _ in range(10):
            spend(quota, None)
        assert quota.spent_usd(CAPPED.number, clock.unix_ms()) == 0

    def test_what_is_recorded_is_not_counted_twice(self, quota: Quota, clock: ManualClock) -> None:
        spend(quota, 0.25)
        spend(quota, 0.5)
        quota.note_recorded(recorded(0.25, 0.25))
        assert quota.spent_usd(CAPPED.number, clock.unix_ms()) == pytest.approx(0.75)
        quota.note_recorded(recorded(0.75, 0.5))
        assert quota.spent_usd(CAPPED.number, clock.unix_ms()) == pytest.approx(0.75)

    def test_what_other_workers_spent_counts(self, quota: Quota, clock: ManualClock) -> None:
        spend(quota, 0.25)
        quota.note_totals("2026-09", {CAPPED.number: 0.7})
        assert quota.spent_usd(CAPPED.number, clock.unix_ms()) == pytest.approx(0.95)
        quota.note_recorded(recorded(1.0, 0.25))
        assert quota.spent_usd(CAPPED.number, clock.unix_ms()) == pytest.approx(1.0)
        with pytest.raises(CostCapError):
            quota.admit(CAPPED)

    def test_an_older_total_does_not_take_anything_back(self, quota: Quota, clock: ManualClock) -> None:
        quota.note_totals("2026-09", {CAPPED.number: 0.7})
        quota.note_totals("2026-09", {CAPPED.number: 0.2})
        quota.note_recorded(recorded(0.3, 0.1))
        assert quota.spent_usd(CAPPED.number, clock.unix_ms()) == 0.7

    def test_a_new_month_begins_at_midnight_utc(self, quota: Quota, clock: ManualClock) -> None:
        spend(quota, 2)
        quota.note_totals("2026-09", {CAPPED.number: 5.0})
        clock.advance(3599.999)
        with pytest.raises(CostCapError):
            spend(quota, 0.1)
        clock.advance(0.001)
        spend(quota, 0.1)
        assert quota.spent_usd(CAPPED.number, clock.unix_ms()) == pytest.approx(0.1)

    @pytest.mark.parametrize("touched", [True, False])
    def test_a_batch_of_last_month_does_not_fill_the_new_one(
        self, quota: Quota, clock: ManualClock, touched: bool
    ) -> None:
        spend(quota, 0.9)
        clock.advance(3600)
        if touched:
            spend(quota, 0.1)
        quota.note_recorded(recorded(100.0, 0.9))
        quota.note_totals("2026-09", {CAPPED.number: 100.0})
        spend(quota, 0.1)
        assert quota.spent_usd(CAPPED.number, clock.unix_ms()) < 1

    def test_what_ended_after_midnight_but_began_before_leaves_the_new_month(
        self, quota: Quota, clock: ManualClock
    ) -> None:
        quota.admit(CAPPED)
        clock.advance(3601)
        quota.leave(CAPPED, 0.9)
        quota.note_recorded(recorded(100.0, 0.9))
        assert quota.spent_usd(CAPPED.number, clock.unix_ms()) == 0


def test_months_are_those_of_utc() -> None:
    assert month_of(MIDNIGHT - 1) == "2026-09"
    assert month_of(MIDNIGHT) == "2026-10"
