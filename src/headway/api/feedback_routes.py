"""Feedback and reports on the data plane: parse, call, render."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, get_args
from urllib.parse import parse_qsl

import msgspec

from headway.api.authentication import authenticate, identify
from headway.api.messages import Answer, Request
from headway.api.problems import render_problem
from headway.clock import Clock
from headway.domain.access import require_scope
from headway.domain.feedback import ReportStatus, Severity, Source
from headway.domain.snapshot import KeyRoute, Snapshot
from headway.errors import (
    BodyTooLargeError,
    HeadwayError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedMediaTypeError,
)
from headway.feedback.intake import FeedbackIntake, FeedbackPost
from headway.feedback.keeping import Outcome
from headway.feedback.reporting import CommentPost, ReportDesk, ReportIntake, ReportPatch, ReportPost
from headway.storage.paging import PAGE_SIZE

BODY_BYTES = 256 * 1024
"""Largest body that these routes take."""

_STATUSES: Mapping[Outcome, int] = {"created": 201, "unchanged": 200, "spooled": 202}
_CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"source": get_args(Source), "severity": get_args(Severity), "status": get_args(ReportStatus)}
)
_PREFLIGHT_SECONDS = 7200

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Answer]]


class Route(NamedTuple):
    """A route of the data plane; ``{name}`` in the pattern stands for one segment of the path."""

    method: str
    pattern: str
    handler: Handler


class FeedbackRoutes:
    """Handlers of ``/v1/feedback`` and ``/v1/reports``; each renders its own errors.

    Args:
        intake: Takes feedback.
        reports: Takes reports.
        desk: Shows reports and changes them.
        snapshot: Gives the snapshot in force.
        clock: For keys that expire.
        origins: Web pages that may post feedback (``Settings.origins``).
    """

    def __init__(
        self,
        intake: FeedbackIntake,
        reports: ReportIntake,
        desk: ReportDesk,
        snapshot: Callable[[], Snapshot],
        clock: Clock,
        origins: Sequence[str],
    ) -> None:
        self._intake = intake
        self._reports = reports
        self._desk = desk
        self._snapshot = snapshot
        self._clock = clock
        self._origins = origins

    @property
    def routes(self) -> list[Route]:
        """All routes."""
        return [
            Route("POST", "/v1/feedback", self.post_feedback),
            Route("OPTIONS", "/v1/feedback", self.preflight_feedback),
            Route("POST", "/v1/reports", self._guarded(self._post_report)),
            Route("GET", "/v1/reports", self._guarded(self._list_reports)),
            Route("GET", "/v1/reports/{id}", self._guarded(self._get_report)),
            Route("PATCH", "/v1/reports/{id}", self._guarded(self._patch_report)),
            Route("POST", "/v1/reports/{id}/comments", self._guarded(self._post_comment)),
        ]

    async def post_feedback(self, request: Request) -> Answer:
        """Take a feedback value, with an API key or with an interaction id alone."""
        try:
            snapshot = self._snapshot()
            key = identify(snapshot, request.headers, self._clock.unix_ms())
            if key is not None:
                require_scope(key, "feedback")
            accepted = await self._intake.accept(snapshot, key, decode_post(request, FeedbackPost))
            body = {"id": accepted.id, "object": "feedback", "outcome": accepted.outcome, "metric": accepted.metric}
            answer = _json(_STATUSES[accepted.outcome], body)
        except HeadwayError as error:
            answer = render_problem(error)
        headers = (*answer.headers, *cors_headers(request.headers, self._origins))
        return Answer(answer.status, answer.body, answer.content_type, headers)

    async def preflight_feedback(self, request: Request) -> Answer:
        """Tell a browser whether a page may post feedback."""
        headers = cors_headers(request.headers, self._origins)
        if any(name == b"access-control-allow-origin" for name, _ in headers):
            headers += (
                (b"access-control-allow-methods", b"POST"),
                (b"access-control-allow-headers", b"authorization, api-key, content-type"),
                (b"access-control-max-age", b"%d" % _PREFLIGHT_SECONDS),
            )
        return Answer(200, b"", "text/plain", headers)

    def _guarded(self, handler: Callable[[Request, Snapshot, KeyRoute], Awaitable[Answer]]) -> Handler:
        async def handle(request: Request) -> Answer:
            try:
                snapshot = self._snapshot()
                key = authenticate(snapshot, request.headers, self._clock.unix_ms())
                require_scope(key, "feedback")
                return await handler(request, snapshot, key)
            except HeadwayError as error:
                return render_problem(error)

        return handle

    async def _post_report(self, request: Request, snapshot: Snapshot, key: KeyRoute) -> Answer:
        post = decode_post(request, ReportPost)
        given = request.headers.get(b"idempotency-key")
        kept = await self._reports.accept(snapshot, key, post, None if given is None else given.decode("latin-1"))
        body = {"id": kept.id, "object": "report", "outcome": kept.outcome}
        location = (b"location", f"/v1/reports/{kept.id}".encode())
        return _json(_STATUSES[kept.outcome], body, (location,))

    async def _list_reports(self, request: Request, _snapshot: Snapshot, key: KeyRoute) -> Answer:
        query = _query(request, ("status", "limit", "cursor"))
        status = query.get("status")
        if status is not None and status not in get_args(ReportStatus):
            raise InvalidRequestError(f"status is one of {', '.join(get_args(ReportStatus))}", param="status")
        limit = _limit(query.get("limit", str(PAGE_SIZE)))
        page = await self._desk.read_page(key, status=status, limit=limit, cursor=query.get("cursor"))
        return _json(200, {"object": "list", "items": page.items, "next": page.next})

    async def _get_report(self, request: Request, _snapshot: Snapshot, key: KeyRoute) -> Answer:
        return _report(await self._desk.read(_id(request), key))

    async def _patch_report(self, request: Request, _snapshot: Snapshot, key: KeyRoute) -> Answer:
        patch = decode_post(request, ReportPatch)
        return _report(await self._desk.change(_id(request), patch, author=f"key:{key.number}", key=key))

    async def _post_comment(self, request: Request, _snapshot: Snapshot, key: KeyRoute) -> Answer:
        post = decode_post(request, CommentPost)
        return _report(await self._desk.comment(_id(request), post, author=f"key:{key.number}", key=key), 201)


def cors_headers(headers: Mapping[bytes, bytes], origins: Sequence[str]) -> tuple[tuple[bytes, bytes], ...]:
    """Give the CORS headers of an answer under ``/v1/feedback``; none that allow, for a page that may not.

    Args:
        headers: Of the request.
        origins: Origins that may; ``*`` for any.
    """
    expose = (b"access-control-expose-headers", b"retry-after")
    if "*" in origins:
        return ((b"access-control-allow-origin", b"*"), expose)
    vary = (b"vary", b"origin")
    origin = headers.get(b"origin", b"")
    if origin.decode("latin-1") not in origins:
        return (vary,)
    return ((b"access-control-allow-origin", origin), expose, vary)


def decode_post(request: Request, kind: type[T]) -> T:
    """Read a JSON body.

    Raises:
        InvalidRequestError: It is not JSON, or does not fit; the message names the field.
        BodyTooLargeError: It is larger than these routes take.
        UnsupportedMediaTypeError: It says that it is something else.
    """
    if len(request.body) > BODY_BYTES:
        raise BodyTooLargeError(f"the body has {len(request.body)} bytes, at most {BODY_BYTES} are taken here")
    media_type = request.headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
    if media_type != b"application/json":
        raise UnsupportedMediaTypeError("send the body as JSON, with content-type: application/json")
    try:
        return msgspec.json.decode(request.body, type=kind)
    except msgspec.ValidationError as error:
        raise _misfit(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the body is not JSON: {error}", code="invalid_json") from error


def _misfit(message: str) -> InvalidRequestError:
    """Find the field in msgspec's message: ``... - at `$.field[0]```."""
    what, found, path = message.rpartition(" - at `$.")
    param = path.rstrip("`").split("[")[0] if found else None
    if param is not None and param in _CHOICES and what.startswith("Invalid enum value"):
        message = f"{param} is one of {', '.join(_CHOICES[param])}"
    elif param is not None:
        message = f"{param}: {what}"
    return InvalidRequestError(message, param=param)


def _query(request: Request, known: Sequence[str]) -> dict[str, str]:
    try:
        pairs = parse_qsl(request.query.decode("latin-1"), keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise InvalidRequestError("the query has too many parameters") from error
    unknown = next((name for name, _ in pairs if name not in known), None)
    if unknown is not None:
        message = f"unknown query parameter {unknown[:80]!r}; known are {', '.join(known)}"
        raise InvalidRequestError(message, param=unknown[:80])
    return dict(pairs)


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidRequestError("limit is a whole number", param="limit")
    return int(text)


def _id(request: Request) -> uuid.UUID:
    text = request.parameters.get("id", "")
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise NotFoundError(f"there is no report {text[:80]!r}: its id is a UUID") from error


def _report(report: dict[str, Any], status: int = 200) -> Answer:
    return _json(status, {"object": "report", **report})


def _json(status: int, body: dict[str, Any], headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    return Answer(status, msgspec.json.encode(body, enc_hook=_plain), headers=headers)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    raise NotImplementedError(type(value))
