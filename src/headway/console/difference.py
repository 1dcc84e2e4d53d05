"""What differs between two releases: only that can explain a difference between their figures."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import msgspec

from headway.domain.release import Bundle, Endpoint, Retrieval

_CONTEXT_LINES = 2

Sign = Literal["same", "removed", "added", "gap"]


@dataclass(frozen=True)
class Change:
    """One difference: what, and its value in stable and candidate; None where a release has none."""

    what: str
    stable: str | None
    candidate: str | None


@dataclass(frozen=True)
class Difference:
    """All differences of two releases.

    Attributes:
        changes: Everything but the prompt.
        prompt: The prompts' lines, changed ones with their surroundings; empty where they are the same.
    """

    changes: tuple[Change, ...]
    prompt: tuple[tuple[Sign, str], ...]


def compare(stable: Bundle, candidate: Bundle) -> Difference:
    """Find what differs."""
    before, after = _facts(stable), _facts(candidate)
    names = dict.fromkeys((*before, *after))
    changes = (Change(name, before.get(name), after.get(name)) for name in names)
    return Difference(
        changes=tuple(change for change in changes if change.stable != change.candidate),
        prompt=() if stable.prompt == candidate.prompt else tuple(_lines(stable.prompt or "", candidate.prompt or "")),
    )


def _facts(bundle: Bundle) -> dict[str, str]:
    name, endpoint = bundle.deployments[0]
    facts = {"deployment": name, "model": endpoint.model, "endpoint": _write_endpoint(endpoint)}
    if bundle.deployments[1:]:
        facts["fallbacks"] = ", ".join(f"{each} ({where.model})" for each, where in bundle.deployments[1:])
    facts |= {parameter: _write(value) for parameter, value in sorted(bundle.parameters.items())}
    if bundle.client_may_override:
        facts["client may override"] = ", ".join(bundle.client_may_override)
    if bundle.retrieval is not None:
        facts |= _write_retrieval(bundle.retrieval)
    return facts


def _write_endpoint(endpoint: Endpoint) -> str:
    version = f" ({endpoint.api_version})" if endpoint.api_version else ""
    return f"{endpoint.provider} at {endpoint.base_url}{version}"


def _write_retrieval(retrieval: Retrieval) -> dict[str, str]:
    return {"index": f"{retrieval.index}@{retrieval.version}", "passages": str(retrieval.top_k)}


def _write(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _lines(before: str, after: str) -> list[tuple[Sign, str]]:
    lines: list[tuple[Sign, str]] = []
    difference = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=_CONTEXT_LINES)
    for line in islice(difference, 2, None):  # behind the two lines that name files
        if line.startswith("@@"):
            if lines:
                lines.append(("gap", ""))
        else:
            sign: Sign = "removed" if line.startswith("-") else "added" if line.startswith("+") else "same"
            lines.append((sign, line[1:]))
    return lines
