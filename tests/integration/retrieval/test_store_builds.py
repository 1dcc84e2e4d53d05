"""Whole builds over object stores, through their real clients: from the listing to what is searched."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headway.config.indexes import IndexReference, LakeSpec
from headway.errors import LakeError
from headway.retrieval.building import resume, start
from headway.storage import builds, versions
from headway.storage.builds import Build
from headway.storage.database import Database
from headway.storage.versions import Version
from tests.integration.lake.stores import ACCOUNT, MOMENT, Store, blobs, s3
from tests.lakes import CountingEmbedder, build, document, make_tools, specify

NO_FOLDER = Path("/nowhere")
SECRET = base64.b64encode(b"a very secret account key " * 2).decode()


class Lake:
    """A store with documents, and how an index names it."""

    def __init__(self, store: Store, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        store.objects.update({f"lake/docs/part{n % 3}/{n:02}.md": document(n).encode() for n in range(20)})
        store.objects["lake/other/outside.md"] = b"# Outside"
        address = f"http://127.0.0.1:{store.port}"
        if kind == "s3":
            self._url, self._options = "s3://lake/docs", {"endpoint_url": address}
            secrets = {"key": "AKIAGOOD", "secret": SECRET}
        else:
            self._url, self._options = "abfs://lake/docs", {}
            place = f"BlobEndpoint={address}/{ACCOUNT};"
            parts = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={SECRET};{place}"
            secrets = {"connection_string": parts}
        for name, value in secrets.items():
            monkeypatch.setenv(f"LAKE_{name.upper()}", value)
        self._secrets = {name: f"env:LAKE_{name.upper()}" for name in secrets}

    def spec(self, **changes: Any) -> LakeSpec:
        fields = {"include": ("**/*.md",), "options": self._options, "secrets": self._secrets} | changes
        return LakeSpec(self._url, **fields)


@pytest.fixture(params=["s3", "blobs"])
def lake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lake]:
    with {"s3": s3, "blobs": blobs}[request.param]() as store:
        yield Lake(store, request.param, monkeypatch)


async def find(database: Database, number: int) -> Version:
    async with database.connection() as connection:
        return await versions.find_version(connection, IndexReference("handbook", number))


async def test_a_store_becomes_a_version_and_a_rebuild_costs_what_changed(database: Database, lake: Lake) -> None:
    first = await build(database, NO_FOLDER, lake=lake.spec())
    assert (first.progress.loaded, first.progress.skipped) == (20, 0)
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT DISTINCT modified, etag = %s FROM index_document WHERE path = 'part0/00.md'",
            (lake.store.etag("lake/docs/part0/00.md"),),
        )
        assert await cursor.fetchall() == [(MOMENT.isoformat(), True)]
    lake.store.objects["lake/docs/part0/00.md"] += b"\nOne more line.\n"
    lake.store.objects["lake/docs/part0/new.md"] = document(77).encode()
    del lake.store.objects["lake/docs/part1/01.md"]
    again = CountingEmbedder()
    second = await build(database, NO_FOLDER, again, lake=lake.spec())
    assert (second.progress.loaded, 0 < again.embedded < 10) == (20, True)
    one, two = await find(database, 1), await find(database, 2)
    async with database.connection() as connection:
        changes = await versions.compare(connection, one, two)
    assert [(change.change, change.path) for change in changes] == [
        ("changed", "part0/00.md"),
        ("added", "part0/new.md"),
        ("removed", "part1/01.md"),
    ]
    shown = str(one.spec)
    assert SECRET not in shown
    assert "env:LAKE_" in shown


async def test_a_subset_of_a_store(database: Database, lake: Lake) -> None:
    built = await build(database, NO_FOLDER, lake=lake.spec(exclude=("part2/**",), prefix="part0/"))
    assert built.progress.documents == 7
    lake.store.requests.clear()
    with pytest.raises(LakeError, match="modified since 2026-06-01"):
        await build(database, NO_FOLDER, lake=lake.spec(modified_since="2026-06-01T00:00:00+00:00"))
    recent = await build(database, NO_FOLDER, lake=lake.spec(modified_since="2026-04-01T00:00:00+00:00"))
    assert recent.progress.documents == 20


async def test_a_store_that_fails_in_the_middle_is_waited_for(database: Database, lake: Lake) -> None:
    whole = await build(database, NO_FOLDER, index="whole", lake=lake.spec())
    spec = specify(NO_FOLDER, lake=lake.spec())

    def break_down(build: Build) -> None:
        lake.store.failing = build.progress.documents > 0  # they are listed

    with pytest.raises(LakeError, match="cannot be reached") as caught:
        await start(make_tools(database), "handbook", spec, author="ann", tell=break_down)
    assert SECRET not in caught.value.message
    async with database.connection() as connection:
        waiting = await builds.find_unfinished(connection, "handbook")
    assert waiting is not None
    assert (waiting.stage, waiting.problem) == ("load", caught.value.message)
    lake.store.failing = False
    done = await resume(make_tools(database), waiting.version, tell=lambda _: None)
    assert done.progress.loaded == whole.progress.loaded
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT DISTINCT state, manifest_hash IS NULL FROM index_version")
        assert await cursor.fetchall() == [("published", False)]
        cursor = await connection.execute("SELECT count(DISTINCT manifest_hash) FROM index_version")
        assert await cursor.fetchone() == (1,)
