"""What engines expect of each other; ``headway.runtime`` puts the real ones in."""

from __future__ import annotations

from typing import Protocol

from headway.domain.knowledge import Found
from headway.domain.release import Retrieval


class DurableLog(Protocol):
    """Keeps records on disk while the database is away; what was appended is replayed later, in order."""

    async def append(self, record: bytes) -> None:
        """Return once the record is on disk and would survive a power cut.

        Raises:
            HeadwayError: There is no room for it, or the disk refuses.
        """
        ...


class Retriever(Protocol):
    """Finds passages in index versions."""

    async def retrieve(self, query: str, retrieval: Retrieval, groups: frozenset[str]) -> Found:
        """Search an index version.

        Args:
            query: What to look for; never empty.
            retrieval: Which index version, and how.
            groups: The caller's: a passage with labels is found by who is in one of its groups, one without by all.

        Returns:
            At most ``retrieval.top_k`` passages, best first.

        Raises:
            RetrievalError: It cannot be searched, or not in time. The message is for callers.
        """
        ...
