"""What a search should find: every chunk of a version looked at and scored as the documentation says, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from headway.storage.database import Connection
from headway.storage.search import Searched

Floats = NDArray[np.float32]
Allowed = Callable[[str, Sequence[str], Mapping[str, Any]], bool]

_SATURATION, _LENGTH = 1.2, 0.75


class Scores(NamedTuple):
    """Of every chunk, in the order of ``Library.chunks``."""

    score: Floats
    similarity: Floats
    coverage: Floats

    def best(self, allowed: NDArray[np.bool_], top_k: int) -> list[int]:
        """Places of the best that are allowed, best first."""
        places = np.flatnonzero(allowed)
        order = np.lexsort((places, -self.similarity[places], -self.score[places]))
        return [int(place) for place in places[order[:top_k]]]


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
    cursor = await connection.execute(
        sql.SQL(
            "SELECT c.id, d.path, c.groups, c.metadata, c.tokens, c.embedding::real[] FROM {} c"
            " JOIN index_document d ON d.id = c.document ORDER BY c.document, c.position"
        ).format(name),
        binary=True,
    )
    rows = await cursor.fetchall()
    number = {row[0]: place for place, row in enumerate(rows)}
    places: dict[str, tuple[list[int], list[int]]] = {}
    cursor = await connection.execute(
        sql.SQL("SELECT c.id, w.lexeme, cardinality(w.positions) FROM {} c, unnest(c.tsv) AS w").format(name),
        binary=True,
    )
    async for chunk, word, times in cursor:
        having, often = places.setdefault(word, ([], []))
        having.append(number[chunk])
        often.append(times)
    vectors = np.array([row[5] for row in rows], np.float32).reshape(len(rows), -1)
    return Library(
        searched,
        [row[0] for row in rows],
        [row[1] for row in rows],
        [row[2] for row in rows],
        [row[3] for row in rows],
        vectors,
        np.array([row[4] for row in rows], np.float32),
        places,
    )
