"""Building index versions: what becomes of a folder, what is taken over, what is left out, and what stops a build."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headway.config.indexes import ChunkSpec, LakeSpec
from headway.errors import (
    ConfigurationError,
    ConflictError,
    HeadwayError,
    LakeError,
    ProviderUnavailableError,
    UnreadableDocumentError,
)
from headway.lake.sources import Lake, LakeObject
from headway.retrieval.building import resume, start
from headway.storage import builds, partitions, versions
from headway.storage.builds import Build, Count
from headway.storage.database import Connection, Database
from tests.lakes import CountingEmbedder, build, document, make_tools, specify, write_documents


async def manifest(database: Database, number: int) -> tuple[str, dict[str, Any]]:
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT manifest_hash, manifest FROM index_version WHERE number = %s", (number,)
        )
        row = await cursor.fetchone()
    assert row is not None
    return row[0], row[1]


async def documents(database: Database, number: int = 1) -> dict[str, tuple[Any, ...]]:
    """State, problem, title, groups and chunks of each document."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT path, d.state, d.problem, title, groups, chunks FROM index_document d JOIN index_version v"
            " ON v.id = d.version_id WHERE v.number = %s ORDER BY path",
            (number,),
        )
        return {path: tuple(rest) async for path, *rest in cursor}


async def test_a_folder_becomes_a_version(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 150)
    embedder = CountingEmbedder()
    built = await build(database, tmp_path, embedder)
    progress = built.progress
    assert (built.label, built.state, built.problem) == ("handbook@1", "published", None)
    assert (progress.documents, progress.loaded, progress.skipped, progress.cost_usd) == (150, 150, 0, 0.0)
    assert progress.embedded == progress.chunks == embedder.embedded > 150
    _, made = await manifest(database, 1)
    assert made["recipe"] == {
        "pipeline": 1, "tokens": 96, "overlap": 8, "language": "english", "embedder": "local-static", "dimensions": 32
    }  # fmt: skip
    assert (made["documents"], made["chunks"], made["size_bytes"]) == (
        150,
        progress.chunks,
        sum(len(document(number)) for number in range(150)),
    )
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT count(*), min(vector_dims(embedding)),"
            " count(*) FILTER (WHERE tsv @@ to_tsquery('english', 'travelled'))"
            " FROM index_chunk WHERE version = %s",
            (built.version,),
        )
        assert (row := await cursor.fetchone()) is not None
    assert (row[0], row[1]) == (progress.chunks, 32)
    assert 0 < row[2] < progress.chunks


async def test_the_same_folder_is_the_same_version_and_costs_nothing(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 70)
    first = await build(database, tmp_path)
    embedder = CountingEmbedder()
    second = await build(database, tmp_path, embedder)
    assert (second.label, embedder.embedded, second.progress.reused) == ("handbook@2", 0, first.progress.chunks)
    assert (await manifest(database, 1))[0] == (await manifest(database, 2))[0]


async def test_a_rebuild_costs_what_has_changed(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 200)
    full = CountingEmbedder()
    await build(database, tmp_path, full)
    for number in (3, 117):
        (tmp_path / f"part{number // 100}" / f"doc{number:05}.md").write_text(document(number) + "\nOne more line.\n")
    again = CountingEmbedder()
    second = await build(database, tmp_path, again)
    assert 0 < again.embedded < 0.05 * full.embedded
    assert second.progress.chunks == second.progress.reused + again.embedded
    assert (await manifest(database, 1))[0] != (await manifest(database, 2))[0]
    async with database.connection() as connection:  # as if nothing had been taken over
        await connection.execute("DELETE FROM index_document WHERE version_id < %s", (second.version,))
        await connection.execute("UPDATE index_version SET manifest = '{}' WHERE id < %s", (second.version,))
    await build(database, tmp_path)
    assert (await manifest(database, 2))[0] == (await manifest(database, 3))[0]


async def test_what_many_documents_say_is_embedded_once(database: Database, tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number:03}.md").write_text(document(7))
    embedder = CountingEmbedder()
    built = await build(database, tmp_path, embedder)
    assert built.progress.chunks == 200 * embedder.embedded == 200 * built.progress.embedded


async def test_a_change_of_the_recipe_reuses_what_it_can(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 30)
    first = await build(database, tmp_path)
    same_cuts = CountingEmbedder()
    await build(database, tmp_path, same_cuts, language="simple")
    other_cuts = CountingEmbedder()
    third = await build(database, tmp_path, other_cuts, chunk=ChunkSpec(48, 0))
    assert same_cuts.embedded == 0
    assert other_cuts.embedded == third.progress.embedded > first.progress.chunks


async def test_labels_follow_the_file_and_not_what_is_taken_over(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 101)
    await build(database, tmp_path, labels=(("**", ("staff",)), ("part1/**", ("hr",))))
    embedder = CountingEmbedder()
    await build(database, tmp_path, embedder, labels=(("part0/doc0000[0-4].md", ("it", "ops")),))
    one, two = await documents(database), await documents(database, 2)
    assert (one["part0/doc00000.md"][3], one["part1/doc00100.md"][3]) == (["staff"], ["hr"])
    assert (two["part0/doc00000.md"][3], two["part0/doc00005.md"][3]) == (["it", "ops"], [])
    assert embedder.embedded == 0
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT DISTINCT c.groups FROM index_chunk c JOIN index_version v ON v.id = c.version WHERE v.number = 2"
        )
        assert sorted(await cursor.fetchall()) == [([],), (["it", "ops"],)]


async def test_what_cannot_be_read_is_reported_and_left_out(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 5)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    (tmp_path / "empty.md").write_bytes(b"")
    (tmp_path / "latin.txt").write_bytes("Übermaß an Größe".encode("latin-1"))
    (tmp_path / "gone.md").symlink_to(tmp_path / "nowhere.md")
    built = await build(database, tmp_path, lake=LakeSpec(f"file:{tmp_path}"))
    found = await documents(database)
    assert (built.state, built.progress.loaded, built.progress.skipped) == ("published", 6, 3)
    assert {path: row[1] for path, row in found.items() if row[0] == "skipped"} == {
        "broken.pdf": found["broken.pdf"][1],
        "empty.md": "is empty",
        "gone.md": "is a link that leads nowhere",
    }
    assert found["broken.pdf"][1]


async def test_an_empty_folder_is_an_error(database: Database, tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="is empty"):
        await build(database, tmp_path)
    (tmp_path / "only.md").write_bytes(b"")
    with pytest.raises(UnreadableDocumentError, match="none of the 1 documents could be read"):
        await build(database, tmp_path)
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT number, state FROM index_version ORDER BY number")
        assert await cursor.fetchall() == [(1, "failed"), (2, "failed")]


async def test_documents_that_change_or_go_meanwhile(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_documents(tmp_path, 10)
    changing, gone, restless = (tmp_path / "part0" / f"doc0000{number}.md" for number in (1, 2, 3))
    read = Lake.read

    def read_late(self: Lake, listed: LakeObject, limit_bytes: int) -> bytes:
        if listed.path.endswith(changing.name) and changing.read_text() == document(1):
            changing.write_text("# Other\n\nIt changed after it was listed.\n")
        if listed.path.endswith(gone.name):
            gone.unlink(missing_ok=True)
        if listed.path.endswith(restless.name):
            restless.write_text(restless.read_text() + "more\n")
        return read(self, listed, limit_bytes)

    monkeypatch.setattr(Lake, "read", read_late)
    await build(database, tmp_path)
    found = await documents(database)
    assert found["part0/doc00001.md"][:3] == ("loaded", None, "Other")
    assert found["part0/doc00002.md"][:2] == ("skipped", "is gone since it was listed")
    assert found["part0/doc00003.md"][:2] == ("skipped", "changed after it was listed")
    assert sum(row[0] == "loaded" for row in found.values()) == 8


class Gate(CountingEmbedder):
    """Stops before it embeds, until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.opened = asyncio.Event(), asyncio.Event()

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.reached.set()
        await self.opened.wait()
        return await super().embed(texts)


class Long(CountingEmbedder):
    """Makes long vectors."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions


async def test_vectors_may_be_as_long_as_a_graph_takes(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_documents(tmp_path, 12)
    monkeypatch.setattr(partitions, "GRAPH_CHUNKS", 10)
    built = await build(database, tmp_path, Long(4000))
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT count(*), min(vector_dims(embedding)), bool_and(abs(l2_norm(embedding) - 1) < 0.01),"
            " to_regclass(%s) IS NOT NULL FROM index_chunk WHERE version = %s",
            (f"index_chunk_{built.version}_vectors", built.version),
        )
        assert await cursor.fetchone() == (built.progress.chunks, 4000, True, True)
    with pytest.raises(ConfigurationError, match="vectors of 4,001 dimensions cannot be searched, 4,000 is the most"):
        await build(database, tmp_path, Long(4001))


async def test_two_builds_of_one_index_at_once(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 10)
    gate = Gate()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(build(database, tmp_path, gate))
        await gate.reached.wait()
        with pytest.raises(ConflictError, match=r"handbook@1 is being built \(0 of 10 documents, begun by ann\)"):
            await build(database, tmp_path)
        async with database.connection() as connection:
            with pytest.raises(ConflictError, match="handbook@1 is being built already"):
                await builds.begin(connection, "handbook", specify(tmp_path), author="bob")
        other = await start(make_tools(database), "other", specify(tmp_path), author="bob", tell=lambda _: None)
        gate.opened.set()
    assert (running.result().state, other.label) == ("published", "other@1")


async def test_a_build_can_be_cancelled(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 100)
    gate = Gate()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(caught(build(database, tmp_path, gate)))
        await gate.reached.wait()
        async with database.connection() as connection:
            found = await builds.find_unfinished(connection, "handbook")
            assert found is not None
            assert await builds.is_held(connection, found.version)
            assert await builds.end(connection, found, "cancelled", "not needed", author="bob")
        gate.opened.set()
    assert running.result() == "build_cancelled"
    async with database.connection() as connection:
        now = await builds.find(connection, found.version)
        assert (now.state, now.progress.loaded, now.problem) == ("cancelled", 0, "not needed")
        assert not await builds.is_held(connection, found.version)
        assert not await builds.end(connection, found, "cancelled", "again", author="bob")
    assert (await build(database, tmp_path)).label == "handbook@2"


async def caught(work: Any) -> str:
    """The code of the error that it fails with."""
    try:
        await work
    except HeadwayError as error:
        return error.error_code
    return ""


class Failing(CountingEmbedder):
    """Is away after so many calls."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls -= 1
        if self.calls < 0:
            raise ProviderUnavailableError("the embeddings endpoint cannot be reached")
        return await super().embed(texts)


async def test_a_build_waits_for_what_is_away_and_goes_on(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 150)
    failing = Failing(calls=1)
    with pytest.raises(ProviderUnavailableError):
        await build(database, tmp_path, failing)
    async with database.connection() as connection:
        waiting = await builds.find_unfinished(connection, "handbook")
    assert waiting is not None
    assert (waiting.progress.loaded, waiting.problem) == (64, "the embeddings endpoint cannot be reached")
    with pytest.raises(ConflictError, match="begun with other settings: `headway index cancel handbook`"):
        await build(database, tmp_path, keep=2)
    rest = CountingEmbedder()
    done = await resume(make_tools(database, rest), waiting.version, tell=lambda _: None)
    assert (done.state, done.problem, done.progress.loaded) == ("published", None, 150)
    assert failing.embedded + rest.embedded == done.progress.chunks
    with pytest.raises(ConflictError, match="handbook@1 is published"):
        await resume(make_tools(database), waiting.version, tell=lambda _: None)


class Refusing(CountingEmbedder):
    """Refuses after so many calls."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls -= 1
        if self.calls < 0:
            raise ConfigurationError("the deployment 'small' refuses to embed (401): the key has expired")
        return await super().embed(texts)


async def test_what_was_paid_for_outlives_a_refusal(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 150)
    with pytest.raises(ConfigurationError, match="refuses to embed"):
        await build(database, tmp_path, Refusing(calls=0))  # nothing is lost with it
    refusing = Refusing(calls=1)
    with pytest.raises(ConfigurationError, match="refuses to embed"):
        await build(database, tmp_path, refusing)
    async with database.connection() as connection:
        found = await versions.list_versions(connection, "handbook")
    assert [(each.label, each.state, each.progress.loaded) for each in found] == [
        ("handbook@2", "building", 64),
        ("handbook@1", "failed", 0),
    ]
    assert found[0].problem == "the deployment 'small' refuses to embed (401): the key has expired"
    rest = CountingEmbedder()
    done = await build(database, tmp_path, rest)
    assert (done.label, done.state, done.problem) == ("handbook@2", "published", None)
    assert refusing.embedded + rest.embedded == done.progress.chunks
    assert min(refusing.embedded, rest.embedded) > 0


class Paid(Failing):
    """Takes a cent for each text."""

    @property
    def cost_usd(self) -> float | None:  # type: ignore[override]  # of others it is an attribute
        return self.embedded * 0.01


async def test_the_manifest_says_what_embedding_has_cost(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 150)
    first, rest = Paid(calls=1), Paid(calls=100)
    with pytest.raises(ProviderUnavailableError):
        await build(database, tmp_path, first)
    built = await build(database, tmp_path, rest)
    _, made = await manifest(database, 1)
    assert made["cost_usd"] == pytest.approx(0.01 * built.progress.chunks)
    assert 0 < first.embedded < built.progress.chunks
    again = await build(database, tmp_path, Paid(calls=0))
    assert (again.progress.embedded, again.progress.cost_usd) == (0, 0.0)


async def test_progress_is_told_at_every_step(database: Database, tmp_path: Path) -> None:
    write_documents(tmp_path, 130)
    told: list[Build] = []
    await start(make_tools(database), "handbook", specify(tmp_path), author="ann", tell=told.append)
    stages = [(each.stage, each.progress.done) for each in told]
    assert stages[0] == ("snapshot", 0)
    assert ("load", 64) in stages
    assert ("load", 128) in stages
    assert stages[-1] == ("verify", 130)
    assert told[-1].state == "published"
    assert [each.progress.seconds for each in told] == sorted(each.progress.seconds for each in told)


async def test_a_version_that_lost_something_is_not_published(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_documents(tmp_path, 10)
    count = builds.count

    async def count_less(connection: Connection, version: int) -> Count:
        await connection.execute("DELETE FROM index_chunk WHERE position = 0 AND document % 5 = 0")
        return await count(connection, version)

    monkeypatch.setattr(builds, "count", count_less)
    with pytest.raises(HeadwayError, match="is not whole"):
        await build(database, tmp_path)
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT state FROM index_version")
        assert await cursor.fetchall() == [("failed",)]
