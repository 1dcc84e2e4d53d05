"""The console over a real database, met as a browser meets it but without one."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from html import unescape
from typing import Any

import httpx
import pytest

from headway.api.authentication import authenticate
from headway.api.problems import status_of
from headway.clock import ManualClock, SystemClock
from headway.console.services import ConsoleServices
from headway.console.site import create_console
from headway.domain.snapshot import Snapshot
from headway.runtime.indexes import open_retriever
from headway.storage import routing
from headway.storage.database import Database
from tests.integration.console.story import Story, add_application, add_key, start_story

ORIGIN = "http://console"
OWN = {"origin": ORIGIN}
_TOKEN = re.compile(r'name="token" value="([0-9a-f]{64})"')


async def _elsewhere(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b"not the console"})


@dataclass
class Browser:
    """Somebody's browser: cookies, and the pages they lead to."""

    client: httpx.AsyncClient
    token: str = ""

    async def get(self, path: str, status: int = 200, *, live: bool = False) -> str:
        """Open a page, or, ``live``, ask for what has changed on it."""
        answer = await self.client.get(path, headers={"hx-request": "true"} if live else {})
        assert answer.status_code == status, answer.text
        self._remember(answer.text)
        return answer.text

    async def post(self, path: str, status: int = 303, /, **fields: str) -> httpx.Response:
        answer = await self.client.post(path, data={"token": self.token, **fields}, headers=OWN)
        assert answer.status_code == status, answer.text
        self._remember(answer.text)
        return answer

    async def sign_in(self, key: str, **fields: str) -> httpx.Response:
        await self.get("/sign-in")
        return await self.post("/sign-in", 303, key=key, **fields)

    def _remember(self, page: str) -> None:
        found = _TOKEN.search(page)
        self.token = found[1] if found else self.token


@dataclass
class Console:
    """The console and who may use it. ``secrets`` are API keys by name."""

    database: Database
    clock: ManualClock
    app: Any
    secrets: dict[str, str]
    snapshots: list[Snapshot]
    browsers: list[Browser] = field(default_factory=list)

    def browser(self) -> Browser:
        """A browser that has never been here."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.browsers.append(Browser(httpx.AsyncClient(transport=transport, base_url=ORIGIN)))
        return self.browsers[-1]

    async def signed_in(self, name: str = "operator") -> Browser:
        """A browser of somebody who has signed in."""
        await self.follow()
        browser = self.browser()
        await browser.sign_in(self.secrets[name])
        return browser

    async def follow(self) -> Snapshot:
        """Take the newest snapshot, as the feed does."""
        async with self.database.connection() as connection:
            snapshot = await routing.latest(connection)
        assert snapshot is not None
        self.snapshots.append(snapshot)
        return snapshot

    async def story(self, application: str = "support", candidate: str = "concise", **more: Any) -> Story:
        """Begin a rollout; the console's clock is where the story is from then on."""
        story = await start_story(self.database, self.clock, application, candidate, **more)
        await self.follow()
        return story

    def catch_up(self, story: Story) -> None:
        """Let the console's clock be where the story is."""
        self.clock.advance((story.now_ms - self.clock.unix_ms()) / 1000)


@pytest.fixture
async def console(database: Database) -> AsyncIterator[Console]:
    await add_application(database, "support", "plain", "concise")
    secrets = {
        "operator": await add_key(database, "operator", "admin"),
        "viewer": await add_key(database, "viewer", "view"),
        "caller": await add_key(database, "caller", "invoke", "feedback"),
    }
    clock = ManualClock()
    snapshots: list[Snapshot] = []
    async with open_retriever(database, SystemClock(), seconds=60) as retriever:
        services = ConsoleServices(database, clock, lambda: snapshots[-1], authenticate, status_of, retriever)
        made = Console(database, clock, create_console(services, _elsewhere), secrets, snapshots)
        await made.follow()
        yield made
        for browser in made.browsers:
            await browser.client.aclose()


def words(page: str) -> str:
    """The text of a page, without its tags."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())
