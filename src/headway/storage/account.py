"""Who the embedded PostgreSQL runs as: never root, and with no more rights than it needs to reach its files."""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from headway.errors import EmbeddedPostgresError

# Of the ids below 65536 (containers seldom map more) systemd's table leaves 60578 to 61183 to nobody. An id of its own
# rather than `nobody`: whatever else runs as nobody could read the data, its shared memory and its core.
_UNUSED_IDS = range(61_080, 61_184)

# linux/prctl.h, linux/securebits.h, linux/capability.h
_PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 27, 28
_PR_SET_CHILD_SUBREAPER = 36
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_CAPABILITY_VERSION_3 = 0x2008_0522
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


@dataclass(frozen=True)
class Account:
    """A user and group id, and at most one capability that is kept.

    Attributes:
        uid: User id, not 0.
        gid: Group id; there are no supplementary groups.
        capability: Number of the Linux capability that lets the server pass folders closed to its user, or None.
    """

    uid: int
    gid: int
    capability: int | None = None

    @property
    def is_own(self) -> bool:
        """True when this process runs as this user already."""
        return os.geteuid() == self.uid

    def assume(self) -> None:
        """Become this account, for good; to be called in a forked child, before exec.

        Raises:
            OSError: The right to do so is missing, or the ids are not mapped in this container.
        """
        if self.is_own:
            return
        if self.capability is not None:
            # Without this bit access(2) ignores capabilities of a process that is not root, and PostgreSQL asks
            # access(2) about its own binary. It also keeps capabilities over setuid; the next call cuts them down.
            bits = _prctl(_PR_GET_SECUREBITS)
            _prctl(_PR_SET_SECUREBITS, bits | _SECBIT_NO_SETUID_FIXUP)
        os.setgroups([])
        os.setgid(self.gid)
        os.setuid(self.uid)
        if self.capability is not None:
            _keep_only(self.capability)

    def call(self, function: Callable[[], object]) -> None:
        """Run ``function`` as this account, in a forked child; only for a process with one thread.

        Raises:
            OSError: What ``function``, or becoming this account, raised.
        """
        if self.is_own:
            function()
            return
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            problem = "ended without a word"
            try:
                self.assume()
                function()
                problem = ""
            except OSError as error:
                problem = str(error)
            finally:  # whatever happens, the child must not return into its parent's code
                os.write(writing, problem.encode(errors="replace")[:4096])
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            problem = pipe.read().decode(errors="replace")
        os.waitpid(child, 0)
        if problem:
            raise OSError(problem)

    def fitted(self, probe: Callable[[], object]) -> Account:
        """Return this account with the least capability with which ``probe`` succeeds: none, where possible.

        PostgreSQL refuses to run as root, and as another user it cannot pass a folder such as /root. Opening that
        folder is not ours to do, so the server keeps the one capability that lets it pass: to read and search, or,
        where a container withholds that one, to override. Less than root has, which it would be in those places
        otherwise; and the role that Headway connects as is no superuser, so SQL cannot make use of it.

        Raises:
            EmbeddedPostgresError: It succeeds with none of them.
        """
        kept = (None, _CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE) if sys.platform == "linux" else (None,)
        problems = []
        for capability in (None,) if self.is_own else kept:
            account = replace(self, capability=capability)
            try:
                account.call(probe)
            except OSError as error:
                problems.append(str(error))
            else:
                return account
        raise EmbeddedPostgresError(
            f"PostgreSQL must not run as root, and as user {self.uid} it cannot reach its files: {problems[0]}."
            " Do one of these: keep HEADWAY_HOME and the virtual environment in folders that everybody may pass"
            " (such as /srv or /opt); run Headway as a normal user; give the container the capability"
            " DAC_READ_SEARCH; set HEADWAY_DATABASE_URL to a PostgreSQL of your own."
        )


def unused_account() -> Account:
    """Find a user and group id that nobody has."""
    for number in _UNUSED_IDS:
        if user_name(number) is None and _group_name(number) is None:
            return Account(number, number)
    raise EmbeddedPostgresError(
        f"no free user id from {_UNUSED_IDS.start} to {_UNUSED_IDS.stop - 1}: run Headway as a normal user"
    )


def named_account(account: Account) -> Account:
    """Return ``account`` where its user has a name, else a nameless user's stand-in with the same group.

    Raises:
        EmbeddedPostgresError: There is no user with a name but root.
    """
    if user_name(account.uid) is not None:
        return account
    users = sorted((entry.pw_name != "nobody", entry.pw_uid) for entry in pwd.getpwall() if entry.pw_uid != 0)
    if not users:
        raise EmbeddedPostgresError("no user but root in /etc/passwd: PostgreSQL needs another one to set itself up")
    return replace(account, uid=users[0][1])


def user_name(uid: int) -> str | None:
    """Return the name of a user, or None where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def adopt_orphans() -> None:
    """Make this process the parent of what its descendants leave behind, so that it can reap them; Linux only."""
    if sys.platform == "linux":
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _group_name(gid: int) -> str | None:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return None


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilitySets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _keep_only(capability: int) -> None:
    mask = 1 << capability
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    sets = (_CapabilitySets * 2)(_CapabilitySets(mask, mask, mask), _CapabilitySets(0, 0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), "capset: " + os.strerror(ctypes.get_errno()))
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


def _prctl(option: int, *arguments: int) -> int:
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    result = int(ctypes.CDLL(None, use_errno=True).prctl(option, *padded))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}: " + os.strerror(ctypes.get_errno()))
    return result
