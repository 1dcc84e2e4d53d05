"""The database goes away in the middle of a build, for a moment or for longer: the build goes on, and loses nothing."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, LiteralString

import numpy as np
import psutil
import psycopg
import pytest
from numpy.typing import NDArray

from headway.clock import ManualClock
from headway.errors import StorageError
from headway.retrieval.worker import BuildWorker
from headway.storage import builds, partitions
from headway.storage import versions as stored
from headway.storage.database import Database
from tests.faults import sabotage
from tests.lakes import CountingEmbedder, build, make_tools, specify, write_documents


async def versions(database: Database) -> list[tuple[Any, ...]]:
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT i.name, v.number, v.state, v.manifest_hash, v.problem"
            " FROM index_version v JOIN search_index i ON i.id = v.index_id ORDER BY v.id"
        )
        return await cursor.fetchall()


async def one(database: Database, query: LiteralString) -> tuple[Any, ...]:
    async with database.connection() as connection:
        row = await (await connection.execute(query)).fetchone()
    assert row is not None
    return row


class Interrupting(CountingEmbedder):
    """Has something done before it embeds for the second time."""

    def __init__(self, interrupt: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._interrupt = interrupt
        self._calls = 0

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self._calls += 1
        if self._calls == 2:
            await self._interrupt()
        return await super().embed(texts)


@pytest.mark.fault
async def test_the_database_is_away_for_a_while(
    database: Database, tmp_path: Path, refusing: Callable[[bool], Awaitable[None]]
) -> None:
    write_documents(tmp_path, 200)
    whole = await build(database, tmp_path, index="whole")
    async with database.connection() as connection:
        wanted = await builds.begin(connection, "handbook", specify(tmp_path), author="ann")
    embedder, clock = Interrupting(lambda: refusing(True)), ManualClock()
    impatient = Database(database.url, wait_seconds=0.2)
    await impatient.open()
    try:
        worker = BuildWorker(replace(make_tools(impatient, embedder), clock=clock))
        for _ in range(2):  # in the middle of it, and when it looks again
            with pytest.raises(StorageError):
                await worker.look()
            clock.advance(60)
        await refusing(False)
        await worker.look()
    finally:
        await impatient.close()
    assert embedder.embedded < whole.progress.embedded * 1.4  # only the batch that was under way twice
    rows = await versions(database)
    assert [row[2] for row in rows] == ["published"] * 2
    assert rows[0][3] == rows[1][3]
    assert rows[1][:2] == ("handbook", wanted.number)


@pytest.mark.fault
async def test_a_full_disk_is_told_and_not_tried_every_second(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_documents(tmp_path, 70)
    async with database.connection() as connection:
        wanted = await builds.begin(connection, "handbook", specify(tmp_path), author="ann")
    load, tries = partitions.load, 0

    async def load_nothing(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise psycopg.errors.DiskFull("could not extend file: No space left on device\nHINT: Check free disk space.")

    clock, embedder = ManualClock(), CountingEmbedder()
    worker = BuildWorker(replace(make_tools(database, embedder), clock=clock))
    with monkeypatch.context() as patch:
        patch.setattr(partitions, "load", load_nothing)
        for _ in range(12):
            with contextlib.suppress(StorageError):
                await worker.look()
            clock.advance(1)
    assert tries == 2  # at first, and after 5 seconds
    async with database.connection() as connection:
        waiting = await builds.find(connection, wanted.version)
    assert waiting.state == "building"
    assert "No space left on device" in (waiting.problem or "")
    assert load is partitions.load
    clock.advance(60)
    await worker.look()
    assert (await versions(database))[0][2:3] == ("published",)


@pytest.mark.fault
async def test_parsers_are_killed_in_the_middle(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 200)
    whole = await build(database, tmp_path, index="whole")

    async def kill_parsers() -> None:
        for child in psutil.Process().children():
            if "headway.lake.parsing.worker" in child.cmdline():
                child.kill()

    built = await build(database, tmp_path, Interrupting(kill_parsers))
    assert (built.progress.loaded, built.progress.skipped) == (whole.progress.loaded, 0)
    rows = await versions(database)
    assert rows[0][3] == rows[1][3]


@pytest.mark.fault
@pytest.mark.timeout(300)
async def test_a_connection_may_break_at_any_statement(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proof: bool
) -> None:
    write_documents(tmp_path, 70)
    (tmp_path / "empty.md").write_bytes(b"")
    whole = await build(database, tmp_path, index="whole")
    step = 1 if proof else 12
    at, struck = random.randint(1, step), True
    print(f"from statement {at}")
    while struck:
        index = f"broken-{at}"
        with sabotage(monkeypatch, database.url, "server dies", at) as saboteur:
            with contextlib.suppress(StorageError):
                await build(database, tmp_path, index=index)
            struck = saboteur.struck
        if not [row for row in await versions(database) if (row[0], row[2]) == (index, "published")]:
            await build(database, tmp_path, index=index)
        at += step
    rows = await versions(database)
    assert len(rows) > 40 // step
    assert {row[2:] for row in rows} == {("published", rows[0][3], None)}
    assert rows[0][:2] == ("whole", whole.number)


@pytest.mark.fault
async def test_a_version_is_published_whatever_keeps_older_ones_from_being_dropped(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_documents(tmp_path, 3)
    await build(database, tmp_path, keep=1)

    async def drop_nothing(*_: object, **__: object) -> None:
        raise psycopg.errors.DeadlockDetected("deadlock detected")

    with monkeypatch.context() as patch:
        patch.setattr(stored, "drop", drop_nothing)
        assert (await build(database, tmp_path, keep=1)).state == "published"
    assert [row[2] for row in await versions(database)] == ["published", "published"]
    await build(database, tmp_path, keep=1)
    assert [row[2] for row in await versions(database)] == ["dropped", "dropped", "published"]
