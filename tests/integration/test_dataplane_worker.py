"""One worker of the data plane in this process: what holds from its first request on, whoever sends it."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from headway.clock import SystemClock, utc
from headway.config.settings import Settings
from headway.runtime.dataplane import DataPlaneService
from headway.runtime.worker import Application
from headway.storage import keys
from headway.storage.database import Database
from tests.world import found_world

_PIECE = 1_000_000


class _Client:
    """Sends requests over ASGI; pieces of a body are made when they are asked for."""

    def __init__(self, application: Application, secrets: dict[str, str]) -> None:
        self._application = application
        self.secrets = secrets

    async def send(self, method: str, path: str, pieces: Sequence[int | bytes], key: str | None = None) -> Any:
        """Send one request and give its status and its body as JSON; a number stands for a piece of that length."""
        headers = [(b"content-type", b"application/json")]
        if key is not None:
            headers.append((b"authorization", b"Bearer " + self.secrets[key].encode()))
        waiting = list(pieces)
        answer: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            piece = waiting.pop(0) if waiting else b""
            body = piece if isinstance(piece, bytes) else b"x" * piece
            return {"type": "http.request", "body": body, "more_body": bool(waiting)}

        async def send(message: dict[str, Any]) -> None:
            answer.append(message)

        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
        await self._application(scope, receive, send)
        return answer[0]["status"], json.loads(answer[1]["body"])


@pytest.fixture
async def provider_port() -> AsyncIterator[int]:
    """The port of a provider that refuses everything, in a header that is no text."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/\xff\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
async def client(database: Database, provider_port: int, tmp_path: Path) -> AsyncIterator[_Client]:
    """A client of a worker that has just started; the key ``spent`` has used up its cap before."""
    world = await found_world(database)
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE release SET deployments = replace(deployments::text, '127.0.0.1:9/', %s)::jsonb"
            " WHERE application_id = 2",
            (f"127.0.0.1:{provider_port}/",),
        )
        await connection.execute(
            "UPDATE release SET deployments ="
            " jsonb_set(deployments, '{0,operation,api_key}', '\"env:SECRET_OF_THE_WORLD\"') WHERE application_id = 1"
        )
        grant = keys.Grant("spent", monthly_usd=5.0)
        key, secret = await keys.create(connection, grant, author="ann")
        month = utc(SystemClock().unix_ms()).strftime("%Y-%m-01")
        await connection.execute(
            "INSERT INTO key_usage (key_id, month, requests, cost_usd) VALUES (%s, %s::date, 9, 5.0)",
            (key.number, month),
        )
    service = DataPlaneService(Settings(home=tmp_path, database_url=database.url), SystemClock())
    try:
        yield _Client(await service.start(), {**world.secrets, "spent": secret})
    finally:
        await service.close()


async def test_a_key_at_its_cap_stays_there_over_a_restart(client: _Client) -> None:
    """The first request finds the month's cost, not an empty account."""
    status, answer = await client.send("POST", "/v1/chat/completions", [_question("support")], "spent")
    assert (status, answer["error"]["code"]) == (429, "cost_cap_reached")


def _question(application: str) -> bytes:
    return json.dumps({"model": application, "messages": [{"role": "user", "content": "hi"}]}).encode()


async def test_a_provider_that_refuses_in_a_strange_way(client: _Client) -> None:
    """Its refusal is passed on; that a header is no text is nobody's fault here."""
    assert await client.send("POST", "/v1/chat/completions", [_question("sales")], "caller") == (400, {})


async def test_callers_do_not_learn_where_secrets_are(client: _Client) -> None:
    """A deployment without its secret is the operator's business, and so is where the secret should be."""
    status, answer = await client.send("POST", "/v1/chat/completions", [_question("support")], "caller")
    assert (status, answer["error"]["code"]) == (500, "configuration_invalid")
    assert "SECRET_OF_THE_WORLD" not in str(answer)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/feedback"), ("POST", "/v1/reports"), ("GET", "/v1/models"), ("GET", "/healthz")],
)
async def test_strangers_do_not_fill_the_memory(client: _Client, method: str, path: str) -> None:
    """What comes without a key is not held: of a large body no more than these routes take."""
    tracemalloc.start()
    try:
        status, answer = await client.send(method, path, [_PIECE] * 30)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    code = answer["error"]["code"] if "error" in answer else answer["code"]
    assert (status, code) == (413, "body_too_large")
    assert most < 4 * _PIECE


async def test_strangers_do_not_fill_the_log(client: _Client) -> None:
    with capture_logs() as lines:
        status, _ = await client.send("GET", "/" + "x" * 100_000, [])
    assert status == 404
    (line,) = (line for line in lines if line["event"] == "request_rejected")
    assert len(str(line)) < 1000
