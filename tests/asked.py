"""An application whose two releases search two versions of an index, and what it was asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import msgspec
from psycopg.types.json import Jsonb

from headway.domain.release import Bundle, Endpoint, Retrieval
from headway.ids import Kind
from headway.storage.database import Connection
from tests.indexes import Embed, Page, publish

PAGES = (
    Page("leave.md", "Leave", "Everybody has twenty five days of leave in a year."),
    Page("pay.md", "Pay", "Wages arrive at the bank on the first of the month."),
    Page("travel.md", "Travel", "Trains are booked through the travel office."),
    Page("laptop.md", "Laptop", "Broken laptops are replaced by the service desk."),
    Page("salary/bands.md", "Bands", "Salary bands of managers are secret.", groups=("hr",)),
)
CHANGED = (
    PAGES[0],
    Page("pay.md", "Pay", "Wages arrive at the bank on the last day of the month."),
    Page("moved/laptop.md", "Laptop", PAGES[3].text),
    PAGES[4],
)
"""Without travel.md, with another pay.md, and with laptop.md elsewhere."""


async def found_application(connection: Connection, embed: Embed, *, retrieval: Retrieval | None = None) -> int:
    """Make ``handbook@1`` and ``handbook@2``, and an application in a rollout from one to the other; gives its number.

    Its stable release is 1 and its candidate 2 where nothing else is in the database.
    """
    await publish(connection, "handbook", 1, PAGES, embed)
    await publish(connection, "handbook", 2, CHANGED, embed)
    cursor = await connection.execute(
        "INSERT INTO application (name, unit, policy, record_content, retention_days, metrics)"
        " VALUES ('help', 'conversation', 'manual', true, 30, '{}') RETURNING id"
    )
    (application,) = await cursor.fetchone() or (0,)
    given = retrieval or Retrieval("handbook", 1)
    for number in (1, 2):
        bundle = Bundle(
            (("d", Endpoint("openai", "http://127.0.0.1:9/v1", "m")),),
            retrieval=msgspec.structs.replace(given, version=number),
        )
        await connection.execute(
            "INSERT INTO release (application_id, name, content_hash, bundle, deployments, created_by)"
            " VALUES (%s, %s, %s, %s, '[]', 'ann')",
            (application, f"on-{number}", bundle.content_hash(), Jsonb(msgspec.to_builtins(bundle))),
        )
    await connection.execute(
        "UPDATE application SET stable_release = (SELECT min(id) FROM release WHERE application_id = %(id)s)"
        " WHERE id = %(id)s",
        {"id": application},
    )
    await connection.execute(
        "INSERT INTO rollout (application_id, stable_release, candidate_release, kind, policy, salt, state, stage,"
        " share) SELECT application_id, min(id), max(id), %s, '{\"name\": \"manual\"}', 's', 'running', 1, 0.5"
        " FROM release WHERE application_id = %s GROUP BY application_id",
        (Kind.MANUAL, application),
    )
    return int(application)


async def ask(
    connection: Connection, text: str, found: Sequence[str] = (), *, times: int = 1, ago: str = "1 hour", **columns: Any
) -> None:
    """Record that the stable release was asked this, and that these documents of handbook@1 were put before the model.

    Args:
        connection: To write on; the caller commits.
        text: What the user said; as JSON where it begins with a brace.
        found: Paths of documents.
        times: How often.
        ago: How long ago, as PostgreSQL writes it.
        columns: Values that are otherwise.
    """
    cursor = await connection.execute(
        "SELECT coalesce(array_agg(c.id), '{}') FROM index_chunk c JOIN index_document d ON d.id = c.document"
        " JOIN index_version v ON v.id = d.version_id AND v.number = 1 WHERE d.path = ANY(%s)",
        (list(found),),
    )
    (chunks,) = await cursor.fetchone() or ([],)
    request = text if text.startswith("{") else json.dumps({"messages": [{"role": "user", "content": text}]})
    await connection.execute(
        "SELECT ensure_interaction_partition((now() - %s::interval)::date), ensure_interaction_partition(now()::date)",
        (ago,),
    )
    values = {
        "application": await _number(connection, "application"),
        "release": await _number(connection, "release"),
        "kind": int(Kind.MANUAL),
        "operation": "chat",
        "retrieved": chunks,
        "request": request,
    } | columns
    names = ", ".join(values)
    places = ", ".join(f"%({name})s" for name in values)
    await connection.execute(
        f"INSERT INTO interaction (at, id, rollout, stage, arm, unit, own_unit, key, conversation, stream, status,"
        f" release_error, aborted, refused, filtered, deployment, attempts, attempt_errors, fallback, total_ms,"
        f" overhead_ms, queue_ms, {names}) SELECT now() - %(ago)s::interval + g * interval '1 ms', gen_random_uuid(),"
        f" 1, 1, 0, %(unit)s, false, 1, 'c', false, 200, false, false, false, false, 'd', 1, 0, false, 1, 1, 0,"
        f" {places} FROM generate_series(1, %(times)s) g".encode(),
        values | {"ago": ago, "times": times, "unit": hashlib.blake2b(text.encode(), digest_size=8).digest()},
    )


async def _number(connection: Connection, what: str) -> int:
    column = "id" if what == "application" else "stable_release"
    cursor = await connection.execute(f"SELECT {column} FROM application WHERE name = 'help'".encode())
    (number,) = await cursor.fetchone() or (0,)
    return int(number)
