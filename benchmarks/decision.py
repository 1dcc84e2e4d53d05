"""Decision: what a tick costs with a hundred million interactions behind it and 5 s of evidence to claim."""

from __future__ import annotations

import gc
import time

from benchmarks.bench import Bench
from benchmarks.database import start_database
from benchmarks.figures import Figure, VoidRunError, percentile
from benchmarks.past import TICK_SECONDS, begin_rollout, write_past, write_tick
from headway.clock import ManualClock
from headway.rollouts.controller import Controller
from headway.storage.database import Database, migrate

AREA = "decision"
_TICK_AT_MOST_MS = 50.0
_WARM_UP = 3
_NOON_MS = 1_790_000_000_000 // 86_400_000 * 86_400_000 + 43_200_000


def measure_decision(bench: Bench) -> list[Figure]:
    """Measure ticks of one rollout: claim, book, assess, decide, commit; the database shares the core.

    Raises:
        VoidRunError: A tick did not claim what had arrived.
    """
    with start_database(bench.folder / AREA) as server:
        migrate(server.url)
        return bench.runner.run(_measure(bench, server.url))


async def _measure(bench: Bench, url: str) -> list[Figure]:
    clock = ManualClock(_NOON_MS)
    database = Database(url)
    await database.open()
    try:
        rollout, terms = await begin_rollout(database, bench.folder, clock)
        counted = await write_past(database, rollout, terms, clock.unix_ms(), bench.sizes.claimed_rows)
        controller = Controller(database, clock, TICK_SECONDS)
        gc.collect()
        gc.freeze()  # as in every worker
        gc.set_threshold(50_000, 20, 100)
        spent_ms = []
        for number in range(_WARM_UP + bench.sizes.ticks):
            clock.advance(TICK_SECONDS)
            await write_tick(database, rollout, terms, clock.unix_ms(), seed=100 + number)
            began = time.perf_counter()
            await controller.tick()
            spent_ms.append((time.perf_counter() - began) * 1000)
        await _check(database, rollout, len(spent_ms))
    finally:
        await database.close()
    taken = spent_ms[_WARM_UP:]
    note = f"{counted:,} interactions in the books; {bench.sizes.claimed_rows:,} claimed rows, which no tick reads"
    return [
        Figure(AREA, "tick, median", "headway", percentile(taken, 50), "ms", _TICK_AT_MOST_MS, note),
        Figure(AREA, "tick, 95th percentile", "headway", percentile(taken, 95), "ms", _TICK_AT_MOST_MS),
        Figure(AREA, "tick, slowest", "headway", max(taken), "ms"),
    ]


async def _check(database: Database, rollout: int, ticks: int) -> None:
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT (SELECT count(*) FROM evidence WHERE tick IS NULL),"
            " (SELECT count(*) FROM rating WHERE tick IS NULL),"
            " (SELECT count(DISTINCT tick) FROM evidence WHERE tick > 1), (SELECT state FROM rollout WHERE id = %s)",
            (rollout,),
        )
        row = await cursor.fetchone()
    if row != (0, 0, ticks, "ramp"):
        raise VoidRunError(f"unclaimed evidence, ratings; ticks with evidence; state: {row}")
