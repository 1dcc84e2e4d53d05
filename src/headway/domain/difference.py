"""What differs between two releases: only that can explain a difference between their figures."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from headway.domain.metric import RETRIEVAL_METRICS
from headway.domain.policy import Policy
from headway.domain.release import Bundle, Endpoint, Retrieval

Part = Literal["model", "prompt", "index", "retrieval", "parameters"]
"""``model``: deployment and fallbacks. ``index``: the index version. ``retrieval``: how passages are found in it.
``parameters``: what the release sets in requests, and what clients may override."""

_CONTEXT_LINES = 2
_UNNAMED = Retrieval("", 0)
_NAMES: Mapping[Part, str] = MappingProxyType(
    {
        "model": "model",
        "prompt": "prompt",
        "index": "index version",
        "retrieval": "retrieval parameters",
        "parameters": "parameters",
    }
)

Sign = Literal["same", "removed", "added", "gap"]


class Difference(msgspec.Struct, frozen=True):
    """By which parts two releases differ.

    Attributes:
        parts: Those parts: any of model, prompt, index, retrieval, parameters.
        stable_index: The stable release's index version, as ``handbook@3``; None where it has none.
        candidate_index: The candidate's.
    """

    parts: tuple[Part, ...] = ()
    stable_index: str | None = None
    candidate_index: str | None = None

    @property
    def indexes(self) -> str:
        """Both index versions, as ``handbook@3 -> handbook@4``; empty where they are the same."""
        if "index" not in self.parts:
            return ""
        return f"{self.stable_index or 'none'} -> {self.candidate_index or 'none'}"


@dataclass(frozen=True)
class Change:
    """One difference: what, and its value in stable and candidate; None where a release has none."""

    what: str
    stable: str | None
    candidate: str | None


@dataclass(frozen=True)
class Comparison:
    """All differences of two releases, with their values.

    Attributes:
        changes: Everything but the prompt.
        prompt: The prompts' lines, changed ones with their surroundings; empty where they are the same.
    """

    changes: tuple[Change, ...]
    prompt: tuple[tuple[Sign, str], ...]


def find_difference(stable: Bundle, candidate: Bundle) -> Difference:
    """Say by which parts two releases differ; nothing else can be the cause of what the evidence shows.

    Example:
        >>> endpoint = Endpoint("openai", "http://127.0.0.1:9/v1", "small")
        >>> before, after = (Bundle((("d", endpoint),), retrieval=Retrieval("handbook", n)) for n in (3, 4))
        >>> find_difference(before, after).parts
        ('index',)
    """
    before, after = _parts(stable), _parts(candidate)
    if stable.retrieval is None or candidate.retrieval is None:
        del before["retrieval"]  # the parameters come and go with the index
    return Difference(
        tuple(part for part in before if before[part] != after[part]),
        None if stable.retrieval is None else stable.retrieval.label,
        None if candidate.retrieval is None else candidate.retrieval.label,
    )


def _parts(bundle: Bundle) -> dict[Part, Any]:
    retrieval = bundle.retrieval
    return {
        "model": bundle.deployments,
        "prompt": bundle.prompt,
        "index": None if retrieval is None else retrieval.label,
        "retrieval": _retrieval_parameters(retrieval or _UNNAMED),
        "parameters": (bundle.parameters, bundle.client_may_override),
    }


def _retrieval_parameters(retrieval: Retrieval) -> dict[str, Any]:
    parameters = msgspec.structs.asdict(retrieval)
    del parameters["index"], parameters["version"]
    return parameters


def describe_parts(difference: Difference) -> str:
    """Name the parts in which two releases differ, with their index versions; empty where they differ in none.

    Example:
        >>> describe_parts(Difference(("model", "index"), "handbook@3", "handbook@4"))
        'model and index version (handbook@3 -> handbook@4)'
    """
    names = [f"{_NAMES[part]} ({difference.indexes})" if part == "index" else _NAMES[part] for part in difference.parts]
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def explain_difference(difference: Difference) -> str:
    """Say what a difference in figures can come from; empty where nothing differs.

    Example:
        >>> explain_difference(Difference(("index",), "handbook@3", "handbook@4"))
        'the releases differ in the index version only: handbook@3 -> handbook@4'
    """
    if not difference.parts:
        return ""
    if len(difference.parts) > 1:
        return (
            f"the releases differ in {describe_parts(difference)}, and the evidence cannot tell these apart: rolled out"
            " one after the other, it can"
        )
    versions = f": {difference.indexes}" if difference.indexes else ""
    return f"the releases differ in the {_NAMES[difference.parts[0]]} only{versions}"


def explain_incomparable(policy: Policy, stable: Bundle, candidate: Bundle) -> str:
    """Say why a policy's retrieval metrics cannot be compared between two releases; empty where they can.

    A release without an index has no data of them, and without data nothing passes.
    """
    named = [rule.metric for rule in policy.rules if rule.metric in RETRIEVAL_METRICS]
    bare = [role for role, bundle in (("stable", stable), ("candidate", candidate)) if bundle.retrieval is None]
    if not named or not bare:
        return ""
    whose = f"the {bare[0]} release has no index" if len(bare) == 1 else "neither release has an index"
    return (
        f"{whose}, so there is nothing to compare {', '.join(named)} with: give this rollout a policy without"
        f" {'it' if len(named) == 1 else 'them'}"
    )


def compare(stable: Bundle, candidate: Bundle) -> Comparison:
    """List what differs, with values."""
    both = stable.retrieval is not None and candidate.retrieval is not None
    before, after = _facts(stable, defaults=both), _facts(candidate, defaults=both)
    names = dict.fromkeys((*before, *after))
    changes = (Change(name, before.get(name), after.get(name)) for name in names)
    return Comparison(
        changes=tuple(change for change in changes if change.stable != change.candidate),
        prompt=() if stable.prompt == candidate.prompt else tuple(_lines(stable.prompt or "", candidate.prompt or "")),
    )


def _facts(bundle: Bundle, *, defaults: bool) -> dict[str, str]:
    name, endpoint = bundle.deployments[0]
    facts = {"deployment": name, "model": endpoint.model, "endpoint": _write_endpoint(endpoint)}
    if bundle.deployments[1:]:
        facts["fallbacks"] = ", ".join(f"{each} ({where.model})" for each, where in bundle.deployments[1:])
    facts |= {parameter: _write(value) for parameter, value in sorted(bundle.parameters.items())}
    if bundle.client_may_override:
        facts["client may override"] = ", ".join(bundle.client_may_override)
    if bundle.retrieval is not None:
        facts["index"] = bundle.retrieval.label
        usual = {} if defaults else _retrieval_parameters(_UNNAMED)
        facts |= {
            each if each == "top_k" else f"retrieval.{each}": _write(value)
            for each, value in _retrieval_parameters(bundle.retrieval).items()
            if each not in usual or value != usual[each]
        }
    return facts


def _write_endpoint(endpoint: Endpoint) -> str:
    version = f" ({endpoint.api_version})" if endpoint.api_version else ""
    return f"{endpoint.provider} at {endpoint.base_url}{version}"


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
