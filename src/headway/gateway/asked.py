"""What an application was asked: its recorded requests as queries."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import cast

from headway.domain.interaction import Operation
from headway.errors import InvalidRequestError, LimitError, NotFoundError
from headway.gateway.grounding import make_query
from headway.gateway.parsing import parse_request
from headway.storage import records
from headway.storage.applications import Application
from headway.storage.database import Connection

_READ_FOR_EACH = 20  # interactions that are looked at for each query that is wanted, at most
_SECONDS = 20.0


@dataclass(frozen=True)
class Asked:
    """Queries out of recorded interactions.

    Attributes:
        queries: Each once, the latest first.
        interactions: How many were looked at, the latest ones.
        without_content: Of them, those whose content is not stored: the application records metadata only, or did then.
        without_query: Of them, those that ask for nothing in words, or were too large to be stored.
        repeated: Of them, those that ask for the same as a later one.
    """

    queries: tuple[str, ...]
    interactions: int
    without_content: int
    without_query: int
    repeated: int

    @property
    def counts(self) -> dict[str, int]:
        """All but the queries."""
        return {name: count for name, count in asdict(self).items() if name != "queries"}


async def read_asked(
    connection: Connection, application: Application, limit: int, turns: int = 1, *, seconds: float = _SECONDS
) -> Asked:
    """Read what an application was asked last, as its gateway would search for it.

    Args:
        connection: To read on, in a transaction of its own.
        application: Of its callers, whichever release answered; mirrored requests are the same once more.
        limit: How many different queries are wanted.
        turns: How many of the latest user messages make a query.
        seconds: How long it may take.

    Raises:
        NotFoundError: There is no query among them; the message says why.
        LimitError: It took too long.
    """
    most = limit * _READ_FOR_EACH
    queries: dict[str, None] = {}
    looked_at = without_content = without_query = 0
    try:
        requests = records.stream_requests(connection, application.number, most)
        async with asyncio.timeout(seconds), aclosing(requests):
            async for operation, request in requests:
                looked_at += 1
                if request is None:
                    without_content += 1
                    continue
                query = _read_query(operation, request, turns)
                if not query:
                    without_query += 1
                    continue
                queries[query] = None
                if len(queries) == limit:
                    break
    except TimeoutError as error:
        raise LimitError(
            f"what {application.name} was asked cannot be read in {seconds:g} s: ask for fewer queries", param="limit"
        ) from error
    if not queries:
        why = "it was not asked anything yet"
        if without_content:
            why = f"the content of its {looked_at:,} interactions is not stored (`record: metadata`)"
        elif looked_at:
            why = f"none of its {looked_at:,} interactions asks for anything in words"
        raise NotFoundError(f"{application.name} has no queries: {why}", param="from_interactions")
    repeated = looked_at - without_content - without_query - len(queries)
    return Asked(tuple(queries), looked_at, without_content, without_query, repeated)


def _read_query(operation: str, request: str, turns: int) -> str:
    """Make the query of a request as the gateway does; empty where it has none."""
    try:
        parsed = parse_request(cast(Operation, operation), request.encode("utf-8", "replace"), "recorded")
        return make_query(parsed.user_texts(), turns)
    except InvalidRequestError:
        return ""
