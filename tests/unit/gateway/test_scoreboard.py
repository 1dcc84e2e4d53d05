"""The scoreboard: workers count side by side, and what a killed one lost is known."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from headway.errors import ConfigurationError, StorageError
from headway.gateway.scoreboard import SLOTS, Column, Scoreboard

MINUTE = 60_000
NOW = 1_790_000_040_000  # at the start of a minute


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[tuple[Scoreboard, Scoreboard]]:
    with closing(Scoreboard.open(tmp_path)) as one, closing(Scoreboard.open(tmp_path)) as other:
        yield one, other


def test_each_worker_has_a_slot_of_its_own(boards: tuple[Scoreboard, Scoreboard]) -> None:
    assert [board.slot for board in boards] == [0, 1]


def test_a_slot_is_free_again_after_its_worker(tmp_path: Path) -> None:
    with closing(Scoreboard.open(tmp_path)) as first:
        Scoreboard.open(tmp_path).close()
        with closing(Scoreboard.open(tmp_path)) as third:
            assert (first.slot, third.slot) == (0, 1)


def test_there_are_only_so_many_slots(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for _ in range(SLOTS):
            stack.enter_context(closing(Scoreboard.open(tmp_path)))
        with pytest.raises(ConfigurationError, match="HEADWAY_HOME"):
            Scoreboard.open(tmp_path)


def test_counts_are_summed_over_workers(boards: tuple[Scoreboard, Scoreboard]) -> None:
    one, other = boards
    for board in (one, one, other):
        board.begin(7, NOW)
    assert one.in_flight(7) == other.in_flight(7) == 3
    assert one.requests_per_minute(7, NOW) == other.requests_per_minute(7, NOW) == 3
    assert one.in_flight(8) == 0
    one.end(7)
    assert other.in_flight(7) == 2
    assert other.requests_per_minute(7, NOW) == 3


def test_the_minute_before_counts_by_the_part_that_is_still_covered(boards: tuple[Scoreboard, Scoreboard]) -> None:
    one, other = boards
    for _ in range(40):
        one.begin(1, NOW)
    for _ in range(20):
        other.begin(1, NOW + MINUTE // 2)
    later = NOW + MINUTE + MINUTE // 4
    assert one.requests_per_minute(1, later) == pytest.approx(60 * 0.75)
    one.begin(1, later)
    assert one.requests_per_minute(1, later) == pytest.approx(60 * 0.75 + 1)
    assert other.requests_per_minute(1, NOW + 2 * MINUTE) == pytest.approx(1.0)
    assert other.requests_per_minute(1, NOW + 3 * MINUTE) == 0.0


def test_the_file_grows_with_the_number_of_keys(boards: tuple[Scoreboard, Scoreboard]) -> None:
    one, other = boards
    one.begin(3, NOW)
    one.begin(5000, NOW)
    other.begin(5000, NOW)
    other.begin(20_000, NOW)
    assert (one.in_flight(3), one.in_flight(5000), one.in_flight(20_000)) == (1, 2, 1)
    one.end(5000)
    assert other.in_flight(5000) == 1


def test_a_worker_that_has_stopped_has_nothing_in_flight(boards: tuple[Scoreboard, Scoreboard]) -> None:
    one, other = boards
    other.begin(1, NOW)
    other.close()
    one.refresh()
    assert one.in_flight(1) == 0
    assert one.requests_per_minute(1, NOW) == 1


def test_a_slot_begins_with_nothing_in_flight(tmp_path: Path) -> None:
    with closing(Scoreboard.open(tmp_path)) as first:
        for key in (1, 300):
            first.begin(key, NOW)
    with closing(Scoreboard.open(tmp_path)) as second:
        assert second.slot == 0
        assert (second.in_flight(1), second.in_flight(300)) == (0, 0)
        assert second.workers()[0].in_flight == 0


def test_columns_are_seen_by_whoever_watches(tmp_path: Path) -> None:
    with closing(Scoreboard.open(tmp_path)) as worker, closing(Scoreboard.watch(tmp_path)) as watcher:
        worker.add(Column.ACCEPTED, 5)
        worker.add(Column.RECORDED, 3)
        worker.put(Column.SPOOL_BYTES, 9)
        (state,) = watcher.workers()
        assert (state.alive, state.pid) == (True, os.getpid())
        assert (state.accepted, state.recorded, state.queue, state.spool_bytes) == (5, 3, 2, 9)
        worker.close()
        (state,) = watcher.workers()
        assert (state.alive, state.accepted, state.queue, state.spool_bytes) == (False, 5, 0, 0)


def test_a_scoreboard_of_another_version_is_made_anew(tmp_path: Path) -> None:
    Scoreboard.open(tmp_path).close()
    with (tmp_path / "scoreboard").open("r+b") as file:
        file.write(b"headway0")
    with closing(Scoreboard.open(tmp_path)) as board:
        assert board.slot == 0


def test_a_home_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="scoreboard"):
        Scoreboard.open(tmp_path / "file")


COUNT_AND_DIE = """
import os, signal, sys
from pathlib import Path
from headway.gateway.scoreboard import Column, Scoreboard

board = Scoreboard.open(Path(sys.argv[1]))
accepted, recorded, pending, booked = map(int, sys.argv[2:])
board.begin(1, {now})
board.add(Column.ACCEPTED, accepted)
board.add(Column.RECORDED, recorded)
if pending:
    board.expect(9, pending)
if booked:
    board.add(Column.RECORDED, booked)
print(board.worker, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def count_and_die(home: Path, accepted: int, recorded: int, pending: int = 0, booked: int = 0) -> str:
    script = COUNT_AND_DIE.format(now=NOW)
    numbers = map(str, (accepted, recorded, pending, booked))
    done = subprocess.run([sys.executable, "-c", script, str(home), *numbers], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    return done.stdout.decode().strip()


@pytest.mark.fault
def test_what_a_killed_worker_lost_is_known_to_the_next(tmp_path: Path) -> None:
    worker = count_and_die(tmp_path, accepted=10, recorded=6, pending=3)
    with closing(Scoreboard.open(tmp_path)) as board:
        (found,) = board.predecessors
        assert (str(found.worker), found.sequence, found.pending, found.missing) == (worker, 9, 3, 4)
        assert board.in_flight(1) == 0
        board.add(Column.LOST, 1)
        board.add(Column.RECORDED, 3)
    with closing(Scoreboard.open(tmp_path)) as board:
        assert board.predecessors == []
        assert board.workers()[0].lost == 1


@pytest.mark.fault
def test_a_batch_that_was_booked_is_not_pending(tmp_path: Path) -> None:
    count_and_die(tmp_path, accepted=10, recorded=5, pending=3, booked=3)
    with closing(Scoreboard.open(tmp_path)) as board:
        (found,) = board.predecessors
        assert (found.pending, found.missing) == (0, 2)


@pytest.mark.fault
def test_a_killed_workers_requests_are_not_in_flight_for_the_others(tmp_path: Path) -> None:
    with closing(Scoreboard.open(tmp_path)) as living:
        count_and_die(tmp_path, accepted=0, recorded=0)
        assert living.in_flight(1) == 1
        living.refresh()
        assert living.in_flight(1) == 0


@pytest.mark.fault
def test_with_fewer_workers_than_before_no_loss_goes_unnoticed(tmp_path: Path) -> None:
    with closing(Scoreboard.open(tmp_path)):
        killed = count_and_die(tmp_path, accepted=8, recorded=2)
    with closing(Scoreboard.open(tmp_path)) as board:
        assert board.slot == 0
        (found,) = board.predecessors
        assert (str(found.worker), found.missing) == (killed, 6)
        board.add(Column.LOST, 6)
        with closing(Scoreboard.open(tmp_path)) as next_board:
            assert (next_board.slot, next_board.predecessors) == (1, [])
            states = next_board.workers()
            assert sum(state.accepted for state in states) == 8
            assert sum(state.recorded + state.lost for state in states) == 8
