"""The search service simulator: the part of Azure AI Search's REST API that Headway uses, on a real loopback socket.

It is written to the documented format (``headway.testing.search_schema``) and refuses what that does not allow, unknown
parameters included. How it finds and ranks is a small model of the service: it is no measure of how well that searches.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from headway.testing import search_engine
from headway.testing.search_filter import read_filter
from headway.testing.search_schema import (
    API_VERSIONS,
    INDEX_NAME,
    MOST_BYTES,
    MOST_DOCUMENTS,
    RefusalError,
    check_action,
    check_definition,
    check_search,
    fill_in,
    refuse_unless,
)

_PATH = re.compile(r"/indexes\('(?P<name>[^']*)'\)(?P<rest>/.*)?")
_READS = ("/docs/$count", "/docs/search.post.search", "/search.stats")


@dataclass
class HeldIndex:
    """An index of the simulator: its definition, its documents by key, and how many of them can be counted yet."""

    definition: dict[str, Any]
    etag: str
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, dict[str, Any]]:
        """Its fields by name."""
        return {each["name"]: each for each in self.definition["fields"]}

    @property
    def key(self) -> str:
        """The name of its key field."""
        return str(next(each["name"] for each in self.definition["fields"] if each.get("key")))


@dataclass(frozen=True)
class SearchCall:
    """A request that the simulator has received."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Scripted:
    """What the simulator answers instead of doing what it is asked.

    Attributes:
        status: Of the answer; 0 cuts the connection.
        message: In the error.
        headers: Of the answer.
        body: Instead of an error.
    """

    status: int
    message: str = "scripted"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


class SearchServiceSimulator:
    """Serves indexes in this event loop, from ``async with`` to its end.

    Args:
        admin_keys: API keys that may do everything.
        query_keys: API keys that may search.
        tokens: Entra tokens that may do everything.
        port: Port to listen on; 0 takes a free one.

    Attributes:
        indexes: What it holds, by name.
        calls: What it has received.
        lag: How many times a count leaves out what was written last.
    """

    def __init__(
        self,
        *,
        admin_keys: Collection[str] = ("admin-key",),
        query_keys: Collection[str] = ("query-key",),
        tokens: Collection[str] = (),
        port: int = 0,
    ) -> None:
        self.indexes: dict[str, HeldIndex] = {}
        self.calls: list[SearchCall] = []
        self.lag = 0
        self._admin, self._query, self._tokens = frozenset(admin_keys), frozenset(query_keys), frozenset(tokens)
        self._port = port
        self._scripted: deque[tuple[str, Scripted]] = deque()
        self._failing: dict[str, tuple[int, int]] = {}
        self._runner: web.AppRunner | None = None
        self._held_path = ""
        self._gate = asyncio.Event()
        self._gate.set()
        self._etags = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen."""
        application = web.Application(client_max_size=2 * MOST_BYTES)
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close the port and all connections."""
        self._gate.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._port}"

    # --- misbehaviour -----------------------------------------------------------------------------------------------

    def script(self, path: str, *answers: Scripted) -> None:
        """Answer the next requests whose path ends like this in these ways, one each."""
        self._scripted.extend((path, answer) for answer in answers)

    def fail_document(self, key: str, status: int, times: int = 1) -> None:
        """Refuse a document of a batch with a status of its own, so many times."""
        self._failing[key] = (status, times)

    def hang(self, path: str = "") -> None:
        """Answer nothing whose path ends like this until ``go_on``."""
        self._held_path = path
        self._gate.clear()

    def go_on(self) -> None:
        """Answer again."""
        self._gate.set()

    # --- serving ----------------------------------------------------------------------------------------------------

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = msgspec.json.decode(raw) if raw else None
        self.calls.append(SearchCall(request.method, request.path, dict(request.headers), body))
        if request.path.endswith(self._held_path):
            await self._gate.wait()
        for number, (path, answer) in enumerate(self._scripted):
            if request.path.endswith(path):
                del self._scripted[number]
                return self._play(request, answer)
        try:
            return await self._answer(request, body, len(raw))
        except RefusalError as refusal:
            return _error(400, str(refusal))

    def _play(self, request: web.Request, answer: Scripted) -> web.Response:
        if not answer.status:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if answer.body is not None:
            return web.Response(status=answer.status, body=answer.body, headers=answer.headers)
        return _error(answer.status, answer.message, answer.headers)

    async def _answer(self, request: web.Request, body: Any, size: int) -> web.Response:
        version = request.query.get("api-version")
        refuse_unless(version, "the api-version query parameter is required")
        refuse_unless(version in API_VERSIONS, f"invalid or unsupported api-version {version!r}")
        extra = request.query.keys() - {"api-version"}
        refuse_unless(not extra, f"unknown query parameters: {', '.join(extra)}")
        found = _PATH.fullmatch(request.path)
        if found is None:
            return _error(404, "resource not found")
        name, rest = found["name"], found["rest"] or ""
        problem = self._authenticate(request, rest)
        if problem is not None:
            return problem
        refuse_unless(2 <= len(name) <= 128 and INDEX_NAME.fullmatch(name), "invalid index name")
        if not rest and request.method == "PUT":
            return self._put(request, name, body)
        held = self.indexes.get(name)
        if held is None:
            return _error(404, f"The index '{name}' was not found")
        routes: dict[tuple[str, str], Callable[[HeldIndex, Any, int], web.Response]] = {
            ("GET", ""): lambda index, _body, _size: _json(_shown(index)),
            ("DELETE", ""): self._delete,
            ("GET", "/docs/$count"): self._count,
            ("POST", "/docs/search.index"): self._index,
            ("POST", "/docs/search.post.search"): _search,
        }
        route = routes.get((request.method, rest))
        return _error(405, "method not allowed") if route is None else route(held, body, size)

    def _authenticate(self, request: web.Request, rest: str) -> web.Response | None:
        key, authorization = request.headers.get("api-key"), request.headers.get("Authorization", "")
        if key is None and not authorization:
            return _error(401, "credentials are missing")
        if authorization.removeprefix("Bearer ") in self._tokens or key in self._admin:
            return None
        if key in self._query and rest in _READS:
            return None
        return _error(403, "authorization failed")

    def _put(self, request: web.Request, name: str, body: Any) -> web.Response:
        refuse_unless(request.headers.get("Prefer") == "return=representation", "the header Prefer is required")
        check_definition(body, name)
        self._etags += 1
        body = {**body, "fields": [fill_in(each) for each in body["fields"]]}
        held = self.indexes.get(name)
        if held is None:
            held = self.indexes[name] = HeldIndex(body, f'"0x{self._etags:X}"')
            return _json(_shown(held), 201)
        refuse_unless(body["fields"] == held.definition["fields"], "existing fields cannot be changed")
        held.definition = body
        return _json(_shown(held))

    def _delete(self, held: HeldIndex, _body: Any, _size: int) -> web.Response:
        del self.indexes[held.definition["name"]]
        return web.Response(status=204)

    def _count(self, held: HeldIndex, _body: Any, _size: int) -> web.Response:
        count = len(held.documents)
        if self.lag and count:
            self.lag, count = self.lag - 1, count - 1
        return web.Response(body=b"\xef\xbb\xbf" + str(count).encode(), content_type="text/plain")

    def _index(self, held: HeldIndex, body: Any, size: int) -> web.Response:
        if size > MOST_BYTES:
            return _error(413, "the request is too large")
        refuse_unless(
            isinstance(body, dict) and body.keys() == {"value"}, "expected the property value and nothing else"
        )
        refuse_unless(0 < len(body["value"]) <= MOST_DOCUMENTS, f"a batch has 1 to {MOST_DOCUMENTS} actions")
        for action in body["value"]:
            check_action(action, held.fields, held.key)
        results = [self._apply(held, dict(action)) for action in body["value"]]
        return _json({"value": results}, 200 if all(each["status"] for each in results) else 207)

    def _apply(self, held: HeldIndex, action: dict[str, Any]) -> dict[str, Any]:
        kind, key = action.pop("@search.action", "upload"), action[held.key]
        status, times = self._failing.get(key, (0, 0))
        if times:
            self._failing[key] = (status, times - 1)
            return {"key": key, "status": False, "errorMessage": f"scripted {status}", "statusCode": status}
        if kind == "delete":
            held.documents.pop(key, None)
            return {"key": key, "status": True, "errorMessage": None, "statusCode": 200}
        created = key not in held.documents
        held.documents[key] = action if kind == "upload" else {**held.documents.get(key, {}), **action}
        return {"key": key, "status": True, "errorMessage": None, "statusCode": 201 if created else 200}


def _search(held: HeldIndex, request: Any, _size: int) -> web.Response:
    check_search(request, held.definition, held.fields)
    test = read_filter(request["filter"], held.fields) if "filter" in request else None
    passing = {key: each for key, each in held.documents.items() if test is None or test(each)}
    words: dict[str, float] = {}
    searched = [name.strip() for name in request.get("searchFields", "").split(",") if name.strip()]
    text = request.get("search")
    if text is not None:
        names = searched or [name for name, each in held.fields.items() if each.get("searchable")]
        query = search_engine.read_simple_query(text)
        words = search_engine.rank_by_words(passing, names, query)
    near = [
        (query, search_engine.rank_by_vector(passing, query["fields"], query["vector"], query.get("k", 50)))
        for query in request.get("vectorQueries", ())
    ]
    lists = [*([(1.0, words)] if text is not None else []), *((query.get("weight", 1.0), each) for query, each in near)]
    if len(lists) > 1:
        scores = search_engine.fuse(lists)
    elif near:
        scores = {key: 1 / (2 - similarity) for key, similarity in near[0][1].items()}
    else:
        scores = words if text not in (None, "*") else dict.fromkeys(passing, 1.0)
    results = [_result(held, request, key, score, words, near) for key, score in scores.items()]
    if request.get("queryType") == "semantic":
        results = _rerank(held, request, results)
    select = [name.strip() for name in request.get("select", "").split(",") if name.strip()]
    shown = select or [name for name, each in held.fields.items() if each.get("retrievable", True)]
    skip, top = request.get("skip", 0), request.get("top", 50)
    kept = {*shown, "@search.score", "@search.rerankerScore", "@search.documentDebugInfo"}
    value = [{name: item for name, item in each.items() if name in kept} for each in results[skip : skip + top]]
    return _json({"@odata.context": "simulated", "value": value})


def _result(
    held: HeldIndex,
    request: Mapping[str, Any],
    key: str,
    score: float,
    words: Mapping[str, float],
    near: Collection[tuple[Mapping[str, Any], Mapping[str, float]]],
) -> dict[str, Any]:
    document = {name: held.documents[key].get(name) for name in held.fields}
    result = {"@search.score": score, **document}
    if request.get("debug") == "vector":
        vectors = [
            {query["fields"]: {"searchScore": 1 / (2 - each[key]), "vectorSimilarity": each[key]}}
            for query, each in near
            if key in each
        ]
        subscores = {"text": {"searchScore": words.get(key, 0.0)}, "vectors": vectors, "documentBoost": 1.0}
        result["@search.documentDebugInfo"] = {"vectors": {"subscores": subscores}}
    return result


def _rerank(held: HeldIndex, request: Mapping[str, Any], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rank anew by the part of the query's words that the content has: 0 to 4 points."""
    (configuration,) = (
        each
        for each in held.definition["semantic"]["configurations"]
        if each["name"] == request["semanticConfiguration"]
    )
    names = [each["fieldName"] for each in configuration["prioritizedFields"]["prioritizedContentFields"]]
    asked = set(search_engine.read_words(request.get("semanticQuery") or request["search"]))
    for each in results:
        has = asked & set(search_engine.read_words(" ".join(str(each.get(name) or "") for name in names)))
        each["@search.rerankerScore"] = 4 * len(has) / max(1, len(asked))
    return sorted(results, key=lambda each: (-each["@search.rerankerScore"], -each["@search.score"]))


def _shown(held: HeldIndex) -> dict[str, Any]:
    return {"@odata.context": "simulated", "@odata.etag": held.etag, **held.definition}


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode({"error": {"code": "", "message": message}})
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)
