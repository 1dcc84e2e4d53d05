"""API keys: 256 random bits, shown once, stored as a hash."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString, get_args

from psycopg.rows import dict_row

from headway.domain.access import is_group
from headway.domain.snapshot import Scope
from headway.errors import ConflictError, InvalidRequestError, NotFoundError
from headway.storage import audit, routing
from headway.storage.database import Connection

_PREFIX = "hw-"
_RANDOM_BYTES = 32
_HINT_CHARACTERS = 9
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,100}")


@dataclass(frozen=True)
class Grant:
    """What a key may do and how much.

    Attributes:
        name: For people: who or what holds the key.
        scopes: What it may do.
        applications: Applications it may call; empty for all, and for keys that view or administer.
        requests_per_minute: 0 is no limit.
        concurrency: Requests in flight; 0 is no limit.
        monthly_usd: Hard cap of cost per calendar month (UTC); None is no cap.
        expires_at: When it ends; None never.
        groups: Whose labelled documents its callers see.
    """

    name: str
    scopes: tuple[Scope, ...] = ("invoke", "feedback")
    applications: tuple[str, ...] = ()
    requests_per_minute: int = 0
    concurrency: int = 0
    monthly_usd: float | None = None
    expires_at: datetime | None = None
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Key:
    """A key as stored; ``hint`` is its first characters, to recognise it by."""

    number: int
    name: str
    hint: str
    scopes: list[str]
    applications: list[str]
    groups: list[str]
    requests_per_minute: int
    concurrency: int
    monthly_usd: float | None
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None


def hash_key(secret: str) -> str:
    """Hash a key as it is stored and looked up: SHA-256 in hexadecimal."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


async def create(connection: Connection, grant: Grant, *, author: str) -> tuple[Key, str]:
    """Create a key and publish it.

    Returns:
        The key as stored and the secret, which nobody can read again.

    Raises:
        InvalidRequestError: The grant makes no sense.
    """
    _check(grant)
    secret = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    (key,) = await _query(
        connection,
        "INSERT INTO api_key (name, hash, hint, scopes, applications, requests_per_minute, concurrency, monthly_usd,"
        " expires_at, groups, created_by) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING *",
        (
            grant.name,
            hash_key(secret),
            secret[:_HINT_CHARACTERS],
            list(grant.scopes),
            list(grant.applications),
            grant.requests_per_minute,
            grant.concurrency,
            grant.monthly_usd,
            grant.expires_at,
            list(grant.groups),
            author,
        ),
    )
    await audit.record(
        connection, author=author, action="key.create", subject=f"key {key.number}", detail={"name": grant.name}
    )
    await routing.publish(connection)
    return key, secret


async def list_keys(connection: Connection) -> list[Key]:
    """List all keys, revoked ones too, oldest first."""
    return await _query(connection, "SELECT * FROM api_key ORDER BY id")


async def revoke(connection: Connection, number: int, *, author: str, reason: str | None = None) -> Key:
    """Revoke a key for good and publish that.

    Raises:
        NotFoundError: There is no such key.
        ConflictError: It is revoked already.
    """
    changed = await _query(
        connection,
        "UPDATE api_key SET revoked_at = now() WHERE id = %s AND revoked_at IS NULL RETURNING *",
        (number,),
    )
    key = await _sole(connection, changed, number)
    await audit.record(connection, author=author, action="key.revoke", subject=f"key {number}", reason=reason)
    await routing.publish(connection)
    return key


async def expire(
    connection: Connection, number: int, at: datetime | None, *, author: str, reason: str | None = None
) -> Key:
    """Set when a key ends (None: never) and publish that.

    Raises:
        NotFoundError: There is no such key.
        ConflictError: It is revoked.
    """
    changed = await _query(
        connection,
        "UPDATE api_key SET expires_at = %s WHERE id = %s AND revoked_at IS NULL RETURNING *",
        (at, number),
    )
    key = await _sole(connection, changed, number)
    await audit.record(connection, author=author, action="key.expire", subject=f"key {number}", reason=reason)
    await routing.publish(connection)
    return key


async def set_groups(
    connection: Connection, number: int, groups: tuple[str, ...], *, author: str, reason: str | None = None
) -> Key:
    """Set which groups a key is in and publish that.

    Raises:
        NotFoundError: There is no such key.
        ConflictError: It is revoked.
        InvalidRequestError: Something is not the name of a group.
    """
    _check_groups(groups)
    changed = await _query(
        connection,
        "UPDATE api_key SET groups = %s WHERE id = %s AND revoked_at IS NULL RETURNING *",
        (list(groups), number),
    )
    key = await _sole(connection, changed, number)
    await audit.record(
        connection,
        author=author,
        action="key.groups",
        subject=f"key {number}",
        reason=reason,
        detail={"groups": list(groups)},
    )
    await routing.publish(connection)
    return key


async def read_costs(connection: Connection, numbers: list[int], month: str) -> dict[int, float]:
    """Read what keys have cost in a month (``YYYY-MM``), on all replicas, in US dollars by number of the key."""
    cursor = await connection.execute(
        "SELECT key_id, cost_usd FROM key_usage WHERE key_id = ANY(%s) AND month = %s::date", (numbers, f"{month}-01")
    )
    return {number: cost async for number, cost in cursor}


async def _sole(connection: Connection, changed: list[Key], number: int) -> Key:
    if changed:
        return changed[0]
    if await _query(connection, "SELECT * FROM api_key WHERE id = %s", (number,)):
        raise ConflictError(f"key {number} is revoked already")
    raise NotFoundError(f"there is no key {number}; `headway keys list` shows them")


async def _query(connection: Connection, query: LiteralString, values: tuple[Any, ...] = ()) -> list[Key]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query, values)
        rows = await cursor.fetchall()
    return [Key(number=row.pop("id"), **{name: value for name, value in row.items() if name != "hash"}) for row in rows]


def _check(grant: Grant) -> None:
    if not _NAME.fullmatch(grant.name) or not grant.name.strip():
        raise InvalidRequestError("a key's name has 1 to 100 printable characters", param="name")
    unknown = [scope for scope in grant.scopes if scope not in get_args(Scope)]
    if unknown or not grant.scopes:
        what = f"unknown scope {unknown[0]!r}" if unknown else "a key needs a scope"
        raise InvalidRequestError(f"{what}; scopes are {', '.join(get_args(Scope))}", param="scopes")
    overseeing = [scope for scope in grant.scopes if scope in ("view", "admin")]
    if grant.applications and overseeing:
        message = f"a key with the scope {overseeing[0]!r} sees all applications: make another key for it"
        raise InvalidRequestError(message, param="applications")
    _check_groups(grant.groups)
    limits = {
        "requests_per_minute": grant.requests_per_minute,
        "concurrency": grant.concurrency,
        "monthly_usd": grant.monthly_usd or 0,
    }
    for param, value in limits.items():
        if not 0 <= value <= 2**31 - 1:
            raise InvalidRequestError(f"{param} is a number from 0 to {2**31 - 1}, not {value}", param=param)


def _check_groups(groups: tuple[str, ...]) -> None:
    odd = next((group for group in groups if not is_group(group)), None)
    if odd is not None:
        message = f"a group has 1 to 200 printable characters and no comma, not {odd[:80]!r}"
        raise InvalidRequestError(message, param="groups")
