"""Signing in with an API key, and out."""

from __future__ import annotations

import structlog
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from headway.console.attempts import Attempts
from headway.console.gate import (
    SIGN_IN,
    find_session,
    find_visitor,
    read_form,
    require_own_page,
    services_of,
    set_session,
)
from headway.console.rendering import Renderer
from headway.console.sessions import NOBODY, form_token, open_session
from headway.domain.access import require_scope
from headway.errors import AuthenticationError, HeadwayError, PermissionDeniedError, RateLimitError

_log = structlog.get_logger("headway.console")


async def show_sign_in(request: Request) -> Response:
    """Ask for an API key."""
    if find_visitor(request) is not None:
        return RedirectResponse(_next(request.query_params.get("next")), 303)
    return _ask(request, _next(request.query_params.get("next")))


async def sign_in(request: Request) -> Response:
    """Begin a session for an API key of scope ``view``; wrong ones are refused, and counted."""
    require_own_page(request)
    services = services_of(request)
    attempts: Attempts = request.app.state.attempts
    address = request.client.host if request.client is not None else ""
    form = await read_form(request, find_session(request))
    following = _next(form.get("next"))
    snapshot, now_ms = services.snapshot(), services.clock.unix_ms()
    try:
        attempts.require_patience(address)
        presented = form.get("key", "").strip().encode("utf-8", "surrogatepass")
        key = services.authenticate(snapshot, {b"api-key": presented}, now_ms)
        require_scope(key, "view")
    except (AuthenticationError, PermissionDeniedError) as error:
        attempts.fail(address)
        _log.warning("sign_in_refused", address=address, code=error.error_code)
        return _ask(request, following, error)
    except RateLimitError as error:
        return _ask(request, following, error)
    _log.info("signed_in", key=key.number, name=key.name, address=address)
    response = RedirectResponse(following, 303)
    set_session(request, response, open_session(snapshot.signing, key.number, now_ms))
    return response


async def sign_out(request: Request) -> Response:
    """End the session."""
    require_own_page(request)
    await read_form(request, find_session(request))
    response = RedirectResponse(SIGN_IN, 303)
    set_session(request, response, None)
    return response


def _ask(request: Request, following: str, error: HeadwayError | None = None) -> Response:
    """The sign-in page, with a session of nobody: its form carries a token too."""
    services = services_of(request)
    renderer: Renderer = request.app.state.renderer
    signing = services.snapshot().signing
    session = find_session(request)
    if session is None or session.key != NOBODY:
        session = open_session(signing, NOBODY, services.clock.unix_ms())
    status = 200 if error is None else services.status_of(error)
    token = form_token(signing, session)
    response = renderer.page("sign_in.html", None, status=status, error=error, next=following, token=token)
    set_session(request, response, session)
    return response


def _next(given: str | None) -> str:
    """Where to go after signing in: a path of ours, never another site."""
    ours = given is not None and given.startswith("/") and not given.startswith(("//", "/\\", SIGN_IN))
    return given if given is not None and ours and given.isprintable() else "/"
