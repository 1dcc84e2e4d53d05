"""What the console works with, and who looks at it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from headway.clock import Clock
from headway.console.sessions import Session
from headway.domain.access import has_scope, may_read
from headway.domain.protocols import Retriever
from headway.domain.snapshot import KeyRoute, Snapshot
from headway.errors import HeadwayError
from headway.storage.database import Database


@dataclass(frozen=True)
class ConsoleServices:
    """What the console works with.

    Attributes:
        database: Everything it shows and changes is there.
        clock: Tells the time.
        snapshot: Gives the snapshot in force, for API keys and signing keys; raises StorageError while there is none.
        authenticate: Finds the API key in the headers of a request, as both planes do.
        status_of: Gives the HTTP status of an error.
        retriever: Searches index versions.
    """

    database: Database
    clock: Clock
    snapshot: Callable[[], Snapshot]
    authenticate: Callable[[Snapshot, Mapping[bytes, bytes], int], KeyRoute]
    status_of: Callable[[HeadwayError], int]
    retriever: Retriever


@dataclass(frozen=True)
class Visitor:
    """Who is signed in: the API key, and the session it signed in with.

    Attributes:
        key: As the snapshot has it now.
        session: Of the cookie.
        token: What every form of this session carries.
    """

    key: KeyRoute
    session: Session
    token: str

    @property
    def is_admin(self) -> bool:
        """Whether it may change anything."""
        return has_scope(self.key, "admin")

    def may_read(self, groups: Collection[str]) -> bool:
        """Whether it may read what is for these groups: everybody may, where there are none; an admin always."""
        return may_read(self.key, groups)

    @property
    def key_groups(self) -> frozenset[str]:
        """The groups of its API key."""
        return frozenset(self.key.groups)

    @property
    def signature(self) -> str:
        """Names the visitor as the author of a change."""
        return f"{self.key.name} (key {self.key.number})"
