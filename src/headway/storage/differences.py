"""Documents of two index versions, side by side: which are the same, which have moved, which have changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, LiteralString, NamedTuple

from headway.storage.database import Connection
from headway.storage.versions import Version


@dataclass(frozen=True)
class Counterparts:
    """Documents of two versions that are the same at another path.

    Attributes:
        before: Path in the version before, by the path in the version after.
        after: The other way round.
    """

    before: Mapping[str, str]
    after: Mapping[str, str]

    def name(self, path: str) -> str:
        """Give the name of a document of either version: its path in the version before, where it is there."""
        return self.before.get(path, path)


class DocumentState(NamedTuple):
    """What became of a document: its title, and its state in the version after."""

    title: str
    state: Literal["same", "changed", "removed"]


async def find_counterparts(connection: Connection, before: Version, after: Version) -> Counterparts:
    """Find the documents of two versions that have another path in each, and the same content."""
    cursor = await connection.execute(_MOVED, {"before": before.version, "after": after.version})
    pairs = await cursor.fetchall()
    return Counterparts({new: old for old, new in pairs}, dict(pairs))


async def list_groups(connection: Connection, versions: Sequence[Version]) -> frozenset[str]:
    """List the groups in the labels of some versions' documents."""
    cursor = await connection.execute(
        "SELECT DISTINCT unnest(groups) FROM index_document WHERE version_id = ANY(%s) AND state = 'loaded'",
        ([version.version for version in versions],),
    )
    return frozenset([group for (group,) in await cursor.fetchall()])


async def read_states(
    connection: Connection, before: Version, after: Version, counterparts: Counterparts, names: Collection[str]
) -> dict[str, DocumentState] | None:
    """Read what became of documents.

    Args:
        connection: To read on.
        before: The version before.
        after: The version after.
        counterparts: Of the two.
        names: Of the documents, as ``Counterparts.name`` gives them.

    Returns:
        By name; those that neither version has are left out. A document that only the version after has is "same".
        None where it is not known what a version consists of.
    """
    for version in (before, after):
        cursor = await connection.execute(
            "SELECT EXISTS (SELECT FROM index_document WHERE version_id = %s)", (version.version,)
        )
        if await cursor.fetchone() != (True,):
            return None
    paths = [counterparts.after.get(name, name) for name in names]
    cursor = await connection.execute(
        _STATES, {"before": before.version, "after": after.version, "names": list(names), "paths": paths}
    )
    return {name: DocumentState(title, state) for name, title, state in await cursor.fetchall()}


# One of a version for one of the other, where several have the same content.
_MOVED: LiteralString = """
    WITH old AS (
        SELECT path, content_hash, row_number() OVER (PARTITION BY content_hash ORDER BY path COLLATE "C") AS place
        FROM index_document b WHERE version_id = %(before)s AND state = 'loaded' AND NOT EXISTS (
            SELECT FROM index_document a WHERE a.version_id = %(after)s AND a.path = b.path AND a.state = 'loaded')
    ), new AS (
        SELECT path, content_hash, row_number() OVER (PARTITION BY content_hash ORDER BY path COLLATE "C") AS place
        FROM index_document a WHERE version_id = %(after)s AND state = 'loaded' AND NOT EXISTS (
            SELECT FROM index_document b WHERE b.version_id = %(before)s AND b.path = a.path AND b.state = 'loaded')
    )
    SELECT old.path, new.path FROM old JOIN new USING (content_hash, place)
"""
_STATES: LiteralString = """
    SELECT wanted.name, coalesce(b.title, a.title),
           CASE WHEN a.id IS NULL THEN 'removed'
                WHEN a.content_hash <> b.content_hash OR a.groups <> b.groups THEN 'changed' ELSE 'same' END
    FROM unnest(%(names)s::text[], %(paths)s::text[]) AS wanted (name, path)
    LEFT JOIN index_document b ON b.version_id = %(before)s AND b.path = wanted.name AND b.state = 'loaded'
    LEFT JOIN index_document a ON a.version_id = %(after)s AND a.path = wanted.path AND a.state = 'loaded'
    WHERE coalesce(a.id, b.id) IS NOT NULL
"""
