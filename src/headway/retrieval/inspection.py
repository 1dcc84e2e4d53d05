"""Searching by hand: what a release's search finds, with the query's words marked, and what is wrong if it fails."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from headway.domain.excerpt import Excerpt
from headway.domain.knowledge import Found, Passage
from headway.domain.protocols import Retriever
from headway.domain.release import Retrieval
from headway.errors import HeadwayError, NotFoundError, RetrievalError
from headway.storage import marking
from headway.storage.database import Database
from headway.storage.versions import Version


@dataclass(frozen=True)
class Inspection:
    """What a search by hand came back with.

    Attributes:
        version: That was searched.
        retrieval: What was asked for.
        found: Passages, best first.
        excerpts: Their texts, with the query's words marked.
    """

    version: Version
    retrieval: Retrieval
    found: Found
    excerpts: tuple[Excerpt, ...]

    @property
    def is_remote(self) -> bool:
        """Whether a search service ranks: of what its scores come from it tells little."""
        return self.version.spec.index.azure_ai_search is not None


async def inspect(
    database: Database, retriever: Retriever, version: Version, query: str, retrieval: Retrieval, groups: frozenset[str]
) -> Inspection:
    """Search a version for an operator.

    Args:
        database: Where words are taken apart.
        retriever: Searches.
        version: That is searched.
        query: What to look for; never empty.
        retrieval: How.
        groups: Whose labelled passages may be found.

    Raises:
        HeadwayError: It cannot be searched. Unlike a caller, an operator is told why.
    """
    require_searchable(version)
    try:
        found = await retriever.retrieve(query, retrieval, groups)
    except RetrievalError as error:
        raise explain(error) from error
    texts = [passage.text for passage in found.passages]
    async with database.connection() as connection:
        excerpts = await marking.mark(connection, version.spec.index.language, query, texts)
    return Inspection(version, retrieval, found, tuple(excerpts))


def require_searchable(version: Version) -> None:
    """See that a version can be searched.

    Raises:
        NotFoundError: It is not published.
    """
    if version.state != "published":
        known = {"building": "is still being built", "dropped": "was dropped", "cancelled": "was cancelled"}
        what = known.get(version.state, "failed to be built")
        raise NotFoundError(f"{version.label} {what}: only published versions can be searched", param="index")


def name_section(passage: Passage) -> str:
    """Name the section that a passage is of, without the title of its document; empty where there is no more."""
    title, separator, rest = passage.heading.partition(" > ")
    if title != passage.title:
        return passage.heading
    return rest if separator else ""


def explain(error: RetrievalError) -> HeadwayError:
    """Say to an operator why a search failed: what is behind it, which callers are not told."""
    cause = error.__cause__
    if isinstance(cause, HeadwayError):
        return cause
    if isinstance(cause, psycopg.Error):
        return RetrievalError(f"{error.message.partition(';')[0]}: {str(cause).partition(chr(10))[0]}")
    return error
