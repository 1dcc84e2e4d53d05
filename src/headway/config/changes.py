"""What differs between two specifications, in the words of headway.yaml."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from headway.config.indexes import LOCAL_STATIC, IndexReference, IndexSpec
from headway.config.quantities import format_duration, format_share
from headway.config.spec import ApplicationSpec, Specification, WebhookSpec
from headway.domain.policy import MetricRule, Policy, StageRule
from headway.domain.release import Deployment, Retrieval

Action = Literal["created", "changed", "removed"]

_SHOWN_CHARACTERS = 60
# Where a field of the frozen types is called otherwise in the file.
_KEYS = {
    "connect_seconds": "timeouts.connect (seconds)",
    "first_token_seconds": "timeouts.first_token (seconds)",
    "total_seconds": "timeouts.total (seconds)",
    "queue_size": "queue.size",
    "queue_seconds": "queue.wait (seconds)",
    "breaker_failures": "circuit.failures",
    "breaker_seconds": "circuit.open (seconds)",
    "record_content": "record prompts and answers",
    "retention_days": "retention (days)",
    "dwell_seconds": "dwell",
    "feedback_window_seconds": "feedback_window",
    "settle_seconds": "settle",
    "max_duration_seconds": "max_duration",
}


class Change(msgspec.Struct, frozen=True):
    """One thing of the file that is new, different or gone.

    Attributes:
        action: Which of them.
        subject: What, such as ``deployment local``.
        details: For a change, one line per key: what it was and what it becomes.
    """

    action: Action
    subject: str
    details: tuple[str, ...] = ()


def compare(before: Specification | None, after: Specification) -> tuple[Change, ...]:
    """List what changes from one specification to another; prompts are compared line by line."""
    old = {} if before is None else _subjects(before)
    new = _subjects(after)
    changes = []
    for subject in [*new, *(subject for subject in old if subject not in new)]:
        if subject not in old:
            changes.append(Change("created", subject))
        elif subject not in new:
            changes.append(Change("removed", subject))
        elif old[subject] != new[subject]:
            changes.append(Change("changed", subject, tuple(_details(old[subject], new[subject]))))
    return tuple(changes)


def prompts(specification: Specification) -> dict[str, str]:
    """List the prompts' texts by application, to compare them."""
    found = {name: application.release.bundle.prompt for name, application in specification.applications.items()}
    return {name: prompt for name, prompt in found.items() if prompt is not None}


def diff_texts(before: str, after: str, names: tuple[str, str]) -> str:
    """Compare two texts as a unified diff; empty when they are the same."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), *names, lineterm="")
    return "".join(f"{line}\n" for line in lines)


def _subjects(specification: Specification) -> dict[str, dict[str, Any]]:
    """Lay each thing of the file out as flat keys and plain values."""
    subjects = {f"deployment {name}": _deployment(value) for name, value in specification.deployments.items()}
    subjects |= {f"metric {name}": msgspec.structs.asdict(value) for name, value in specification.metrics.items()}
    subjects |= {f"application {name}": _application(value) for name, value in specification.applications.items()}
    subjects |= {f"policy {name}": _policy(value) for name, value in specification.policies.items()}
    subjects |= {f"webhook {value.url}": _webhook(value) for value in specification.webhooks}
    subjects |= {f"index {name}": _index(value) for name, value in specification.indexes.items()}
    return subjects


def _deployment(deployment: Deployment) -> dict[str, Any]:
    prices = deployment.operation.usd_per_million_tokens
    plain = msgspec.structs.asdict(deployment.endpoint) | msgspec.structs.asdict(deployment.operation)
    plain |= {"headers": dict(deployment.operation.headers)}
    plain["usd_per_million_tokens"] = None if prices is None else msgspec.structs.asdict(prices)
    return _flatten(plain)


def _application(application: ApplicationSpec) -> dict[str, Any]:
    bundle = application.release.bundle
    plain = msgspec.structs.asdict(application) | {
        "metrics": sorted(application.metrics),
        "release": {
            "name": application.release.name,
            "deployments": [name for name, _ in bundle.deployments],
            "endpoints": [msgspec.json.encode(endpoint).decode() for _, endpoint in bundle.deployments],
            "prompt": bundle.prompt,
            "parameters": bundle.parameters,
            "client_may_override": list(bundle.client_may_override),
            **_retrieval(bundle.retrieval),
        },
    }
    return _flatten(plain)


def _retrieval(retrieval: Retrieval | None) -> dict[str, Any]:
    if retrieval is None:
        return {}
    plain = msgspec.structs.asdict(retrieval)
    index = str(IndexReference(plain.pop("index"), plain.pop("version")))
    return {"index": index, "top_k": plain.pop("top_k"), "retrieval": plain}


def _index(index: IndexSpec) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(index))
    embedder, store = plain.pop("embedder"), plain["lake"]
    subset = {key: store.pop(key) for key in ("include", "exclude", "prefix", "modified_since")}
    plain |= {"embedder": embedder.pop("deployment") or LOCAL_STATIC, "labels": dict(plain["labels"])}
    if index.embedder.deployment:
        plain |= {f"embedder.{key}": value for key, value in embedder.items()}
    return _flatten(plain | subset)


def _policy(policy: Policy) -> dict[str, Any]:
    plain = msgspec.structs.asdict(policy)
    plain |= {key: format_duration(value) for key, value in plain.items() if key.endswith("_seconds")}
    plain |= {"kill_switch": msgspec.structs.asdict(policy.kill_switch), "stages": list(map(_stage, policy.stages))}
    plain["baselines"] = {name: msgspec.structs.asdict(value) for name, value in policy.baselines.items()}
    if policy.shadow is not None:
        plain["shadow"] = msgspec.structs.asdict(policy.shadow)
    if policy.holdback is not None:
        rule = policy.holdback
        plain["holdback"] = {"share": rule.share, "duration": format_duration(rule.seconds), "alpha": rule.alpha}
    del plain["rules"]
    return _flatten(plain) | {f"{rule.role} {rule.metric}": _rule(rule) for rule in policy.rules}


def _stage(stage: StageRule) -> str:
    return format_share(stage.share) + (" when approved" if stage.approve else "")


def _rule(rule: MetricRule) -> str:
    scale, unit = (100, "pp") if rule.method == "two_sample" else (1, "")
    noun = "margin" if rule.form == "points" else "ratio"
    lines = f"{noun} {rule.margin * scale:g}{unit}, harm {rule.harm * scale:g}{unit}, weight {rule.weight:.3g}"
    floor = f", floor {format_share(rule.floor)}" if rule.floor else ""
    return lines + (", superior" if rule.require == "superior" else "") + floor


def _webhook(webhook: WebhookSpec) -> dict[str, Any]:
    return {"secret": webhook.secret, "events": list(webhook.events)}


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = prefix + _KEYS.get(key, key)
        if isinstance(item, Mapping):
            flat |= _flatten(item, f"{name}.")
        else:
            flat[name] = item
    return flat


def _details(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in [*new, *(name for name in old if name not in new)]:
        before, after = old.get(name), new.get(name)
        if before == after and type(before) is type(after):
            continue
        if name == "release.prompt" and isinstance(before, str) and isinstance(after, str):
            yield f"{name}: {_line_counts(before, after)}"
        else:
            yield f"{name}: {_shown(before)} -> {_shown(after)}"


def _line_counts(before: str, after: str) -> str:
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    added = sum(line.startswith("+ ") for line in lines)
    removed = sum(line.startswith("- ") for line in lines)
    plural = "line" if added == 1 else "lines"
    return f"{added} {plural} added, {removed} removed" if added or removed else "white space at the end"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        text = ", ".join(map(_shown, value)) or "none"
    else:
        text = value.strip() if isinstance(value, str) else msgspec.json.encode(value).decode()
    first, _, rest = text.partition("\n")
    return f"{first[: _SHOWN_CHARACTERS - 3]}..." if rest or len(first) > _SHOWN_CHARACTERS else first or '""'
