"""The console's application: its routes, and what is said when something is wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headway.console import index_pages, overview, rollout_page, search_page, signing_in
from headway.console.attempts import Attempts
from headway.console.gate import SIGN_IN, Endpoint, doing, find_visitor, protect, viewing
from headway.console.hour import Hours
from headway.console.rendering import STATIC, Renderer, load_assets, serve_asset
from headway.console.services import ConsoleServices
from headway.errors import HeadwayError, StorageError

Message = dict[str, Any]
Application = Callable[[Message, Any, Any], Awaitable[None]]

_OWN = ("/rollouts", "/indexes", "/search", STATIC, SIGN_IN, "/sign-out")


def create_console(services: ConsoleServices, otherwise: Application) -> Application:
    """Make the console's application.

    Args:
        services: What it works with.
        otherwise: Answers whatever is no path of the console.
    """
    assets = load_assets()
    console = Starlette(
        routes=[
            *_routes(),
            Route(f"{STATIC}/{{name}}", _protected(_asset_endpoint(assets)), methods=["GET"]),
        ],
        exception_handlers={HeadwayError: _on_error, HTTPException: _on_http, Exception: _on_bug},
    )
    console.state.services = services
    console.state.renderer = Renderer(assets)
    console.state.attempts = Attempts(services.clock)
    console.state.hours = Hours(services.database, services.clock)

    async def application(scope: Message, receive: Any, send: Any) -> None:
        own = scope["type"] == "http" and is_own(scope["path"])
        await (console if own else otherwise)(scope, receive, send)

    return application


def is_own(path: str) -> bool:
    """Say whether a path is the console's."""
    return path == "/" or any(path == own or path.startswith(f"{own}/") for own in _OWN)


def _routes() -> list[Route]:
    rollout = "/rollouts/{number:int}"
    version = "/indexes/{name}/{number:int}"
    shown = {
        "/": viewing(overview.show_applications),
        "/rollouts": viewing(overview.show_rollouts),
        rollout: viewing(rollout_page.show_rollout),
        f"{rollout}/decisions": viewing(rollout_page.show_decisions),
        f"{rollout}/answers": viewing(rollout_page.show_answers),
        f"{rollout}/figures": viewing(rollout_page.give_figures),
        "/indexes": viewing(index_pages.show_indexes),
        "/indexes/{name}": viewing(index_pages.show_index),
        version: viewing(index_pages.show_version),
        f"{version}/documents": viewing(index_pages.show_documents),
        f"{version}/document": viewing(index_pages.show_document),
        f"{version}/changes": viewing(index_pages.show_changes),
        "/search": viewing(search_page.show_search),
        SIGN_IN: signing_in.show_sign_in,
    }
    done = {
        f"{rollout}/{{command}}": doing(rollout_page.command),
        "/indexes/{name}/build": doing(index_pages.build),
        f"{version}/cancel": doing(index_pages.cancel),
        f"{version}/drop": doing(index_pages.drop),
        "/search": search_page.search,
        SIGN_IN: signing_in.sign_in,
        "/sign-out": signing_in.sign_out,
    }
    return [
        *(Route(path, _protected(endpoint), methods=["GET"]) for path, endpoint in shown.items()),
        *(Route(path, _protected(endpoint), methods=["POST"]) for path, endpoint in done.items()),
    ]


def _protected(endpoint: Endpoint) -> Endpoint:
    async def protected(request: Request) -> Response:
        return protect(await endpoint(request))

    return protected


def _asset_endpoint(assets: Any) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return serve_asset(assets, request)

    return endpoint


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HeadwayError)
    services: ConsoleServices = request.app.state.services
    return _say(request, services.status_of(error), error.message)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: "There is nothing here.", 405: "Not with this method."}
    return _say(request, error.status_code, messages.get(error.status_code, str(error.detail)))


async def _on_bug(request: Request, _: Exception) -> Response:
    # Starlette raises it on after this answer, so the server logs it.
    return _say(request, 500, "Headway failed on this request; its log says why.")


def _say(request: Request, status: int, message: str) -> Response:
    renderer: Renderer = request.app.state.renderer
    try:
        visitor = find_visitor(request)
    except StorageError:
        visitor = None
    return protect(renderer.page("problem.html", visitor, status=status, message=message))
