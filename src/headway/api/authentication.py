"""Who calls: the API key of a request. Both planes ask here; what a key may do says ``headway.domain.access``.

A key is 256 random bits behind ``hw-``; only its SHA-256 is known, so looking the hash up compares nothing that a
caller could measure its way through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from headway.domain.access import has_scope, may_use, require_application, require_scope
from headway.domain.snapshot import KeyRoute, Snapshot
from headway.errors import AuthenticationError

__all__ = [
    "authenticate",
    "has_scope",
    "identify",
    "may_use",
    "presented_key",
    "require_application",
    "require_scope",
]

_HOW = "send it as `Authorization: Bearer hw-...` or `api-key: hw-...`"


def presented_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Find the API key that a request carries; None when it carries none.

    Args:
        headers: By lower-case name. ``Authorization: Bearer`` wins over ``api-key``.

    Raises:
        AuthenticationError: There is an ``Authorization`` header of another kind and no ``api-key``.
    """
    authorization = headers.get(b"authorization", b"").strip()
    if authorization:
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() == b"bearer" and token.strip():
            return token.strip()
    other = headers.get(b"api-key", b"").strip()
    if other:
        return other
    if authorization:
        raise AuthenticationError(f"the Authorization header carries no API key: {_HOW}", code="missing_api_key")
    return None


def identify(snapshot: Snapshot, headers: Mapping[bytes, bytes], unix_ms: int) -> KeyRoute | None:
    """Find the caller's API key; None when the request carries none at all.

    Raises:
        AuthenticationError: It carries one that is unknown, revoked or expired.
    """
    token = presented_key(headers)
    if token is None:
        return None
    digest = hashlib.sha256(token).hexdigest()
    key = snapshot.keys.get(digest)
    if key is None:
        if digest in snapshot.revoked:
            raise AuthenticationError("this API key was revoked: use another one", code="revoked_api_key")
        raise AuthenticationError("this API key is not known here: check that it was copied whole")
    if key.expires_unix_ms is not None and key.expires_unix_ms <= unix_ms:
        raise AuthenticationError(f"the API key {key.name!r} has expired: use another one", code="expired_api_key")
    return key


def authenticate(snapshot: Snapshot, headers: Mapping[bytes, bytes], unix_ms: int) -> KeyRoute:
    """Find the caller's API key.

    Args:
        snapshot: Holds the known keys.
        headers: Of the request, by lower-case name.
        unix_ms: Now.

    Raises:
        AuthenticationError: There is no key, or it is unknown, revoked or expired.
    """
    key = identify(snapshot, headers, unix_ms)
    if key is None:
        raise AuthenticationError(f"an API key is needed: {_HOW}", code="missing_api_key")
    return key
