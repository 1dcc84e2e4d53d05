"""What the tables hold, for people to read: every list in pages, newest first unless it says otherwise."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime, timedelta
from typing import Any, LiteralString

import msgspec
from psycopg.errors import QueryCanceled
from psycopg.rows import dict_row

from headway.clock import utc
from headway.domain.difference import find_difference
from headway.domain.release import Bundle
from headway.errors import LimitError, NotFoundError
from headway.ids import Kind
from headway.storage.database import Connection
from headway.storage.paging import Condition, Listing, Order, Page, read_page
from headway.storage.rollouts import describe_difference

_LAST_MS = 253_402_300_000_000  # the last second that a datetime can be
_MIRRORED_WITHIN = timedelta(days=1)  # most begin at once; one that waits longer than this is not found
_REQUESTS_AT_ONCE = 100  # in memory; one may be large
_SUMMARY_SECONDS = 20.0  # a summary over too much is broken off, not left running

APPLICATIONS = Listing(
    select="""
        SELECT * FROM (
            SELECT a.id AS number, a.name, a.unit, a.policy, a.record_content, a.retention_days, a.metrics,
                   s.name AS stable, c.name AS candidate, o.share, o.id AS rollout, a.retired_at
            FROM application a LEFT JOIN release s ON s.id = a.stable_release
            LEFT JOIN rollout o ON o.application_id = a.id AND o.ended_at IS NULL
            LEFT JOIN release c ON c.id = o.candidate_release
        ) listed""",
    order=(("name", "name", "text"),),
    ascending=True,
)

RELEASES = Listing(
    select="""
        SELECT * FROM (
            SELECT r.id AS number, a.name AS application, r.name, r.content_hash, r.bundle, r.created_at, r.created_by,
                   CASE WHEN r.id = a.stable_release THEN 'stable' WHEN r.id = o.candidate_release THEN 'candidate' END
                       AS role
            FROM release r JOIN application a ON a.id = r.application_id
            LEFT JOIN rollout o ON o.application_id = a.id AND o.ended_at IS NULL
        ) listed""",
    order=(("number", "number", "number"),),
)

ROLLOUTS = Listing(
    select="""
        SELECT * FROM (
            SELECT o.id AS number, a.name AS application, s.name AS stable, c.name AS candidate,
                   coalesce(o.policy->>'name', o.policy #>> '{}') AS policy, o.state, o.stage, o.share, o.restarts,
                   o.shadow_usd, o.started_at, o.started_by, o.ended_at, s.bundle AS stable_bundle,
                   c.bundle AS candidate_bundle
            FROM rollout o JOIN application a ON a.id = o.application_id JOIN release s ON s.id = o.stable_release
            JOIN release c ON c.id = o.candidate_release
        ) listed""",
    order=(("number", "number", "number"),),
)

DECISIONS = Listing(
    select="""
        SELECT rollout_id AS rollout, number, tick, at, author, outcome, reason, message, metric, command, words,
               before, after, assessment FROM decision""",
    order=(("number", "number", "number"),),
)

_INTERACTION: LiteralString = """
    SELECT i.id, i.at, a.name AS application, r.name AS release, i.rollout, i.stage,
           (ARRAY['stable', 'candidate'])[i.arm + 1] AS arm,
           (ARRAY['randomised', 'pinned', 'manual', 'shadow', 'holdback'])[i.kind] AS kind,
           encode(i.unit, 'hex') AS unit, i.own_unit, i.key, i.conversation, i.user_id AS user, i.operation, i.stream,
           i.status, i.error, i.release_error, i.aborted, i.refused, i.filtered, i.deployment, i.attempts,
           i.attempt_errors, i.fallback, i.provider_id, i.provider_model, i.provider_fingerprint, i.finish_reason,
           i.input_tokens, i.cached_tokens, i.output_tokens, i.cost_usd, i.first_token_ms, i.total_ms, i.overhead_ms,
           i.queue_ms, i.mirror_of, i.retrieval_ms, i.passages, i.context_tokens, i.retrieval_error, i.cited,
           i.retrieved"""
_OF_INTERACTION: LiteralString = """
    FROM interaction i LEFT JOIN application a ON a.id = i.application LEFT JOIN release r ON r.id = i.release"""
_WHOLE: LiteralString = _INTERACTION + ", i.request, i.answer" + _OF_INTERACTION
_BY_TIME: Order = (("i.at", "at", "time"), ("i.id", "id", "uuid"))

INTERACTIONS = Listing(select=_INTERACTION + _OF_INTERACTION, order=_BY_TIME)

WHOLE_INTERACTIONS = Listing(select=_WHOLE, order=_BY_TIME)

KEYS = Listing(
    select="""
        SELECT id AS number, name, hint, scopes, applications, groups, requests_per_minute, concurrency, monthly_usd,
               created_at, created_by, expires_at, revoked_at FROM api_key""",
    order=(("id", "number", "number"),),
)

AUDIT = Listing(
    select="SELECT id AS number, at, author, action, subject, reason, detail FROM audit_log",
    order=(("id", "number", "number"),),
)

CONFIGURATIONS = Listing(
    select="SELECT id AS number, applied_at, applied_by, hash FROM configuration",
    order=(("id", "number", "number"),),
)


_SUMMARY: LiteralString = """
    SELECT i.release AS number, max(r.name) AS release, count(*) AS interactions,
           count(DISTINCT i.unit) AS units,
           count(*) FILTER (WHERE i.release_error) AS errors,
           avg(i.release_error::int)::float8 AS error_rate,
           percentile_disc(0.5) WITHIN GROUP (ORDER BY i.total_ms) FILTER (WHERE i.error IS NULL) AS latency_p50_ms,
           percentile_disc(0.95) WITHIN GROUP (ORDER BY i.total_ms) FILTER (WHERE i.error IS NULL) AS latency_p95_ms,
           percentile_disc(0.5) WITHIN GROUP (ORDER BY i.first_token_ms) AS first_token_p50_ms,
           percentile_disc(0.5) WITHIN GROUP (ORDER BY i.overhead_ms) AS overhead_p50_ms,
           sum(i.input_tokens) AS input_tokens, sum(i.output_tokens) AS output_tokens, sum(i.cost_usd) AS cost_usd
    FROM interaction i LEFT JOIN release r ON r.id = i.release
    WHERE i.application = %(application)s AND i.at >= %(since)s AND i.at < %(until)s AND i.kind <> %(shadow)s
    GROUP BY i.release"""

_FEEDBACK_SUMMARY: LiteralString = """
    SELECT number, release, metric, source, sum(values)::bigint AS values,
           sum(total) / nullif(sum(numbers), 0)::float8 AS mean,
           jsonb_object_agg(label, values) FILTER (WHERE label IS NOT NULL) AS labels
    FROM (
        SELECT f.release AS number, r.name AS release, f.metric, f.source, count(*) AS values, sum(f.number) AS total,
               count(f.number) AS numbers, CASE a.metrics->f.metric->>'kind' WHEN 'label' THEN f.text END AS label
        FROM feedback f JOIN application a ON a.id = f.application LEFT JOIN release r ON r.id = f.release
        WHERE f.application = %(application)s AND f.exposed_at >= %(since)s AND f.exposed_at < %(until)s
          AND f.kind <> %(shadow)s AND f.superseded_at IS NULL
        GROUP BY 1, 2, 3, 4, label
    ) counted
    GROUP BY number, release, metric, source ORDER BY number, metric, source"""


def of_application(
    application: str | None, *, release: str | None = None, active: bool | None = None, state: str | None = None
) -> list[Condition]:
    """Say which releases or rollouts to list; ``active`` and ``state`` are for rollouts."""
    return [
        ("application = %s", application),
        ("name = %s", release),
        ("(ended_at IS NULL) = %s", active),
        ("state = %s", state),
    ]


def of_interactions(
    *,
    application: str | None = None,
    release: str | None = None,
    conversation: str | None = None,
    failed: bool | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Condition]:
    """Say which interactions to list: those that began at ``since`` or later, and before ``until``."""
    return [
        # By number, so that the indexes of the partitions serve.
        ("i.application = (SELECT id FROM application WHERE name = %s)", application),
        ("i.release IN (SELECT id FROM release WHERE name = %s)", release),
        ("i.conversation = %s", conversation),
        ("(i.error IS NOT NULL) = %s", failed),
        ("i.at >= %s", since),
        ("i.at < %s", until),
    ]


async def read_rollouts(
    connection: Connection, conditions: Sequence[Condition], *, limit: int, cursor: str | None = None
) -> Page:
    """Read one page of rollouts, each with ``differs`` and its index versions in place of the releases' bundles."""
    page = await read_page(connection, ROLLOUTS, conditions, limit=limit, cursor=cursor)
    for item in page.items:
        stable, candidate = (msgspec.convert(item.pop(f"{arm}_bundle"), Bundle) for arm in ("stable", "candidate"))
        item.update(describe_difference(find_difference(stable, candidate)))
    return page


async def read_interaction(connection: Connection, interaction: uuid.UUID) -> dict[str, Any]:
    """Read an interaction with its content, where that was recorded; its day's partition comes from its id.

    Returns:
        Its columns, and as ``mirror`` those of the answer that the candidate of a shadow stage gave to the same
        request; None where it was not mirrored.

    Raises:
        NotFoundError: There is none: it is past retention, was never recorded, or is not written yet.
    """
    unix_ms = int.from_bytes(interaction.bytes[:6], "big")
    if interaction.version == 7 and unix_ms < _LAST_MS:
        began = utc(unix_ms)
        async with connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                _WHOLE + " WHERE i.at >= %s AND i.at < %s AND i.id = %s",
                (began, began + timedelta(milliseconds=1), interaction),
            )
            found = await cursor.fetchone()
            if found is not None:
                await cursor.execute(
                    _WHOLE + " WHERE i.at >= %s AND i.at < %s AND i.mirror_of = %s",
                    (began, began + _MIRRORED_WITHIN, interaction),
                )
                return {**found, "mirror": await cursor.fetchone()}
    raise NotFoundError(f"no interaction {interaction} is recorded (any more)")


async def read_one(connection: Connection, listing: Listing, condition: Condition, what: str) -> dict[str, Any]:
    """Read the one row of a list that a condition names.

    Raises:
        NotFoundError: There is none.
    """
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(listing.query([condition]), (condition[1],))
        found = await cursor.fetchone()
    if found is None:
        raise NotFoundError(f"there is no {what}")
    return found


async def read_configuration(connection: Connection, number: int) -> dict[str, Any]:
    """Read an applied configuration with its source.

    Raises:
        NotFoundError: There is none of that number.
    """
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT id AS number, applied_at, applied_by, hash, source FROM configuration WHERE id = %s", (number,)
        )
        found = await cursor.fetchone()
    if found is None:
        raise NotFoundError(f"there is no configuration {number}")
    return found


async def summarise(
    connection: Connection,
    application: int,
    since: datetime,
    until: datetime,
    *,
    seconds: float = _SUMMARY_SECONDS,
) -> list[dict[str, Any]]:
    """Add up what each release of an application did with the interactions that began in a span of time.

    Shadow interactions are left out.

    Args:
        connection: To read on.
        application: Its number.
        since: Start of the span.
        until: End of the span.
        seconds: After which it is broken off.

    Returns:
        Per release that had interactions or feedback, in the order of the releases' numbers; figures without data
        are None or left out.

    Raises:
        LimitError: It took too long: ask for a shorter span.
    """
    values = {"application": application, "since": since, "until": until, "shadow": Kind.SHADOW}
    try:
        async with connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute("SELECT set_config('statement_timeout', %s, true)", (f"{seconds}s",))
            await cursor.execute(_SUMMARY, values)
            releases = {row["number"]: row for row in await cursor.fetchall()}
            await cursor.execute(_FEEDBACK_SUMMARY, values)
            feedback = await cursor.fetchall()
    except QueryCanceled as error:
        message = f"there is too much to add up in {seconds:g} s: ask for a shorter span of time"
        raise LimitError(message, param="since", code="summary_too_large") from error
    for row in feedback:
        number, name = row.pop("number"), row.pop("release")
        release = releases.setdefault(number, {"number": number, "release": name, "interactions": 0})
        release.setdefault("feedback", []).append(row)
    return [releases[number] for number in sorted(releases)]


async def stream_requests(
    connection: Connection, application: int, most: int
) -> AsyncGenerator[tuple[str, str | None]]:
    """Read what an application was asked last, the latest first, in a transaction of its own.

    Args:
        connection: To read on.
        application: Its number. Of its callers, whichever release answered; mirrored requests are the same once more.
        most: How many.

    Yields:
        The operation, ``chat`` or ``responses``, and the request; None where its content is not stored.
    """
    async with connection.cursor(name="asked") as cursor:
        cursor.itersize = _REQUESTS_AT_ONCE
        values = {"application": application, "shadow": Kind.SHADOW, "most": most}
        await cursor.execute(_REQUESTS, values)
        async for operation, request in cursor:
            yield operation, request


# For each release by itself: there is an index for that.
_REQUESTS: LiteralString = """
    SELECT operation, request FROM (
        SELECT i.at, i.id, i.operation, i.request FROM release r CROSS JOIN LATERAL (
            SELECT at, id, operation, request FROM interaction
            WHERE application = %(application)s AND release = r.id AND kind <> %(shadow)s
              AND operation IN ('chat', 'responses')
            ORDER BY at DESC LIMIT %(most)s
        ) i WHERE r.application_id = %(application)s
    ) latest ORDER BY at DESC, id DESC LIMIT %(most)s
"""
