"""Calls to LLM endpoints: one module knows the HTTP client.

A call either gives a ``ProviderAnswer`` (whatever its status) or raises a ``CallError`` that says how far it came,
because that decides whether it may be tried again: a POST is repeated only where no byte of an answer arrived.
"""

from __future__ import annotations

import email.utils
import io
import math
from collections.abc import AsyncIterator, Mapping
from typing import Literal, NamedTuple
from urllib.parse import quote

import aiohttp
from yarl import URL

from headway.clock import Clock
from headway.domain.interaction import Operation
from headway.domain.release import Deployment, Endpoint
from headway.providers.credentials import PLAIN_HEADERS, Credentials
from headway.providers.refusals import quote_refusal

_PATHS: dict[Operation, str] = {"chat": "/chat/completions", "responses": "/responses", "embeddings": "/embeddings"}
Progress = Literal["not_connected", "no_answer", "answering"]
_PIECE_BYTES = 64 * 1024  # a client that does not read holds a few of them
_TARGETS = 1000  # remembered; configurations change
_LARGE_BODY_BYTES = 1024 * 1024


class CallError(Exception):
    """A provider call that gave no complete answer.

    Attributes:
        progress: How far it came: no connection; request sent and nothing heard; answer under way.
        timed_out: Whether a timeout ended it.
    """

    def __init__(self, message: str, progress: Progress, timed_out: bool = False) -> None:
        super().__init__(message)
        self.progress: Progress = progress
        self.timed_out = timed_out


class ProviderAnswer:
    """An answer whose headers have come; its body is read once, whole or in pieces."""

    def __init__(self, response: aiohttp.ClientResponse, sent: Mapping[str, str]) -> None:
        self._response = response
        self._sent = sent
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    @property
    def is_stream(self) -> bool:
        """Whether the body is a stream of server-sent events."""
        return self.headers.get("Content-Type", "").lower().startswith("text/event-stream")

    async def read(self) -> bytes:
        """Read the whole body.

        Raises:
            CallError: It was cut, cannot be decoded, or took too long.
        """
        try:
            return await self._response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _failed(error, "answering") from error

    async def pieces(self) -> AsyncIterator[bytes]:
        """Read the body as it comes; reading slowly makes the provider wait.

        Raises:
            CallError: It was cut, cannot be decoded, or took too long.
        """
        try:
            async for piece in self._response.content.iter_chunked(_PIECE_BYTES):  # what has come, never more
                yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _failed(error, "answering") from error

    def retry_after_seconds(self, clock: Clock) -> float | None:
        """What ``Retry-After`` (seconds or HTTP date) or ``retry-after-ms`` asks for, or None."""
        return parse_retry_after(self.headers, clock.unix_ms())

    def quote_refusal(self, body: bytes) -> str:
        """Quote the message of an error that was the answer: on a line, without secrets; empty where there is none."""
        sent = [value for name, value in self._sent.items() if name not in PLAIN_HEADERS]
        return quote_refusal(body, [*sent, *(value.removeprefix("Bearer ") for value in sent)])

    def close(self) -> None:
        """Drop the connection unless the body was read to its end; the provider stops generating."""
        self._response.close()


class _Target(NamedTuple):
    url: URL
    timeout: aiohttp.ClientTimeout


class ProviderClient:
    """Calls deployments over pooled connections; limits are the caller's business."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._session: aiohttp.ClientSession | None = None
        self._targets: dict[tuple[Deployment, Operation, bool], _Target] = {}

    async def start(self) -> None:
        """Open the connection pool."""
        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=30, keepalive_timeout=30)
        # Bodies are bounded by the caller's memory for one answer; no cookies, no redirects with secrets in them.
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), read_bufsize=64 * 1024
        )

    async def close(self) -> None:
        """Close the connection pool and the credentials."""
        if self._session is not None:
            await self._session.close()
        await self._credentials.close()

    async def post(
        self,
        deployment: Deployment,
        operation: Operation,
        body: bytes,
        trace: Mapping[str, str] | None = None,
        *,
        stream: bool = True,
    ) -> ProviderAnswer:
        """Send a request and wait for the headers of its answer. Cancelling drops the connection at once.

        Args:
            deployment: Where to.
            operation: Which route.
            body: The request.
            trace: Headers of a trace.
            stream: Whether the answer comes bit by bit, so that silence says something; an answer that comes as a
                whole may be silent for the deployment's total time.

        Raises:
            CallError: No answer came.
            ConfigurationError: A secret is missing.
        """
        assert self._session is not None, "start() first"
        headers = await self._credentials.headers(deployment)
        if trace:
            headers = {**headers, **trace}
        target = self._target(deployment, operation, stream=stream)
        try:
            response = await self._session.post(
                target.url,
                data=body if len(body) <= _LARGE_BODY_BYTES else io.BytesIO(body),  # a file is sent in portions
                headers=headers,
                timeout=target.timeout,
                allow_redirects=False,
            )
        except aiohttp.ConnectionTimeoutError as error:
            raise _failed(error, "not_connected") from error
        except aiohttp.ClientConnectorError as error:
            raise _failed(error, "not_connected") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _failed(error, "no_answer") from error
        return ProviderAnswer(response, headers)

    def _target(self, deployment: Deployment, operation: Operation, *, stream: bool) -> _Target:
        target = self._targets.get((deployment, operation, stream))
        if target is None:
            if len(self._targets) >= _TARGETS:
                self._targets.clear()
            url = URL(call_url(deployment.endpoint, operation), encoded=True)
            limits = deployment.operation
            timeout = aiohttp.ClientTimeout(
                total=limits.total_seconds,
                sock_connect=limits.connect_seconds,
                sock_read=limits.first_token_seconds if stream else None,
            )
            target = self._targets[deployment, operation, stream] = _Target(url, timeout)
        return target


def call_url(endpoint: Endpoint, operation: Operation) -> str:
    """Write the URL of an operation at an endpoint.

    Azure OpenAI has two dialects: with ``api_version`` the deployment is in the path (chat and embeddings; responses
    have none there); without, the versionless ``/openai/v1`` API looks like OpenAI's.
    """
    base = endpoint.base_url.rstrip("/")
    if endpoint.provider == "openai":
        return base + _PATHS[operation]
    if not endpoint.api_version:
        return f"{base}/openai/v1{_PATHS[operation]}"
    version = f"?api-version={quote(endpoint.api_version)}"
    if operation == "responses":
        return f"{base}/openai/responses{version}"
    return f"{base}/openai/deployments/{quote(endpoint.model, safe='')}{_PATHS[operation]}{version}"


def parse_retry_after(headers: Mapping[str, str], now_unix_ms: int) -> float | None:
    """Read how long a provider asks to wait, in seconds; None where it does not, or asks in an unknown way."""
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        else:
            value = headers.get("Retry-After", "").strip()
            if value.replace(".", "", 1).isdecimal():
                seconds = float(value)
            else:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - now_unix_ms / 1000
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _failed(error: BaseException, progress: Progress) -> CallError:
    timed_out = isinstance(error, TimeoutError)
    what = "timed out" if timed_out else (str(error) or type(error).__name__)
    return CallError(what, progress, timed_out)
