"""One worker of the data plane in this process: a real database behind it, a simulated provider in front."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from headway.clock import SystemClock
from headway.config.settings import Settings
from headway.gateway.measurements import Family, sum_measurements
from headway.gateway.recorder import measurements_folder
from headway.runtime.dataplane import DataPlaneService
from headway.runtime.worker import Application
from headway.storage import routing
from headway.storage.database import Database
from headway.testing import Behaviour, ProviderSimulator
from headway.testing.ledger import Received
from tests.world import World, found_world

STABLE, CANDIDATE = "stable-model", "candidate-model"
_PRICES = {"input": 1000.0, "output": 1000.0}


@dataclass
class Reply:
    """An answer as the caller got it."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def id(self) -> uuid.UUID:
        """UUID of the interaction, from its signed id."""
        return uuid.UUID(bytes=self.raw_id)

    raw_id: bytes = b""


class WorkerStand:
    """The application `support`: release `calm` is stable, `bold` the candidate of rollout 1."""

    def __init__(
        self, world: World, provider: ProviderSimulator, home: Path, *, database_url: str | None = None
    ) -> None:
        self.world = world
        self.provider = provider
        self.home = home
        url = database_url or world.database.url
        self.service = DataPlaneService(Settings(home=home, database_url=url, workers=1), SystemClock())
        self._application: Application | None = None
        self.closed = False

    async def start(self) -> None:
        self._application = await self.service.start()

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            await self.service.close()

    async def ask(
        self,
        path: str = "/v1/chat/completions",
        *,
        leave_after: float | None = None,
        key: str = "developer",
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        **fields: Any,
    ) -> Reply:
        """Send one request over ASGI; ``leave_after`` so many seconds the client goes away."""
        assert self._application is not None
        loop = asyncio.get_running_loop()
        body = fields if path in ("/v1/search", "/v1/feedback") else {"model": "support", **fields}
        if "model" in body and not body.keys() & {"input", "messages"}:
            body["messages"] = [{"role": "user", "content": "hi"}]
        coming = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        reply = Reply()

        def receive() -> asyncio.Future[dict[str, Any]]:
            future: asyncio.Future[dict[str, Any]] = loop.create_future()
            if coming:
                future.set_result(coming.pop())
            elif leave_after is not None:
                loop.call_later(leave_after, future.set_result, {"type": "http.disconnect"})
            return future

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                reply.body += message["body"]

        sent = [*self.world.headers(key).items()]
        sent += [
            (name.encode(), value.encode())
            for name, value in (headers.items() if isinstance(headers, Mapping) else headers)
        ]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": sent}
        await self._application(scope, receive, send)
        if "x-headway-interaction" in reply.headers:
            signer = self.world.snapshot.signing.signer()
            reply.raw_id = signer.read(reply.headers["x-headway-interaction"]).uuid
        return reply

    def asked(self, model: str) -> list[Received]:
        return [received for received in self.provider.received if received.model == model]

    async def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        async with self.world.database.connection() as connection:
            return await (await connection.execute(query.encode(), values)).fetchall()

    async def interactions(self, count: int) -> list[dict[str, Any]]:
        """The interactions recorded, once there are so many, oldest first."""

        async def look() -> list[dict[str, Any]]:
            async with self.world.database.connection() as connection:
                cursor = await connection.execute("SELECT * FROM interaction ORDER BY at, id")
                names = [column.name for column in cursor.description or ()]
                return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]

        found = await look()
        for _ in range(500):
            if len(found) >= count:
                break
            await asyncio.sleep(0.02)
            found = await look()
        assert len(found) == count
        return found

    async def deploy(self, release: int, name: str, model: str, **operation: Any) -> None:
        """Give a release one deployment of the simulator; it is served once it is published."""
        endpoint = {"provider": "openai", "base_url": self.provider.base_url, "model": model}
        deployment = {"name": name, "endpoint": endpoint, "operation": {"auth": "none", "attempts": 1, **operation}}
        await self.rows("UPDATE release SET deployments = %s WHERE id = %s RETURNING 1", Jsonb([deployment]), release)

    async def publish(self) -> None:
        """Publish what the tables say, and wait until the worker serves by it, if it has been started."""
        async with self.world.database.connection() as connection:
            number = await routing.publish(connection)
        for _ in range(500):
            if self._application is None or await self.serves() >= number:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the worker does not take the snapshot")

    async def serves(self) -> int:
        assert self._application is not None
        answer: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            answer.append(message)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {"type": "http", "method": "GET", "path": "/readyz", "query_string": b"", "headers": []}
        await self._application(scope, receive, send)
        return int(json.loads(answer[1]["body"])["snapshot"])

    async def measured(self, family: Family, *labels: str) -> float:
        """A counter, of this worker's last measurements."""
        series = await asyncio.to_thread(sum_measurements, measurements_folder(self.home))
        return sum(values[0] for found, values in series.get(family.name, {}).items() if found[: len(labels)] == labels)


@pytest.fixture
async def simulator() -> AsyncIterator[ProviderSimulator]:
    """A provider with one model for either release."""
    async with ProviderSimulator({STABLE: Behaviour(), CANDIDATE: Behaviour()}) as started:
        yield started


@pytest.fixture
async def worker_stand(database: Database, simulator: ProviderSimulator, tmp_path: Path) -> AsyncIterator[WorkerStand]:
    """Not started yet: a test may change the rollout before."""
    made = WorkerStand(await found_world(database), simulator, tmp_path)
    for release, model in ((1, STABLE), (2, CANDIDATE)):
        await made.deploy(release, model, model, usd_per_million_tokens=_PRICES, breaker_failures=3)
    yield made
    await made.close()
