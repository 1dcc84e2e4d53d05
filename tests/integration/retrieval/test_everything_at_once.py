"""Builds, cancels, drops, sweeps and applies of one index, all at once: whatever wins, nothing in use is lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from headway.errors import ConfigurationError, ConflictError, NotFoundError
from headway.retrieval.worker import BuildWorker
from headway.storage import builds, configuration, versions
from headway.storage.database import Connection, Database
from headway.storage.versions import Version
from tests.lakes import CountingEmbedder, build, make_tools, specify, write_documents
from tests.project import Project

Act = Callable[[], Awaitable[object]]


class Slow(CountingEmbedder):
    """Gives others a turn."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        await asyncio.sleep(self._chance.random() * 0.05)
        return await super().embed(texts)


class Crowd:
    """What all do at once, each over and over, in a random rhythm."""

    def __init__(self, database: Database, folder: Path, project: Project, chance: random.Random) -> None:
        self._database, self._folder, self._project, self._chance = database, folder, project, chance
        self._worker = BuildWorker(make_tools(database, Slow(chance)))

    async def build(self) -> object:
        return await build(self._database, self._folder, Slow(self._chance), keep=2)

    async def work(self) -> None:
        await self._worker.look()

    async def begin(self) -> object:
        spec = specify(self._folder, keep=2)
        return await self._alone(lambda connection: builds.begin(connection, "handbook", spec, author="api"))

    async def cancel(self) -> object:
        return await self._alone(lambda connection: versions.cancel(connection, "handbook", author="bob"))

    async def drop(self) -> object:
        found = self._chance.choice(await self.versions())
        return await self._alone(lambda connection: versions.drop(connection, found, author="bob"))

    async def sweep(self) -> object:
        return await self._alone(versions.sweep)

    async def apply(self) -> object:
        published = [each for each in await self.versions() if each.state == "published"]
        wanted = self._chance.choice(published).label if published else "handbook@1"
        lake = f"indexes:\n  handbook: {{lake: 'file:{self._folder}'}}\n"
        file = self._project.write(release=f", index: {wanted}", more=lake)
        try:
            return await self._alone(lambda connection: configuration.apply(connection, file, author="ann"))
        except ConfigurationError as error:
            if "is not published" not in error.message:
                raise
            raise ConflictError("dropped meanwhile") from error

    async def versions(self) -> list[Version]:
        found = await self._alone(versions.list_versions)
        assert isinstance(found, list)
        return found

    async def _alone(self, act: Callable[[Connection], Awaitable[object]]) -> object:
        async with self._database.connection() as connection:
            return await act(connection)


@pytest.mark.timeout(180)
async def test_all_at_once(database: Database, tmp_path: Path, proof: bool) -> None:
    write_documents(tmp_path / "docs", 150)
    seed = random.randrange(1000)
    print(f"seed {seed}")
    crowd = Crowd(database, tmp_path / "docs", Project(tmp_path), random.Random(seed))
    await crowd.build()
    done: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    until = loop.time() + (60 if proof else 5)

    async def repeat(act: Act, name: str, pause_seconds: float) -> None:
        while loop.time() < until:
            await asyncio.sleep(random.uniform(0, 2 * pause_seconds))
            try:
                await act()
                done[name] += 1
            except (ConflictError, NotFoundError):
                done[f"{name} refused"] += 1

    async with asyncio.TaskGroup() as group:
        for act, name, pause_seconds in (
            (crowd.build, "build", 0.05),
            (crowd.build, "build", 0.05),
            (crowd.work, "work", 0.05),
            (crowd.begin, "begin", 0.3),
            (crowd.apply, "apply", 0.05),
            (crowd.sweep, "sweep", 0.05),
            (crowd.drop, "drop", 1.0),
            (crowd.cancel, "cancel", 2.0),
        ):
            group.create_task(repeat(act, name, pause_seconds))
    print(dict(done))
    assert min(done["build"] + done["work"], done["apply"], done["sweep"]) > 0
    found = await crowd.versions()
    assert {each.state for each in found if each.used_by} <= {"published"}
    assert {each.state for each in found} <= {"published", "dropped", "cancelled", "building"}
    assert len({each.manifest_hash for each in found if each.state == "published"}) <= 1
    async with database.connection() as connection:
        for each in found:
            if each.state == "published":
                assert (await builds.count(connection, each.version)).chunks == each.progress.chunks
