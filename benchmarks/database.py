"""The database of a target: an embedded PostgreSQL off the measured core, so that its CPU can be told apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from benchmarks.processes import Tree
from headway.storage import embedded


@dataclass(frozen=True)
class Database:
    """A PostgreSQL server of its own.

    Attributes:
        url: Where to connect.
        tree: Its processes.
    """

    url: str
    tree: Tree

    def count(self) -> int:
        """Count the interactions recorded so far."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute("SELECT count(*) FROM interaction").fetchone()
        assert row is not None
        return int(row[0])


@contextmanager
def start_database(home: Path) -> Iterator[Database]:
    """Start a server with new data; it stops once nobody uses it, and inherits this process's core."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with embedded.start(home) as server:
        postmaster = int((server.home / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        yield Database(server.url, Tree(postmaster))
