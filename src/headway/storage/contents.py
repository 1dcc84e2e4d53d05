"""What a version holds of one document: its passages in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.rows import class_row

from headway.errors import NotFoundError
from headway.storage.database import Connection
from headway.storage.versions import Version


@dataclass(frozen=True)
class StoredDocument:
    """A document of a version; ``groups`` may see it, everybody where there are none."""

    number: int
    path: str
    state: str
    problem: str | None
    title: str
    content_hash: str
    size_bytes: int
    modified: str
    metadata: dict[str, Any]
    groups: list[str]
    chunks: int


@dataclass(frozen=True)
class StoredChunk:
    """A passage of a document."""

    position: int
    heading: str
    text: str
    tokens: int


async def find_document(connection: Connection, version: Version, path: str) -> StoredDocument:
    """Find a document by its path.

    Raises:
        NotFoundError: The version has none of that path.
    """
    async with connection.cursor(row_factory=class_row(StoredDocument)) as cursor:
        await cursor.execute(
            "SELECT id AS number, path, state, problem, title, content_hash, size_bytes, modified, metadata, groups,"
            " chunks FROM index_document WHERE version_id = %s AND path = %s",
            (version.version, path.replace("\0", "")),
        )
        found = await cursor.fetchone()
    if found is None:
        raise NotFoundError(f"{version.label} has no document of that path", param="path")
    return found


async def list_chunks(
    connection: Connection, version: Version, document: StoredDocument, *, begin: int = 0, limit: int = 50
) -> list[StoredChunk]:
    """List the passages of a document in their order, from a position on."""
    async with connection.cursor(row_factory=class_row(StoredChunk)) as cursor:
        await cursor.execute(
            "SELECT position, heading, text, tokens FROM index_chunk WHERE version = %s AND document = %s"
            " AND position >= %s ORDER BY position LIMIT %s",
            (version.version, document.number, begin, limit),
        )
        return await cursor.fetchall()


async def read_groups(connection: Connection, version: Version, paths: Sequence[str]) -> dict[str, list[str]]:
    """Read who may see the documents of these paths; those that everybody may see are left out."""
    cursor = await connection.execute(
        "SELECT path, groups FROM index_document WHERE version_id = %s AND path = ANY(%s) AND groups <> '{}'",
        (version.version, list(paths)),
    )
    return {path: groups async for path, groups in cursor}
