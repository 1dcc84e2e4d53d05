"""The control plane over a real database."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from headway.api.control_parts import ControlServices
from headway.api.controlplane import create_app
from headway.clock import SystemClock
from headway.domain.snapshot import Snapshot
from headway.runtime.indexes import open_retriever
from headway.storage import routing
from headway.storage.database import Database
from tests.world import World, found_world


@dataclass
class Control:
    """The control plane as a client meets it."""

    world: World
    services: ControlServices
    app: FastAPI
    client: httpx.AsyncClient
    snapshots: list[Snapshot]

    async def call(self, method: str, path: str, *, key: str | None = "operator", **more: Any) -> tuple[int, Any]:
        answer = await self.answer(method, path, key=key, **more)
        return answer.status_code, answer.json()

    async def answer(self, method: str, path: str, *, key: str | None = "operator", **more: Any) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {self.world.secrets[key]}"}
        headers |= more.pop("headers", {})
        return await self.client.request(method, path, headers=headers, **more)

    async def get(self, path: str, **more: Any) -> Any:
        status, body = await self.call("GET", path, key="viewer", **more)
        assert status == 200, body
        return body

    async def follow(self) -> Snapshot:
        """Take the newest snapshot, as the feed does."""
        async with self.world.database.connection() as connection:
            snapshot = await routing.latest(connection)
        assert snapshot is not None
        self.snapshots.append(snapshot)
        return snapshot


@pytest.fixture
async def world(database: Database) -> World:
    return await found_world(database)


@pytest.fixture
async def control(world: World) -> AsyncIterator[Control]:
    snapshots = [world.snapshot]
    async with open_retriever(world.database, SystemClock(), seconds=60) as retriever:
        services = ControlServices(
            world.database, world.clock, lambda: snapshots[-1], lambda: b"headway_up 1\n", retriever
        )
        app = create_app(services)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://control") as client:
            yield Control(world, services, app, client, snapshots)
