"""Interactions for tests."""

import hashlib
from typing import Any

from headway.domain.interaction import Interaction
from headway.ids import Arm, Kind, uuid7

START_MS = 1_790_000_000_000


def make_interaction(unix_ms: int = START_MS, unit: str = "ann", **fields: Any) -> Interaction:
    """An answered chat request of rollout 1, stage 1, stable arm, unless told otherwise."""
    values: dict[str, Any] = {
        "id": uuid7(unix_ms),
        "application": 1,
        "release": 1,
        "rollout": 1,
        "stage": 1,
        "arm": Arm.STABLE,
        "kind": Kind.MANUAL,
        "unit": hashlib.blake2b(unit.encode(), digest_size=8).digest(),
        "own_unit": False,
        "key": 1,
        "conversation": unit,
        "user": None,
        "operation": "chat",
        "stream": False,
        "status": 200,
        "deployment": "local",
        "attempts": 1,
        "input_tokens": 12,
        "cached_tokens": 0,
        "output_tokens": 34,
        "cost_usd": 0.000_25,
        "first_token_ms": 120.5,
        "total_ms": 480.25,
        "overhead_ms": 0.4,
        "request": b'{"messages": []}',
        "answer": b'{"choices": []}',
    }
    return Interaction(**{**values, **fields})
