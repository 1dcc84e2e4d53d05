"""The files of the embedded PostgreSQL under Headway's home, and the locks among them."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Layout:
    """Where everything is.

    Attributes:
        home: Headway's home, an absolute path without symbolic links.
    """

    home: Path

    @property
    def data(self) -> Path:
        """PostgreSQL's data folder."""
        return self.home / "postgres"

    @property
    def building(self) -> Path:
        """Where a data folder is set up before it gets its name; what is left there is rubbish."""
        return self.home / "postgres.new"

    @property
    def socket(self) -> Path:
        """The folder of the socket, or a symbolic link to it when home's path is too long for a socket."""
        return self.home / "postgres.socket"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.home / "postgres.log"

    @property
    def old_log(self) -> Path:
        """The part of the log before."""
        return self.home / "postgres.log.1"

    @property
    def users(self) -> Path:
        """Lock file: shared by every process that uses the server, exclusive for the guardian that stops it."""
        return self.home / "postgres.users"

    @property
    def guardian(self) -> Path:
        """Lock file: exclusive for the one guardian, as long as it lives."""
        return self.home / "postgres.guardian"

    def open(self, path: Path) -> BinaryIO:
        """Open a file in home for appending; what root makes there belongs to whom home belongs to.

        So that its owner can still use a home that root has used once.
        """
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return os.fdopen(os.open(path, flags), "ab", buffering=0)
        if os.geteuid() == 0:
            owner = self.home.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        return os.fdopen(descriptor, "ab", buffering=0)


@dataclass(frozen=True)
class PidFile:
    """What PostgreSQL says about itself in ``postmaster.pid``.

    Attributes:
        pid: Process id of the postmaster that wrote it; the process may be gone and the id another's by now.
        status: ``starting``, ``ready``, ``stopping``, or empty when it has not come that far.
    """

    pid: int
    status: str


def read_pid_file(data: Path) -> PidFile | None:
    """Read ``postmaster.pid``; None when there is none, or none that makes sense."""
    try:
        lines = (data / "postmaster.pid").read_text(errors="replace").splitlines()
        return PidFile(abs(int(lines[0])), lines[7].strip() if len(lines) > 7 else "")
    except (FileNotFoundError, ValueError, IndexError):
        return None


def try_lock(file: BinaryIO, *, exclusive: bool) -> bool:
    """Take the lock on an open file if that is possible at once; closing the file gives it back."""
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def process_exists(pid: int) -> bool:
    """True when a process has this id, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
