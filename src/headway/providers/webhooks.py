"""Calls to webhooks: what leaves for addresses that an operator has configured."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp

_CONNECT_SECONDS = 5.0


class WebhookError(Exception):
    """A message did not arrive; says why."""


class WebhookClient:
    """Posts messages; follows no redirect, keeps no cookies, and reads no answer but its status.

    Args:
        total_seconds: How long a call may take.
    """

    def __init__(self, total_seconds: float = 15.0) -> None:
        self._total_seconds = total_seconds
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the connection pool."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=30),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._total_seconds, sock_connect=_CONNECT_SECONDS),
        )

    async def close(self) -> None:
        """Close the connection pool."""
        if self._session is not None:
            await self._session.close()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> None:
        """Post a message; any status of the 2xx says that it has arrived.

        Raises:
            WebhookError: It has not, or nobody can say.
        """
        assert self._session is not None, "start() first"
        try:
            response = await self._session.post(url, data=body, headers=headers, allow_redirects=False)
            response.close()  # whatever the body is, and however long
        except TimeoutError as error:
            raise WebhookError(f"no answer within {self._total_seconds:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WebhookError(f"{type(error).__name__}: {error}") from error
        if 300 <= response.status < 400:
            raise WebhookError(f"it answers {response.status}, and redirects are not followed")
        if not 200 <= response.status < 300:
            raise WebhookError(f"it answers {response.status}")
