"""Requests and how their answers are read: no input and no output here."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from headway.client.failures import (
    AccessError,
    ClientError,
    ConflictError,
    InvalidError,
    LimitError,
    MissingError,
    ServerError,
    UnreachableError,
)
from headway.client.results import FeedbackReceipt, Report, ReportEvent, ReportReceipt, Severity, Status

T = TypeVar("T")

_BUSY = frozenset({502, 503, 504})
_LONGEST_WAIT_SECONDS = 10.0


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request and how to read its answer; ``repeatable`` when doing it twice is doing it once."""

    method: str
    path: str
    read: Callable[[Any], T]
    body: Mapping[str, Any] | None = None
    repeatable: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)

    def content(self) -> bytes | None:
        """Write the body as JSON."""
        return None if self.body is None else json.dumps(self.body).encode()


@dataclass(frozen=True)
class Options:
    """Where the server is, who calls, and how patiently."""

    base_url: str
    api_key: str | None
    timeout_seconds: float
    attempts: int
    backoff_seconds: float

    def headers(self, call: Call[Any]) -> dict[str, str]:
        """Give the headers of a request."""
        headers = {"accept": "application/json", **call.headers}
        if call.body is not None:
            headers["content-type"] = "application/json"
        if self.api_key is not None:
            headers["authorization"] = f"Bearer {self.api_key}"
        return headers

    def pause_seconds(self, call: Call[Any], attempt: int, error: ClientError) -> float | None:
        """Say how long to wait before another attempt; None when there should be none."""
        asked = error.retry_after_seconds or 0.0
        passing = isinstance(error, UnreachableError) or error.status in _BUSY or (error.status == 429 and asked)
        if not (call.repeatable and passing and attempt < self.attempts) or asked > _LONGEST_WAIT_SECONDS:
            return None
        pause: float = self.backoff_seconds * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
        return max(asked, pause)


def checked_url(base_url: str) -> str:
    """Take the URL of the data plane, with or without ``/v1``."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url looks like http://127.0.0.1:8080, not {base_url!r}")
    return base_url.rstrip("/").removesuffix("/v1")


def feedback_call(**fields: Any) -> Call[FeedbackReceipt]:
    """Post feedback; fields that are None are left out."""
    body = {name: value for name, value in fields.items() if value is not None}
    return Call("POST", "/v1/feedback", _read_feedback, body)


def report_call(
    title: str, description: str, severity: Severity, interaction_ids: Sequence[str], application: str | None
) -> Call[ReportReceipt]:
    """Post a report."""
    body: dict[str, Any] = {"title": title, "description": description, "severity": severity}
    if interaction_ids:
        body["interaction_ids"] = list(interaction_ids)
    if application is not None:
        body["application"] = application
    # Made here, before the first attempt: all attempts are one report.
    headers = {"idempotency-key": uuid.uuid4().hex}
    return Call("POST", "/v1/reports", _read_receipt, body, headers=headers)


def get_call(report_id: str) -> Call[Report]:
    """Read a report."""
    return Call("GET", f"/v1/reports/{quote(report_id, safe='')}", _read_report)


def list_call(status: Status | None, cursor: str | None) -> Call[tuple[list[Report], str | None]]:
    """Read a page of reports and the cursor of the next."""
    query = urlencode({name: value for name, value in (("status", status), ("cursor", cursor)) if value is not None})
    return Call("GET", "/v1/reports" + (f"?{query}" if query else ""), _read_page)


def change_call(report: Report, status: Status | None, severity: Severity | None, comment: str | None) -> Call[Report]:
    """Change a report."""
    fields = {"version": report.version, "status": status, "severity": severity, "comment": comment}
    body = {name: value for name, value in fields.items() if value is not None}
    return Call("PATCH", f"/v1/reports/{quote(report.id, safe='')}", _read_report, body, repeatable=False)


def comment_call(report_id: str, text: str) -> Call[Report]:
    """Comment on a report."""
    path = f"/v1/reports/{quote(report_id, safe='')}/comments"
    return Call("POST", path, _read_report, {"comment": text}, repeatable=False)


def unreachable(base_url: str, error: BaseException) -> UnreachableError:
    """Say that there was no answer, and why."""
    return UnreachableError(f"no answer from {base_url}: {str(error) or type(error).__name__}", code="unreachable")


def read_answer(call: Call[T], status: int, retry_after: str | None, body: bytes) -> T:
    """Read an answer, or raise the error that it tells of.

    Raises:
        ClientError: The answer is an error, or not Headway's.
    """
    try:
        content = json.loads(body)
        if status < 300:
            return call.read(content)
    except (ValueError, KeyError, TypeError) as error:
        if status < 300:
            raise ServerError(
                "the answer is not Headway's: check base_url", status=status, code="unexpected"
            ) from error
        content = {}
    problem = content if isinstance(content, dict) else {}
    message = str(problem.get("detail") or f"HTTP status {status}")
    failure = _error_class(status)(
        message, status=status, code=str(problem.get("code", "")), param=problem.get("param")
    )
    failure.retry_after_seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
    raise failure


def _error_class(status: int) -> type[ClientError]:
    if status >= 500:
        return ServerError
    known = {
        401: AccessError,
        403: AccessError,
        404: MissingError,
        410: MissingError,
        409: ConflictError,
        429: LimitError,
    }
    return known.get(status, InvalidError)


def _read_feedback(body: Any) -> FeedbackReceipt:
    return FeedbackReceipt(body["id"], body["outcome"], body["metric"])


def _read_receipt(body: Any) -> ReportReceipt:
    return ReportReceipt(body["id"], body["outcome"])


def _read_page(body: Any) -> tuple[list[Report], str | None]:
    return [_read_report(item) for item in body["items"]], body["next"]


def _read_report(body: Any) -> Report:
    return Report(
        id=body["id"],
        at=datetime.fromisoformat(body["at"]),
        updated_at=datetime.fromisoformat(body["updated_at"]),
        application=body["application"],
        title=body["title"],
        description=body["description"],
        severity=body["severity"],
        status=body["status"],
        author=body["author"],
        version=body["version"],
        interaction_ids=tuple(link["interaction_id"] for link in body.get("interactions", ())),
        events=tuple(
            ReportEvent(
                number=event["number"],
                at=datetime.fromisoformat(event["at"]),
                author=event["author"],
                comment=event["comment"],
                status=event["status"],
                severity=event["severity"],
            )
            for event in body.get("events", ())
        ),
    )
