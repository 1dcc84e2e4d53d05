"""What can go wrong, as exceptions."""

from __future__ import annotations


class ClientError(Exception):
    """Something went wrong.

    Attributes:
        message: What is wrong and what to do about it.
        status: HTTP status; 0 when there was no answer.
        code: Stable code of the error.
        param: The field at fault, if it is one.
        retry_after_seconds: When trying again can help, if the server said so.
    """

    def __init__(self, message: str, *, status: int = 0, code: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_seconds: float | None = None


class UnreachableError(ClientError):
    """There was no answer: no connection, a timeout, or a broken one."""


class AccessError(ClientError):
    """401 or 403: the API key is missing, unknown, revoked or lacks the scope."""


class InvalidError(ClientError):
    """400, 413, 415 or 422: the request is wrong, or the value does not fit its metric."""


class MissingError(ClientError):
    """404 or 410: there is no such thing, or no longer."""


class ConflictError(ClientError):
    """409: somebody else was first, or the present state forbids it."""


class LimitError(ClientError):
    """429: a limit was reached."""


class ServerError(ClientError):
    """5xx: the server failed, or cannot be reached behind its proxy."""
