"""API keys: shown once, kept as hashes, published at once."""

import re
from datetime import UTC, datetime
from typing import Any

import pytest

from headway.domain.snapshot import KeyRoute, Snapshot
from headway.errors import ConflictError, InvalidRequestError, NotFoundError
from headway.storage import keys, routing
from headway.storage.database import Database
from headway.storage.keys import Grant

ENDS = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
FULL = Grant(
    name="web shop",
    scopes=("invoke", "pin"),
    applications=("support",),
    requests_per_minute=600,
    concurrency=20,
    monthly_usd=99.5,
    expires_at=ENDS,
    groups=("hr", "Team Élan"),
)


async def published(database: Database) -> Snapshot:
    async with database.connection() as connection:
        snapshot = await routing.latest(connection)
    assert snapshot is not None
    return snapshot


async def test_a_key_is_published_with_what_it_may_do(database: Database) -> None:
    async with database.connection() as connection:
        key, secret = await keys.create(connection, FULL, author="ann")
    assert re.fullmatch(r"hw-[A-Za-z0-9_-]{43}", secret)
    assert secret.startswith(key.hint)
    snapshot = await published(database)
    assert snapshot.keys == {
        keys.hash_key(secret): KeyRoute(
            number=key.number,
            name="web shop",
            scopes=("invoke", "pin"),
            applications=("support",),
            requests_per_minute=600,
            concurrency=20,
            monthly_usd=99.5,
            expires_unix_ms=int(ENDS.timestamp() * 1000),
            groups=("hr", "Team Élan"),
        )
    }


async def test_the_key_itself_is_nowhere_in_the_database(database: Database) -> None:
    async with database.connection() as connection:
        _, secret = await keys.create(connection, FULL, author="ann")
        await keys.revoke(connection, 1, author="ann", reason="leaked")
    assert secret[12:] not in await everything(database)


async def everything(database: Database) -> str:
    """All rows of all tables as text."""
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
        )
        rows = []
        for (table,) in await cursor.fetchall():
            dump = await connection.execute(f'SELECT t::text FROM "{table}" t')  # names from the catalogue
            rows += [str(row[0]) for row in await dump.fetchall()]
        bodies = await connection.execute("SELECT convert_from(body, 'UTF8') FROM routing_snapshot")
        rows += [str(row[0]) for row in await bodies.fetchall()]
    assert len(rows) > 3
    return "\n".join(rows)


async def test_keys_differ(database: Database) -> None:
    async with database.connection() as connection:
        secrets = {(await keys.create(connection, Grant("k"), author="ann"))[1] for _ in range(20)}
    assert len(secrets) == 20


async def test_a_revoked_key_is_known_as_such(database: Database) -> None:
    async with database.connection() as connection:
        key, secret = await keys.create(connection, Grant("k"), author="ann")
        await keys.revoke(connection, key.number, author="bob", reason="leaked")
    snapshot = await published(database)
    assert snapshot.keys == {}
    assert snapshot.revoked == (keys.hash_key(secret),)
    async with database.connection() as connection:
        (listed,) = await keys.list_keys(connection)
        assert listed.revoked_at is not None
        for change in (
            keys.revoke(connection, key.number, author="ann"),
            keys.expire(connection, key.number, None, author="ann"),
        ):
            with pytest.raises(ConflictError, match="is revoked already"):
                await change
        with pytest.raises(NotFoundError, match="there is no key 99"):
            await keys.revoke(connection, 99, author="ann")
        cursor = await connection.execute("SELECT author, action, subject, reason FROM audit_log ORDER BY id")
        assert await cursor.fetchall() == [
            ("ann", "key.create", f"key {key.number}", None),
            ("bob", "key.revoke", f"key {key.number}", "leaked"),
        ]


async def test_a_key_can_be_given_an_end_and_lose_it(database: Database) -> None:
    async with database.connection() as connection:
        key, secret = await keys.create(connection, Grant("k"), author="ann")
        await keys.expire(connection, key.number, ENDS, author="ann")
    assert (await published(database)).keys[keys.hash_key(secret)].expires_unix_ms == int(ENDS.timestamp() * 1000)
    async with database.connection() as connection:
        await keys.expire(connection, key.number, None, author="ann")
    assert (await published(database)).keys[keys.hash_key(secret)].expires_unix_ms is None


async def test_grants_that_make_no_sense_are_refused(database: Database) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"name": ""}, "a key's name has"),
        ({"name": "  "}, "a key's name has"),
        ({"name": "a\x00b"}, "a key's name has"),
        ({"name": "a" * 101}, "a key's name has"),
        ({"scopes": ()}, "a key needs a scope"),
        (
            {"scopes": ("invoke", "root")},
            "unknown scope 'root'; scopes are invoke, pin, delegate, feedback, view, admin",
        ),
        ({"scopes": ("invoke", "view"), "applications": ("support",)}, "the scope 'view' sees all applications"),
        ({"groups": ("hr", "")}, "a group has 1 to 200 printable characters"),
        ({"groups": ("hr,it",)}, "no comma, not 'hr,it'"),
        ({"requests_per_minute": -1}, "requests_per_minute is a number from 0"),
        ({"concurrency": 2**31}, "concurrency is a number from 0"),
        ({"monthly_usd": -0.01}, "monthly_usd is a number from 0"),
        ({"monthly_usd": float("nan")}, "monthly_usd is a number from 0"),
    ]
    async with database.connection() as connection:
        for changes, complaint in wrong:
            with pytest.raises(InvalidRequestError, match=complaint):
                await keys.create(connection, Grant(**{"name": "k"} | changes), author="ann")
        assert await keys.list_keys(connection) == []
