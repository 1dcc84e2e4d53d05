"""The control plane's routes on API keys, the audit log and applied configurations."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query

from headway.api.control_parts import Admin, Number, Services, Viewer, problems, signature
from headway.api.queries import PageQuery
from headway.api.resources import (
    AuditEntry,
    Configuration,
    ConfigurationDetail,
    Key,
    KeyWish,
    NewKey,
    Page,
)
from headway.clock import utc
from headway.storage import keys, records
from headway.storage.paging import read_page

router = APIRouter()


@router.get("/keys", response_model=Page[Key], responses=problems())
async def list_keys(services: Services, _: Viewer, page: Annotated[PageQuery, Query()]) -> Any:
    """List the API keys, newest first, revoked ones too."""
    async with services.database.connection() as connection:
        return await read_page(connection, records.KEYS, limit=page.limit, cursor=page.cursor)


@router.post("/keys", response_model=NewKey, status_code=201, responses=problems())
async def create_key(services: Services, key: Admin, wish: KeyWish) -> Any:
    """Make an API key; its secret is in the answer, and nowhere else."""
    expires = None
    if wish.expires_days is not None:
        expires = utc(services.clock.unix_ms()) + timedelta(days=wish.expires_days)
    grant = keys.Grant(
        name=wish.name,
        scopes=tuple(dict.fromkeys(wish.scopes)),
        applications=tuple(dict.fromkeys(wish.applications)),
        requests_per_minute=wish.requests_per_minute,
        concurrency=wish.concurrency,
        monthly_usd=wish.monthly_usd,
        expires_at=expires,
        groups=tuple(dict.fromkeys(wish.groups)),
    )
    async with services.database.connection() as connection:
        made, secret = await keys.create(connection, grant, author=signature(key))
    return {**dataclasses.asdict(made), "secret": secret}


@router.delete("/keys/{number}", response_model=Key, responses=problems(404, 409))
async def revoke_key(services: Services, key: Admin, number: Number) -> Any:
    """Revoke an API key for good; the gateways refuse it within a second."""
    async with services.database.connection() as connection:
        return dataclasses.asdict(await keys.revoke(connection, number, author=signature(key)))


@router.get("/audit", response_model=Page[AuditEntry], responses=problems())
async def list_audit(services: Services, _: Viewer, page: Annotated[PageQuery, Query()]) -> Any:
    """List who changed what, newest first."""
    async with services.database.connection() as connection:
        return await read_page(connection, records.AUDIT, limit=page.limit, cursor=page.cursor)


@router.get("/configurations", response_model=Page[Configuration], responses=problems())
async def list_configurations(services: Services, _: Viewer, page: Annotated[PageQuery, Query()]) -> Any:
    """List the applied configurations, newest first."""
    async with services.database.connection() as connection:
        return await read_page(connection, records.CONFIGURATIONS, limit=page.limit, cursor=page.cursor)


@router.get("/configurations/{number}", response_model=ConfigurationDetail, responses=problems(404))
async def get_configuration(services: Services, _: Viewer, number: Number) -> Any:
    """Show an applied configuration with the file as it was; it holds references to secrets, no secrets."""
    async with services.database.connection() as connection:
        return await records.read_configuration(connection, number)
