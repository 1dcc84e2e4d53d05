"""The chunks of index versions: a partition for each, loaded first and indexed once it is whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, LiteralString

import msgspec
import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format
from psycopg.types.json import Jsonb
from psycopg.types.numeric import Int4, Int8

from headway.domain.knowledge import Chunk, Document
from headway.errors import ConfigurationError, HeadwayError
from headway.storage.database import Connection

Vector = NDArray[np.float32]

_PARENT_LOCK = 0x6865_6164_7761_7D
_FLOAT4, _FLOAT4_ARRAY = 700, 1021
_NEAR = 1e-3  # cosine distance of a vector to itself, rounding apart
_PARENT: LiteralString = """
CREATE TABLE IF NOT EXISTS index_chunk (
    version      integer NOT NULL,
    id           bigint NOT NULL DEFAULT nextval('index_chunk_id'),
    document     bigint NOT NULL,       -- index_document.id
    position     integer NOT NULL,      -- in the document, from 0
    heading      text NOT NULL,
    text         text NOT NULL,
    tokens       integer NOT NULL,
    content_hash text NOT NULL,         -- of what is embedded
    groups       text[] NOT NULL,       -- who may see it; empty for everybody
    metadata     jsonb NOT NULL,        -- the document's
    embedding    vector NOT NULL,       -- of the version's length
    tsv          tsvector NOT NULL
) PARTITION BY LIST (version)
"""
_TEXT: LiteralString = (
    "setweight(to_tsvector(%(language)s::regconfig, heading), 'A') || to_tsvector(%(language)s::regconfig, text)"
)


class Row(msgspec.Struct, frozen=True):
    """A chunk to be loaded: the row of its document, the document, the chunk and its vector."""

    number: int
    document: Document
    chunk: Chunk
    vector: Vector


class Carried(msgspec.Struct, frozen=True):
    """A document whose chunks are taken over: its row in the earlier version and in this one, and what it is now."""

    before: int
    number: int
    document: Document


class _Array:
    """A vector in PostgreSQL's binary format of ``real[]``."""

    def __init__(self, vector: Vector) -> None:
        values = np.empty(len(vector), dtype=[("length", ">i4"), ("value", ">f4")])
        values["length"], values["value"] = 4, vector
        head = np.array([1, 0, _FLOAT4, len(vector), 1], dtype=">i4")
        self.data = head.tobytes() + values.tobytes()


class _ArrayDumper(Dumper):
    format = Format.BINARY
    oid = _FLOAT4_ARRAY

    def dump(self, obj: _Array) -> Buffer:
        return obj.data


async def create(connection: Connection, version: int) -> None:
    """Make a version's partition if there is none; the first time, the extension and the table too.

    Raises:
        ConfigurationError: The database has no pgvector, or its user may not create the extension.
    """
    await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_PARENT_LOCK,))
    try:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile) as error:
        raise ConfigurationError(
            "search indexes need the extension pgvector, and the database does not have it: install it on the server"
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            "search indexes need the extension pgvector: let a superuser run `CREATE EXTENSION vector` in the database"
        ) from error
    await connection.execute("CREATE SEQUENCE IF NOT EXISTS index_chunk_id")
    await connection.execute(_PARENT)
    if await exists(connection, version):
        return
    name, number = _name(version), sql.Literal(version)
    await connection.execute(
        sql.SQL("CREATE TABLE {} (LIKE index_chunk INCLUDING DEFAULTS, CHECK (version = {}))").format(name, number)
    )
    await connection.execute(
        # Attached, it blocks no search of another version; made as a partition, it would.
        sql.SQL("ALTER TABLE index_chunk ATTACH PARTITION {} FOR VALUES IN ({})").format(name, number)
    )
    await connection.execute(sql.SQL("CREATE INDEX ON {} (content_hash)").format(name))
    await connection.execute(sql.SQL("CREATE INDEX ON {} (document)").format(name))


async def exists(connection: Connection, version: int) -> bool:
    """Say whether a version has a partition."""
    cursor = await connection.execute("SELECT to_regclass(%s) IS NOT NULL", (f"index_chunk_{version}",))
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def load(connection: Connection, version: int, rows: Iterable[Row], language: str) -> None:
    """Write chunks into a version's partition."""
    await connection.execute(
        "CREATE TEMPORARY TABLE IF NOT EXISTS loading (document bigint, position integer, heading text, text text,"
        " tokens integer, content_hash text, groups jsonb, metadata jsonb, embedding real[]) ON COMMIT DELETE ROWS"
    )
    async with connection.cursor() as cursor:
        cursor.adapters.register_dumper(_Array, _ArrayDumper)
        async with cursor.copy("COPY loading FROM STDIN (FORMAT BINARY)") as writer:
            for row in rows:
                await writer.write_row(_values(row))
    await connection.execute(
        sql.SQL(
            "INSERT INTO {} (version, document, position, heading, text, tokens, content_hash, groups, metadata,"
            " embedding, tsv) SELECT %(version)s, document, position, heading, text, tokens, content_hash,"
            " ARRAY(SELECT jsonb_array_elements_text(groups)), metadata, embedding::vector, {}"
            " FROM loading ORDER BY document, position"
        ).format(_name(version), sql.SQL(_TEXT)),
        {"version": version, "language": language},
    )
    await connection.execute("DELETE FROM loading")


def _values(row: Row) -> tuple[Any, ...]:
    chunk, document = row.chunk, row.document
    return (
        Int8(row.number),
        Int4(chunk.position),
        chunk.heading,
        chunk.text,
        Int4(chunk.tokens),
        chunk.content_hash,
        Jsonb(document.groups),
        Jsonb(document.metadata),
        _Array(row.vector),
    )


async def carry_over(connection: Connection, base: int, version: int, documents: Sequence[Carried]) -> None:
    """Take over documents' chunks from another version of the same recipe, as they are, with the groups of now."""
    groups = Jsonb([list(each.document.groups) for each in documents])
    await connection.execute(
        sql.SQL(
            "INSERT INTO {} (version, document, position, heading, text, tokens, content_hash, groups, metadata,"
            " embedding, tsv) SELECT %s, d.number, c.position, c.heading, c.text, c.tokens, c.content_hash,"
            " ARRAY(SELECT jsonb_array_elements_text(d.groups)), c.metadata, c.embedding, c.tsv"
            " FROM unnest(%s::bigint[], %s::bigint[], ARRAY(SELECT jsonb_array_elements(%s)))"
            " AS d (before, number, groups) JOIN {} c ON c.document = d.before ORDER BY d.number, c.position"
        ).format(_name(version), _name(base)),
        (version, [each.before for each in documents], [each.number for each in documents], groups),
    )


async def find_vectors(connection: Connection, version: int, hashes: Sequence[str]) -> dict[str, Vector]:
    """Find the vectors of chunks that a version has, by content hash."""
    cursor = await connection.execute(
        sql.SQL(
            "SELECT DISTINCT ON (content_hash) content_hash, embedding::real[] FROM {} WHERE content_hash = ANY(%s)"
        ).format(_name(version)),
        (list(hashes),),
    )
    return {content_hash: np.array(vector, np.float32) async for content_hash, vector in cursor}


async def index(connection: Connection, version: int, dimensions: int) -> None:
    """Make the indexes of a partition that is whole; harmless when they are there. Runs in a transaction."""
    # Whoever had the build before may be gone, and its server process still at it.
    await connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (_PARENT_LOCK >> 32, version))
    await connection.execute("SET LOCAL maintenance_work_mem = '512MB'")
    name = _name(version)
    await connection.execute(
        sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw ((embedding::vector({})) vector_cosine_ops)").format(
            sql.Identifier(f"index_chunk_{version}_vectors"), name, sql.Literal(dimensions)
        )
    )
    await connection.execute(
        sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING gin (tsv)").format(
            sql.Identifier(f"index_chunk_{version}_words"), name
        )
    )
    await connection.execute(sql.SQL("ANALYZE {}").format(name))


async def check_search(connection: Connection, version: int, dimensions: int, sample: int) -> None:
    """Search for a sample of a version's own vectors through its index.

    Raises:
        HeadwayError: One is not found.
    """
    name, size = _name(version), sql.Literal(dimensions)
    cursor = await connection.execute(
        sql.SQL(
            "SELECT content_hash, embedding FROM {} WHERE vector_norm(embedding) > 0 ORDER BY content_hash LIMIT %s"
        ).format(name),
        (sample,),
    )
    await connection.execute("SET LOCAL enable_seqscan = off")
    for content_hash, vector in await cursor.fetchall():
        found = await connection.execute(
            sql.SQL(
                "SELECT embedding::vector({0}) <=> %(vector)s::vector FROM {1}"
                " ORDER BY embedding::vector({0}) <=> %(vector)s::vector LIMIT 1"
            ).format(size, name),
            {"vector": vector},
        )
        row = await found.fetchone()
        if row is None or not row[0] < _NEAR:
            raise HeadwayError(f"the chunk {content_hash[:12]} is not found by its own vector", code="index_not_whole")


async def drop(connection: Connection, version: int) -> None:
    """Drop a version's partition; harmless when there is none."""
    await connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(_name(version)))


def _name(version: int) -> sql.Identifier:
    return sql.Identifier(f"index_chunk_{version}")
