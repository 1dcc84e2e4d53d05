"""Logs: one JSON object per line (or text for people) on standard error, secrets masked, libraries included.

Loggers come from ``structlog.get_logger("headway.<module>")``. What ``structlog.contextvars.bind_contextvars`` binds
(``request``, ``interaction``) is on every line of that request. A line below the level costs a fraction of a
microsecond: nothing of it is put together.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
from collections.abc import Mapping
from typing import Any, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from headway.config.settings import Settings

MASK = "***"
"""What stands in a log line where a secret was."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# Libraries say at "info" what is "debug" to an operator: they are kept one level quieter.
_LIBRARY_LEVELS = {**_LEVELS, "debug": logging.INFO, "info": logging.WARNING}
_FIRST = ("timestamp", "level", "logger", "event")
_DEEPEST = 6
_LARGEST_JSON_INTEGER = 1 << 63

_SECRET_NAME = re.compile(
    r"(?:^|_)(?:authorization|api_?key|pass(?:word|wd|phrase)|secrets?|cookies?|credentials?"
    r"|private_?key|signing_?keys?|unit_?key|client_?secret|(?:access|refresh|auth|bearer|id|entra|session)_?token)$"
    r"|^token$|^dsn$"
)
_SECRET_TEXT = re.compile(
    r"(?P<url>://[^\s:/@]*:)[^\s/]+(?=@)"  # postgresql://user:password@host
    r"|(?P<pair>\b(?:password|api[-_]?key|access_token|client_secret)['\"]?\s*[=:]\s*)"
    r"(?:'[^']*'|\"[^\"]*\"|[^\s&'\",}]+)"
    r"|(?P<scheme>\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}"
    r"|\b(?:hw|sk)-[A-Za-z0-9_-]{20,}",  # API keys: Headway's, and the providers'
    re.IGNORECASE,
)


def configure_logs(settings: Settings, stream: TextIO | None = None) -> None:
    """Set up the logs of this process, those of the libraries with them. May be called again.

    Args:
        settings: ``log_level`` and ``log_format`` count.
        stream: Where to write; standard error by default.
    """
    lines = _Lines(sys.stderr if stream is None else stream)
    structlog.configure(
        processors=_processors(settings, lines.stream),
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.log_level]),
        logger_factory=lines,
        cache_logger_on_first_use=True,
    )
    library_level = _LIBRARY_LEVELS[settings.log_level]
    forwarder = _Forwarder()
    forwarder.setLevel(library_level)  # also for loggers with a level of their own, such as Granian's
    root = logging.getLogger()
    root.handlers[:] = [forwarder]
    root.setLevel(library_level)
    # Whoever uses the pool says itself when the database is away; the pool would say it for each connection.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)


def granian_logging() -> dict[str, Any]:
    """Give Granian's ``log_dictconfig``: leave the loggers alone, so that they go where all others go."""
    return {
        "version": 1,
        "incremental": True,
        "formatters": {},
        "handlers": {},
        "loggers": {"_granian": {}, "granian.access": {}},
    }


def mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask every value whose name says that it is secret, and every secret inside a text."""
    return {name: _masked(name, value, 0) for name, value in event.items()}


def _masked(name: object, value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(name, str) and _SECRET_NAME.search(name.lower().replace("-", "_")):
        return MASK
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < _LARGEST_JSON_INTEGER):
        return value
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        if depth == _DEEPEST:
            return "..."
        if isinstance(value, Mapping):
            return {_text(key): _masked(_text(key), item, depth + 1) for key, item in value.items()}
        return [_masked(None, item, depth + 1) for item in value]
    return _SECRET_TEXT.sub(_keep_around, _text(value))


def _keep_around(match: re.Match[str]) -> str:
    return (match["url"] or match["pair"] or match["scheme"] or "") + MASK


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    text = str(value)
    # A lone surrogate, from broken JSON, cannot be written.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _processors(settings: Settings, stream: TextIO) -> list[Processor]:
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_logger,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.log_format == "console":
        # Plain tracebacks: the pretty ones show local variables, and so secrets.
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)
        return [*shared, structlog.processors.format_exc_info, mask_secrets, renderer]
    return [*shared, structlog.processors.format_exc_info, mask_secrets, _render_json]


def _add_logger(logger: _Line, _method: str, event: EventDict) -> EventDict:
    event.setdefault("logger", logger.name)
    return event


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    ordered = {name: event.pop(name) for name in _FIRST if name in event}
    return msgspec.json.encode({**ordered, **event}).decode()


class _Lines:
    """Makes the loggers that write to one stream, a whole line at a time."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._lock = threading.Lock()

    def __call__(self, name: str = "headway", *_: object) -> _Line:
        return _Line(self, name)

    def write(self, line: str) -> None:
        # Nobody may read standard error any more. That must not fail a request, and there is nowhere to say it.
        with contextlib.suppress(OSError, ValueError), self._lock:
            self.stream.write(line + "\n")
            self.stream.flush()


class _Line:
    """What structlog hands a finished line to, one method per level."""

    def __init__(self, lines: _Lines, name: str) -> None:
        self.name = name
        self.debug = self.info = self.warning = self.error = self.critical = lines.write


class _Forwarder(logging.Handler):
    """Sends what libraries log with the standard library down the same way."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # structlog knows the round levels only.
            level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
            exc_info = {"exc_info": record.exc_info} if record.exc_info else {}
            structlog.get_logger(record.name).log(level, record.getMessage(), **exc_info)
        except Exception:  # noqa: BLE001 - as in the standard handlers: a library's bad log call fails nobody
            self.handleError(record)
