"""Secrets by reference, and the tokens that are made from them. Nothing here is stored or logged."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from headway.clock import Clock
from headway.domain.release import Deployment
from headway.errors import ConfigurationError

_ENTRA_SCOPE = "https://cognitiveservices.azure.com/.default"  # of Azure OpenAI
_REFRESH_SECONDS = 300.0
_ENTRA_SECONDS = 30.0
_FILE_SECONDS = 5.0
PLAIN_HEADERS: Mapping[str, str] = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
"""Headers of every call; all others may be secrets."""


def is_reference(text: str) -> bool:
    """Say whether a text is a secret reference: ``env:NAME`` or ``file:/path``."""
    scheme, _, rest = text.partition(":")
    return scheme in ("env", "file") and bool(rest)


def resolve_secret(reference: str, environment: Mapping[str, str] = os.environ) -> str:
    """Read the secret that a reference names.

    Raises:
        ConfigurationError: The variable is not set, the file cannot be read, or it is not a reference.
    """
    scheme, _, rest = reference.partition(":")
    if scheme == "env":
        secret, missing = environment.get(rest, "").strip(), "the environment variable is not set"
    elif scheme == "file":
        try:
            secret, missing = Path(rest).read_text("utf-8").strip(), "the file is empty"
        except (OSError, ValueError):
            # Without the cause: an error of decoding quotes the secret.
            raise ConfigurationError(f"secret {reference}: the file cannot be read") from None
    else:
        raise ConfigurationError("a secret must be given as env:NAME or file:/path")
    if not secret:
        raise ConfigurationError(f"secret {reference}: {missing}")
    if not secret.isprintable():
        raise ConfigurationError(f"secret {reference}: it must be one line of printable characters")
    return secret


class TokenSource(Protocol):
    """Anything that gives Entra access tokens; ``azure.identity.aio.DefaultAzureCredential`` does."""

    async def get_token(self, *scopes: str) -> Any:
        """Return an object with ``token`` and ``expires_on`` (Unix seconds)."""
        ...

    async def close(self) -> None:
        """Release its connections."""
        ...


class _Token:
    """The token for a service, and who renews it."""

    def __init__(self) -> None:
        self.text = ""
        self.until_seconds = 0.0
        self.lock = asyncio.Lock()


class Credentials:
    """Gives each deployment its authentication headers.

    Secrets in files are read again every few seconds, so a rotated secret is picked up without a restart. Entra
    tokens are renewed five minutes before they expire, by one request at a time.
    """

    def __init__(self, clock: Clock, entra: TokenSource | None = None) -> None:
        self._clock = clock
        self._entra = entra
        self._own_entra = entra is None
        self._tokens: dict[str, _Token] = {}
        self._cached: dict[Deployment, tuple[float, dict[str, str]]] = {}

    async def headers(self, deployment: Deployment) -> dict[str, str]:
        """Make the authentication and extra headers of a call; do not change the returned mapping.

        Raises:
            ConfigurationError: A secret is missing, or Entra gives no token.
        """
        now = self._clock.monotonic_seconds()
        cached = self._cached.get(deployment)
        if cached is not None and now < cached[0]:
            return cached[1]
        headers, until = await self._make(deployment, now)
        if len(self._cached) > 1000:
            self._cached.clear()
        self._cached[deployment] = (until, headers)
        return headers

    async def _make(self, deployment: Deployment, now: float) -> tuple[dict[str, str], float]:
        operation = deployment.operation
        until = now + _FILE_SECONDS
        headers = dict(PLAIN_HEADERS)
        for name, value in operation.headers:
            headers[name] = resolve_secret(value) if is_reference(value) else value
        if operation.auth == "entra":
            token = await self.token(_ENTRA_SCOPE)
            headers["Authorization"] = f"Bearer {token}"
        elif operation.auth == "api_key" and operation.api_key:
            secret = resolve_secret(operation.api_key)
            if deployment.endpoint.provider == "azure_openai":
                headers["api-key"] = secret
            else:
                headers["Authorization"] = f"Bearer {secret}"
        return headers, until

    async def token(self, scope: str) -> str:
        """Give an Entra access token for a service.

        Args:
            scope: The service's.

        Raises:
            ConfigurationError: Entra gives none.
        """
        token = self._tokens.setdefault(scope, _Token())
        if token.lock.locked() and self._clock.unix_ms() / 1000 < token.until_seconds:
            return token.text  # Another request is renewing it; this one need not wait.
        async with token.lock:
            now = self._clock.unix_ms() / 1000
            if now < token.until_seconds - _REFRESH_SECONDS:
                return token.text
            if self._entra is None:
                self._entra = _default_entra()
            try:
                async with asyncio.timeout(_ENTRA_SECONDS):
                    answer = await self._entra.get_token(scope)
                token.text, token.until_seconds = answer.token, float(answer.expires_on)
            except Exception as error:  # Whatever the source raises: the old token may do, or the caller is told.
                if now >= token.until_seconds:
                    message = f"Entra gives no token ({type(error).__name__}): check the identity that Headway runs as"
                    raise ConfigurationError(message) from error
            return token.text

    async def close(self) -> None:
        """Release the token source, if it was made here."""
        if self._entra is not None and self._own_entra:
            await self._entra.close()


def _default_entra() -> TokenSource:
    try:
        from azure.identity.aio import DefaultAzureCredential  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        message = "auth: entra needs the azure extra: pip install 'headway[azure]'"
        raise ConfigurationError(message) from error
    source: TokenSource = DefaultAzureCredential()
    return source
