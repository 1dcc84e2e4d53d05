"""Calls to Azure AI Search over its REST API: indexes, batches of documents, searches. One module knows its format.

Written to Microsoft's description of the API (``API_VERSION``). What is asked for may be asked again: an index is put
under its name, a document under its key. So a call that failed for a moment is repeated, as long as there is time.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import aiohttp
import msgspec
from yarl import URL

from headway.clock import Clock
from headway.config.azure_search import AzureSearchSpec
from headway.errors import (
    ConfigurationError,
    HeadwayError,
    NotFoundError,
    ProviderError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from headway.providers.client import parse_retry_after
from headway.providers.credentials import Credentials, resolve_secret
from headway.providers.refusals import quote_refusal, shorten

API_VERSION = "2025-09-01"
SCOPE = "https://search.azure.com/.default"
"""What an Entra token must be for, in the public cloud."""
_SCOPES = {"search.azure.us": "https://search.azure.us/.default", "search.azure.cn": "https://search.azure.cn/.default"}

KEY = "id"
"""The key field of indexes that Headway makes."""

BATCH_DOCUMENTS = 1000  # the service takes no more
BATCH_BYTES = 12 * 2**20  # it takes 16 MB, the JSON around the documents included
_CONNECT_SECONDS = 5.0
_CALL_SECONDS = 60.0
_WORK_SECONDS = 300.0  # that a call of a build may take, with all that is tried again
_FIRST_PAUSE_SECONDS = 0.2
_LOOK_SECONDS = 30.0  # nothing is lost with it: a build waits
_DELETE_SECONDS = 5.0  # what is left is deleted later
_LONGEST_PAUSE_SECONDS = 30.0
_LARGE_BODY_BYTES = 1024 * 1024
_SECRET_SECONDS = 5.0
_BUSY = frozenset({429, 503})
_PASSING = frozenset({408, 409, 429, 500, 502, 503, 504})
_PASSING_DOCUMENT = frozenset({409, 422, 429, 503})  # version conflict, index or service busy

_HEADERS = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}

Method = Literal["GET", "PUT", "POST", "DELETE"]


class _Wish(NamedTuple):
    """A call: what, on which path, with which body and further headers, and how long it may take."""

    method: Method
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = {}
    seconds: float = _WORK_SECONDS


class _Answer(NamedTuple):
    """An answer, and the secret that it was asked with: not even the service's own words may show it."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    secret: str


class SearchServices:
    """Calls search services over pooled connections.

    Args:
        credentials: Gives Entra tokens; whoever made them closes them.
        clock: Tells the time, and waits.
    """

    def __init__(self, credentials: Credentials, clock: Clock) -> None:
        self._credentials = credentials
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._keys: dict[str, tuple[float, str]] = {}

    async def start(self) -> None:
        """Open the connection pool."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=30, keepalive_timeout=30),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """Close the connection pool."""
        if self._session is not None:
            await self._session.close()

    async def get_index(self, service: AzureSearchSpec, name: str) -> dict[str, Any]:
        """Read the definition of an index.

        Raises:
            NotFoundError: There is none of that name.
            ConfigurationError: The service refuses.
            ProviderError: It is away.
        """
        return _decode(await self._call(service, _Wish("GET", f"/indexes('{name}')", seconds=_LOOK_SECONDS)))

    async def put_index(self, service: AzureSearchSpec, definition: Mapping[str, Any]) -> dict[str, Any]:
        """Make an index, or make it what is defined; gives its definition as the service has it.

        Raises:
            ConfigurationError: The service refuses, for example because it has no room for another index.
            ProviderError: It is away.
        """
        path, body = f"/indexes('{definition['name']}')", msgspec.json.encode(definition)
        # The specification demands this header.
        return _decode(await self._call(service, _Wish("PUT", path, body, {"Prefer": "return=representation"})))

    async def delete_index(self, service: AzureSearchSpec, name: str) -> None:
        """Delete an index with all that it holds, within a few seconds or not; harmless when it is gone.

        Raises:
            ConfigurationError: The service refuses.
            ProviderError: It is away.
        """
        try:
            await self._call(service, _Wish("DELETE", f"/indexes('{name}')", seconds=_DELETE_SECONDS))
        except NotFoundError:
            return

    async def count(self, service: AzureSearchSpec, name: str) -> int:
        """Count the documents of an index; those of the last seconds may not be in it yet.

        Raises:
            NotFoundError: There is no such index.
            ConfigurationError: The service refuses.
            ProviderError: It is away.
        """
        answer = await self._call(service, _Wish("GET", f"/indexes('{name}')/docs/$count"))
        try:
            return int(answer.body.decode("utf-8-sig"))
        except ValueError as error:
            raise ProviderError("the search service answered with something else than a count") from error

    async def upload(self, service: AzureSearchSpec, name: str, documents: Sequence[Mapping[str, Any]]) -> None:
        """Write documents into an index, each under its key: all of them, or an error says why not.

        Args:
            service: The service.
            name: The index.
            documents: With ``KEY`` and further fields.

        Raises:
            NotFoundError: There is no such index.
            ConfigurationError: The service refuses, or refuses one of them.
            ProviderError: It is away.
        """
        actions = {each[KEY]: msgspec.json.encode({"@search.action": "upload", **each}) for each in documents}
        for batch in divide(actions):
            await self._upload(service, name, batch)

    async def _upload(self, service: AzureSearchSpec, name: str, batch: Mapping[str, bytes]) -> None:
        """Write a batch; what the service was too busy for is sent again."""
        deadline = self._clock.monotonic_seconds() + _WORK_SECONDS
        pause, left = _FIRST_PAUSE_SECONDS, dict(batch)
        while True:
            body = b'{"value":[' + b",".join(left.values()) + b"]}"
            answer = _decode(await self._call(service, _Wish("POST", f"/indexes('{name}')/docs/search.index", body)))
            for each in _results(answer, left):
                if each.status:
                    del left[each.key]
                elif each.statusCode not in _PASSING_DOCUMENT:
                    told = shorten(each.errorMessage or f"status {each.statusCode}")
                    raise ConfigurationError(f"the search service refuses the document {each.key!r}: {told}")
            if not left:
                return
            if self._clock.monotonic_seconds() + pause > deadline:
                raise ProviderUnavailableError(f"the search service is too busy to take {len(left):,} documents")
            await self._clock.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def search(
        self, service: AzureSearchSpec, name: str, request: Mapping[str, Any], *, seconds: float
    ) -> list[dict[str, Any]]:
        """Search an index.

        Args:
            service: The service.
            name: The index.
            request: The search, as the API takes it.
            seconds: How long it may take, with all that is tried again.

        Returns:
            What was found, best first, as the API gives it.

        Raises:
            NotFoundError: There is no such index.
            ConfigurationError: The service refuses.
            ProviderError: It is away, does not answer in time, or answers with a part only.
        """
        path = f"/indexes('{name}')/docs/search.post.search"
        answer = await self._call(service, _Wish("POST", path, msgspec.json.encode(request), seconds=seconds))
        if answer.status == 206:
            raise ProviderUnavailableError("the search service gave a part of an answer")
        found = _decode(answer).get("value")
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise ProviderError("the search service does not answer as it is documented: no list of results")
        return found

    # --- one call ---------------------------------------------------------------------------------------------------

    async def _call(self, service: AzureSearchSpec, wish: _Wish) -> _Answer:
        """Call, again after a pause where that may help and there is time, and give an answer of the 2xx."""
        deadline = self._clock.monotonic_seconds() + wish.seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                answer = await self._try(service, wish, deadline)
            except ProviderError as error:
                passing = error
            else:
                if answer.status < 300:
                    return answer
                problem = _explain(answer, self._clock)
                if not isinstance(problem, ProviderError):
                    raise problem
                passing = problem
            wait = max(pause, passing.retry_after_seconds or 0.0)
            if self._clock.monotonic_seconds() + wait >= deadline:
                raise passing
            await self._clock.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _try(self, service: AzureSearchSpec, wish: _Wish, deadline: float) -> _Answer:
        assert self._session is not None, "start() first"
        secret = await self._secret(service)
        left = max(0.001, deadline - self._clock.monotonic_seconds())
        try:
            async with self._session.request(
                wish.method,
                URL(f"{service.endpoint}{wish.path}?api-version={API_VERSION}", encoded=True),
                data=_pace(wish.body),
                headers=_HEADERS | _authorize(service, secret) | dict(wish.headers),
                timeout=aiohttp.ClientTimeout(total=min(left, _CALL_SECONDS), sock_connect=_CONNECT_SECONDS),
                allow_redirects=False,
            ) as response:
                return _Answer(response.status, await response.read(), response.headers, secret)
        except TimeoutError as error:
            raise ProviderTimeoutError("the search service does not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ProviderUnavailableError(f"the search service cannot be reached: {_name(error)}") from error

    async def _secret(self, service: AzureSearchSpec) -> str:
        if service.auth == "entra":
            return await self._credentials.token(choose_scope(service.endpoint))
        return self._key(service.api_key or "")

    def _key(self, reference: str) -> str:
        """Read a key, and again every few seconds: it may be rotated."""
        now = self._clock.monotonic_seconds()
        until, key = self._keys.get(reference, (0.0, ""))
        if not key or now >= until:
            key = resolve_secret(reference)
            self._keys[reference] = (now + _SECRET_SECONDS, key)
        return key


def _authorize(service: AzureSearchSpec, secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"} if service.auth == "entra" else {"api-key": secret}


def choose_scope(endpoint: str) -> str:
    """Say what an Entra token must be for, by the cloud that the service is in."""
    return next((scope for suffix, scope in _SCOPES.items() if endpoint.endswith(f".{suffix}")), SCOPE)


class _Indexed(msgspec.Struct, frozen=True):
    """What became of a document of a batch."""

    key: str
    status: bool
    statusCode: int  # noqa: N815 - the API's name
    errorMessage: str | None = None  # noqa: N815


def divide(actions: Mapping[str, bytes]) -> Iterator[dict[str, bytes]]:
    """Divide actions into batches that the service takes, in order; one that is too large is a batch of its own."""
    batch: dict[str, bytes] = {}
    size = 0
    for key, action in actions.items():
        if batch and (len(batch) >= BATCH_DOCUMENTS or size + len(action) + 1 > BATCH_BYTES):
            yield batch
            batch, size = {}, 0
        batch[key] = action
        size += len(action) + 1
    if batch:
        yield batch


def _results(answer: dict[str, Any], wanted: Collection[str]) -> list[_Indexed]:
    try:
        results = msgspec.convert(answer.get("value"), list[_Indexed])
    except msgspec.ValidationError as error:
        raise ProviderError(f"the search service does not answer as it is documented: {error}") from error
    if sorted(each.key for each in results) != sorted(wanted):
        raise ProviderError("the search service says not of each document what became of it")
    return results


def _pace(body: bytes | None) -> bytes | io.BytesIO | None:
    return body if body is None or len(body) <= _LARGE_BODY_BYTES else io.BytesIO(body)  # a file is sent in portions


def _decode(answer: _Answer) -> dict[str, Any]:
    try:
        return msgspec.json.decode(answer.body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ProviderError("the search service does not answer as it is documented: no JSON object") from error


def _explain(answer: _Answer, clock: Clock) -> HeadwayError:
    """Say what an answer that is none of the 2xx means."""
    told = quote_refusal(answer.body, [answer.secret])
    what = f"the search service answers {answer.status}" + (f": {told}" if told else "")
    if answer.status in _PASSING:
        after = parse_retry_after(answer.headers, clock.unix_ms())
        if answer.status in _BUSY:  # it is there, and takes no more for now
            return ProviderUnavailableError(what, code="search_service_busy", retry_after_seconds=after)
        return ProviderUnavailableError(what, retry_after_seconds=after)
    if answer.status in (401, 403):
        hint = "is the key, or the role of the identity, one that may do this, and may this machine reach the service?"
        return ConfigurationError(f"{what}; {hint}")
    if answer.status == 404:
        return NotFoundError(f"{what}; is there an index of that name?")
    return ConfigurationError(what)


def _name(error: Exception) -> str:
    """Say what is wrong with a connection; an address is no secret."""
    return str(error) or type(error).__name__
