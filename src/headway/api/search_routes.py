"""Search on the data plane: parse, call, render."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from headway.api.authentication import authenticate
from headway.api.feedback_routes import Route, decode_post
from headway.api.messages import Answer, Request
from headway.clock import Clock
from headway.domain.access import groups_of, require_scope
from headway.domain.snapshot import Snapshot
from headway.gateway.searching import Searching, SearchPost


class SearchRoutes:
    """Handler of ``/v1/search``.

    Args:
        searching: Searches.
        snapshot: Gives the snapshot in force.
        clock: For keys that expire.
    """

    def __init__(self, searching: Searching, snapshot: Callable[[], Snapshot], clock: Clock) -> None:
        self._searching = searching
        self._snapshot = snapshot
        self._clock = clock

    @property
    def routes(self) -> list[Route]:
        """All routes."""
        return [Route("POST", "/v1/search", self.post_search)]

    async def post_search(self, request: Request) -> Answer:
        """Find passages that the caller may see.

        Raises:
            HeadwayError: They cannot be found; the data plane renders it.
        """
        snapshot = self._snapshot()
        key = authenticate(snapshot, request.headers, self._clock.unix_ms())
        require_scope(key, "invoke")
        groups = groups_of(key, request.headers.get(b"x-headway-groups"))
        post = decode_post(request, SearchPost)
        found = await self._searching.search(snapshot, key, groups, post, request.headers)
        return Answer(200, msgspec.json.encode(found))
