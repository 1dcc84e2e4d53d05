"""The control plane: administration for keys of scope ``view``, changes for keys of scope ``admin``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import compile_path

from headway import __version__
from headway.api import (
    administration_routes,
    comparison_routes,
    index_routes,
    record_routes,
    rollout_routes,
    traffic_routes,
)
from headway.api.control_parts import ControlServices, Services, Viewer, problems
from headway.api.guard import Guard
from headway.api.messages import Answer
from headway.api.openapi import tidy
from headway.api.problems import render_problem
from headway.api.resources import Health, Problem
from headway.errors import HeadwayError, InvalidRequestError, MethodNotAllowedError, NotFoundError, StorageError

PREFIX = "/admin/v1"
"""Where the control plane's routes begin; both planes may be behind one host name."""

_METRICS = "/metrics"
_READY_SECONDS = 2.0


def create_app(services: ControlServices) -> FastAPI:
    """Make the control plane's application."""
    app = _make_app()
    app.state.services = services
    app.add_middleware(Guard, snapshot=services.snapshot, clock=services.clock, guarded=(PREFIX, _METRICS))
    document = tidy(app.openapi())
    app.openapi = lambda: document  # type: ignore[method-assign]  # FastAPI's own way to change it
    app.state.methods = [(compile_path(path)[0], methods) for path, methods in document["paths"].items()]
    return app


def controlplane_document() -> dict[str, Any]:
    """Give the control plane's OpenAPI document."""
    return tidy(_make_app().openapi())


def _make_app() -> FastAPI:
    app = FastAPI(
        title="Headway control plane",
        version=__version__,
        description="Releases, rollouts and what was recorded of them. Every path but health needs an API key.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for part, tag in (
        (traffic_routes, "traffic"),
        (rollout_routes, "rollouts"),
        (comparison_routes, "indexes"),
        (index_routes, "indexes"),
        (record_routes, "records"),
        (administration_routes, "administration"),
    ):
        app.include_router(part.router, prefix=PREFIX, tags=[tag])
    _add_health(app)
    app.add_exception_handler(HeadwayError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    return app


def _add_health(app: FastAPI) -> None:
    @app.get("/healthz", response_model=Health, tags=["health"])
    async def health() -> Any:
        """Say that the process is alive."""
        return {"status": "ok"}

    @app.get(
        "/readyz",
        response_model=Health,
        tags=["health"],
        responses={503: {"model": Problem, "description": "Not yet."}},
    )
    async def readiness(services: Services) -> Any:
        """Say whether the database answers and there is a routing snapshot."""
        number = services.snapshot().number
        try:
            async with asyncio.timeout(_READY_SECONDS), services.database.connection() as connection:
                await connection.execute("SELECT 1")
        except TimeoutError as error:
            raise StorageError("the database does not answer") from error
        return {"status": "ready", "snapshot": number}

    @app.get(_METRICS, response_class=PlainTextResponse, tags=["health"], responses=problems())
    async def metrics(services: Services, _: Viewer) -> Response:
        """Give all figures in the text format of Prometheus."""
        return Response(services.metrics(), media_type="text/plain; version=0.0.4")


def _response(answer: Answer) -> Response:
    headers = {name.decode(): value.decode("latin-1") for name, value in answer.headers}
    return Response(answer.body, answer.status, headers, answer.content_type)


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HeadwayError)
    return _response(render_problem(error))


_SAID: Mapping[str, str] = MappingProxyType(
    {
        "missing": "is required",
        "extra_forbidden": "is not known here",
        "string_pattern_mismatch": "must not be blank, nor hold control characters",
        "model_attributes_type": "must be a JSON object",
    }
)
"""What pydantic says of its own workings, for people."""


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _response(render_problem(InvalidRequestError("the body is not JSON", code="invalid_json")))
    where = ".".join(str(part) for part in first["loc"][1:])
    said = _SAID.get(first["type"], str(first["msg"]))
    message = f"{where or 'the body'}: {said}"
    return _response(render_problem(InvalidRequestError(message, param=where or None)))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _response(
            render_problem(NotFoundError("there is nothing here: see /openapi.json", code="route_not_found"))
        )
    if error.status_code == 405:
        response = _response(render_problem(MethodNotAllowedError("not with this method: see the Allow header")))
        # Starlette names the methods of the first route of this path only.
        allowed = {
            method.upper()
            for pattern, methods in request.app.state.methods
            if pattern.match(request.url.path)
            for method in methods
        }
        response.headers["allow"] = ", ".join(sorted(allowed))
        return response
    return _response(render_problem(InvalidRequestError(str(error.detail))))


async def _on_bug(_: Request, __: Exception) -> Response:
    # Starlette raises it on after this answer, so the server logs it.
    return _response(render_problem(HeadwayError("Headway failed on this request; its log says why")))
