"""The worker in the control plane: it takes up what nobody builds, waits for what is away, and clears up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from headway.clock import ManualClock
from headway.errors import StorageError
from headway.retrieval.worker import BuildWorker
from headway.storage import builds, partitions, versions
from headway.storage.builds import Build
from headway.storage.database import Database
from tests.integration.retrieval.test_building import Failing, Gate, Refusing
from tests.lakes import CountingEmbedder, build, make_tools, specify, write_documents


async def begin(database: Database, folder: Path, index: str = "handbook") -> Build:
    async with database.connection() as connection:
        return await builds.begin(connection, index, specify(folder), author="ann")


async def state(database: Database, build: Build) -> tuple[str, str | None]:
    async with database.connection() as connection:
        found = await builds.find(connection, build.version)
    return found.state, found.problem


def make_worker(database: Database, clock: ManualClock, embedder: CountingEmbedder | None = None) -> BuildWorker:
    return BuildWorker(replace(make_tools(database, embedder), clock=clock))


async def test_it_builds_what_was_asked_for(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 3)
    wanted = [await begin(database, tmp_path), await begin(database, tmp_path, "other")]
    await make_worker(database, ManualClock()).look()
    assert [await state(database, each) for each in wanted] == [("published", None)] * 2


def metrics(worker: BuildWorker) -> dict[str, float]:
    found = {}
    for family in worker.collect():
        for sample in family.samples:
            found[" ".join([sample.name, *sample.labels.values()])] = sample.value
    return found


async def test_it_shows_how_far_builds_are(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 3)
    (tmp_path / "empty.md").write_bytes(b"")
    await begin(database, tmp_path)
    gate, clock = Gate(), ManualClock()
    worker = make_worker(database, clock, gate)
    async with asyncio.TaskGroup() as group:
        looking = group.create_task(worker.look())
        await gate.reached.wait()
        shown = metrics(worker)
        assert shown["headway_index_build_documents handbook listed"] == 4
        assert shown["headway_index_build_waits handbook"] == 0
        gate.opened.set()
    assert looking.done()
    assert metrics(worker) == {
        "headway_index_builds_total published": 1,
        "headway_index_builds_total waits": 0,
        "headway_index_builds_total failed": 0,
    }
    await begin(database, tmp_path / "nowhere", "other")
    await begin(database, tmp_path, "third")
    failing = make_worker(database, clock, Failing(calls=0))
    for _ in range(2):
        await failing.look()
        clock.advance(1)
    shown = metrics(failing)
    assert shown["headway_index_build_waits third"] == 1
    assert (shown["headway_index_builds_total waits"], shown["headway_index_builds_total failed"]) == (1, 1)


async def test_it_leaves_what_somebody_builds(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 3)
    gate = Gate()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(build(database, tmp_path, gate))
        await gate.reached.wait()
        await make_worker(database, ManualClock()).look()
        gate.opened.set()
    assert running.result().state == "published"


async def test_it_tries_again_after_a_growing_pause(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 3)
    wanted = await begin(database, tmp_path)
    clock, failing = ManualClock(), Failing(calls=0)
    worker = make_worker(database, clock, failing)
    tries = []
    for _ in range(20):
        before = failing.calls
        await worker.look()
        tries.append(before - failing.calls)
        clock.advance(1)
    assert [second for second, tried in enumerate(tries) if tried] == [0, 5, 15]
    assert await state(database, wanted) == ("building", "the embeddings endpoint cannot be reached")
    failing.calls = 100
    clock.advance(20)
    await worker.look()
    assert await state(database, wanted) == ("published", None)


async def test_a_refusal_is_not_met_more_often_than_an_outage(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 100)
    wanted = await begin(database, tmp_path)
    clock, refusing = ManualClock(), Refusing(calls=1)
    worker = make_worker(database, clock, refusing)
    await worker.look()
    assert (await state(database, wanted))[0] == "building"
    tries = []
    for _ in range(20):
        clock.advance(1)
        before = refusing.calls
        await worker.look()
        tries.append(before - refusing.calls)
    assert [second for second, tried in enumerate(tries, 1) if tried] == [5, 15]
    refusing.calls = 100
    clock.advance(20)
    await worker.look()
    assert await state(database, wanted) == ("published", None)


async def test_what_cannot_be_built_fails_for_good(database: Database, tmp_path: Path) -> None:
    wanted = await begin(database, tmp_path / "nowhere")
    worker = make_worker(database, ManualClock())
    await worker.look()
    assert await state(database, wanted) == ("failed", f"there is no file:{tmp_path}/nowhere")


class Broken(CountingEmbedder):
    """Has a fault."""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise ZeroDivisionError


async def test_a_fault_ends_one_build_and_not_the_worker(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 3)
    wanted = await begin(database, tmp_path)
    await make_worker(database, ManualClock(), Broken()).look()
    assert await state(database, wanted) == ("failed", "a fault of Headway's (ZeroDivisionError); its log says more")


async def test_it_clears_up_after_builds_that_ended(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 3)
    done = await build(database, tmp_path)
    async with database.connection() as connection:
        found = await versions.list_versions(connection)
        await versions.drop(connection, found[0], author="ann")
    clock = ManualClock()
    worker = make_worker(database, clock)
    await worker.look()
    async with database.connection() as connection:
        assert not await partitions.exists(connection, done.version)


async def test_it_outlives_the_database(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_documents(tmp_path, 3)
    wanted = await begin(database, tmp_path)
    clock = ManualClock()
    listing, outages = builds.list_unfinished, 2

    async def list_sometimes(*arguments: object) -> list[Build]:
        nonlocal outages
        outages -= 1
        if outages >= 0:
            raise StorageError("the database is away")
        return await listing(*arguments)  # type: ignore[arg-type]  # the connection

    monkeypatch.setattr(builds, "list_unfinished", list_sometimes)
    running = asyncio.create_task(make_worker(database, clock).run())
    async with asyncio.timeout(20):
        while (await state(database, wanted))[0] == "building":
            await asyncio.sleep(0.01)
            clock.advance(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await state(database, wanted) == ("published", None)
