"""Logs: their form, their levels, and that no secret gets into them."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import timeit
import uuid
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from headway.config.logs import MASK, configure_logs, granian_logging, mask_secrets
from headway.config.settings import Settings, load_settings
from headway.errors import ConfigurationError

API_KEY = "hw-" + "A1b2_" * 8 + "xyz"


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


def start(level: Literal["debug", "info", "warning", "error"] = "info", form: Any = "json") -> io.StringIO:
    stream = io.StringIO()
    configure_logs(Settings(log_level=level, log_format=form), stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().split("\n") if line]


def masked(**event: Any) -> dict[str, Any]:
    return dict(mask_secrets(None, "info", event))


def test_a_line_is_json_with_its_ids_and_utc_time() -> None:
    stream = start()
    structlog.contextvars.bind_contextvars(request="r-1", interaction="i-1")
    structlog.get_logger("headway.gateway").info("answered", tokens=12, unit=uuid.UUID(int=7), who="ann")
    [line] = lines(stream)
    assert list(line)[:4] == ["timestamp", "level", "logger", "event"]
    assert line["timestamp"].endswith("Z")
    del line["timestamp"]
    assert line == {
        "level": "info",
        "logger": "headway.gateway",
        "event": "answered",
        "tokens": 12,
        "unit": str(uuid.UUID(int=7)),
        "who": "ann",
        "request": "r-1",
        "interaction": "i-1",
    }


def test_an_exception_stays_on_its_line() -> None:
    stream = start()
    try:
        raise ValueError("boom\nbang")
    except ValueError:
        structlog.get_logger("x").exception("failed")
    [line] = lines(stream)
    assert line["level"] == "error"
    assert "ValueError: boom\nbang" in line["exception"]
    assert "exc_info" not in line


def test_the_level_filters() -> None:
    stream = start("warning")
    log = structlog.get_logger("x")
    log.info("quiet")
    log.warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_a_filtered_line_costs_next_to_nothing() -> None:
    start("warning")
    log = structlog.get_logger("x")
    log.debug("first call binds")
    calls = 20_000
    seconds = min(timeit.repeat(lambda: log.debug("quiet", a=1, b=2), number=calls, repeat=3))
    assert seconds / calls < 5e-6  # measured 0.2 us; the bound leaves room for a busy machine


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["told", "careful", "bad"]),
        ("info", ["careful", "bad"]),
        ("warning", ["careful", "bad"]),
        ("error", ["bad"]),
    ],
)
def test_libraries_go_the_same_way_a_level_quieter(level: Any, expected: list[str]) -> None:
    stream = start(level)
    library = logging.getLogger("some.library")
    library.debug("chatter")
    library.info("told")
    library.warning("careful")
    library.error("bad")
    found = lines(stream)
    assert [line["event"] for line in found] == expected
    assert found[-1]["logger"] == "some.library"
    assert found[-1]["level"] == "error"


def test_odd_records_of_libraries_are_written() -> None:
    stream = start()
    logging.getLogger("lib").log(35, "between levels: %d", 5)
    try:
        raise KeyError("k")
    except KeyError:
        logging.getLogger("lib").exception("broke at %s", "https://u:pw@host")
    between, broke = lines(stream)
    assert (between["level"], between["event"]) == ("warning", "between levels: 5")
    assert broke["event"] == f"broke at https://u:{MASK}@host"
    assert "KeyError" in broke["exception"]


def test_a_librarys_bad_log_call_fails_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    stream = start()
    arguments = ("one",)
    logging.getLogger("lib").error("two %s %s", *arguments)
    assert lines(stream) == []
    assert "not enough arguments" in capsys.readouterr().err


def test_warnings_become_lines() -> None:
    stream = start()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn("old thing", UserWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    [line] = lines(stream)
    assert line["logger"] == "py.warnings"
    assert "old thing" in line["event"]


def test_console_lines_are_masked_too() -> None:
    stream = start(form="console")
    structlog.get_logger("x").info("hello", api_key=API_KEY, city="Paris")
    assert "hello" in stream.getvalue()
    assert "Paris" in stream.getvalue()
    assert API_KEY not in stream.getvalue()


def test_a_closed_stream_fails_nobody() -> None:
    stream = start()
    stream.close()
    structlog.get_logger("x").error("nobody hears")


@pytest.mark.parametrize(
    "name",
    [
        "api_key", "API-Key", "apikey", "x-api-key", "openai_api_key", "authorization", "Authorization", "password",
        "db_password", "secret", "client_secret", "cookie", "set-cookie", "token", "access_token", "signing_keys",
    ],
)  # fmt: skip
def test_values_of_secret_names_are_masked_wherever_they_are(name: str) -> None:
    assert masked(**{name: "s3cret"}) == {name: MASK}
    assert masked(headers={name: ["s3cret"]}) == {"headers": {name: MASK}}
    assert masked(headers={name.encode(): b"s3cret"}) == {"headers": {name: MASK}}
    assert masked(rows=[{"deep": {name: 1234}}]) == {"rows": [{"deep": {name: MASK}}]}


@pytest.mark.parametrize(
    "name", ["key", "input_tokens", "output_tokens", "max_tokens", "first_token_ms", "key_id", "author", "keyboard"]
)
def test_values_of_other_names_are_kept(name: str) -> None:
    assert masked(**{name: 12}) == {name: 12}
    assert masked(**{name: "twelve"}) == {name: "twelve"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://ann:s3cret@db:5432/headway", f"postgresql://ann:{MASK}@db:5432/headway"),
        ("postgresql://ann:s3@cret@db/headway", f"postgresql://ann:{MASK}@db/headway"),
        ("at postgresql://:s3cret@db and on", f"at postgresql://:{MASK}@db and on"),
        ("host=db password=s3cret user=ann", f"host=db password={MASK} user=ann"),
        ("host=db password='s3 cret' user=ann", f"host=db password={MASK} user=ann"),
        ('{"api_key": "s3cret", "a": 1}', f'{{"api_key": {MASK}, "a": 1}}'),
        ("https://x/y?api-key=s3cret&z=1", f"https://x/y?api-key={MASK}&z=1"),
        ("Authorization: Bearer abc.def-ghi_jkl", f"Authorization: Bearer {MASK}"),
        (f"the key {API_KEY} was refused", f"the key {MASK} was refused"),
        ("sk-proj-abcdefghijklmnopqrstu", MASK),
    ],
)
def test_secrets_inside_texts_are_masked(text: str, expected: str) -> None:
    assert masked(event=text) == {"event": expected}
    assert masked(detail=[text.encode()]) == {"detail": [expected]}
    assert masked(error=ValueError(text)) == {"error": expected}


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8080/v1",
        "see https://example.com/a:b",
        "password is wrong",
        "a bearer of news",
        "hw-short",
        "12:30@noon",
    ],
)
def test_other_texts_are_kept(text: str) -> None:
    assert masked(event=text) == {"event": text}


def test_secrets_in_tracebacks_are_masked() -> None:
    stream = start()
    try:
        raise OSError("cannot reach postgresql://ann:s3cret@db/x")
    except OSError:
        structlog.get_logger("x").exception("failed")
    assert "s3cret" not in stream.getvalue()
    assert "cannot reach" in stream.getvalue()


TEXTS = st.text(st.characters(exclude_categories=()))
VALUES = st.recursive(
    st.none() | st.integers() | st.floats() | TEXTS | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_whatever_is_logged_is_one_line_of_json(value: Any) -> None:
    stream = start()
    structlog.get_logger("x").info("event", value=value)
    assert len(lines(stream)) == 1


@pytest.mark.parametrize("variable", ["HEADWAY_LOG_LEVEL", "HEADWAY_LOG_FORMAT"])
def test_unknown_levels_and_formats_are_refused(variable: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        load_settings({variable: "loud"})


def test_granians_own_logs_are_ours() -> None:
    """In a process of its own, as Granian configures logging for the whole process."""
    program = """
import logging
from granian.log import LogLevels, configure_logging
from headway.config.logs import configure_logs, granian_logging
from headway.config.settings import Settings
configure_logs(Settings())
configure_logging(LogLevels.info, granian_logging())
logging.getLogger("_granian").warning("worker %s died", 3)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    line = json.loads(done.stderr)
    assert (line["logger"], line["event"]) == ("_granian", "worker 3 died")
    assert done.stdout == b""
    assert granian_logging()["incremental"]
