"""A process that takes feedback without a database, prints what it acknowledged, and is killed in the middle of it.

Arguments: folder of the spool, file with the snapshot, file with one interaction id per line.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from headway.clock import SystemClock
from headway.domain.snapshot import Snapshot, decode_snapshot
from headway.feedback.intake import FeedbackIntake, FeedbackPost
from headway.feedback.keeping import Keeper
from headway.storage.database import Database
from headway.storage.spool import Spool

KILLED_AFTER = 100


async def main(folder: Path, snapshot: Snapshot, ids: list[str]) -> None:
    clock = SystemClock()
    spool = Spool(folder, clock, max_bytes=10_000_000, drop_oldest=False)
    database = Database("postgresql://127.0.0.1:1/none", wait_seconds=0.05)
    intake = FeedbackIntake(database, Keeper(database, spool, clock), clock)
    acknowledged = 0

    async def rate(interaction_id: str) -> None:
        nonlocal acknowledged
        accepted = await intake.accept(
            snapshot, None, FeedbackPost(interaction_id=interaction_id, metric="stars", value=5)
        )
        os.write(sys.stdout.fileno(), f"{accepted.id}\n".encode())
        acknowledged += 1
        if acknowledged == KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)

    await asyncio.gather(*map(rate, ids))


if __name__ == "__main__":
    spool, snapshot_file, ids_file = map(Path, sys.argv[1:4])
    asyncio.run(main(spool, decode_snapshot(snapshot_file.read_bytes()), ids_file.read_text().split()))
