"""The chunks of index versions: a partition for each, loaded first and indexed once it is whole.

Rows are kept narrow, so that a search that looks at thousands of them reads few pages: texts are stored apart. So are
vectors that are long; short ones stay in the row, because a search among few documents reads them all. Vectors have
unit length and half precision, which costs less than one place in ten thousand.
"""

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
_ALIKE = 0.999  # similarity of a vector to itself, rounding apart
_OLDEST_VECTOR = (0, 8)  # of pgvector: half vectors, and graph searches that go on until enough passages fit a filter
MOST_DIMENSIONS = 4000
"""The longest vectors that can be searched."""
_INLINE_DIMENSIONS = 512  # 1 kB
# The graph of nearest neighbours. Real documents repeat themselves, and with pgvector's defaults (16, 64) passages that
# are all alike hide each other: among 100,000 chunks of manuals, one in fifteen of the nearest ten was missed.
_NEIGHBOURS, _CANDIDATES = 24, 128
_CHECKED_CANDIDATES = 400  # of the graph, for each chunk of the sample that is checked
GRAPH_CHUNKS = 3000
"""A version with fewer chunks has no graph: looking at each of them is as fast, and misses none."""
_GRAPH_BYTES = 1200  # of a chunk while the graph is built, beside its vector
_LEAST_KB, _MOST_KB = 64 * 1024, 2 * 1024 * 1024
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
    metadata     jsonb NOT NULL,        -- the document's, with its path, title and modified
    embedding    halfvec NOT NULL,      -- of the version's length; a unit vector, or zero
    tsv          tsvector NOT NULL      -- of title, headings and text
) PARTITION BY LIST (version)
"""
# What is not pushed out of the row, and what is, uncompressed: it is read more often than written.
_STORAGE: LiteralString = """
ALTER TABLE {name} SET (toast_tuple_target = 128),
    ALTER heading SET STORAGE MAIN, ALTER content_hash SET STORAGE MAIN, ALTER groups SET STORAGE MAIN,
    ALTER metadata SET STORAGE MAIN, ALTER text SET STORAGE EXTERNAL, ALTER tsv SET STORAGE EXTERNAL,
    ALTER embedding SET STORAGE {embedding}
"""

WORDS: LiteralString = "to_tsvector(%(language)s::regconfig, translate({text}, './_:@=-', '       '))"
"""The words of a text, of a chunk and of a query alike. A path, a host or an option is taken apart: PostgreSQL's parser
would keep `os.path.join` whole, and nobody who asks for `join` would find it."""


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


class Figures(msgspec.Struct, frozen=True):
    """What a search needs to know of a version, found out once it is whole.

    Attributes:
        chunks: How many it has.
        mean_tokens: Length of a chunk.
        background: Mean similarity of two of its chunks, 0 to 0.9: what is not more alike has nothing in common. Where
            it lies depends on what made the vectors: near 0 with some models, at 0.7 with others.
        groups: Those in its labels.
    """

    chunks: int
    mean_tokens: float
    background: float
    groups: tuple[str, ...]


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


async def create(connection: Connection, version: int, dimensions: int) -> None:
    """Make a version's partition if there is none; the first time, the extension and the table too.

    Args:
        connection: Of a transaction.
        version: Its row's number.
        dimensions: Length of its vectors.

    Raises:
        ConfigurationError: The vectors are too long, the database has no pgvector or an old one, or its user may not
            create the extension.
    """
    if dimensions > MOST_DIMENSIONS:
        raise ConfigurationError(
            f"vectors of {dimensions:,} dimensions cannot be searched, {MOST_DIMENSIONS:,} is the most: give the"
            " embedder `dimensions`, or take another model"
        )
    await _create_extension(connection)
    await connection.execute("CREATE SEQUENCE IF NOT EXISTS index_chunk_id")
    await connection.execute(_PARENT)
    if await exists(connection, version):
        return
    name, number = _name(version), sql.Literal(version)
    await connection.execute(
        sql.SQL("CREATE TABLE {} (LIKE index_chunk INCLUDING DEFAULTS, CHECK (version = {}))").format(name, number)
    )
    inline = dimensions <= _INLINE_DIMENSIONS
    await connection.execute(
        sql.SQL(_STORAGE).format(name=name, embedding=sql.SQL("PLAIN") if inline else sql.SQL("EXTERNAL"))
    )
    await connection.execute(
        # Attached, it blocks no search of another version; made as a partition, it would.
        sql.SQL("ALTER TABLE index_chunk ATTACH PARTITION {} FOR VALUES IN ({})").format(name, number)
    )
    await connection.execute(sql.SQL("CREATE INDEX ON {} (content_hash)").format(name))
    await connection.execute(sql.SQL("CREATE INDEX ON {} (document, position)").format(name))


async def _create_extension(connection: Connection) -> None:
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
    cursor = await connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    row = await cursor.fetchone()
    if row is None or tuple(int(part) for part in row[0].split(".")[:2]) < _OLDEST_VECTOR:
        wanted = ".".join(map(str, _OLDEST_VECTOR))
        raise ConfigurationError(
            f"search indexes need pgvector {wanted} or newer, the database has {row[0] if row else 'none'}: install it"
            " on the server, then run `ALTER EXTENSION vector UPDATE`"
        )


async def exists(connection: Connection, version: int) -> bool:
    """Say whether a version has a partition."""
    cursor = await connection.execute("SELECT to_regclass(%s) IS NOT NULL", (f"index_chunk_{version}",))
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def load(connection: Connection, version: int, rows: Iterable[Row], language: str) -> None:
    """Write chunks into a version's partition."""
    await connection.execute(
        "CREATE TEMPORARY TABLE IF NOT EXISTS loading (document bigint, position integer, title text, heading text,"
        " text text, tokens integer, content_hash text, groups jsonb, metadata jsonb, embedding real[])"
        " ON COMMIT DELETE ROWS"
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
            " ARRAY(SELECT jsonb_array_elements_text(groups)), metadata, l2_normalize(embedding::vector)::halfvec, {}"
            " FROM loading ORDER BY document, position"
        ).format(_name(version), sql.SQL(WORDS).format(text=sql.SQL("concat_ws(' ', title, heading, text)"))),
        {"version": version, "language": language},
    )
    await connection.execute("DELETE FROM loading")


def _values(row: Row) -> tuple[Any, ...]:
    chunk, document = row.chunk, row.document
    return (
        Int8(row.number),
        Int4(chunk.position),
        document.title,
        chunk.heading,
        chunk.text,
        Int4(chunk.tokens),
        chunk.content_hash,
        Jsonb(document.groups),
        Jsonb(_metadata(document)),
        _Array(row.vector),
    )


def _metadata(document: Document) -> dict[str, Any]:
    """What filters look at."""
    own = {"path": document.path, "title": document.title, "modified": document.modified}
    return document.metadata | own


async def carry_over(connection: Connection, base: int, version: int, documents: Sequence[Carried]) -> None:
    """Take over documents' chunks from another version of the same recipe, as they are, with the groups of now."""
    now = Jsonb([{"groups": each.document.groups, "metadata": _metadata(each.document)} for each in documents])
    await connection.execute(
        sql.SQL(
            "INSERT INTO {} (version, document, position, heading, text, tokens, content_hash, groups, metadata,"
            " embedding, tsv) SELECT %s, d.number, c.position, c.heading, c.text, c.tokens, c.content_hash,"
            " ARRAY(SELECT jsonb_array_elements_text(d.now->'groups')), d.now->'metadata', c.embedding, c.tsv"
            " FROM unnest(%s::bigint[], %s::bigint[], ARRAY(SELECT jsonb_array_elements(%s)))"
            " AS d (before, number, now) JOIN {} c ON c.document = d.before ORDER BY d.number, c.position"
        ).format(_name(version), _name(base)),
        (version, [each.before for each in documents], [each.number for each in documents], now),
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
    """Make the indexes and figures of a partition that is whole; harmless when they are there.

    Args:
        connection: Of a transaction.
        version: Its row's number.
        dimensions: Length of its vectors.
    """
    # Whoever had the build before may be gone, and its server process still at it.
    await connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (_PARENT_LOCK >> 32, version))
    name = _name(version)
    figures = await _measure(connection, version)
    wanted_kb = figures.chunks * (2 * dimensions + _GRAPH_BYTES) // 1024
    memory_kb = min(max(wanted_kb, _LEAST_KB), _MOST_KB)
    await connection.execute("SELECT set_config('maintenance_work_mem', %s, true)", (f"{memory_kb}kB",))
    if figures.chunks > GRAPH_CHUNKS:
        await _build_graph(connection, version, dimensions)
    for made, target in (("words", "gin (tsv)"), ("ids", "btree (id)")):
        await connection.execute(
            sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING " + target).format(
                sql.Identifier(f"index_chunk_{version}_{made}"), name
            )
        )
    await connection.execute("DELETE FROM index_word WHERE version_id = %s", (version,))
    await connection.execute(
        "INSERT INTO index_word (version_id, word, chunks) SELECT %s, word, ndoc FROM ts_stat(%s) WHERE ndoc > 1",
        (version, sql.SQL("SELECT tsv FROM {}").format(name).as_string(connection)),
    )
    await connection.execute(
        "UPDATE index_version SET figures = %s WHERE id = %s", (Jsonb(msgspec.to_builtins(figures)), version)
    )
    await connection.execute(sql.SQL("ANALYZE {}").format(name))


async def _measure(connection: Connection, version: int) -> Figures:
    cursor = await connection.execute(
        sql.SQL(
            "SELECT count(*), coalesce(avg(tokens), 0)::float8, coalesce(l2_norm(avg(embedding)), 0),"
            " ARRAY(SELECT DISTINCT unnest(groups) FROM index_document WHERE version_id = %s AND state = 'loaded')"
            " FROM {}"
        ).format(_name(version)),
        (version,),
    )
    row = await cursor.fetchone()
    assert row is not None
    chunks, mean_tokens, length, groups = row
    # The square of the mean vector's length is the mean of all products, those of each vector with itself included.
    background = (chunks * length**2 - 1) / (chunks - 1) if chunks > 1 else 0.0
    return Figures(chunks, mean_tokens, min(max(background, 0.0), 0.9), tuple(sorted(groups)))


async def _build_graph(connection: Connection, version: int, dimensions: int) -> None:
    create = sql.SQL(
        "CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw (({}) halfvec_ip_ops) WITH (m = {}, ef_construction = {})"
    ).format(
        sql.Identifier(f"index_chunk_{version}_vectors"),
        _name(version),
        graph_key(dimensions),
        sql.Literal(_NEIGHBOURS),
        sql.Literal(_CANDIDATES),
    )
    try:
        async with connection.transaction():
            await connection.execute(create)
    except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory):
        # A container's shared memory is small; one process by itself needs none.
        await connection.execute("SET LOCAL max_parallel_maintenance_workers = 0")
        await connection.execute(create)


def graph_key(dimensions: int) -> sql.Composed:
    """Write what the graph of vectors is built over; a search must order by the same."""
    return sql.SQL("embedding::halfvec({})").format(sql.Literal(dimensions))


async def check_search(connection: Connection, version: int, dimensions: int, sample: int) -> None:
    """Search for a sample of a version's own vectors, through its graph where it has one.

    A graph is approximate, and misses some among documents that are nearly the same: most of the sample must be found.

    Raises:
        HeadwayError: It is not.
    """
    name, key = _name(version), graph_key(dimensions)
    cursor = await connection.execute(
        sql.SQL("SELECT embedding FROM {} WHERE l2_norm(embedding) > 0 ORDER BY content_hash LIMIT %s").format(name),
        (sample,),
    )
    vectors = [vector for (vector,) in await cursor.fetchall()]
    await connection.execute("SELECT set_config('enable_seqscan', 'off', true)")
    await connection.execute("SELECT set_config('hnsw.ef_search', %s, true)", (str(_CHECKED_CANDIDATES),))
    query = sql.SQL(
        "SELECT ({0}) <#> %(vector)s::halfvec FROM {1} ORDER BY ({0}) <#> %(vector)s::halfvec LIMIT 1"
    ).format(key, name)
    found = 0
    for vector in vectors:
        row = await (await connection.execute(query, {"vector": vector})).fetchone()
        found += row is not None and -row[0] > _ALIKE
    if 2 * found < len(vectors):
        message = f"of {len(vectors)} chunks only {found} are found by their own vectors"
        raise HeadwayError(message, code="index_not_whole")


async def drop(connection: Connection, version: int) -> None:
    """Drop a version's partition and words; harmless when there are none."""
    await connection.execute("DELETE FROM index_word WHERE version_id = %s", (version,))
    await connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(_name(version)))


def _name(version: int) -> sql.Identifier:
    return sql.Identifier(f"index_chunk_{version}")
