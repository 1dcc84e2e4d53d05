"""Searching by itself: the passages that an answer would go by, and why, without an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter

import msgspec

from headway.clock import Clock
from headway.domain.access import may_use
from headway.domain.knowledge import Passage
from headway.domain.protocols import Retriever
from headway.domain.release import Retrieval
from headway.domain.snapshot import ApplicationRoute, KeyRoute, Snapshot
from headway.errors import InvalidRequestError, NotFoundError, RetrievalError
from headway.gateway.grounding import QUERY_CHARACTERS, make_query
from headway.gateway.quota import Quota
from headway.gateway.routing import find_application
from headway.gateway.tracing import Tracing

MOST_PASSAGES = 100
"""Passages that one search may ask for."""
QUERY_LENGTH = f"query has 1 to {QUERY_CHARACTERS} characters"
"""What is said of a query that has not."""


class SearchPost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to look for, and where: by an application, or by an index version.

    Attributes:
        query: What to look for.
        application: Search as this application's stable release does.
        index: Search the version that is named, as `handbook@3`, or the latest one that a release names, as `handbook`:
            a stable release or the candidate of a rollout; with the scope `pin` any release.
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
        url: Where its document is on the web; null where that is not known.
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
    url: str | None
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
        clock: Tells how long that takes.
        note: Told of each search its index version, what came of it (``found``, ``empty`` or an error's code), and the
            seconds it took.
        tracing: Makes traces, if they are on.
    """

    def __init__(
        self,
        retriever: Retriever,
        quota: Quota,
        clock: Clock,
        note: Callable[[str, str, float], None],
        tracing: Tracing | None,
    ) -> None:
        self._retriever = retriever
        self._quota = quota
        self._clock = clock
        self._note = note
        self._tracing = tracing

    async def search(
        self,
        snapshot: Snapshot,
        key: KeyRoute,
        groups: frozenset[str],
        post: SearchPost,
        headers: Mapping[bytes, bytes],
    ) -> SearchAnswer:
        """Find passages.

        Args:
            snapshot: In force.
            key: The caller's: it searches what the releases of its applications search.
            groups: The caller's: labelled passages of other groups are never found.
            post: What to look for.
            headers: The request's, names in lower case; a trace may be named there.

        Raises:
            HeadwayError: The request is wrong, its index is not known here, a limit is reached, or the search failed.
        """
        retrieval = _choose(snapshot, key, post)
        query = check_query(post.query)
        self._quota.admit(key)
        began = self._clock.monotonic_seconds()
        span = self._tracing.begin_search(headers, retrieval.label) if self._tracing is not None else None
        result, problem = "cancelled", "cancelled"
        try:
            found = await self._retriever.retrieve(query, retrieval, groups)
            result, problem = "found" if found.passages else "empty", ""
        except RetrievalError as error:
            result = problem = error.error_code
            raise
        finally:
            self._quota.leave(key, None)
            self._note(retrieval.label, result, self._clock.monotonic_seconds() - began)
            if span is not None:
                span.finish(None, problem or None)
        passages = [_show(passage) for passage in found.passages]
        return SearchAnswer(retrieval.label, passages, found.embed_ms, found.search_ms)


def _choose(snapshot: Snapshot, key: KeyRoute, post: SearchPost) -> Retrieval:
    if (post.application is None) == (post.index is None):
        raise InvalidRequestError("give either application or index", param="application")
    if post.top_k is not None and not 1 <= post.top_k <= MOST_PASSAGES:
        raise InvalidRequestError(f"top_k is a number from 1 to {MOST_PASSAGES}", param="top_k")
    if post.application is not None:
        retrieval = _of_application(snapshot, key, post.application)
    else:
        retrieval = _of_index(snapshot, key, post.index or "")
    return retrieval if post.top_k is None else msgspec.structs.replace(retrieval, top_k=post.top_k)


def _of_application(snapshot: Snapshot, key: KeyRoute, name: str) -> Retrieval:
    application = find_application(snapshot, key, name)
    release = snapshot.releases[application.stable]
    if release.bundle.retrieval is None:
        message = f"the release {release.name!r} of {name!r} has no search index"
        raise NotFoundError(message, param="application", code="index_not_found")
    return release.bundle.retrieval


def _of_index(snapshot: Snapshot, key: KeyRoute, wanted: str) -> Retrieval:
    """Search a version that a release names which the key may reach, and of it no more than such a release sees."""
    named = [
        (number, retrieval)
        for application in snapshot.applications.values()
        if may_use(key, application.name)
        for number in _reachable(application, key)
        if (retrieval := snapshot.releases[number].bundle.retrieval) is not None
    ]
    fitting = [each for each in named if wanted in (each[1].index, each[1].label)]
    if not fitting:
        shown = ", ".join(sorted({retrieval.label for _, retrieval in named})[:20]) or "none"
        message = f"no release that this key may reach names the index {wanted[:100]!r} (known: {shown})"
        raise NotFoundError(message, param="index", code="index_not_found")
    version = max(retrieval.version for _, retrieval in fitting)
    # Where every such release filters, so does this: the filter of the newest.
    filters = [retrieval.filter for _, retrieval in sorted(fitting, key=itemgetter(0)) if retrieval.version == version]
    return Retrieval(fitting[0][1].index, version, filter=filters[-1] if all(filters) else {})


def _reachable(application: ApplicationRoute, key: KeyRoute) -> Iterable[int]:
    """The releases that may answer a key: others show what was not labelled yet, and only who may pin gets there."""
    if "pin" in key.scopes:
        return application.releases.values()
    rollout = application.rollout
    return {application.stable} if rollout is None or not rollout.share else {application.stable, rollout.candidate}


def _show(passage: Passage) -> FoundPassage:
    return FoundPassage(
        title=passage.title,
        document=passage.document,
        url=passage.link,
        heading=passage.heading,
        content=passage.text,
        chunk=passage.chunk,
        position=passage.position,
        tokens=passage.tokens,
        score=passage.score,
        why=Why(passage.vector_rank, passage.text_rank, passage.similarity, passage.coverage),
    )
