"""Snapshots and requests for tests of the request path, without a database."""

from __future__ import annotations

from typing import Any

import msgspec

from headway.domain.interaction import Interaction
from headway.domain.metric import BUILT_IN_FEEDBACK
from headway.domain.release import Bundle, Deployment, Endpoint, Operation
from headway.domain.snapshot import ApplicationRoute, KeyRoute, ReleaseRoute, RolloutRoute, SigningKeys, Snapshot
from headway.gateway.parsing import ParsedRequest, parse_request
from headway.ids import Kind
from tests.interactions import make_interaction

NOW_MS = 1_790_000_000_000
ANSWER_ID = b"hw_" + b"a" * 79


def make_deployment(name: str = "main", base_url: str = "http://127.0.0.1:9/v1", **fields: Any) -> Deployment:
    """A deployment without authentication; further fields are those of its endpoint and operation."""
    at = {key: fields.pop(key) for key in list(fields) if key in Endpoint.__struct_fields__}
    endpoint = Endpoint(**{"provider": "openai", "base_url": base_url, "model": "m", **at})
    return Deployment(name, endpoint, Operation(**{"auth": "none", **fields}))


def make_release(number: int = 1, name: str = "", *deployments: Deployment, **bundle: Any) -> ReleaseRoute:
    """A release; further fields are those of its bundle."""
    served = deployments or (make_deployment(),)
    content = Bundle(deployments=tuple((each.name, each.endpoint) for each in served), **bundle)
    return ReleaseRoute(number, name or f"release-{number}", content, served)


def make_key(*scopes: Any, **fields: Any) -> KeyRoute:
    """An API key, number 7, that may call every application."""
    return KeyRoute(**{"number": 7, "name": "team", "scopes": scopes or ("invoke",), **fields})


def make_rollout(share: float = 0.5, **fields: Any) -> RolloutRoute:
    """Rollout 5 towards release 2."""
    values = {"number": 5, "candidate": 2, "salt": b"s" * 16, "stage": 3, "share": share, "kind": int(Kind.MANUAL)}
    return RolloutRoute(**{**values, **fields})


def make_application(**fields: Any) -> ApplicationRoute:
    """The application ``support``, number 1, with the releases 1 (stable) and 2."""
    values = {
        "number": 1,
        "name": "support",
        "unit": "conversation",
        "stable": 1,
        "rollout": None,
        "releases": {"release-1": 1, "release-2": 2},
        "record_content": True,
        "metrics": dict(BUILT_IN_FEEDBACK),
        "retention_days": 90,
    }
    return ApplicationRoute(**{**values, **fields})


def make_snapshot(*applications: ApplicationRoute, **fields: Any) -> Snapshot:
    """A snapshot with two releases, and ``support`` unless told otherwise."""
    served = applications or (make_application(),)
    values = {
        "number": 1,
        "unix_ms": NOW_MS,
        "applications": {each.name: each for each in served},
        "releases": {1: make_release(1), 2: make_release(2)},
        "keys": {"0" * 64: make_key()},
        "revoked": (),
        "signing": SigningKeys({1: b"a" * 32}, 1, b"u" * 32),
    }
    return Snapshot(**{**values, **fields})


def ask(operation: Any = "chat", **fields: Any) -> ParsedRequest:
    """A parsed request; a chat says hello unless told otherwise."""
    usual: dict[str, Any] = {"model": "support"}
    if operation == "chat":
        usual["messages"] = [{"role": "user", "content": "hello"}]
    else:
        usual["input"] = "hello"
    return parse_request(operation, msgspec.json.encode({**usual, **fields}))


def begun(operation: Any = "chat", **fields: Any) -> Interaction:
    """An interaction of which nothing but the request is known."""
    nothing = dict.fromkeys(("input_tokens", "cached_tokens", "output_tokens", "cost_usd", "first_token_ms"))
    return make_interaction(operation=operation, status=0, attempts=0, deployment="", **{**nothing, **fields})
