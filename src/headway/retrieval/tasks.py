"""Work side by side, of which all is done or none goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
U = TypeVar("U")


async def do_all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do all of it side by side, and give the results in order; after the first failure the rest is cancelled.

    A ``TaskGroup`` is not used: before Python 3.13 it leaves the task in which one of its own failed marked as
    cancelled, for as long as that task runs.

    Raises:
        Exception: The first failure, once all has ended.
    """
    tasks = [asyncio.ensure_future(each) for each in work]  # noqa: TID251 - all are waited for below
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def do_both(first: Coroutine[Any, Any, T], second: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """Do both side by side; when one fails, the other is cancelled, and its failure is raised."""
    one, other = await do_all([first, second])
    return one, other  # type: ignore[return-value]  # of two kinds
