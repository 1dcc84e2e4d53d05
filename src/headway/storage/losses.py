"""What a change of index version loses: documents that callers' answers came from, and that the new version lacks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, LiteralString

from psycopg import sql
from psycopg.errors import QueryCanceled, UndefinedTable
from psycopg.rows import dict_row

from headway.ids import Kind
from headway.storage import partitions
from headway.storage.database import Connection

LossState = Literal["removed", "changed"]

_INTERACTIONS = 5000
_DAYS_BEFORE = 7  # the stable release served before its rollout began
_SECONDS = 2.0


@dataclass(frozen=True)
class LostDocument:
    """A document that answers came from.

    Attributes:
        path: Its path in the version before.
        title: Its title there.
        state: ``removed``: the version after has neither its path nor its content. ``changed``: it has other content
            there, or shows it to other groups.
        interactions: How many had a passage of it.
    """

    path: str
    title: str
    state: LossState
    interactions: int


@dataclass(frozen=True)
class Losses:
    """What the interactions of a release came from that another index version has no longer, or not as it was.

    Attributes:
        before: The index version that was searched, as ``handbook@3``.
        after: The other.
        interactions: How many were looked at, the latest ones: those that had passages of the version before.
        affected: How many of these had a passage of a document that was removed.
        removed: How many such documents there are.
        changed: How many documents have changed, of those that answers came from.
        documents: The documents with the most interactions, those that were removed first.
    """

    before: str
    after: str
    interactions: int
    affected: int
    removed: int
    changed: int
    documents: tuple[LostDocument, ...]


def describe_losses(losses: Losses, most: int = 3) -> str:
    """Name the documents in which the most answers had their source; empty where no document was lost."""
    if not losses.documents:
        return ""
    named = [f"{each.path} ({each.interactions:,})" for each in losses.documents[:most]]
    more = losses.removed + losses.changed - len(named)
    rest = f" and {more:,} more" if more > 0 else ""
    how = "lacks or has changed" if losses.removed and losses.changed else "lacks" if losses.removed else "has changed"
    return f"answers came from documents that {losses.after} {how}: {', '.join(named)}{rest}"


def describe_share_lost(losses: Losses, release: str) -> str:
    """Say how many of a release's answers were given a document that is gone."""
    if not losses.interactions:
        return f"no answer of {release} from {losses.before} is recorded"
    looked_at = f"the latest {losses.interactions:,} answers of {release}"
    changed = "1 document that they came from has changed"
    if losses.changed > 1:
        changed = f"{losses.changed:,} documents that they came from have changed"
    if losses.removed:
        gone = f"{losses.affected:,} of {looked_at} had passages of documents that {losses.after} lacks"
        return f"{gone}; {changed}" if losses.changed else gone
    if losses.changed:
        return f"of {looked_at}: {changed} in {losses.after}"
    return f"every document that {looked_at} came from is in {losses.after} as it was"


async def find_losses(
    connection: Connection,
    rollout: int,
    *,
    since: datetime | None = None,
    limit: int = 20,
    most: int = _INTERACTIONS,
    seconds: float = _SECONDS,
) -> Losses | None:
    """Find which documents, lost with a rollout's candidate, the answers of its stable release came from.

    Args:
        connection: To read on.
        rollout: Its number.
        since: Only interactions that began then or later; by default from a week before the rollout began. None that
            began after its end counts.
        limit: How many documents to name.
        most: How many interactions to look at, the latest ones.
        seconds: How long it may take.

    Returns:
        None where nothing can be said: there is no such rollout, its two releases search the same index version or one
        of them searches none, a version was dropped or its documents are not known, or it took too long.
    """
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_ROLLOUT, {"rollout": rollout, "since": since, "days": _DAYS_BEFORE})
        found = await cursor.fetchone()
    if found is None or not await partitions.exists(connection, found["before_version"]):
        return None
    values = found | {"shadow": Kind.SHADOW, "most": most, "limit": limit}
    try:
        async with connection.transaction():
            rows = await _count(connection, values, seconds)
    except (QueryCanceled, UndefinedTable):  # too slow, or dropped just now
        return None
    first = rows[0]
    documents = [
        LostDocument(row["path"], row["title"], row["state"], row["interactions"]) for row in rows if row["path"]
    ]
    return Losses(
        before=found["before"],
        after=found["after"],
        interactions=first["looked_at"],
        affected=first["affected"],
        removed=first["removed"],
        changed=first["changed"],
        documents=tuple(documents),
    )


async def _count(connection: Connection, values: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("SELECT current_setting('statement_timeout') AS was")
        row = await cursor.fetchone()
        await cursor.execute("SELECT set_config('statement_timeout', %s, true)", (f"{round(seconds * 1000)}ms",))
        chunks = sql.Identifier(f"index_chunk_{int(values['before_version'])}")
        await cursor.execute(sql.SQL(_LOST).format(chunks=chunks), values)
        rows = await cursor.fetchall()
        # The caller's transaction goes on.
        await cursor.execute("SELECT set_config('statement_timeout', %s, true)", (row["was"] if row else "0",))
        return rows


_ROLLOUT: LiteralString = """
    SELECT o.application_id AS application, o.stable_release AS release,
           coalesce(%(since)s, o.started_at - make_interval(days => %(days)s)) AS since,
           coalesce(o.ended_at, now() + interval '1 day') AS until, b.id AS before_version, a.id AS after_version,
           bi.name || '@' || b.number AS before, ai.name || '@' || a.number AS after
    FROM rollout o
    JOIN release s ON s.id = o.stable_release JOIN release c ON c.id = o.candidate_release
    JOIN search_index bi ON bi.name = s.bundle->'retrieval'->>'index'
    JOIN index_version b ON b.index_id = bi.id AND b.number = (s.bundle->'retrieval'->>'version')::integer
    JOIN search_index ai ON ai.name = c.bundle->'retrieval'->>'index'
    JOIN index_version a ON a.index_id = ai.id AND a.number = (c.bundle->'retrieval'->>'version')::integer
    WHERE o.id = %(rollout)s AND a.id <> b.id AND a.state = 'published' AND b.state = 'published'
      AND EXISTS (SELECT FROM index_document WHERE version_id = a.id)
      AND EXISTS (SELECT FROM index_document WHERE version_id = b.id)
"""
_LOST: LiteralString = """
    WITH answered AS MATERIALIZED (
        SELECT at, id, retrieved FROM interaction
        WHERE application = %(application)s AND release = %(release)s AND at >= %(since)s AND at < %(until)s
          AND kind <> %(shadow)s AND cardinality(retrieved) > 0
        ORDER BY at DESC LIMIT %(most)s
    ), source AS MATERIALIZED (
        SELECT DISTINCT n.id AS interaction, c.document
        FROM answered n CROSS JOIN LATERAL unnest(n.retrieved) AS chunk JOIN {chunks} c ON c.id = chunk
    ), counted AS (
        SELECT document, count(*) AS interactions FROM source GROUP BY document
    ), lost AS MATERIALIZED (
        SELECT d.id, d.path, d.title, n.interactions,
               CASE WHEN now.id IS NULL THEN 'removed' ELSE 'changed' END AS state
        FROM counted n JOIN index_document d ON d.id = n.document
        LEFT JOIN index_document now
          ON now.version_id = %(after_version)s AND now.path = d.path AND now.state = 'loaded'
        WHERE (now.id IS NULL OR now.content_hash <> d.content_hash OR now.groups <> d.groups)
          AND NOT EXISTS (  -- moved, as it was
              SELECT FROM index_document moved WHERE moved.version_id = %(after_version)s AND moved.state = 'loaded'
                AND moved.content_hash = d.content_hash AND moved.groups = d.groups)
    ), named AS (
        SELECT * FROM lost ORDER BY state DESC, interactions DESC, path COLLATE "C" LIMIT %(limit)s
    )
    SELECT (SELECT count(DISTINCT interaction) FROM source) AS looked_at,
           (SELECT count(DISTINCT s.interaction) FROM source s JOIN lost l ON l.id = s.document
            WHERE l.state = 'removed') AS affected,
           (SELECT count(*) FROM lost WHERE state = 'removed') AS removed,
           (SELECT count(*) FROM lost WHERE state = 'changed') AS changed,
           n.path, n.title, n.state, n.interactions
    FROM (SELECT) AS always LEFT JOIN named n ON true
    ORDER BY n.state DESC, n.interactions DESC, n.path COLLATE "C"
"""
