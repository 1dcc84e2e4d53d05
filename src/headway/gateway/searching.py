"""Searching by itself: the passages that an answer would go by, and why, without an answer."""

from __future__ import annotations

import msgspec

from headway.domain.knowledge import Passage
from headway.domain.protocols import Retriever
from headway.domain.release import Retrieval
from headway.domain.snapshot import KeyRoute, Snapshot
from headway.errors import InvalidRequestError, NotFoundError
from headway.gateway.grounding import QUERY_CHARACTERS, make_query
from headway.gateway.quota import Quota
from headway.gateway.routing import find_application

MOST_PASSAGES = 100
"""Passages that one search may ask for."""
QUERY_LENGTH = f"query has 1 to {QUERY_CHARACTERS} characters"
"""What is said of a query that has not."""


class SearchPost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to look for, and where: by an application, or by an index version.

    Attributes:
        query: What to look for.
        application: Search as this application's stable release does.
        index: Search the version that is named, as `handbook@3`, or the latest one that a release names, as `handbook`.
        top_k: Most passages; by default the release's number, or 5.
    """

    query: str
    application: str | None = None
    index: str | None = None
    top_k: int | None = None


class Why(msgspec.Struct, frozen=True):
    """Why a passage was found.

    Attributes:
        vector_rank: Its place by meaning, from 1; null where it is not in that list.
        text_rank: Its place by words, from 1; null where it is not in that list.
        similarity: Cosine similarity to the query; null where vectors were not searched.
        coverage: Part of the query's words that it has, rare ones counting more, 0 to 1; null where it has none.
    """

    vector_rank: int | None
    text_rank: int | None
    similarity: float | None
    coverage: float | None


class FoundPassage(msgspec.Struct, frozen=True):
    """A passage that a search has found.

    Attributes:
        title: Title of its document.
        document: Path of its document.
        heading: The headings it stands under.
        content: Its text.
        chunk: Number of the chunk.
        position: Its place in the document, from 0.
        tokens: Its length.
        score: How well it fits, 0 to 1.
        why: What the score comes from.
    """

    title: str
    document: str
    heading: str
    content: str
    chunk: int
    position: int
    tokens: int
    score: float
    why: Why


class SearchAnswer(msgspec.Struct, frozen=True, tag_field="object", tag="search"):
    """Passages, best first.

    Attributes:
        index: The index version that was searched.
        passages: What was found that the caller may see.
        embed_ms: Time for the query's vector.
        search_ms: Time for the search.
    """

    index: str
    passages: list[FoundPassage]
    embed_ms: float
    search_ms: float


def check_query(text: str) -> str:
    """Give a query as it is searched for.

    Raises:
        InvalidRequestError: It says nothing, or is too long.
    """
    query = make_query((text,), 1)
    if not query or len(text) > QUERY_CHARACTERS:
        raise InvalidRequestError(QUERY_LENGTH, param="query")
    return query


class Searching:
    """Searches for callers.

    Args:
        retriever: Searches.
        quota: Admits requests of keys.
    """

    def __init__(self, retriever: Retriever, quota: Quota) -> None:
        self._retriever = retriever
        self._quota = quota

    async def search(self, snapshot: Snapshot, key: KeyRoute, groups: frozenset[str], post: SearchPost) -> SearchAnswer:
        """Find passages.

        Args:
            snapshot: In force.
            key: The caller's: it searches what the releases of its applications search.
            groups: The caller's: labelled passages of other groups are never found.
            post: What to look for.

        Raises:
            HeadwayError: The request is wrong, its index is not known here, a limit is reached, or the search failed.
        """
        retrieval = _choose(snapshot, key, post)
        query = check_query(post.query)
        self._quota.admit(key)
        try:
            found = await self._retriever.retrieve(query, retrieval, groups)
        finally:
            self._quota.leave(key, None)
        passages = [_show(passage) for passage in found.passages]
        return SearchAnswer(retrieval.label, passages, found.embed_ms, found.search_ms)


def _choose(snapshot: Snapshot, key: KeyRoute, post: SearchPost) -> Retrieval:
    if (post.application is None) == (post.index is None):
        raise InvalidRequestError("give either application or index", param="application")
    if post.top_k is not None and not 1 <= post.top_k <= MOST_PASSAGES:
        raise InvalidRequestError(f"top_k is a number from 1 to {MOST_PASSAGES}", param="top_k")
    retrieval = _of_application(snapshot, key, post.application) if post.application else _of_index(snapshot, key, post)
    return retrieval if post.top_k is None else msgspec.structs.replace(retrieval, top_k=post.top_k)


def _of_application(snapshot: Snapshot, key: KeyRoute, name: str) -> Retrieval:
    application = find_application(snapshot, key, name)
    release = snapshot.releases[application.stable]
    if release.bundle.retrieval is None:
        message = f"the release {release.name!r} of {name!r} has no search index"
        raise NotFoundError(message, param="application", code="index_not_found")
    return release.bundle.retrieval


def _of_index(snapshot: Snapshot, key: KeyRoute, post: SearchPost) -> Retrieval:
    wanted = post.index or ""
    known = {
        (retrieval.index, retrieval.version)
        for application in snapshot.applications.values()
        if not key.applications or application.name in key.applications
        for number in application.releases.values()
        if (retrieval := snapshot.releases[number].bundle.retrieval) is not None
    }
    fitting = [each for each in known if wanted in (each[0], f"{each[0]}@{each[1]}")]
    if not fitting:
        shown = ", ".join(sorted(f"{name}@{version}" for name, version in known)[:20]) or "none"
        message = f"no release that this key may call names the index {wanted[:100]!r} (known: {shown})"
        raise NotFoundError(message, param="index", code="index_not_found")
    return Retrieval(*max(fitting))


def _show(passage: Passage) -> FoundPassage:
    return FoundPassage(
        title=passage.title,
        document=passage.document,
        heading=passage.heading,
        content=passage.text,
        chunk=passage.chunk,
        position=passage.position,
        tokens=passage.tokens,
        score=passage.score,
        why=Why(passage.vector_rank, passage.text_rank, passage.similarity, passage.coverage),
    )
