"""A build that is killed at any moment goes on from there, and ends in the same version."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from pathlib import Path

import pytest

from headway.storage.database import Database
from tests.lakes import build, write_documents

_REPOSITORY = Path(__file__).resolve().parents[3]


async def build_and_kill(url: str, folder: Path, lines: int, seconds: float) -> bool:
    """Build in a process of its own and kill it so long after a line of its output; True if it ended before."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.lakes", url, str(folder), stdout=asyncio.subprocess.PIPE, cwd=_REPOSITORY
    )
    assert process.stdout is not None
    for _ in range(lines):
        if not await process.stdout.readline():
            break
    await asyncio.sleep(seconds)
    if process.returncode is None:
        process.send_signal(signal.SIGKILL)
    await process.communicate()
    return process.returncode == 0


@pytest.mark.fault
@pytest.mark.timeout(300)
async def test_killed_builds_end_in_the_same_version(database: Database, tmp_path: Path, proof: bool) -> None:
    count, kills = (10_000, 12) if proof else (400, 5)
    seed = random.randrange(1000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    write_documents(tmp_path, count)
    whole = await build(database, tmp_path, index="whole")
    killed = 0
    for _ in range(kills):
        killed += not await build_and_kill(
            database.url, tmp_path, chance.randint(1, count // 64 // 2), chance.uniform(0, 0.05)
        )
    rest = await build(database, tmp_path)
    assert killed
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT state, manifest_hash, manifest->'documents', manifest->'chunks' FROM index_version ORDER BY id"
        )
        versions = await cursor.fetchall()
    assert len(versions) >= 2
    assert {row[0] for row in versions} == {"published"}
    assert {row[1:] for row in versions} == {versions[0][1:]}
    assert rest.progress.chunks == whole.progress.chunks
