"""Index versions that are searched in a search service: what is written there, and what is to be deleted there."""

from __future__ import annotations

from typing import Any, LiteralString

import msgspec
from psycopg import sql

from headway.config.indexes import VersionSpec
from headway.storage import builds
from headway.storage.database import Connection

_LIST: LiteralString = """
    SELECT v.id, i.name || '@' || v.number, progress->>'remote', spec
    FROM index_version v JOIN search_index i ON i.id = v.index_id
    WHERE state IN ('failed', 'cancelled', 'dropped') AND coalesce(progress->>'remote', '') <> '' ORDER BY v.id
"""
_REMOTE: LiteralString = "SELECT coalesce(progress->>'remote', '') <> '' FROM index_version WHERE id = %s"


class Written(msgspec.Struct, frozen=True):
    """A chunk with what of its document goes with it.

    Attributes:
        number: The chunk's.
        document: Its document's row; chunks come in the order of this, and of their position.
        position: Its place in the document.
        path, title: Its document's.
        heading: The headings it stands under.
        text: What is shown.
        tokens: Its length.
        groups: Who may see it.
        metadata: The document's, with its path, title and modified.
        vector: Of unit length, or zero.
    """

    number: int
    document: int
    position: int
    path: str
    title: str
    heading: str
    text: str
    tokens: int
    groups: list[str]
    metadata: dict[str, Any]
    vector: list[float]


class Unused(msgspec.Struct, frozen=True):
    """An index in a search service that no version needs any more."""

    version: int
    label: str
    remote: str
    spec: VersionSpec


START = (0, 0)
"""The place before all chunks."""


async def find_place(connection: Connection, version: int, skip: int) -> tuple[int, int]:
    """Find behind which chunk those begin that come after so many, as its document and position."""
    if not skip:
        return START
    cursor = await connection.execute(
        sql.SQL("SELECT document, position FROM {} ORDER BY document, position OFFSET %s LIMIT 1").format(
            sql.Identifier(f"index_chunk_{version}")
        ),
        (skip - 1,),
    )
    row = await cursor.fetchone()
    assert row is not None, "no more are skipped than there are"
    return row[0], row[1]


async def read_chunks(connection: Connection, version: int, *, after: tuple[int, int], limit: int) -> list[Written]:
    """Read chunks of a version in their order.

    Args:
        connection: To the database.
        version: The row's number; its partition is whole and does not change.
        after: Document and position of the one before.
        limit: The most that are given.
    """
    cursor = await connection.execute(
        sql.SQL(
            "SELECT c.id, c.document, c.position, d.path, d.title, c.heading, c.text, c.tokens, c.groups, c.metadata,"
            " c.embedding::real[] FROM (SELECT * FROM {} WHERE (document, position) > (%s, %s)"
            " ORDER BY document, position LIMIT %s) c JOIN index_document d ON d.id = c.document"
            " ORDER BY c.document, c.position"
        ).format(sql.Identifier(f"index_chunk_{version}")),
        (*after, limit),
    )
    return [Written(*row) for row in await cursor.fetchall()]


async def list_unused(connection: Connection) -> list[Unused]:
    """List what is to be deleted in search services."""
    cursor = await connection.execute(_LIST)
    return [
        Unused(version, label, remote, msgspec.convert(spec, VersionSpec))
        for version, label, remote, spec in await cursor.fetchall()
    ]


async def is_free(connection: Connection, unused: Unused) -> bool:
    """Say whether it is still there and nobody writes into it; as its version has ended, nobody will again."""
    if not await builds.hold_in_transaction(connection, unused.version):
        return False
    cursor = await connection.execute(_REMOTE, (unused.version,))
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def forget(connection: Connection, unused: Unused) -> None:
    """Note that an index in a search service is gone."""
    await connection.execute("UPDATE index_version SET progress = progress - 'remote' WHERE id = %s", (unused.version,))
