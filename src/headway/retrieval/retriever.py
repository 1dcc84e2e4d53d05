"""The retriever of a worker: searches index versions for the gateway, a few at a time, and never for long.

Versions are immutable: what one is and how its queries are embedded is read once. Searches take connections of the
pool that the recorder needs too, so that only a few run at once; a database that is away is found out by one of them,
and the others fail at once until it is back. An embedder that is slow or away is waited for outside of these places: it
holds up the queries of its own index, and no others. So does a search service, which takes no connection at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import psycopg
import structlog
from numpy.typing import NDArray

from headway.clock import Clock, elapsed_ms
from headway.config.indexes import VersionSpec
from headway.config.spec import decode_specification, operate_version
from headway.domain.knowledge import Found, Passage
from headway.domain.release import Retrieval
from headway.errors import (
    ConfigurationError,
    HeadwayError,
    NotFoundError,
    ProviderError,
    ProviderUnavailableError,
    RetrievalError,
    StorageError,
)
from headway.retrieval.azure_search import AzureSearch, Remote, Sought
from headway.storage.attempts import Attempts
from headway.storage.database import Connection, Database

SECONDS = 5.0
"""How long a search may take, the wait for its turn and its query's vector included."""

PLACES = 4
"""Searches at once, where nothing else is said: half of the pool's connections."""
_WAITING = 64
_SEARCH_SECONDS = 2.5  # of a database that answers: that it is slow at one search says nothing of others
_ANSWER_PART = 0.6  # of the time for a search: by then the database, or the embedder, counts as away
_REMOTE_PLACES = 200  # searches of search services at once
_PATIENCE = 0.9  # of that time, for trying again: the last try's own error says more than that it took too long
_DIGITS = 7  # of a vector's values, as it is sent
_KNOWN_VERSIONS = 200

_log = structlog.get_logger("headway.retrieval")

Vector = NDArray[np.float32]


class QueryEmbedder(Protocol):
    """Makes vectors of queries."""

    def embed(self, texts: Sequence[str]) -> Coroutine[Any, Any, NDArray[np.float32]]:
        """Make a vector of each text."""
        ...


class Version(NamedTuple):
    """An index version that can be searched.

    Attributes:
        number: Of its row.
        spec: What it was built by, with the credentials and limits of now.
        dimensions: Of its vectors; 0 for none.
        remote: The index of a search service that is searched; None for the database.
    """

    number: int
    spec: VersionSpec
    dimensions: int
    remote: Remote | None = None


class Query(NamedTuple):
    """What a version is searched for.

    Attributes:
        text: The words.
        vector: Their meaning; None where it does not count.
        retrieval: How many passages, and which.
        groups: Whose labelled passages may be found.
    """

    text: str
    vector: Vector | None
    retrieval: Retrieval
    groups: frozenset[str]


class Search(Protocol):
    """Searches a version."""

    async def __call__(self, connection: Connection, version: Version, query: Query) -> Sequence[Passage]:
        """Give the passages that fit best and that the groups may see, best first."""
        ...


class Versions:
    """Knows versions and their embedders, for all retrievers of a worker; what never changes is read once.

    Args:
        make_embedder: Makes the embedder of a version's queries; a worker has one for each kind.
        search_remote: Searches those that are in a search service; None where there are none.
    """

    def __init__(
        self, make_embedder: Callable[[VersionSpec], QueryEmbedder], search_remote: AzureSearch | None = None
    ) -> None:
        self._make_embedder = make_embedder
        self.search_remote = search_remote
        self._known: dict[tuple[str, int], Version] = {}
        self._embedders: dict[bytes, QueryEmbedder] = {}

    def known(self, retrieval: Retrieval) -> Version | None:
        """Give the version that a release searches, if it has been read."""
        return self._known.get((retrieval.index, retrieval.version))

    async def read(self, connection: Connection, retrieval: Retrieval) -> Version:
        """Read the version that a release searches.

        Raises:
            NotFoundError: There is none, or it is not published.
        """
        found = await _read(connection, retrieval)
        if len(self._known) >= _KNOWN_VERSIONS:
            self._known.clear()
        self._known[retrieval.index, retrieval.version] = found
        return found

    def forget(self, retrieval: Retrieval) -> None:
        """Read a version anew the next time: it may have been dropped."""
        self._known.pop((retrieval.index, retrieval.version), None)

    def embedder(self, version: Version) -> QueryEmbedder:
        """Give the embedder of a version's queries."""
        spec = version.spec
        key = msgspec.json.encode((spec.index.embedder, spec.deployment))
        found = self._embedders.get(key)
        if found is None:
            found = self._embedders[key] = self._make_embedder(spec)
        return found


class VersionRetriever:
    """Finds passages in index versions; see ``headway.domain.protocols.Retriever``.

    Args:
        database: Where the versions are.
        versions: What is known of them.
        search: Searches one.
        clock: Tells the time.
        places: Searches at a time; others wait.
        seconds: How long one may take.
    """

    def __init__(
        self,
        database: Database,
        versions: Versions,
        search: Search,
        clock: Clock,
        *,
        places: int = PLACES,
        seconds: float = SECONDS,
    ) -> None:
        self._database = database
        self._versions = versions
        self._search = search
        self._clock = clock
        self._places = asyncio.Semaphore(places)
        self._reading = asyncio.Lock()
        self._room = places + _WAITING
        self._seconds = seconds
        self._attempts = Attempts(clock, answer_seconds=_ANSWER_PART * seconds, abandon=True)
        self._embedding: dict[QueryEmbedder, Attempts] = {}  # by deployments
        self._services: dict[str, Attempts] = {}  # by endpoint
        self._remote_room = _REMOTE_PLACES

    async def retrieve(self, query: str, retrieval: Retrieval, groups: frozenset[str]) -> Found:
        """Search an index version.

        Args:
            query: What to look for; never empty.
            retrieval: Which index version, and how.
            groups: The caller's.

        Returns:
            At most ``retrieval.top_k`` passages, best first.

        Raises:
            RetrievalError: It cannot be searched, or not in time. The message is for callers; the log says more.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await self._find(query, retrieval, groups)
        except TimeoutError as error:
            message = _note(retrieval, "took too long", str(error))
            raise RetrievalError(message, code="retrieval_timeout", retry_after_seconds=1) from error
        except RetrievalError:
            raise
        except (HeadwayError, psycopg.Error) as error:
            if not isinstance(error, ProviderError | StorageError):  # what is away says nothing of the version
                self._versions.forget(retrieval)
            message = _note(retrieval, "failed", f"{type(error).__name__}: {error}")
            raise RetrievalError(message, retry_after_seconds=1) from error

    async def prepare(self, retrieval: Retrieval) -> None:
        """Get ready to search a version with the settings of now; never fails.

        The first caller need not wait for the embedded model then, and changed credentials take effect.
        """
        try:
            async with self._reading:
                version = await self._attempts.run(partial(self._read, retrieval))
            if version.spec.deployment is None and version.dimensions:
                await self._versions.embedder(version).embed(["ready"])
        except (HeadwayError, psycopg.Error) as error:
            _log.warning("index_not_ready", index=retrieval.label, detail=str(error).partition("\n")[0])

    async def close(self) -> None:
        """Give up what a database, an embedder or a search service that hangs has not answered."""
        for attempts in (self._attempts, *self._embedding.values(), *self._services.values()):
            await attempts.close()

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if not self._room:
            message = "too many searches are under way"
            raise RetrievalError(message, code="retrieval_overloaded", retry_after_seconds=1)
        self._room -= 1
        try:
            async with self._places:
                yield
        finally:
            self._room += 1

    async def _find(self, query: str, retrieval: Retrieval, groups: frozenset[str]) -> Found:
        version = await self._version(retrieval)
        began = self._clock.monotonic_seconds()
        wanted = retrieval.hybrid_weight > 0 and version.dimensions > 0
        vector = await self._embed(version, query) if wanted else None
        embedded = self._clock.monotonic_seconds()
        asked = Query(query, vector, retrieval, groups)
        if version.remote is not None:
            passages = await self._ask_remote(version, version.remote, asked)
        else:
            async with self._place():
                passages = await self._attempts.run(partial(self._ask, version, asked))
        return Found(
            tuple(passages), elapsed_ms(began, embedded), elapsed_ms(embedded, self._clock.monotonic_seconds())
        )

    async def _version(self, retrieval: Retrieval) -> Version:
        known = self._versions.known(retrieval)
        if known is not None:
            return known
        async with self._reading:  # one reads, for all who wait
            known = self._versions.known(retrieval)
            return known if known is not None else await self._attempts.run(partial(self._read, retrieval))

    async def _embed(self, version: Version, query: str) -> Vector:
        embedder = self._versions.embedder(version)
        deployment = version.spec.deployment
        if deployment is None:
            vector: Vector = (await embedder.embed([query]))[0]
        else:
            attempts = self._embedding.get(embedder)
            if attempts is None:
                attempts = self._embedding[embedder] = Attempts(
                    self._clock,
                    answer_seconds=_ANSWER_PART * self._seconds,
                    abandon=True,
                    of=f"the embedder {deployment.name!r}",
                    away=ProviderError,
                )
            vector = (await attempts.run(partial(embedder.embed, [query])))[0]
        if len(vector) != version.dimensions:
            message = f"the embedder gives vectors of {len(vector)} dimensions, the version has {version.dimensions}"
            raise ConfigurationError(message)
        return vector

    async def _read(self, retrieval: Retrieval) -> Version:
        async with self._database.connection() as connection:
            return await self._versions.read(connection, retrieval)

    async def _ask(self, version: Version, wanted: Query) -> Sequence[Passage]:
        async with self._database.connection() as connection:
            try:
                async with asyncio.timeout(_SEARCH_SECONDS):
                    return await self._search(connection, version, wanted)
            except (TimeoutError, psycopg.errors.QueryCanceled) as error:
                message = _note(wanted.retrieval, "took too long", str(error))
                raise RetrievalError(message, code="retrieval_timeout", retry_after_seconds=1) from error

    async def _ask_remote(self, version: Version, remote: Remote, wanted: Query) -> Sequence[Passage]:
        """Search in a search service; one that is away is found out by one caller at a time."""
        service, search = version.spec.index.azure_ai_search, self._versions.search_remote
        if service is None or search is None:
            raise ConfigurationError("this process calls no search service")
        seconds = _ANSWER_PART * self._seconds
        attempts = self._services.get(service.endpoint)
        if attempts is None:
            attempts = self._services[service.endpoint] = Attempts(
                self._clock, answer_seconds=seconds, abandon=True, of="the search service", away=ProviderError
            )
        if not self._remote_room:
            message = "too many searches are under way"
            raise RetrievalError(message, code="retrieval_overloaded", retry_after_seconds=1)
        self._remote_room -= 1
        try:
            sought = Sought(wanted.retrieval.label, service, remote, wanted.retrieval, wanted.groups)
            vector = None if wanted.vector is None else wanted.vector.astype(np.float64).round(_DIGITS).tolist()
            return await attempts.run(partial(_search_busy, search, sought, wanted.text, vector, _PATIENCE * seconds))
        finally:
            self._remote_room += 1


async def _search_busy(
    search: AzureSearch, sought: Sought, text: str, vector: Sequence[float] | None, seconds: float
) -> list[Passage]:
    """Search; that a service refuses one search, being busy, says nothing of others."""
    try:
        return await search(sought, text, vector, seconds=seconds)
    except ProviderUnavailableError as error:
        if error.error_code != "search_service_busy":
            raise
        message = _note(sought.retrieval, "was refused", error.message)
        after = max(1.0, error.retry_after_seconds or 0.0)
        raise RetrievalError(message, code="retrieval_overloaded", retry_after_seconds=after) from error


async def _read(connection: Connection, retrieval: Retrieval) -> Version:
    cursor = await connection.execute(
        "SELECT v.id, v.state, v.spec, v.dimensions, v.manifest->'azure_ai_search',"
        " (SELECT spec FROM configuration ORDER BY id DESC LIMIT 1)"
        " FROM index_version v JOIN search_index i ON i.id = v.index_id WHERE i.name = %s AND v.number = %s",
        (retrieval.index, retrieval.version),
    )
    row = await cursor.fetchone()
    if row is None or row[1] != "published":
        raise NotFoundError(f"{retrieval.label} is {row[1] if row else 'unknown'}: only what is published is searched")
    number, _, built, dimensions, remote, applied = row
    spec = msgspec.convert(built, VersionSpec)
    if applied is not None:  # secrets and limits are not what makes a version: those of now hold
        spec = operate_version(spec, retrieval.index, decode_specification(applied))
    return Version(number, spec, dimensions, msgspec.convert(remote, Remote) if remote else None)


def _note(retrieval: Retrieval, what: str, detail: str) -> str:
    """Log why a search came to nothing, and say it to the caller without the details."""
    _log.warning("search_failed", index=retrieval.label, problem=what, detail=detail.partition("\n")[0])
    return f"the search in {retrieval.label} {what}; try again"
