"""The one place that turns errors into HTTP: status, body and headers.

====  ===============================================================================================
400   the request is malformed: broken JSON, a field of the wrong type, a forged interaction id
401   no API key, an unknown, revoked or expired one
403   the key lacks the scope, or may not use the application
404   what the request names does not exist
405   the route exists, but not for this method
408   the body did not come in time
409   somebody else was first, or the present state forbids it
410   it existed and is past retention
413   the body is too large
415   the body is not JSON
422   well formed, but the value does not fit its metric
429   a limit was reached; ``Retry-After`` says when to come back, where that is known
500   Headway's own fault, or its configuration's
502   the provider failed; 503 could not be reached; 504 took too long
503   the database is away
====  ===============================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

import msgspec

from headway import errors
from headway.api.messages import Answer
from headway.errors import HeadwayError

OPENAI_CONTENT_TYPE = "application/json"
PROBLEM_CONTENT_TYPE = "application/problem+json"

STATUSES: Mapping[type[HeadwayError], int] = MappingProxyType(
    {
        HeadwayError: 500,
        errors.ConfigurationError: 500,
        errors.AuthenticationError: 401,
        errors.PermissionDeniedError: 403,
        errors.LimitError: 429,
        errors.InvalidRequestError: 400,
        errors.BodyTimeoutError: 408,
        errors.BodyTooLargeError: 413,
        errors.UnsupportedMediaTypeError: 415,
        errors.FeedbackValueError: 422,
        errors.NotFoundError: 404,
        errors.MethodNotAllowedError: 405,
        errors.ConflictError: 409,
        errors.ExpiredError: 410,
        errors.ProviderError: 502,
        errors.ProviderUnavailableError: 503,
        errors.ProviderTimeoutError: 504,
        errors.StorageError: 503,
        errors.RetrievalError: 503,
        errors.LakeError: 503,
        errors.UnreadableDocumentError: 422,
    }
)

_OPENAI_TYPES: Mapping[int, str] = MappingProxyType(
    {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
)


def status_of(error: HeadwayError | type[HeadwayError]) -> int:
    """Map an error, or a class of errors, to its HTTP status; a subclass has its parent's unless it has its own."""
    kind = error if isinstance(error, type) else type(error)
    return next(STATUSES[parent] for parent in kind.__mro__ if parent in STATUSES)


def headers_of(error: HeadwayError) -> tuple[tuple[bytes, bytes], ...]:
    """Give the headers that an error's answer carries: when to try again, and how to authenticate."""
    headers = []
    if error.retry_after_seconds is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_seconds))))
    if status_of(error) == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return tuple(headers)


def openai_body(error: HeadwayError) -> bytes:
    """Write the error as OpenAI's error JSON; also fit for a ``data:`` line of a stream."""
    status = status_of(error)
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    detail = {"message": error.message, "type": kind, "param": error.param, "code": error.error_code}
    return msgspec.json.encode({"error": detail})


def problem_body(error: HeadwayError) -> bytes:
    """Write the error as RFC 9457 problem JSON with ``code`` and, where a field is at fault, ``param``."""
    status = status_of(error)
    problem: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error.message,
        "code": error.error_code,
    }
    if error.param is not None:
        problem["param"] = error.param
    return msgspec.json.encode(problem)


def render_openai(error: HeadwayError) -> Answer:
    """Answer with OpenAI's error JSON: for the routes that OpenAI clients call."""
    return Answer(status_of(error), openai_body(error), OPENAI_CONTENT_TYPE, headers_of(error))


def render_problem(error: HeadwayError) -> Answer:
    """Answer with RFC 9457 problem JSON: for all routes of Headway's own."""
    return Answer(status_of(error), problem_body(error), PROBLEM_CONTENT_TYPE, headers_of(error))
