"""Index versions for tests, written straight into the tables: documents, chunks and vectors as a build leaves them."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from headway.config.indexes import IndexSpec, LakeSpec, VersionSpec
from headway.domain.knowledge import Chunk, Document
from headway.storage import partitions
from headway.storage.database import Connection
from headway.storage.partitions import Row
from headway.testing.embeddings import embed_text

Embed = Callable[[Sequence[str]], Awaitable[NDArray[np.float32]]]
SPEC = VersionSpec(IndexSpec(LakeSpec("file:/docs")))


class Page(msgspec.Struct, frozen=True):
    """A document of one chunk."""

    path: str
    title: str
    text: str
    groups: tuple[str, ...] = ()
    tokens: int = 20


def read_vectors(dimensions: int) -> Embed:
    """Embed as the simulated provider does."""

    async def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([embed_text(text, dimensions) for text in texts], np.float32)

    return embed


async def publish(
    connection: Connection, index: str, number: int, pages: Sequence[Page], embed: Embed, spec: VersionSpec = SPEC
) -> int:
    """Make a published version of these pages; gives its row's number. The caller commits."""
    vectors = await embed([f"{page.title}\n{page.text}" for page in pages])
    await connection.execute("INSERT INTO search_index (name) VALUES (%s) ON CONFLICT DO NOTHING", (index,))
    cursor = await connection.execute(
        "INSERT INTO index_version (index_id, number, state, spec, dimensions, created_by)"
        " SELECT id, %s, 'published', %s, %s, 'ann' FROM search_index WHERE name = %s RETURNING id",
        (number, Jsonb(msgspec.to_builtins(spec)), vectors.shape[1], index),
    )
    (version,) = await cursor.fetchone() or (0,)
    await partitions.create(connection, version, vectors.shape[1])
    rows = []
    for page, vector in zip(pages, vectors, strict=True):
        content_hash = hashlib.sha256(page.text.encode()).hexdigest()
        document = Document(page.path, content_hash, page.title, groups=page.groups)
        cursor = await connection.execute(
            "INSERT INTO index_document (version_id, path, content_hash, size_bytes, title, groups, state, chunks)"
            " VALUES (%s, %s, %s, %s, %s, %s, 'loaded', 1) RETURNING id",
            (version, page.path, content_hash, len(page.text), page.title, list(page.groups)),
        )
        (row,) = await cursor.fetchone() or (0,)
        rows.append(Row(row, document, Chunk(0, page.title, page.text, page.tokens, content_hash), vector))
    await partitions.load(connection, version, rows, spec.index.language)
    await partitions.index(connection, version, vectors.shape[1])
    return int(version)
