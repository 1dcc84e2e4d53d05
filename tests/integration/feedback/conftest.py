"""Feedback and report routes over a real database."""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from headway.api.feedback_routes import FeedbackRoutes
from headway.api.messages import Answer, Request
from headway.domain.protocols import DurableLog
from headway.feedback.intake import FeedbackIntake
from headway.feedback.keeping import Keeper
from headway.feedback.reporting import ReportDesk, ReportIntake
from headway.storage.database import Database
from tests.world import World, found_world


@dataclass
class MemoryLog:
    """Keeps records in memory: what a spool on disk would hold."""

    records: list[bytes] = field(default_factory=list)

    async def append(self, record: bytes) -> None:
        self.records.append(record)


@dataclass
class Desk:
    """The routes as a client meets them."""

    world: World
    keeper: Keeper
    log: MemoryLog
    routes: FeedbackRoutes

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        headers: dict[bytes, bytes] | None = None,
        raw: bytes | None = None,
        query: bytes = b"",
    ) -> tuple[int, Any]:
        answer = await self.answer(method, path, body, key=key, headers=headers, raw=raw, query=query)
        return answer.status, msgspec.json.decode(answer.body)

    async def answer(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        headers: dict[bytes, bytes] | None = None,
        raw: bytes | None = None,
        query: bytes = b"",
    ) -> Answer:
        content = raw if raw is not None else b"" if body is None else msgspec.json.encode(body)
        handler, parameters = self.match(method, path)
        all_headers = {**self.world.headers(key), **(headers or {})}
        answer: Answer = await handler(Request(method, path, query, all_headers, content, parameters, "127.0.0.1"))
        return answer

    async def feedback(self, body: Any, *, key: str | None = None) -> tuple[int, Any]:
        return await self.call("POST", "/v1/feedback", body, key=key)

    async def rows(self, query: Any, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        async with self.world.database.connection() as connection:
            return await (await connection.execute(query, values)).fetchall()

    def match(self, method: str, path: str) -> tuple[Any, dict[str, str]]:
        """Find the handler of a path and the values of the path's placeholders."""
        for route in self.routes.routes:
            pattern, parts = route.pattern.split("/"), path.split("/")
            pairs = list(zip(pattern, parts, strict=False))
            if len(pattern) == len(parts) and route.method == method and all(a in (b, "{id}") for a, b in pairs):
                return route.handler, {a.strip("{}"): b for a, b in pairs if a == "{id}"}
        raise LookupError(path)


def make_desk(
    world: World, database: Database, origins: tuple[str, ...] = ("*",), log: DurableLog | None = None
) -> Desk:
    memory = MemoryLog()
    keeper = Keeper(database, log or memory, world.clock)
    routes = FeedbackRoutes(
        FeedbackIntake(database, keeper, world.clock),
        ReportIntake(keeper, world.clock),
        ReportDesk(database, world.clock),
        lambda: world.snapshot,
        world.clock,
        origins,
    )
    return Desk(world, keeper, memory, routes)


@pytest.fixture
async def world(database: Database) -> World:
    return await found_world(database)


@pytest.fixture
async def desk(world: World) -> Desk:
    return make_desk(world, world.database)


@pytest.fixture
def desk_with_origins(world: World) -> Callable[..., Desk]:
    return lambda *origins: make_desk(world, world.database, origins)


class Relay:
    """A database that can be away: connections to PostgreSQL pass through a socket that can be closed,
    or, while ``flowing`` is not set, swallows what comes.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.flowing = asyncio.Event()
        self.flowing.set()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]

    @property
    def url(self) -> str:
        return make_conninfo(self._url, host="127.0.0.1", port=self.port)

    async def connect(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in tuple(self._writers):
                writer.transport.abort()
            self.flowing.set()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        given = conninfo_to_dict(self._url)
        host, port = str(given["host"]), int(str(given.get("port", 5432)))
        try:
            if host.startswith("/"):
                there = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                there = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, there[1]}
        try:
            await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))
        finally:
            self._writers -= {writer, there[1]}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self.flowing.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
