"""What an API key may do."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from types import MappingProxyType

from headway.domain.snapshot import KeyRoute, Scope
from headway.errors import InvalidRequestError, PermissionDeniedError

_GROUP = re.compile(r"[^\x00-\x20\x7f,](?:[^\x00-\x1f\x7f,]{0,198}[^\x00-\x20\x7f,])?")
_MOST_GROUPS = 1000
_NOBODYS: frozenset[str] = frozenset()
_IMPLIED_BY: Mapping[Scope, Scope] = MappingProxyType({"view": "admin"})


def has_scope(key: KeyRoute, scope: Scope) -> bool:
    """Say whether the key has the scope; ``admin`` includes ``view``."""
    return scope in key.scopes or _IMPLIED_BY.get(scope) in key.scopes


def require_scope(key: KeyRoute, scope: Scope) -> None:
    """Let the call pass only if the key has the scope.

    Raises:
        PermissionDeniedError: It has not.
    """
    if not has_scope(key, scope):
        raise PermissionDeniedError(f"the API key {key.name!r} lacks the scope {scope!r}")


def may_use(key: KeyRoute, application: str) -> bool:
    """Say whether the key may use the application."""
    return not key.applications or application in key.applications


def require_application(key: KeyRoute, application: str) -> None:
    """Let the call pass only if the key may use the application.

    Raises:
        PermissionDeniedError: It may not.
    """
    if not may_use(key, application):
        message = f"the API key {key.name!r} may not use the application {application!r}"
        raise PermissionDeniedError(message, code="application_not_allowed")


def may_read(key: KeyRoute, groups: Collection[str]) -> bool:
    """Say whether who looks at things with the key may read what is for these groups: an admin always; none is all."""
    return not groups or has_scope(key, "admin") or any(name in groups for name in key.groups)


def is_group(name: str) -> bool:
    """Say whether a group can be called so: 1 to 200 printable characters, no comma, no blank at either end."""
    return _GROUP.fullmatch(name) is not None


def groups_of(key: KeyRoute, header: bytes | None) -> frozenset[str]:
    """Say whose labelled documents a request may see: those of the key, or of the end user that it names.

    Args:
        key: The caller's.
        header: ``x-headway-groups``: names, separated by commas; None where the request has none.

    Raises:
        PermissionDeniedError: The key may not speak for others.
        InvalidRequestError: The header holds something that is no group's name, or too much.
    """
    if header is None:
        return frozenset(key.groups) if key.groups else _NOBODYS
    if "delegate" not in key.scopes:
        message = f"the API key {key.name!r} lacks the scope 'delegate' that x-headway-groups needs"
        raise PermissionDeniedError(message, param="x-headway-groups")
    try:
        names = [name.strip() for name in header.decode().split(",")]
    except UnicodeDecodeError as error:
        raise InvalidRequestError("x-headway-groups is not UTF-8", param="x-headway-groups") from error
    groups = frozenset(filter(None, names))
    if len(groups) > _MOST_GROUPS or not all(map(is_group, groups)):
        message = f"x-headway-groups holds up to {_MOST_GROUPS} names of at most 200 characters, separated by commas"
        raise InvalidRequestError(message, param="x-headway-groups")
    return groups


def fingerprint(groups: frozenset[str]) -> str:
    """Stand for a set of groups in a few characters; empty for none."""
    return hashlib.sha256("\n".join(sorted(groups)).encode()).hexdigest()[:32] if groups else ""
