"""Search in one index version: by meaning, in the graph of vectors, and by words, in PostgreSQL's full text.

Either side brings candidates. All candidates are then scored by both: by how much more alike they are to the query than
any two chunks of the version are, and by how much of the query's words they have (BM25, as a part of what could be
had). The score is the weighted mean of the two, so that it means the same whatever else was found.

Filters and access groups are part of both sides, so that nothing leaks. Nor must they cost recall: a graph leads to
what is near the query, and of that a filter may let nothing pass. So each of the chunks that pass is looked at, which
is exact and costs no more; only where there are too many of them, the graph is searched, and further than without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, LiteralString, NamedTuple

import msgspec
import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql
from psycopg.types.json import Jsonb

from headway.domain.filters import Condition
from headway.domain.knowledge import Passage
from headway.errors import NotFoundError
from headway.storage.database import Connection
from headway.storage.partitions import GRAPH_CHUNKS, WORDS, Figures, graph_key

Vector = NDArray[np.float32]

_LISTED_CHUNKS = 50_000  # that pass a filter: looked at one by one at most; 1 ms for 1,300
_MOST_PASS = 0.75  # of all chunks; a filter that lets more pass does not mislead the graph
_DEPTH = 50  # candidates by meaning; twice top_k where that is more
_BREADTH, _MOST_BREADTH = 500, 1000  # of the graph's search: pgvector's ef_search, and its limit
_FILTERED_DEPTH = 400  # brought by the graph where a filter may mislead it
_WORDED = 500  # candidates by words
_VISITS, _MOST_VISITS = 8000, 16_000  # chunks looked up by rare words
_WORDS, _FOLLOWING = 32, 8  # of a query
_SATURATION, _LENGTH = 1.2, 0.75  # BM25's k1 and b
_STATEMENT_MS = 2500  # given up before the database is taken for being away


@dataclass(frozen=True)
class Searched:
    """An index version to search.

    Attributes:
        version: Its row's number.
        dimensions: Of its vectors.
        language: PostgreSQL's text search configuration of its words.
        figures: What was found out when it was whole.
    """

    version: int
    dimensions: int
    language: str
    figures: Figures


@dataclass(frozen=True)
class Scope:
    """Which chunks may be found.

    Attributes:
        groups: The caller's; None where every label of the version is among them.
        conditions: On metadata.
    """

    groups: tuple[str, ...] | None = None
    conditions: tuple[Condition, ...] = ()

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return self.groups is None and not self.conditions


class Reach(NamedTuple):
    """How much a scope holds: chunks, and, where each of them is to be looked at, their documents as SQL's array."""

    chunks: int
    documents: str | None = None


class Question(NamedTuple):
    """What to look for.

    Attributes:
        text: The words; empty to go by meaning alone.
        vector: The meaning; None to go by words alone.
        top_k: Most passages.
        weight: What meaning counts, 0 to 1.
        minimum_score: What a passage must have.
    """

    text: str
    vector: Vector | None
    top_k: int
    weight: float
    minimum_score: float = 0.0


class Term(NamedTuple):
    """A word of a query, and how it brings candidates.

    Attributes:
        word: As PostgreSQL has it, quoted.
        weight: The rarer, the more.
        probe: What is looked up in the index of words; None for nothing.
    """

    word: str
    weight: float
    probe: str | None


async def read_searched(connection: Connection, version: int) -> Searched:
    """Read what a search needs to know of a published version; it never changes.

    Raises:
        NotFoundError: There is none of that number, or it is not published.
    """
    cursor = await connection.execute(
        "SELECT dimensions, spec->'index'->>'language', figures FROM index_version"
        " WHERE id = %s AND state = 'published' AND figures IS NOT NULL",
        (version,),
    )
    row = await cursor.fetchone()
    if row is None:
        raise NotFoundError(f"no index version with the number {version} is published")
    return Searched(version, row[0], row[1] or "english", msgspec.convert(row[2], Figures))


async def measure(connection: Connection, searched: Searched, scope: Scope) -> Reach:
    """Find out how much of a version a scope holds; it never changes."""
    if scope.is_everything:
        return Reach(searched.figures.chunks)
    condition, values = _compile(scope)
    query = sql.SQL(
        "SELECT coalesce(sum(chunks), 0), coalesce(array_agg(id ORDER BY id), '{{}}')::text FROM ("
        " SELECT id, chunks, groups, metadata || jsonb_build_object('path', path, 'title', title, 'modified', modified)"
        " AS metadata FROM index_document WHERE version_id = %(version)s AND state = 'loaded' AND chunks > 0"
        ") document WHERE {}"
    ).format(condition)
    cursor = await connection.execute(query, {"version": searched.version, **values})
    row = await cursor.fetchone()
    assert row is not None
    chunks = int(row[0])
    return Reach(chunks, row[1] if _is_few(searched.figures, chunks) else None)


async def search(
    connection: Connection, searched: Searched, scope: Scope, reach: Reach, question: Question
) -> list[Passage]:
    """Find passages.

    Args:
        connection: Of a transaction of its own; its settings are changed until it ends.
        searched: The version.
        scope: Which chunks may be found.
        reach: How much the scope holds.
        question: What to look for.

    Returns:
        At most ``question.top_k`` passages, best first; equal ones in the order of documents.

    Raises:
        TimeoutError: It took too long.
        psycopg.Error: The version was dropped.
    """
    if not reach.chunks:
        return []
    try:
        return await _search(connection, searched, scope, reach, question)
    except psycopg.errors.QueryCanceled as error:
        raise TimeoutError(f"the search took longer than {_STATEMENT_MS} ms") from error


async def _search(
    connection: Connection, searched: Searched, scope: Scope, reach: Reach, question: Question
) -> list[Passage]:
    vector = question.vector if question.weight > 0 else None
    if vector is not None and not vector.any():  # nothing is known of its words
        vector = None
    depth = max(_DEPTH, 2 * question.top_k)
    way = choose_way(searched.figures, reach)
    async with connection.pipeline():
        await connection.execute(_SETTINGS, _settings(way, depth))
        words = await _read_words(connection, searched, question.text if question.weight < 1 else "")
    terms = plan_terms(words, searched.figures, reach.chunks)
    asked = _Asked(searched, scope, reach, question, vector, terms, depth)
    near, passages = await _ask(connection, asked, way)
    if way == "graph" and vector is not None and near < min(depth, reach.chunks):
        # What fits the filter lies far from the query: the graph was given up before enough was found.
        _, passages = await _ask(connection, asked, "each")
    return passages


Way = Literal["each", "listed", "graph"]
"""How vectors are searched: every chunk that passes the filter, those of listed documents, or the graph."""


def choose_way(figures: Figures, reach: Reach) -> Way:
    """Say how vectors are searched."""
    if not _is_few(figures, reach.chunks):
        return "graph"
    return "each" if reach.documents is None else "listed"


def _is_few(figures: Figures, chunks: int) -> bool:
    """Say whether each chunk that passes a filter is looked at; a version of few has no graph."""
    return figures.chunks <= GRAPH_CHUNKS or chunks <= min(_LISTED_CHUNKS, _MOST_PASS * figures.chunks)


def plan_terms(words: Sequence[tuple[str, int]], figures: Figures, chunks: int) -> list[Term]:
    """Say how the words of a query bring candidates.

    Rare words bring all chunks that have them. Common ones, which too many have, bring only chunks that have a rare
    word too: what has nothing but common words scores low.

    Args:
        words: With the number of chunks that have them.
        figures: Of the version.
        chunks: How many pass the filter.
    """
    part = chunks / max(1, figures.chunks)
    visits = min(max(_VISITS, _WORDED / part), _MOST_VISITS)
    ordered = sorted(words, key=lambda each: (each[1], each[0]))[:_WORDS]
    terms: list[Term] = []
    leading: list[str] = []
    led = following = 0  # chunks that rare words bring; common words that are looked up
    for text, count in ordered:
        word = _quote(text)
        probe = None
        if not leading or (not following and led + count <= visits):
            led += count
            leading.append(word)
            probe = word
        elif led * part > _WORDED and following < _FOLLOWING:  # else all that rare words bring is scored anyway
            following += 1
            probe = f"{word} & ({' | '.join(leading)})"
        terms.append(Term(word, _rarity(count, figures.chunks), probe))
    return terms


def _rarity(count: int, chunks: int) -> float:
    """BM25's weight of a word."""
    return math.log1p((max(chunks, count) - count + 0.5) / (count + 0.5))


def _quote(word: str) -> str:
    return "'" + word.replace("\\", "\\\\").replace("'", "''") + "'"


async def _read_words(connection: Connection, searched: Searched, text: str) -> list[tuple[str, int]]:
    """Take a text apart as the chunks were, and look up how many have each word; one that few have counts as one."""
    cursor = await connection.execute(
        sql.SQL(
            "SELECT lexeme, coalesce(w.chunks, 1) FROM unnest(tsvector_to_array({})) AS lexeme"
            " LEFT JOIN index_word w ON w.version_id = %(version)s AND w.word = lexeme"
        ).format(sql.SQL(WORDS).format(text=sql.SQL("%(text)s"))),
        {"version": searched.version, "language": searched.language, "text": _clean(text)},
    )
    return [(word, count) for word, count in await cursor.fetchall()]


def _clean(text: str) -> str:
    """Leave out what PostgreSQL takes in no text."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode()


_SETTINGS: LiteralString = """
    SELECT set_config('statement_timeout', %(timeout)s, true), set_config('work_mem', '32MB', true),
           set_config('hnsw.ef_search', %(breadth)s, true), set_config('hnsw.iterative_scan', 'relaxed_order', true),
           set_config('hnsw.max_scan_tuples', '100000', true), set_config('hnsw.scan_mem_multiplier', '2', true),
           set_config('jit', 'off', true), set_config('plan_cache_mode', 'force_custom_plan', true),
           set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
           set_config('enable_seqscan', %(scans)s, true), set_config('max_parallel_workers_per_gather', '0', true)
"""


def _settings(way: Way, depth: int) -> dict[str, str]:
    return {
        "timeout": f"{_STATEMENT_MS}ms",
        "breadth": str(min(max(_BREADTH, 4 * depth), _MOST_BREADTH)),
        # The planner cannot know how few rows a way looks at: it is told not to read the whole table instead.
        "scans": "on" if way == "each" else "off",
    }


class _Asked(NamedTuple):
    searched: Searched
    scope: Scope
    reach: Reach
    question: Question
    vector: Vector | None
    terms: Sequence[Term]
    depth: int


_NEAR: dict[Way, LiteralString] = {
    "graph": """
        SELECT id FROM (
            SELECT id, ({key}) <#> %(vector)s::halfvec AS distance FROM {chunks} WHERE {condition}
            ORDER BY ({key}) <#> %(vector)s::halfvec LIMIT %(reached)s
        ) reached ORDER BY distance, id LIMIT %(depth)s""",
    "each": """
        SELECT id FROM (
            SELECT id, document, position, embedding <#> %(vector)s::halfvec AS distance FROM {chunks} WHERE {condition}
        ) looked_at ORDER BY distance, document, position LIMIT %(depth)s""",
    "listed": """
        SELECT id FROM (
            SELECT c.id, c.document, c.position, c.embedding <#> %(vector)s::halfvec AS distance
            FROM unnest(%(documents)s::bigint[]) AS d (id) JOIN {chunks} c ON c.document = d.id
        ) looked_at ORDER BY distance, document, position LIMIT %(depth)s""",
}
_NOTHING: LiteralString = "SELECT NULL::bigint AS id WHERE false"
# ts_rank of one word adds up 1/1 + 1/4 + 1/9 + ... for its places, as a part of the whole series: solved for how many.
_TIMES: LiteralString = "1 / (1.644934 * (1.000001 - ts_rank('{1, 1, 1, 1}', f.tsv, t.word))) - 0.55"
_QUERY: LiteralString = """
    WITH term AS MATERIALIZED (
        SELECT word::tsquery, weight, probe::tsquery
        FROM unnest(%(words)s::text[], %(weights)s::float8[], %(probes)s::text[]) AS t (word, weight, probe)
    ), near AS MATERIALIZED ({near}
    ), worded AS MATERIALIZED (
        SELECT hit.id FROM term t CROSS JOIN LATERAL (
            SELECT id, tokens FROM {chunks} WHERE tsv @@ t.probe AND {condition} LIMIT %(visits)s
        ) hit WHERE t.probe IS NOT NULL
        -- Of two that have the same words, the shorter is more likely about them.
        GROUP BY hit.id, hit.tokens ORDER BY sum(t.weight) DESC, hit.tokens, hit.id LIMIT %(worded)s
    ), fetched AS MATERIALIZED (
        -- The words are read once, and kept, for all terms.
        SELECT c.id, c.document, c.position, c.tokens, c.tsv || ''::tsvector AS tsv,
               {similarity} AS similarity
        FROM (SELECT id FROM near UNION SELECT id FROM worded) candidate JOIN {chunks} c ON c.id = candidate.id
    ), scored AS MATERIALIZED (
        SELECT f.id, f.document, f.position, f.similarity, coalesce((
                   SELECT sum(t.weight * times / (times + %(saturation)s * (1 - %(length)s + %(length)s * f.tokens
                                                                          / %(mean_tokens)s)))
                   FROM term t, LATERAL (SELECT {times} AS times) counted WHERE f.tsv @@ t.word
               ) / %(total)s, 0) AS coverage
        FROM fetched f
    ), ranked AS (
        SELECT id, document, position, similarity, coverage,
               row_number() OVER (ORDER BY similarity DESC NULLS LAST, document, position) AS vector_rank,
               row_number() OVER (ORDER BY coverage DESC, document, position) AS text_rank,
               %(weight)s * coalesce(least(greatest((similarity - %(background)s) / (1 - %(background)s), 0), 1), 0)
               + (1 - %(weight)s) * coverage AS score
        FROM scored
    ), best AS (
        SELECT * FROM ranked WHERE score >= %(minimum)s
        ORDER BY score DESC, similarity DESC NULLS LAST, document, position LIMIT %(top_k)s
    )
    SELECT (SELECT count(*) FROM near), c.id, d.path, d.title, c.heading, c.text, c.tokens, c.position, b.score,
           CASE WHEN b.similarity IS NOT NULL AND b.vector_rank <= %(depth)s THEN b.vector_rank END,
           CASE WHEN b.coverage > 0 AND b.text_rank <= %(depth)s THEN b.text_rank END,
           b.similarity, CASE WHEN %(total)s > 0 THEN b.coverage END, d.metadata->>'url'
    FROM (SELECT) AS always LEFT JOIN best b ON true LEFT JOIN {chunks} c ON c.id = b.id
    LEFT JOIN index_document d ON d.id = b.document
    ORDER BY b.score DESC, b.similarity DESC NULLS LAST, b.document, b.position
"""


async def _ask(connection: Connection, asked: _Asked, way: Way) -> tuple[int, list[Passage]]:
    """Ask; gives the number of candidates by meaning, and the passages."""
    searched, question, vector = asked.searched, asked.question, asked.vector
    condition, values = _compile(asked.scope)
    if asked.reach.documents is not None:  # found out already, and quicker to look up than metadata
        condition, values = sql.SQL("document = ANY (%(documents)s::bigint[])"), {}
    parts = {
        "chunks": sql.Identifier(f"index_chunk_{searched.version}"),
        "condition": condition,
        "key": graph_key(searched.dimensions),
        "times": sql.SQL(_TIMES),
        "similarity": sql.SQL("NULL::float8" if vector is None else "-(c.embedding <#> %(vector)s::halfvec)"),
    }
    near = sql.SQL(_NOTHING if vector is None else _NEAR[way]).format(**parts)
    total = sum(term.weight for term in asked.terms)
    part = asked.reach.chunks / max(1, searched.figures.chunks)
    cursor = await connection.execute(
        sql.SQL(_QUERY).format(near=near, **parts),
        {
            **values,
            "words": [term.word for term in asked.terms],
            "weights": [term.weight for term in asked.terms],
            "probes": [term.probe for term in asked.terms],
            "vector": None if vector is None else _write(vector),
            "documents": asked.reach.documents,
            "depth": asked.depth,
            "reached": asked.depth if part > _MOST_PASS else max(asked.depth, _FILTERED_DEPTH),
            "visits": _VISITS,
            "worded": _WORDED,
            "saturation": _SATURATION,
            "length": _LENGTH,
            "mean_tokens": max(searched.figures.mean_tokens, 1.0),
            "total": total,
            "background": searched.figures.background,
            # What there is nothing to go by does not count: a query of stop words has its meaning only.
            "weight": 0.0 if vector is None else question.weight if asked.terms else 1.0,
            "minimum": question.minimum_score,
            "top_k": question.top_k,
        },
    )
    rows = await cursor.fetchall()
    return rows[0][0], [Passage(*row[1:]) for row in rows if row[1] is not None]


def _write(vector: Vector) -> str:
    """Write a vector of unit length as PostgreSQL reads it."""
    unit = vector / np.linalg.norm(vector)
    return str(unit.astype(np.float16).tolist())


def _compile(scope: Scope) -> tuple[sql.Composable, dict[str, Any]]:
    """Write a scope as SQL on ``groups`` and ``metadata``, which chunks and documents both have."""
    parts: list[sql.Composable] = []
    values: dict[str, Any] = {}
    if scope.groups is not None:
        parts.append(sql.SQL("(groups = '{{}}' OR groups && %(groups)s::text[])").format())
        values["groups"] = list(scope.groups)
    for number, condition in enumerate(scope.conditions):
        key, value = f"key_{number}", f"value_{number}"
        values[key] = condition.key
        text = _CONDITIONS[condition.operator]
        if condition.operator in ("in", "not"):
            values[value] = [Jsonb(each) for each in condition.values]
        else:
            values[value] = condition.values[0]
            if not isinstance(condition.values[0], str):
                text = _NUMBERS[condition.operator]
        parts.append(sql.SQL(text).format(key=sql.Placeholder(key), value=sql.Placeholder(value)))
    return sql.SQL(" AND ").join(parts) if parts else sql.SQL("true"), values


def _ordered(operator: LiteralString, kind: LiteralString, value: LiteralString) -> LiteralString:
    """Compare where the value is of that kind; CASE, because it must not be read as one where it is not."""
    return (
        "CASE WHEN jsonb_typeof(metadata -> {key}::text) = '" + kind + "' THEN " + value + " " + operator + " {value}"
        " ELSE false END"
    )


_TEXT_VALUE: LiteralString = '(metadata ->> {key}::text) COLLATE "C"'
_NUMBER_VALUE: LiteralString = "(metadata ->> {key}::text)::numeric"
_SIGNS: tuple[tuple[str, LiteralString], ...] = (("gt", ">"), ("gte", ">="), ("lt", "<"), ("lte", "<="))
# jsonb's @> holds for equal scalars, and for a scalar in a list.
_CONDITIONS: dict[str, LiteralString] = {
    "in": "metadata -> {key}::text @> ANY ({value}::jsonb[])",
    "not": "coalesce(NOT metadata -> {key}::text @> ANY ({value}::jsonb[]), true)",
    "prefix": "coalesce(starts_with(metadata ->> {key}::text, {value}::text), false)",
    **{name: _ordered(sign, "string", _TEXT_VALUE) for name, sign in _SIGNS},
}
_NUMBERS: dict[str, LiteralString] = {name: _ordered(sign, "number", _NUMBER_VALUE) for name, sign in _SIGNS}
