"""Faults in the middle of a transaction: a statement fails, the server's process dies, a commit's fate is unknown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import psycopg
import pytest
from psycopg import AsyncConnection, AsyncCursor

Fault = Literal["raises", "server dies", "commit fails", "commit unknown"]


class CrashError(Exception):
    """The fault, where it is one of this process."""


class Saboteur:
    """Lets one statement fail, or the commit.

    Attributes:
        statements: How many there were.
        struck: Whether the fault has happened.
    """

    def __init__(self, url: str, fault: Fault, at: int) -> None:
        self.statements = 0
        self.struck = False
        self._url = url
        self._fault = fault
        self._at = at

    def begin(self, connection: AsyncConnection[Any], query: object) -> None:
        """Called before each statement; the pool's own, to see whether a connection lives, are empty."""
        if not query:
            return
        self.statements += 1
        if self.statements == self._at:
            self.struck = True
            if self._fault == "server dies":
                self._kill(connection)
            else:
                raise CrashError

    def begin_commit(self, connection: AsyncConnection[Any]) -> None:
        """Called before each commit."""
        if self._fault == "commit fails" and self.statements and not self.struck:
            self.struck = True
            self._kill(connection)

    def end_commit(self) -> None:
        """Called after each commit."""
        if self._fault == "commit unknown" and self.statements and not self.struck:
            self.struck = True
            raise CrashError

    def _kill(self, connection: AsyncConnection[Any]) -> None:
        with psycopg.connect(self._url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))


@contextmanager
def sabotage(monkeypatch: pytest.MonkeyPatch, url: str, fault: Fault, at: int = 0) -> Iterator[Saboteur]:
    """Let the statement with this number (from 1), or the next commit, fail while the block runs."""
    saboteur = Saboteur(url, fault, at)
    execute, commit = AsyncCursor.execute, AsyncConnection.commit

    async def watched_execute(self: AsyncCursor[Any], query: Any, *arguments: Any, **options: Any) -> AsyncCursor[Any]:
        saboteur.begin(self.connection, query)
        return await execute(self, query, *arguments, **options)

    async def watched_commit(self: AsyncConnection[Any]) -> None:
        saboteur.begin_commit(self)
        await commit(self)
        saboteur.end_commit()

    with monkeypatch.context() as patch:
        patch.setattr(AsyncCursor, "execute", watched_execute)
        patch.setattr(AsyncConnection, "commit", watched_commit)
        yield saboteur
