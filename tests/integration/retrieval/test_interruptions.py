"""A build that is killed at any moment goes on from there, and ends in the same version."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headway.errors import ConflictError
from headway.storage import versions
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
@pytest.mark.timeout(900)
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


@contextlib.asynccontextmanager
async def building(url: str, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Build slowly in a process of its own; the block begins when its first documents are loaded."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.lakes", url, str(folder), "0.5"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=_REPOSITORY,
    )
    assert process.stdout is not None
    try:
        while not re.match(rb"load building [1-9]", line := await process.stdout.readline()):
            assert line, (await process.communicate())[1]
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.mark.fault
async def test_another_process_is_refused_and_may_cancel(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 1000)
    async with building(database.url, tmp_path) as process:
        with pytest.raises(
            ConflictError, match=r"handbook@1 is being built \([\d,]+ of 1,000 documents, begun by ann\)"
        ):
            await build(database, tmp_path)
        async with database.connection() as connection:
            await versions.cancel(connection, "handbook", author="bob", reason="not needed")
        _, told = await process.communicate()
    assert process.returncode == 1
    assert told.rstrip().endswith(b"ConflictError: the build was cancelled")
    async with database.connection() as connection:
        (cancelled,) = await versions.list_versions(connection)
        assert (cancelled.state, cancelled.problem) == ("cancelled", "not needed")
        assert 0 < cancelled.progress.loaded < 1000
        assert await versions.sweep(connection) == 1
