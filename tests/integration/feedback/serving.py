"""The feedback routes on a real socket."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from headway.api.messages import Request
from tests.integration.feedback.conftest import Desk

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serve(handler: Handler) -> AsyncIterator[str]:
    """Serve a handler of all paths; gives the URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def pass_on(desk: Desk) -> Handler:
    """Hand requests to the routes."""

    async def handle(request: web.Request) -> web.StreamResponse:
        handler, parameters = desk.match(request.method, request.path)
        headers = {name.lower().encode(): value.encode() for name, value in request.headers.items()}
        body = await request.read()
        query = request.query_string.encode()
        answer = await handler(Request(request.method, request.path, query, headers, body, parameters))
        out = {name.decode(): value.decode() for name, value in answer.headers}
        return web.Response(status=answer.status, body=answer.body, content_type=answer.content_type, headers=out)

    return handle
