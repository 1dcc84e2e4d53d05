"""What the control plane's routes share: the services, who calls, documented errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any

from fastapi import Depends, Path, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from headway.api.problems import PROBLEM_CONTENT_TYPE
from headway.api.resources import Problem
from headway.clock import Clock
from headway.domain.access import require_scope
from headway.domain.protocols import Retriever
from headway.domain.snapshot import KeyRoute, Snapshot
from headway.feedback.reporting import ReportDesk
from headway.storage.database import Database

LARGEST_NUMBER = 2**31 - 1
_COMPARISONS = 2


@dataclass(frozen=True)
class ControlServices:
    """What the control plane works with.

    Attributes:
        database: Everything it shows and changes is there.
        clock: Tells the time.
        snapshot: Gives the snapshot in force, for the API keys; raises StorageError while there is none.
        metrics: Writes the figures for Prometheus, in its text format.
        retriever: Searches index versions.
        comparisons: A place for each comparison of index versions that runs at the same time.
    """

    database: Database
    clock: Clock
    snapshot: Callable[[], Snapshot]
    metrics: Callable[[], bytes]
    retriever: Retriever
    comparisons: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_COMPARISONS))

    @property
    def reports(self) -> ReportDesk:
        """Shows reports and changes them."""
        return ReportDesk(self.database, self.clock)


def _services(request: Request) -> ControlServices:
    services: ControlServices = request.app.state.services
    return services


def _viewer(
    request: Request,
    _bearer: Annotated[object, Security(HTTPBearer(auto_error=False, description="An API key, `hw-...`"))],
    _header: Annotated[object, Security(APIKeyHeader(name="api-key", auto_error=False))],
) -> KeyRoute:
    # The guard in front has checked it; the two parameters only document how to send it.
    key: KeyRoute = request.state.key
    return key


def _admin(key: Annotated[KeyRoute, Depends(_viewer)]) -> KeyRoute:
    require_scope(key, "admin")
    return key


def signature(key: KeyRoute) -> str:
    """Name the holder of a key as the author of a change."""
    return f"{key.name} (key {key.number})"


Services = Annotated[ControlServices, Depends(_services)]
Viewer = Annotated[KeyRoute, Depends(_viewer)]
Admin = Annotated[KeyRoute, Depends(_admin)]
Number = Annotated[int, Path(ge=1, le=LARGEST_NUMBER)]
Name = Annotated[str, Path(max_length=200, pattern=r"^[^\x00]*$")]
_DESCRIPTIONS: Mapping[int, str] = MappingProxyType(
    {
        400: "The request is malformed.",
        401: "There is no API key, or it is unknown, revoked or expired.",
        403: "The key lacks the scope.",
        404: "There is no such thing.",
        409: "Somebody else was first, or the present state forbids it.",
        413: "The body is too large.",
        415: "The body is not JSON.",
        429: "A limit was reached.",
        503: "The database is away.",
    }
)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document error answers: those that every route has, and the given ones."""
    return {
        status: {
            "description": _DESCRIPTIONS[status],
            "model": Problem,
            "content": {PROBLEM_CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted({400, 401, 403, 413, 415, 503, *statuses})
    }
