"""What a search should find: every chunk of a version looked at and scored as the documentation says, in numpy."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from headway.config.indexes import IndexSpec, LakeSpec, VersionSpec
from headway.domain.release import Retrieval
from headway.retrieval.retriever import Query, QueryEmbedder, Version
from headway.retrieval.searching import VersionSearch
from headway.storage.database import Connection, Database
from headway.storage.partitions import WORDS
from headway.storage.search import Searched

Floats = NDArray[np.float32]
Allowed = Callable[[str, Sequence[str], Mapping[str, Any]], bool]

_SATURATION, _LENGTH = 1.2, 0.75
_EQUAL = 0.001  # difference of scores


class Scores(NamedTuple):
    """Of every chunk, in the order of ``Library.chunks``."""

    score: Floats
    similarity: Floats
    coverage: Floats


class Agreement(NamedTuple):
    """Of searches with what looking at every chunk finds.

    Attributes:
        chunks: That may be found.
        recall: Part of the best passages that were found, or others as good; mean over queries.
        worst: That of the worst query.
        spent_ms: What each search took.
    """

    chunks: int
    recall: float
    worst: float
    spent_ms: list[float]


@dataclass(frozen=True)
class Library:
    """All chunks of a version, in memory.

    Attributes:
        searched: The version.
        chunks: Their numbers, in the order of documents.
        paths, groups, metadata: Of each chunk.
        vectors: Of each chunk.
        tokens: Of each chunk.
        places: Of each word, the chunks that have it, and how often.
    """

    searched: Searched
    chunks: list[int]
    paths: list[str]
    groups: list[list[str]]
    metadata: list[dict[str, Any]]
    vectors: Floats
    tokens: Floats
    places: dict[str, tuple[list[int], list[int]]]

    def allow(self, allowed: Allowed) -> NDArray[np.bool_]:
        """Say of each chunk whether a filter lets it pass."""
        rows = zip(self.paths, self.groups, self.metadata, strict=True)
        return np.array([allowed(*row) for row in rows], bool)

    def best(self, scores: Scores, allowed: NDArray[np.bool_], top_k: int) -> list[int]:
        """Places of the best that are allowed, best first."""
        places = np.flatnonzero(allowed)
        order = np.lexsort((places, -scores.similarity[places], -scores.score[places]))
        return [int(place) for place in places[order[:top_k]]]

    def score(self, words: Sequence[str], vector: Floats | None, weight: float) -> Scores:
        """Score every chunk.

        Args:
            words: Of the query, as PostgreSQL has them.
            vector: Of the query, of unit length; None for words alone.
            weight: What meaning counts.
        """
        figures, count = self.searched.figures, len(self.chunks)
        coverage = np.zeros(count, np.float32)
        length = 1 - _LENGTH + _LENGTH * self.tokens / max(figures.mean_tokens, 1.0)
        total = 0.0
        for word in words:
            having, times = self.places.get(word, ([], []))
            rarity = np.log1p((count - max(len(having), 1) + 0.5) / (max(len(having), 1) + 0.5))
            total += rarity
            often = np.array(times, np.float32)
            coverage[having] += rarity * often / (often + _SATURATION * length[having])
        if total:
            coverage /= total
        similarity = np.zeros(count, np.float32) if vector is None else self.vectors @ vector
        likeness = np.clip((similarity - figures.background) / (1 - figures.background), 0, 1)
        weight = 0.0 if vector is None else weight if total else 1.0
        return Scores(weight * likeness + (1 - weight) * coverage, similarity, coverage)


async def read_library(connection: Connection, searched: Searched) -> Library:
    """Read all chunks of a version."""
    name = sql.Identifier(f"index_chunk_{searched.version}")
    library = Library(searched, [], [], [], [], np.zeros((0, 0), np.float32), np.zeros(0, np.float32), {})
    vectors: list[Floats] = []
    tokens: list[int] = []
    query = sql.SQL(
        "SELECT c.id, d.path, c.groups, c.metadata, c.tokens, c.embedding::real[] FROM {} c"
        " JOIN index_document d ON d.id = c.document ORDER BY c.document, c.position"
    ).format(name)
    async for chunk, path, groups, metadata, length, vector in connection.cursor().stream(query, binary=True):
        library.chunks.append(chunk)
        library.paths.append(path)
        library.groups.append(groups)
        library.metadata.append(metadata)
        tokens.append(length)
        vectors.append(np.array(vector, np.float32))
    number = {chunk: place for place, chunk in enumerate(library.chunks)}
    query = sql.SQL("SELECT c.id, w.lexeme, cardinality(w.positions) FROM {} c, unnest(c.tsv) AS w").format(name)
    async for chunk, word, times in connection.cursor().stream(query, binary=True):
        having, often = library.places.setdefault(word, ([], []))
        having.append(number[chunk])
        often.append(times)
    return replace(library, vectors=np.array(vectors), tokens=np.array(tokens, np.float32))


async def read_words(connection: Connection, language: str, text: str) -> list[str]:
    """Take a query apart as the chunks were."""
    query = sql.SQL("SELECT tsvector_to_array({})").format(sql.SQL(WORDS).format(text=sql.SQL("%(text)s")))
    cursor = await connection.execute(query, {"language": language, "text": text})
    row = await cursor.fetchone()
    return [] if row is None else list(row[0])


async def compare_with_exact(
    database: Database, library: Library, embedder: QueryEmbedder, retrieval: Retrieval, texts: Sequence[str]
) -> Agreement:
    """Search as in production, without groups, and see what looking at every chunk would have found.

    Args:
        database: Where the version is.
        library: All of it.
        embedder: Of the queries.
        retrieval: How to search.
        texts: The queries.

    Raises:
        AssertionError: A passage was found that the filter leaves out.
    """
    searched, search = library.searched, VersionSearch()
    version = Version(searched.version, VersionSpec(IndexSpec(LakeSpec("file:/"))), searched.dimensions)
    number = {chunk: place for place, chunk in enumerate(library.chunks)}
    allowed = library.allow(read_filter(retrieval.filter))
    recalls, spent_ms = [], []
    for text in texts:
        vector = (await embedder.embed([text]))[0] if retrieval.hybrid_weight > 0 else None
        began = time.perf_counter()
        async with database.connection() as connection:
            found = await search(connection, version, Query(text, vector, retrieval, frozenset()))
        spent_ms.append((time.perf_counter() - began) * 1000)
        async with database.connection() as connection:
            words = await read_words(connection, searched.language, text)
        scores = library.score(words, vector, retrieval.hybrid_weight)
        best = library.best(scores, allowed, retrieval.top_k)
        places = [number[passage.chunk] for passage in found]
        assert allowed[places].all()
        least = scores.score[best[-1]] - _EQUAL
        recalls.append(sum(scores.score[place] >= least for place in places) / len(best))
    return Agreement(int(allowed.sum()), fmean(recalls), min(recalls), spent_ms)


def read_filter(given: Mapping[str, Any]) -> Allowed:
    """Say what a filter on paths means: a prefix, or a list."""

    def allow(path: str, groups: Sequence[str], _: Mapping[str, Any]) -> bool:
        wanted = given.get("path", {"prefix": ""})
        return not groups and (path.startswith(wanted["prefix"]) if isinstance(wanted, dict) else path in wanted)

    return allow


def choose_documents(library: Library, part: float) -> list[str]:
    """Choose documents at random that together have so many of all chunks."""
    sizes = Counter(library.paths)
    paths = sorted(sizes)
    random.Random(1).shuffle(paths)
    chosen: list[str] = []
    left = part * len(library.paths)
    for path in paths:
        if sizes[path] <= left:
            chosen.append(path)
            left -= sizes[path]
    return chosen
