"""Settings: what does not fit is said with the variable's name, before anything starts."""

from __future__ import annotations

import pytest

from headway.config.settings import Settings, load_settings
from headway.errors import ConfigurationError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((port, value) for port in ("PORT", "ADMIN_PORT") for value in ("0", "65536", "-1", "http")),
        *(("WORKERS", value) for value in ("0", "-1", "65", "2.5")),
        *(
            (name, value)
            for name in ("MAX_BODY_MB", "SPOOL_MB", "DRAIN_SECONDS")
            for value in ("0", "-1", "nan", "inf")
        ),
        ("QUEUE_SIZE", "0"),
        *(("TICK_SECONDS", value) for value in ("0", "-5", "3601", "nan")),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_value_that_does_not_fit(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"HEADWAY_{name} does not fit: "):
        load_settings({f"HEADWAY_{name}": value})


def test_an_empty_variable_is_not_set() -> None:
    assert load_settings({"HEADWAY_PORT": "", "HEADWAY_WORKERS": "64"}).port == Settings().port
