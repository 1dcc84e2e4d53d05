"""Stored responses: a later turn finds the provider's id of the earlier one, on any worker."""

from __future__ import annotations

from collections import OrderedDict

import msgspec
import structlog

from headway.clock import Clock
from headway.domain.protocols import DurableLog
from headway.errors import HeadwayError, NotFoundError, StorageError
from headway.storage.attempts import Attempts
from headway.storage.database import Database
from headway.storage.links import ResponseLink, find_link, save_link

_log = structlog.get_logger("headway.gateway.conversations")
_CACHED = 10_000


class Conversations:
    """Keeps and finds the links of stored responses.

    A link is in the database before the answer's id reaches the client, so the next turn may come to any worker. When
    the database is away, the link goes to the spool and this worker remembers it.
    """

    def __init__(self, database: Database, spool: DurableLog, clock: Clock) -> None:
        self._database = database
        self._spool = spool
        self._attempts = Attempts(clock)
        self._recent: OrderedDict[bytes, ResponseLink] = OrderedDict()

    async def keep(self, link: ResponseLink) -> None:
        """Keep a link; returns within about a second whatever happens."""
        self._recent[link.id] = link
        if len(self._recent) > _CACHED:
            self._recent.popitem(last=False)
        try:
            await self._attempts.run(lambda: self._save(link))
        except StorageError:
            try:
                await self._spool.append(msgspec.json.encode(link))
            except HeadwayError as error:
                _log.warning("response_link_lost", detail=str(error))

    async def find(self, interaction: bytes) -> ResponseLink:
        """Find the link of an interaction (its UUID's 16 bytes).

        Raises:
            NotFoundError: There is none: not stored, or past retention.
            StorageError: The database is away, and it was not this worker that gave the answer.
        """
        link = self._recent.get(interaction)
        if link is not None:
            return link
        link = await self._attempts.run(lambda: self._find(interaction))
        if link is None:
            message = "previous_response_id: there is no stored response of that id (not stored, or past retention)"
            raise NotFoundError(message, param="previous_response_id", code="previous_response_not_found")
        return link

    async def replay(self, record: bytes) -> None:
        """Write a spooled link to the database."""
        await self._save(msgspec.json.decode(record, type=ResponseLink))

    async def close(self) -> None:
        """Give up what a database that hangs has not answered."""
        await self._attempts.close()

    async def _save(self, link: ResponseLink) -> None:
        async with self._database.connection() as connection:
            await save_link(connection, link)

    async def _find(self, interaction: bytes) -> ResponseLink | None:
        async with self._database.connection() as connection:
            return await find_link(connection, interaction)
