"""URLs of deployments, and what ``Retry-After`` asks for."""

from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from headway.domain.release import Endpoint
from headway.providers.client import call_url, parse_retry_after
from tests.routes import NOW_MS

AZURE = Endpoint("azure_openai", "https://contoso.openai.azure.com", "gpt 5/mini", "2024-10-21")


@pytest.mark.parametrize(
    ("endpoint", "operation", "url"),
    [
        (Endpoint("openai", "http://h/v1", "m"), "chat", "http://h/v1/chat/completions"),
        (Endpoint("openai", "http://h/v1/", "m"), "responses", "http://h/v1/responses"),
        (Endpoint("openai", "http://h/v1", "m"), "embeddings", "http://h/v1/embeddings"),
        (
            AZURE,
            "chat",
            "https://contoso.openai.azure.com/openai/deployments/gpt%205%2Fmini/chat/completions?api-version=2024-10-21",
        ),
        (
            AZURE,
            "embeddings",
            "https://contoso.openai.azure.com/openai/deployments/gpt%205%2Fmini/embeddings?api-version=2024-10-21",
        ),
        (AZURE, "responses", "https://contoso.openai.azure.com/openai/responses?api-version=2024-10-21"),
        (
            Endpoint("azure_openai", "https://contoso.openai.azure.com/", "m"),
            "chat",
            "https://contoso.openai.azure.com/openai/v1/chat/completions",
        ),
    ],
)
def test_each_dialect_has_its_urls(endpoint: Endpoint, operation: Any, url: str) -> None:
    assert call_url(endpoint, operation) == url


def asked(**headers: str) -> float | None:
    return parse_retry_after(CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()}), NOW_MS)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0), ("2", 2), (" 2 ", 2), ("1.5", 1.5), ("86400", 86400), ("-1", None), ("soon", None), ("", None)],
)
def test_seconds(value: str, seconds: float | None) -> None:
    assert asked(Retry_After=value) == seconds


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "9" * 400, "²", "1.2.3", "Fri, 99 Foo 9999"])
def test_nonsense_is_nothing(value: str) -> None:
    assert asked(Retry_After=value) is None


def test_dates() -> None:
    date = datetime.fromtimestamp(NOW_MS // 1000 + 30, UTC)
    assert asked(Retry_After=format_datetime(date, usegmt=True)) == pytest.approx(30)
    assert asked(Retry_After=format_datetime(date.replace(year=2020), usegmt=True)) == 0


@pytest.mark.parametrize(("value", "seconds"), [("1500", 1.5), ("-5", 0), ("nan", None), ("inf", None), ("x", None)])
def test_milliseconds_come_first(value: str, seconds: float | None) -> None:
    assert asked(retry_after_ms=value, Retry_After="9") == seconds


def test_nothing_asked_is_nothing() -> None:
    assert asked() is None


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
def test_any_text_is_a_wait_or_nothing(text: str) -> None:
    seconds = asked(Retry_After=text)
    assert seconds is None or 0 <= seconds < float("inf")
