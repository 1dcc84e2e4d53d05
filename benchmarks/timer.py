"""A timer with the kernel's resolution: the event loop's own timers know whole milliseconds only."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from contextlib import suppress


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


_ABSOLUTE = 1


class Timer:
    """Calls back in the running event loop at set times of the monotonic clock (``time.monotonic``)."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._loop = asyncio.get_running_loop()
        self._call = call
        self._descriptor = int(self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "the kernel gave no timer")
        self._loop.add_reader(self._descriptor, self._expire)

    def arm(self, at_seconds: float, every_seconds: float = 0.0) -> None:
        """Call at this time, and then at every interval if one is given; replaces what was set before."""
        spec = _TimerSpec(_to_timespec(every_seconds), _to_timespec(at_seconds))
        if self._libc.timerfd_settime(self._descriptor, _ABSOLUTE, ctypes.byref(spec), None) != 0:
            raise OSError(ctypes.get_errno(), "the kernel did not take the timer")

    def close(self) -> None:
        """Call no more."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _expire(self) -> None:
        with suppress(BlockingIOError):  # set anew since it expired
            os.read(self._descriptor, 8)
        self._call()


def _to_timespec(seconds: float) -> _TimeSpec:
    nanoseconds = round(seconds * 1e9)
    return _TimeSpec(nanoseconds // 1_000_000_000, nanoseconds % 1_000_000_000)
