"""What an API key may do."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from headway.domain.snapshot import KeyRoute, Scope
from headway.errors import PermissionDeniedError

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
