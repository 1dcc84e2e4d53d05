"""Routing snapshots: built from the tables, numbered, and announced to every gateway."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from headway.domain.metric import FeedbackMetric
from headway.domain.policy import ShadowRule
from headway.domain.release import Bundle, Deployment
from headway.domain.snapshot import (
    ApplicationRoute,
    KeyRoute,
    ReleaseRoute,
    RolloutRoute,
    ShadowRoute,
    SigningKeys,
    Snapshot,
    decode_snapshot,
    encode_snapshot,
)
from headway.errors import ConflictError
from headway.storage import audit
from headway.storage.database import Connection

CHANNEL = "headway_snapshot"  # NOTIFY carries the new snapshot's number
KEPT_SNAPSHOTS = 100
ROUTED_RELEASES = 200  # per application, the newest; the stable one and the candidate always

_PUBLISH_LOCK = 0x6865_6164_7761_7A
_KEY_BYTES = 32
_UNIT_KEY_NUMBER = 0
_LAST_KEY_NUMBER = 255  # an id has one byte for it


async def publish(connection: Connection) -> int:
    """Make a new snapshot of what the tables say and announce it; both take effect with the caller's commit.

    Publishing is serialised: a snapshot with a higher number never says less. Call it last in a transaction.

    Returns:
        The snapshot's number.
    """
    await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_PUBLISH_LOCK,))
    number, unix_ms = await _row(
        connection,
        "SELECT nextval(pg_get_serial_sequence('routing_snapshot', 'number')),"
        " (extract(epoch FROM clock_timestamp()) * 1000)::bigint",
    )
    signing = await _signing(connection)
    releases = await _releases(connection)
    keys, revoked = await _keys(connection)
    snapshot = Snapshot(
        number=number,
        unix_ms=unix_ms,
        applications=await _applications(connection, releases),
        releases=releases,
        keys=keys,
        revoked=revoked,
        signing=signing,
    )
    await connection.execute(
        "INSERT INTO routing_snapshot (number, body) OVERRIDING SYSTEM VALUE VALUES (%s, %s)",
        (number, encode_snapshot(snapshot)),
    )
    await connection.execute(
        "DELETE FROM routing_snapshot WHERE number <= (SELECT number FROM routing_snapshot"
        " ORDER BY number DESC OFFSET %s LIMIT 1)",
        (KEPT_SNAPSHOTS,),
    )
    await connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, str(number)))
    return int(number)


async def latest(connection: Connection, *, after: int = 0) -> Snapshot | None:
    """Read the newest snapshot with a number above ``after``; None when there is none."""
    cursor = await connection.execute(
        "SELECT body FROM routing_snapshot WHERE number > %s ORDER BY number DESC LIMIT 1", (after,)
    )
    row = await cursor.fetchone()
    return None if row is None else decode_snapshot(row[0])


async def rotate_signing_key(connection: Connection, *, author: str) -> int:
    """Sign new interaction ids with a new key; ids signed with the old ones keep verifying.

    Returns:
        The new key's number.

    Raises:
        ConflictError: All numbers that an interaction id can name are used up.
    """
    await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_PUBLISH_LOCK,))
    await _signing(connection)
    (last,) = await _row(connection, "SELECT max(number) FROM signing_key WHERE purpose = 'id'")
    if last >= _LAST_KEY_NUMBER:
        raise ConflictError(f"there have been {_LAST_KEY_NUMBER} signing keys; there can be no more")
    await _add_signing_key(connection, last + 1, "id")
    await audit.record(connection, author=author, action="signing_key.rotate", subject=f"signing key {last + 1}")
    await publish(connection)
    return int(last) + 1


async def _signing(connection: Connection) -> SigningKeys:
    """Read Headway's own keys; the first time, make them."""
    cursor = await connection.execute(
        "SELECT number, purpose, secret FROM signing_key WHERE retired_at IS NULL ORDER BY number"
    )
    rows = await cursor.fetchall()
    if not rows:
        await _add_signing_key(connection, _UNIT_KEY_NUMBER, "unit")
        await _add_signing_key(connection, 1, "id")
        return await _signing(connection)
    keys = {number: secret for number, purpose, secret in rows if purpose == "id"}
    unit_key = next(secret for _, purpose, secret in rows if purpose == "unit")
    return SigningKeys(keys=keys, active=max(keys), unit_key=unit_key)


async def _add_signing_key(connection: Connection, number: int, purpose: str) -> None:
    await connection.execute(
        "INSERT INTO signing_key (number, purpose, secret) VALUES (%s, %s, %s)",
        (number, purpose, secrets.token_bytes(_KEY_BYTES)),
    )


async def _releases(connection: Connection) -> dict[int, ReleaseRoute]:
    current = await _current_deployments(connection)
    cursor = await connection.execute(
        """
        SELECT r.id, r.name, r.bundle, r.deployments FROM (
            SELECT release.*, row_number() OVER (PARTITION BY application_id ORDER BY id DESC) AS recency FROM release
        ) r
        JOIN application a ON a.id = r.application_id AND a.retired_at IS NULL
        LEFT JOIN rollout o ON o.application_id = a.id AND o.ended_at IS NULL
        WHERE r.recency <= %s OR r.id IN (a.stable_release, o.stable_release, o.candidate_release)
        ORDER BY r.id
        """,
        (ROUTED_RELEASES,),
    )
    routes = {}
    async for number, name, bundle, deployments in cursor:
        stored = msgspec.convert(deployments, tuple[Deployment, ...])
        routes[number] = ReleaseRoute(
            number=number,
            name=name,
            bundle=msgspec.convert(bundle, Bundle),
            deployments=tuple(deployment.operated_as(current.get(deployment.name)) for deployment in stored),
        )
    return routes


async def _current_deployments(connection: Connection) -> dict[str, Deployment]:
    cursor = await connection.execute("SELECT spec->'deployments' FROM configuration ORDER BY id DESC LIMIT 1")
    row = await cursor.fetchone()
    return {} if row is None else msgspec.convert(row[0], dict[str, Deployment])


async def _applications(connection: Connection, releases: dict[int, ReleaseRoute]) -> dict[str, ApplicationRoute]:
    rollouts = await _rollouts(connection)
    names: dict[int, dict[str, int]] = {}
    cursor = await connection.execute("SELECT id, application_id, name FROM release ORDER BY id")
    async for number, application, name in cursor:
        if number in releases:
            names.setdefault(application, {})[name] = number
    cursor = await connection.execute(
        "SELECT id, name, unit, stable_release, record_content, metrics, retention_days FROM application"
        " WHERE retired_at IS NULL AND stable_release IS NOT NULL ORDER BY name"
    )
    return {
        name: ApplicationRoute(
            number=number,
            name=name,
            unit=unit,
            stable=stable,
            rollout=rollouts.get(number),
            releases=names[number],
            record_content=record_content,
            metrics=msgspec.convert(metrics, dict[str, FeedbackMetric]),
            retention_days=retention_days,
        )
        async for number, name, unit, stable, record_content, metrics, retention_days in cursor
    }


async def _rollouts(connection: Connection) -> dict[int, RolloutRoute]:
    """Read the running rollouts; one that is still collecting its baseline is not routed, and has no stage yet."""
    cursor = await connection.execute(
        """
        SELECT o.application_id, o.id, o.candidate_release, o.salt, o.stage, o.share, o.kind, o.state, o.shadow_usd,
               s.phase, o.terms->'policy'->'shadow' AS shadow, o.terms->'policy'->>'on_lost_control'
        FROM rollout o LEFT JOIN rollout_stage s ON s.rollout_id = o.id AND s.stage = o.stage
        WHERE o.ended_at IS NULL AND (o.terms IS NULL OR s.stage IS NOT NULL)
        """
    )
    return {
        application: RolloutRoute(
            number=number,
            candidate=candidate,
            salt=salt,
            stage=stage,
            share=share,
            kind=kind,
            shadow=_shadow(shadow, spent_usd, paused=state == "paused") if phase == "shadow" else None,
            stable_when_lost=on_lost_control == "stable",
        )
        async for (
            application, number, candidate, salt, stage, share, kind, state, spent_usd, phase, shadow, on_lost_control
        ) in cursor
    }  # fmt: skip


def _shadow(given: object, spent_usd: float, *, paused: bool) -> ShadowRoute:
    rule = msgspec.convert(given, ShadowRule)
    return ShadowRoute(rule.sample, paused or is_used_up(rule, spent_usd))


def is_used_up(rule: ShadowRule, spent_usd: float) -> bool:
    """Say whether mirrored answers have cost as much as they may."""
    return rule.budget_usd is not None and spent_usd >= rule.budget_usd


async def _keys(connection: Connection) -> tuple[dict[str, KeyRoute], tuple[str, ...]]:
    cursor = await connection.execute(
        "SELECT hash, id, name, scopes, applications, requests_per_minute, concurrency, monthly_usd,"
        " (extract(epoch FROM expires_at) * 1000)::bigint, groups FROM api_key WHERE revoked_at IS NULL ORDER BY id"
    )
    keys = {
        key_hash: KeyRoute(
            number=number,
            name=name,
            scopes=tuple(scopes),
            applications=tuple(applications),
            requests_per_minute=per_minute,
            concurrency=concurrency,
            monthly_usd=monthly_usd,
            expires_unix_ms=expires,
            groups=tuple(groups),
        )
        async for (
            key_hash, number, name, scopes, applications, per_minute, concurrency, monthly_usd, expires, groups
        ) in cursor
    }  # fmt: skip
    cursor = await connection.execute("SELECT hash FROM api_key WHERE revoked_at IS NOT NULL ORDER BY id")
    return keys, tuple([key_hash async for (key_hash,) in cursor])


async def _row(connection: Connection, query: Any, parameters: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    row = await (await connection.execute(query, parameters)).fetchone()
    if row is None:
        raise LookupError(f"no row: {query}")
    return tuple(row)
