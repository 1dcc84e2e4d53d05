import itertools
import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from benchmarks.machine import Cores, pin, read_busy_seconds
from benchmarks.processes import Process, ProcessError, choose_port, is_listening, start

# Burns a known amount of CPU in every place where it can hide, says how much, and waits.
BURNER = """
    import os, threading, time

    def burn(seconds, clock):
        until = clock() + seconds
        while clock() < until:
            pass

    def fork(seconds, stay):
        pid = os.fork()
        if pid:
            return pid
        burn(seconds, time.process_time)
        print("burnt", time.process_time(), flush=True)
        if stay:
            time.sleep(60)
        os._exit(0)

    os.waitpid(fork(0.15, stay=False), 0)  # a child that ended
    fork(0.1, stay=True)                   # one that lives
    ended = threading.Thread(target=burn, args=(0.1, time.thread_time))
    ended.start()
    ended.join()                           # a thread that ended
    burn(0.2, time.thread_time)
    print("burnt", time.process_time(), flush=True)
    time.sleep(60)
"""


def run_python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def read_burnt(process: Process) -> list[float]:
    lines = process.log.read_text().splitlines()
    return [float(line.split()[1]) for line in lines if line.startswith("burnt")]


def test_the_cpu_of_a_tree_holds_ended_children_and_threads(tmp_path: Path) -> None:
    with start(run_python(BURNER), tmp_path / "log") as process:
        process.wait_until(lambda: len(read_burnt(process)) == 3, 20, "the burner")
        burnt = sum(read_burnt(process))
        assert burnt > 0.55
        assert len(process.tree.members()) == 2
        assert process.tree.cpu_seconds() == pytest.approx(burnt, abs=0.04)


def test_the_cpu_of_a_tree_never_falls_while_children_end(tmp_path: Path) -> None:
    code = """
        import os, time
        for _ in range(5):
            pid = os.fork()
            if not pid:
                while time.process_time() < 0.05:
                    pass
                os._exit(0)
            os.waitpid(pid, 0)
        print("burnt", time.process_time(), flush=True)
        time.sleep(60)
    """
    readings: list[float] = []
    with start(run_python(code), tmp_path / "log") as process:

        def read() -> bool:
            readings.append(process.tree.cpu_seconds())
            return bool(read_burnt(process))

        process.wait_until(read, 20, "the burner")
    # A child's nanoseconds become ticks of 10 ms, user and system apart, when its parent reaps it; a reading in the
    # very moment that a child ends may miss that one, and no more.
    assert all(later >= earlier - 0.05 - 0.021 for earlier, later in itertools.pairwise(readings))
    assert readings[-1] > 0.2


def test_the_memory_of_a_tree_counts_what_is_touched(tmp_path: Path) -> None:
    code = """
        import os, time
        held = bytearray(os.urandom(1)) * (50 * 2**20)
        if not os.fork():
            more = bytearray(os.urandom(1)) * (30 * 2**20)
            print("burnt 0", flush=True)
            time.sleep(60)
        time.sleep(60)
    """
    with start(run_python(code), tmp_path / "log") as process:
        process.wait_until(lambda: bool(read_burnt(process)), 20, "the holder")
        megabytes = process.tree.memory_bytes() / 2**20
        assert 80 <= megabytes <= 105  # the 50 MB that both share count once


def test_a_tree_is_ended_whole_even_where_it_ignores_the_signal(tmp_path: Path) -> None:
    code = """
        import os, signal, time
        if not os.fork():
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("burnt 0", flush=True)
        time.sleep(60)
    """
    with start(run_python(code), tmp_path / "log") as process:
        process.wait_until(lambda: bool(read_burnt(process)), 20, "the stubborn one")
        members = process.tree.members()
        assert len(members) == 2
    assert process.child.returncode == -signal.SIGTERM
    for pid in members:
        status = Path(f"/proc/{pid}/stat")
        assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_process_that_ends_early_says_what_it_printed(tmp_path: Path) -> None:
    with (
        start(run_python("raise SystemExit('no such model')"), tmp_path / "log") as process,
        pytest.raises(ProcessError, match=r"(?s)the model ended with code 1.*no such model"),
    ):
        process.wait_until(lambda: False, 20, "the model")


def test_a_free_port_is_free() -> None:
    assert not is_listening(choose_port())


def test_the_environment_and_folder_reach_the_process(tmp_path: Path) -> None:
    code = "import os; print('burnt', os.environ['SECONDS'], flush=True); print(os.getcwd())"
    with start(run_python(code), tmp_path / "log", environment={"SECONDS": "7"}, folder=tmp_path) as process:
        process.child.wait(10)
        assert read_burnt(process) == [7.0]
        assert os.fspath(tmp_path.resolve()) in process.last_lines()


def test_a_busy_core_is_seen_as_busy(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    cores = Cores(measured=core, others=core)
    before = read_busy_seconds(cores)
    code = "import time\nwhile time.process_time() < 0.4: pass\nprint('burnt', time.process_time())"
    with start(pin(core, run_python(code)), tmp_path / "log") as process:
        assert process.child.wait(30) == 0
    assert read_busy_seconds(cores) - before > 0.35
