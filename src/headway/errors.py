"""One tree of errors; each class has a stable ``code`` that clients may rely on.

::

    HeadwayError
    ├── ConfigurationError        the file, a setting or a secret reference is wrong
    ├── AuthenticationError       no key, an unknown key, a revoked key
    ├── PermissionDeniedError     the key lacks a scope
    ├── LimitError                come back later (``retry_after_seconds``)
    │   ├── RateLimitError
    │   ├── ConcurrencyLimitError
    │   ├── CostCapError
    │   └── OverloadedError
    ├── InvalidRequestError       the request itself is wrong
    │   ├── BodyTooLargeError
    │   ├── BodyTimeoutError
    │   ├── InteractionIdError
    │   ├── FeedbackValueError
    │   └── UnsupportedMediaTypeError
    ├── NotFoundError             what the request names does not exist
    ├── MethodNotAllowedError
    ├── ConflictError             somebody else was first, or the state forbids it
    ├── ExpiredError              it existed and is past retention
    ├── ProviderError             the provider failed after all attempts
    │   ├── ProviderUnavailableError
    │   └── ProviderTimeoutError
    ├── StorageError              the database is away or the embedded server cannot run
    │   └── EmbeddedPostgresError
    ├── RetrievalError            a search index could not be searched
    ├── LakeError                 the data lake cannot be listed
    └── UnreadableDocumentError   one document of the lake cannot be read or parsed; the others can
        └── ChangedDocumentError  it changed, or went, after it was listed

HTTP statuses are mapped in one place: ``headway.api.problems``.
"""

from __future__ import annotations

from typing import ClassVar


class HeadwayError(Exception):
    """Carries a message for a person and a stable code for a program.

    Args:
        message: What is wrong and what to do about it.
        param: The request field that is at fault, in OpenAI's sense.
        code: Overrides the class's code where one class has several.
        retry_after_seconds: When trying again can help.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.error_code = code or self.code
        self.retry_after_seconds = retry_after_seconds


class ConfigurationError(HeadwayError):
    """The configuration file, a setting or a secret reference is wrong."""

    code = "configuration_invalid"


class AuthenticationError(HeadwayError):
    """The request carries no valid API key."""

    code = "invalid_api_key"


class PermissionDeniedError(HeadwayError):
    """The API key is valid but lacks the scope."""

    code = "insufficient_scope"


class LimitError(HeadwayError):
    """A limit was reached; trying again later can help."""

    code = "limit_exceeded"


class RateLimitError(LimitError):
    """The key's requests per minute are used up."""

    code = "rate_limit_exceeded"


class ConcurrencyLimitError(LimitError):
    """The key has as many requests in flight as it may have."""

    code = "concurrency_limit_exceeded"


class CostCapError(LimitError):
    """The key's monthly cost cap is reached."""

    code = "cost_cap_reached"


class OverloadedError(LimitError):
    """The deployment's queue is full, or the gateway is draining."""

    code = "overloaded"


class InvalidRequestError(HeadwayError):
    """The request is malformed."""

    code = "invalid_request"


class BodyTooLargeError(InvalidRequestError):
    """The request body is larger than the gateway accepts."""

    code = "body_too_large"


class BodyTimeoutError(InvalidRequestError):
    """The request body did not come in time."""

    code = "body_timeout"


class UnsupportedMediaTypeError(InvalidRequestError):
    """The request body is not JSON."""

    code = "unsupported_media_type"


class InteractionIdError(InvalidRequestError):
    """The interaction id is truncated, altered, or was not issued by this Headway."""

    code = "invalid_interaction_id"


class FeedbackValueError(InvalidRequestError):
    """The feedback value does not fit its metric."""

    code = "invalid_feedback_value"


class NotFoundError(HeadwayError):
    """What the request names does not exist."""

    code = "not_found"


class MethodNotAllowedError(HeadwayError):
    """The route exists, but not for this method."""

    code = "method_not_allowed"


class ConflictError(HeadwayError):
    """Somebody else was first, or the present state forbids it."""

    code = "conflict"


class ExpiredError(HeadwayError):
    """It existed and is past its retention."""

    code = "expired"


class ProviderError(HeadwayError):
    """The provider failed after all attempts and fallbacks."""

    code = "provider_error"


class ProviderUnavailableError(ProviderError):
    """No deployment could be reached, or each answered with a server error."""

    code = "provider_unavailable"


class ProviderTimeoutError(ProviderError):
    """The provider took longer than the deployment's timeouts allow."""

    code = "provider_timeout"


class StorageError(HeadwayError):
    """The database cannot be reached."""

    code = "storage_unavailable"


class EmbeddedPostgresError(StorageError):
    """The embedded PostgreSQL server cannot be started."""

    code = "embedded_postgres"


class RetrievalError(HeadwayError):
    """An index version could not be searched; the message is for callers and names no host."""

    code = "retrieval_failed"


class LakeError(HeadwayError):
    """The data lake cannot be listed: it is away, missing or empty, or refuses the credentials."""

    code = "lake_unavailable"


class UnreadableDocumentError(HeadwayError):
    """One document of the lake cannot be read or parsed; the message is the reason, for whoever can mend it."""

    code = "unreadable_document"


class ChangedDocumentError(UnreadableDocumentError):
    """The document changed, or went, after it was listed."""

    code = "document_changed"
