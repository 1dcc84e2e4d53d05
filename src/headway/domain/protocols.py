"""What engines expect of each other; ``headway.runtime`` puts the real ones in."""

from __future__ import annotations

from typing import Protocol


class DurableLog(Protocol):
    """Keeps records on disk while the database is away; what was appended is replayed later, in order."""

    async def append(self, record: bytes) -> None:
        """Return once the record is on disk and would survive a power cut.

        Raises:
            HeadwayError: There is no room for it, or the disk refuses.
        """
        ...
