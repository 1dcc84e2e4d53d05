"""In front of every page: who looks, did the form come from here, and what the browser may do with the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from urllib.parse import parse_qs, quote, urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from headway.console.services import ConsoleServices, Visitor
from headway.console.sessions import SESSION_SECONDS, Session, cookie_name, form_token, is_form_token, seal, unseal
from headway.domain.access import has_scope
from headway.domain.snapshot import KeyRoute, Snapshot
from headway.errors import BodyTooLargeError, InvalidRequestError, PermissionDeniedError

SIGN_IN = "/sign-in"

_FORM_BYTES = 32 * 1024  # a query of 2,000 characters, each written in 12
_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "content-security-policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
            " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        ),
        "cache-control": "no-store",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
        "referrer-policy": "same-origin",  # with less, browsers would send forms with `Origin: null`
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }
)

Form = Mapping[str, str]
Page = Callable[[Request, Visitor], Awaitable[Response]]
Deed = Callable[[Request, Visitor, Form], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


def protect(response: Response) -> Response:
    """Tell the browser what it may do with an answer: run our files, show nowhere else, keep no copy."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def viewing(page: Page) -> Endpoint:
    """Show a page to who is signed in; send others to the sign-in page, which leads back here."""

    async def endpoint(request: Request) -> Response:
        visitor = find_visitor(request)
        return send_to_sign_in(request) if visitor is None else await page(request, visitor)

    return endpoint


def doing(deed: Deed) -> Endpoint:
    """Take a form from who is signed in with a key of scope ``admin``; it must come from a page of that session."""

    async def allowed(request: Request, visitor: Visitor, form: Form) -> Response:
        if not visitor.is_admin:
            raise PermissionDeniedError(f"the API key {visitor.key.name!r} may look; changes need the scope 'admin'")
        return await deed(request, visitor, form)

    return asking(allowed)


def asking(answer: Deed) -> Endpoint:
    """Take a form that changes nothing from who is signed in; it must come from a page of that session."""

    async def endpoint(request: Request) -> Response:
        require_own_page(request)
        visitor = find_visitor(request)
        if visitor is None:
            return send_to_sign_in(request)
        return await answer(request, visitor, await read_form(request, visitor.session))

    return endpoint


def services_of(request: Request) -> ConsoleServices:
    """Give what the console works with."""
    services: ConsoleServices = request.app.state.services
    return services


def find_session(request: Request) -> Session | None:
    """Find the session that the request's cookie names; None when there is none that is good."""
    services = services_of(request)
    signing = services.snapshot().signing
    text = request.cookies.get(cookie_name(signing))
    return None if text is None else unseal(signing, text, services.clock.unix_ms())


def find_visitor(request: Request) -> Visitor | None:
    """Find who is signed in; the key must still be known, in force, and allowed to view."""
    session = find_session(request)
    services = services_of(request)
    snapshot = services.snapshot()
    key = None if session is None else _find_key(snapshot, session.key, services.clock.unix_ms())
    if session is None or key is None or not has_scope(key, "view"):
        return None
    return Visitor(key, session, form_token(snapshot.signing, session))


def _find_key(snapshot: Snapshot, number: int, now_ms: int) -> KeyRoute | None:
    for key in snapshot.keys.values():
        if key.number == number:
            return key if key.expires_unix_ms is None or key.expires_unix_ms > now_ms else None
    return None


def set_session(request: Request, response: Response, session: Session | None) -> None:
    """Give the browser its session, or take it away."""
    signing = services_of(request).snapshot().signing
    secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", "").lower())
    response.set_cookie(
        cookie_name(signing),
        "" if session is None else seal(signing, session),
        max_age=0 if session is None else SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=secure,
    )


def send_to_sign_in(request: Request) -> Response:
    """Lead to the sign-in page, and from there back to this page."""
    headers = request.headers
    cookie = cookie_name(services_of(request).snapshot().signing)
    came_from_elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if request.method == "GET" and cookie not in request.cookies and came_from_elsewhere:
        # On a link from another site the browser keeps the cookie to itself (SameSite=Strict): ask again from here.
        return HTMLResponse('<!doctype html><meta http-equiv="refresh" content="0"><title>Headway</title>')
    back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    target = SIGN_IN if request.method != "GET" or back == "/" else f"{SIGN_IN}?next={quote(back, safe='/')}"
    if "hx-request" in headers:
        return Response(status_code=401, headers={"hx-refresh": "true"})
    return RedirectResponse(target, 303)


def require_own_page(request: Request) -> None:
    """Let a form pass only if the browser says that it was sent from a page of this origin.

    Raises:
        PermissionDeniedError: It was sent from elsewhere, or by something that does not say.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    # A proxy in front may change the host, never what the browser says about the site.
    own = site == "same-origin" if site else _host_of(origin) == request.headers.get("host", "")
    if not own:
        raise PermissionDeniedError("this form was not sent from a page of the console")


def _host_of(origin: str | None) -> str | None:
    try:
        return urlsplit(origin).netloc or None if origin else None
    except ValueError:
        return None


async def read_form(request: Request, session: Session | None) -> Form:
    """Read the fields of a form and check the token that its page gave it.

    Raises:
        BodyTooLargeError: It is larger than any form here.
        InvalidRequestError: It is not UTF-8, or was cut off.
        PermissionDeniedError: The token is missing or of another session.
    """
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > _FORM_BYTES:
                raise BodyTooLargeError(f"the form is larger than {_FORM_BYTES} bytes")
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=50)
    except ClientDisconnect as error:
        raise InvalidRequestError("the form was cut off", code="incomplete_body") from error
    except ValueError as error:
        raise InvalidRequestError("the form cannot be read: it is not in UTF-8") from error
    form = {name: values[0] for name, values in fields.items()}
    signing = services_of(request).snapshot().signing
    if session is None or not is_form_token(signing, session, form.get("token", "")):
        raise PermissionDeniedError("this page was too old, or of another session: load it again, then repeat")
    return form
