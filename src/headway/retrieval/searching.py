"""Searches index versions as releases ask for it; what never changes about a version is found out once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from headway.domain.filters import parse_filter
from headway.domain.knowledge import Passage
from headway.domain.release import Retrieval
from headway.errors import InvalidRequestError
from headway.retrieval.retriever import Query, Version
from headway.storage import search
from headway.storage.database import Connection
from headway.storage.search import Question, Reach, Scope, Searched

_KNOWN_VERSIONS = 200
_KNOWN_REACHES = 200  # of 350 kB at the very most

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class VersionSearch:
    """Searches a version; see ``headway.retrieval.retriever.Search``. One serves a whole worker."""

    def __init__(self) -> None:
        self._searched: dict[int, Searched] = {}
        self._reaches: dict[tuple[int, Scope], Reach] = {}

    async def __call__(self, connection: Connection, version: Version, query: Query) -> Sequence[Passage]:
        """Give the passages that fit best and that the groups may see, best first.

        Raises:
            NotFoundError: The version is not published.
            InvalidRequestError: The filter is none.
            TimeoutError: The search took too long.
            psycopg.Error: The version was dropped.
        """
        searched = self._searched.get(version.number)
        if searched is None:
            searched = await search.read_searched(connection, version.number)
            _remember(self._searched, version.number, searched, _KNOWN_VERSIONS)
        scope = make_scope(searched, query.retrieval, query.groups)
        key = (version.number, scope)
        reach = self._reaches.get(key)
        if reach is None:
            reach = await search.measure(connection, searched, scope)
            _remember(self._reaches, key, reach, _KNOWN_REACHES)
        return await search.search(connection, searched, scope, reach, _question(query))


def make_scope(searched: Searched, retrieval: Retrieval, groups: frozenset[str]) -> Scope:
    """Say which chunks of a version may be found; equal for all callers who may see the same.

    Args:
        searched: The version.
        retrieval: With its filter.
        groups: The caller's.

    Raises:
        InvalidRequestError: The filter is none.
    """
    try:
        conditions = parse_filter(retrieval.filter)
    except ValueError as error:
        raise InvalidRequestError(f"the filter of the release is wrong: {error}", param="filter") from error
    known = frozenset(searched.figures.groups)
    return Scope(None if known <= groups else tuple(sorted(known & groups)), conditions)


def _question(query: Query) -> Question:
    retrieval = query.retrieval
    return Question(query.text, query.vector, retrieval.top_k, retrieval.hybrid_weight, retrieval.minimum_score)


def _remember(known: dict[_Key, _Value], key: _Key, value: _Value, most: int) -> None:
    if len(known) >= most:
        del known[next(iter(known))]
    known[key] = value
