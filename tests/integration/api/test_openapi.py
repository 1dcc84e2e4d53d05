"""The published OpenAPI is true: whatever fits it, and much that does not, gets a documented answer and never a 5xx."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from headway.api.control_parts import ControlServices
from headway.api.controlplane import controlplane_document, create_app
from headway.api.dataplane import DataPlane
from headway.api.openapi import dataplane_document
from headway.gateway.gateway import Gateway
from tests.integration.feedback.conftest import make_desk
from tests.world import World

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
Message = dict[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


@asynccontextmanager
async def served(application: Application) -> AsyncIterator[str]:
    """Serve an ASGI application on a real socket, in this event loop."""

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        scope = {
            "type": "http",
            "method": request.method,
            "path": request.path,
            "raw_path": request.raw_path.encode(),
            "root_path": "",
            "scheme": "http",
            "http_version": "1.1",
            "query_string": request.rel_url.raw_query_string.encode(),
            "headers": [(name.lower(), value) for name, value in request.raw_headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 1),
        }
        sent: list[Message] = []
        pending: list[Message] = [{"type": "http.request", "body": body}]

        async def receive() -> Message:
            return pending.pop() if pending else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        await application(scope, receive, send)
        headers = [(name.decode(), value.decode("latin-1")) for name, value in sent[0]["headers"]]
        content = b"".join(message.get("body", b"") for message in sent[1:])
        return web.Response(
            status=sent[0]["status"], body=content, headers=[pair for pair in headers if pair[0] != "content-length"]
        )

    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def explore(url: str, key: str, folder: Path, *, examples: int, config: str = "") -> None:
    """Let Schemathesis explore what is documented at a URL."""
    (folder / "schemathesis.toml").write_text(config)
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(folder / "schemathesis.toml")),
        *("run", f"{url}/openapi.json", "--header", f"Authorization: Bearer {key}"),
        *(
            "--checks",
            "all",
            "--exclude-checks",
            "positive_data_acceptance,use_after_free,ensure_resource_availability",
        ),
        *("--max-examples", str(examples), "--generation-database", "none", "--no-color"),
        *("--seed", "1", "--warnings", "off", "--suppress-health-check", "all"),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


async def test_the_control_plane_keeps_to_its_document(world: World, tmp_path: Path, proof: bool) -> None:
    await world.record(world.interaction(), "talk", content=("{}", "answer"))
    app = create_app(ControlServices(world.database, world.clock, lambda: world.snapshot, lambda: b""))
    async with served(cast("Application", app)) as url:
        await explore(url, world.secrets["operator"], tmp_path, examples=200 if proof else 8)


async def test_the_data_plane_keeps_to_its_document(world: World, tmp_path: Path, proof: bool) -> None:
    """All but the routes to a provider."""
    gateway = cast("Gateway", SimpleNamespace(snapshot=world.snapshot))
    app = DataPlane(gateway, make_desk(world, world.database).routes.routes, world.clock, 1_000_000)
    config = '[[operations]]\ninclude-tag = ["openai", "azure"]\nenabled = false\n'
    async with served(app) as url:
        await explore(url, world.secrets["developer"], tmp_path, examples=200 if proof else 10, config=config)


@pytest.mark.parametrize(
    ("plane", "document"), [("data", dataplane_document), ("control", controlplane_document)], ids=["data", "control"]
)
def test_the_reference_is_current(plane: str, document: Callable[[], Mapping[str, Any]]) -> None:
    written = json.loads((REFERENCE / f"openapi-{plane}.json").read_text())
    hint = f"run: headway openapi {plane} > docs/reference/openapi-{plane}.json"
    assert written == json.loads(json.dumps(document())), hint
