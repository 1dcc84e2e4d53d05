"""Load headway.yaml: every problem found at once, or one frozen specification."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.config.document import Document, Place, Problem, nearest, parse, read, scan_for_secrets
from headway.config.indexes import check_indexes, check_retrieval, freeze_index, freeze_retrieval
from headway.config.prompts import prompt_problem
from headway.config.rules import Feedback, check_use, resolve_policy
from headway.config.schema import INVALID, secret_problem
from headway.config.spec import (
    DAY_SECONDS,
    FILE,
    MANUAL,
    OPENAI_URL,
    ApplicationSpec,
    PromptSource,
    ReleaseSpec,
    Specification,
    WebhookSpec,
)
from headway.domain.metric import BUILT_IN_FEEDBACK, MEASURED, VALUE_METRICS, FeedbackMetric
from headway.domain.policy import Policy
from headway.domain.release import Bundle, Deployment, Endpoint, Operation, Prices
from headway.errors import ConfigurationError

_SENSITIVE_HEADER = re.compile(r"authori[sz]ation|cookie|key|token|secret|password|credential|signature", re.IGNORECASE)

_MEASURED = frozenset([*MEASURED, *(metric.name for metric in VALUE_METRICS)])

Tree = Mapping[str, Any]  # as the schema read it: defaults filled in, INVALID where a problem was noted


@dataclass(frozen=True)
class ConfigurationFile:
    """A sound configuration file: its text as it stands and what it means."""

    path: Path
    source: str
    specification: Specification


class InvalidFileError(ConfigurationError):
    """The file has problems; ``problems`` lists all of them, in the order of their lines."""

    def __init__(self, file: str, problems: Sequence[Problem]) -> None:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{file} has {count}:", *(f"  {problem}" for problem in problems)]))
        self.problems = tuple(problems)


def load(path: Path) -> ConfigurationFile:
    """Read, check and freeze a configuration file with the prompts that it names; needs no network and no database.

    Raises:
        InvalidFileError: Something in it is wrong.
        ConfigurationError: It cannot be read.
    """
    source = read(path, str(path))
    document = parse(source, str(path))
    tree: Any = INVALID
    prompts: dict[str, str] = {}
    policies: dict[str, Policy] = {}
    if document.root is not None:
        tree = FILE.read(document.root, (), document)
    elif not document.problems:
        document.complain((), "the file is empty")
    if tree is not INVALID:
        _check_deployments(tree, document)
        _check_metrics(tree, document)
        policies = _resolve_policies(tree, document)
        _check_applications(tree, policies, document)
        _check_webhooks(tree, document)
        check_indexes(tree["indexes"], tree["deployments"], document)
        prompts = _read_prompts(tree, path, document)
    scan_for_secrets(source, document)
    if document.problems:
        raise InvalidFileError(str(path), sorted(set(document.problems), key=_order(str(path))))
    return ConfigurationFile(path, source, _freeze(tree, path.parent, prompts, policies))


def _order(file: str) -> Any:
    return lambda problem: (problem.file != file, problem.file, problem.line, problem.place, problem.message)


# --- what no single key can tell -----------------------------------------------------------------------------------


def _entries(tree: Tree, section: str) -> list[tuple[str, Tree]]:
    entries = tree[section]
    if entries is INVALID:
        return []
    return [(name, entry) for name, entry in entries.items() if entry is not INVALID]


def _check_deployments(tree: Tree, document: Document) -> None:
    for name, deployment in _entries(tree, "deployments"):
        place = ("deployments", name)
        if deployment["provider"] == "openai":
            _check_openai(deployment, place, document)
        elif deployment["provider"] == "azure_openai":
            _check_azure(deployment, place, document)
        if deployment["auth"] == "api_key" and deployment["api_key"] is None:
            document.complain((*place, "auth"), "auth: api_key needs the key api_key: env:NAME or file:/path")
        if deployment["auth"] in ("entra", "none") and deployment["api_key"] is not None:
            document.complain((*place, "api_key"), f"is not used with auth: {deployment['auth']}; remove one of them")
        _check_headers(deployment["headers"], (*place, "headers"), document)


def _check_openai(deployment: Tree, place: Place, document: Document) -> None:
    for key, hint in (("endpoint", "; an openai deployment has base_url"), ("api_version", "")):
        if deployment[key] is not None:
            document.complain((*place, key), f"is for provider: azure_openai{hint}")
    if deployment["auth"] == "entra":
        document.complain((*place, "auth"), "entra is for provider: azure_openai; use api_key or none")
    keyless = deployment["api_key"] is None and deployment["auth"] is None and not deployment["headers"]
    if keyless and deployment["base_url"] is None:
        document.complain(place, f"{OPENAI_URL} needs an API key: api_key: env:OPENAI_API_KEY")


def _check_azure(deployment: Tree, place: Place, document: Document) -> None:
    if deployment["base_url"] is not None:
        document.complain((*place, "base_url"), "is for provider: openai; an azure_openai deployment has endpoint")
    elif deployment["endpoint"] is None:
        document.complain(place, "missing key: endpoint, such as https://NAME.openai.azure.com")
    keyless = deployment["api_key"] is None and deployment["auth"] is None and not deployment["headers"]
    if keyless:
        document.complain(place, "needs api_key: env:NAME, or auth: entra")


def _check_headers(headers: Any, place: Place, document: Document) -> None:
    for name, value in {} if headers is INVALID else headers.items():
        if value is INVALID:
            continue
        reference = value.partition(":")[0] in ("env", "file")
        problem = secret_problem(value) if reference or _SENSITIVE_HEADER.search(name) else None
        if problem:
            document.complain((*place, name), problem)


def _check_metrics(tree: Tree, document: Document) -> None:
    for name, metric in _entries(tree, "metrics"):
        place = ("metrics", name)
        if name in _MEASURED:
            document.complain(place, f"Headway measures {name} itself; give yours another name")
        kind = metric["kind"]
        if kind is INVALID:
            continue
        for key in ("minimum", "maximum"):
            if metric[key] is not None and kind != "bounded":
                document.complain((*place, key), "is for kind: bounded")
        if kind == "bounded" and INVALID not in (metric["minimum"], metric["maximum"]):
            low, high = _bounds(metric)
            if low >= high:
                document.complain(place, f"minimum ({low:g}) must be below maximum ({high:g})")
        if kind == "label" and metric["labels"] is None:
            document.complain(place, "missing key: labels")
        if kind != "label" and metric["labels"] is not None:
            document.complain((*place, "labels"), "is for kind: label")
        built_in = BUILT_IN_FEEDBACK.get(name)
        if built_in is not None and kind != built_in.kind:
            document.complain((*place, "kind"), f"{name} is built in as {built_in.kind}; give yours another name")


def _resolve_policies(tree: Tree, document: Document) -> dict[str, Policy]:
    """Resolve the policies that are sound, and complain of the others."""
    sound = dict(BUILT_IN_FEEDBACK)
    told = tuple(f"{problem.place}." for problem in document.problems)
    given = {} if tree["metrics"] is INVALID else tree["metrics"]
    broken = frozenset(name for name in given if any(place.startswith(f"metrics.{name}.") for place in told))
    sound |= {name: _freeze_metric(entry) for name, entry in given.items() if name not in broken}
    found = {}
    for name, entry in _entries(tree, "policies"):
        if name == MANUAL:
            document.complain(("policies", name), f"{MANUAL!r} is built in; give yours another name")
            continue
        policy = resolve_policy(name, entry, Feedback(sound, broken), document)
        if policy is not None:
            found[name] = policy
    return found


def _check_webhooks(tree: Tree, document: Document) -> None:
    seen = set()
    for number, webhook in enumerate([] if tree["webhooks"] is INVALID else tree["webhooks"]):
        url = INVALID if webhook is INVALID else webhook["url"]
        if url in seen:
            document.complain(("webhooks", str(number), "url"), "this URL has a webhook already; list its events there")
        seen |= set() if url is INVALID else {url}


def _check_applications(tree: Tree, policies: Mapping[str, Policy], document: Document) -> None:
    metrics = None if tree["metrics"] is INVALID else {*BUILT_IN_FEEDBACK, *tree["metrics"]}
    for name, application in _entries(tree, "applications"):
        place = ("applications", name)
        retention = application["retention"]
        if retention is not INVALID and retention % DAY_SECONDS:
            document.complain((*place, "retention"), "expected whole days, such as 30d")
        policy = application["policy"]
        if policy is not INVALID and tree["policies"] is not INVALID:
            _check_known(policy, "policy", {MANUAL, *tree["policies"]}, (*place, "policy"), document)
        if policy in policies:
            check_use(policies[policy], application, tree["deployments"], place, document)
        if application["metrics"] not in (None, INVALID) and metrics is not None:
            for number, metric in enumerate(application["metrics"]):
                _check_known(metric, "metric", metrics, (*place, "metrics", str(number)), document)
        if application["release"] is not INVALID:
            _check_release(application["release"], (*place, "release"), tree["deployments"], document)
            check_retrieval(application["release"], (*place, "release"), tree["indexes"], document)


def _check_release(release: Tree, place: Place, deployments: Any, document: Document) -> None:
    fallbacks = [] if release["fallbacks"] is INVALID else list(enumerate(release["fallbacks"]))
    if deployments is not INVALID:
        if release["deployment"] is not INVALID:
            _check_known(release["deployment"], "deployment", deployments, (*place, "deployment"), document)
        for number, name in fallbacks:
            _check_known(name, "deployment", deployments, (*place, "fallbacks", str(number)), document)
    for number, name in fallbacks:
        if name == release["deployment"]:
            document.complain((*place, "fallbacks", str(number)), f"{name!r} is the release's deployment already")
    overridable = release["client_may_override"]
    if overridable is INVALID or release["parameters"] is INVALID:
        return
    for number, name in enumerate(overridable):
        item = (*place, "client_may_override", str(number))
        if name == "system" and release["prompt"] is None:
            document.complain(item, "the release has no prompt that a client's system message could replace")
        elif name != "system" and name not in release["parameters"]:
            hint = nearest(name, release["parameters"]) if release["parameters"] else ""
            document.complain(item, f"the release sets no parameter {name!r}, so clients may set it anyway{hint}")


def _check_known(name: str, noun: str, known: Any, place: Place, document: Document) -> None:
    if name not in known:
        document.complain(place, f"no {noun} is called {name!r}{nearest(name, known)}")


# --- prompts -------------------------------------------------------------------------------------------------------


def _read_prompts(tree: Tree, path: Path, document: Document) -> dict[str, str]:
    """Read each application's template, check it, and return the texts by application."""
    texts = {}
    for name, application in _entries(tree, "applications"):
        release = application["release"]
        prompt = None if release is INVALID else release["prompt"]
        if not isinstance(prompt, PromptSource):
            continue
        place = ("applications", name, "release", "prompt")
        text, file, first_line = prompt.text, str(path), prompt.line
        if prompt.path is not None:
            file, first_line = str(path.parent / prompt.path), 1
            try:
                text = read(path.parent / prompt.path, file)
            except ConfigurationError as error:
                document.complain(place, error.message)
                continue
        problem = _template_problem(text or "")
        if problem:
            line, reason = problem
            document.complain(place, reason, line=first_line + line - 1, file=file)
        texts[name] = text or ""
    return texts


def _template_problem(text: str) -> tuple[int, str] | None:
    if not text.strip():
        return 1, "the template is empty"
    if "\x00" in text:
        return text.count("\n", 0, text.index("\x00")) + 1, "the template holds a NUL character"
    return prompt_problem(text)


# --- freezing: no value is INVALID from here on --------------------------------------------------------------------


def _freeze(tree: Tree, folder: Path, prompts: Mapping[str, str], policies: dict[str, Policy]) -> Specification:
    deployments = {name: _freeze_deployment(name, entry) for name, entry in tree["deployments"].items()}
    declared = {name: _freeze_metric(entry) for name, entry in tree["metrics"].items()}
    metrics = BUILT_IN_FEEDBACK | declared
    applications = {}
    for name, entry in tree["applications"].items():
        chosen = metrics if entry["metrics"] is None else {metric: metrics[metric] for metric in entry["metrics"]}
        applications[name] = ApplicationSpec(
            unit=entry["unit"],
            policy=entry["policy"],
            record_content=entry["record"] == "full",
            retention_days=round(entry["retention"] / DAY_SECONDS),
            metrics=chosen,
            release=_freeze_release(entry["release"], deployments, prompts.get(name)),
        )
    return Specification(
        deployments=deployments,
        metrics=declared,
        applications=applications,
        policies=policies,
        webhooks=tuple(WebhookSpec(each["url"], each["secret"], tuple(each["events"])) for each in tree["webhooks"]),
        indexes={name: freeze_index(entry, folder) for name, entry in tree["indexes"].items()},
    )


def _freeze_deployment(name: str, entry: Tree) -> Deployment:
    prices, timeouts = entry["usd_per_million_tokens"], entry["timeouts"]
    queue, circuit = entry["queue"], entry["circuit"]
    settings: dict[str, Any] = {}
    if timeouts:
        settings |= {f"{key}_seconds": value for key, value in timeouts.items()}
    if queue:
        settings |= {"queue_size": queue["size"], "queue_seconds": queue["wait"]}
    if circuit:
        settings |= {"breaker_failures": circuit["failures"], "breaker_seconds": circuit["open"]}
    endpoint = Endpoint(
        provider=entry["provider"],
        base_url=entry["endpoint"] or entry["base_url"] or OPENAI_URL,
        model=entry["model"],
        api_version=entry["api_version"] or "",
    )
    operation = Operation(
        auth=entry["auth"] or ("none" if entry["api_key"] is None else "api_key"),
        api_key=entry["api_key"],
        headers=tuple(sorted(entry["headers"].items())),
        usd_per_million_tokens=None if prices is None else Prices(**prices),
        attempts=entry["attempts"],
        max_concurrency=entry["max_concurrency"],
        **settings,
    )
    return Deployment(name, endpoint, operation)


def _bounds(metric: Tree) -> tuple[float, float]:
    low, high = metric["minimum"], metric["maximum"]
    return 0.0 if low is None else low, 1.0 if high is None else high


def _freeze_metric(entry: Tree) -> FeedbackMetric:
    low, high = _bounds(entry)
    return FeedbackMetric(
        kind=entry["kind"],
        direction=entry["direction"],
        minimum=low,
        maximum=high,
        labels=tuple(entry["labels"] or ()),
        end_users=entry["end_users"],
    )


def _freeze_release(entry: Tree, deployments: Mapping[str, Deployment], prompt: str | None) -> ReleaseSpec:
    bundle = Bundle(
        deployments=tuple((name, deployments[name].endpoint) for name in (entry["deployment"], *entry["fallbacks"])),
        prompt=prompt,
        parameters=dict(entry["parameters"]),
        client_may_override=tuple(sorted(entry["client_may_override"])),
        retrieval=freeze_retrieval(entry),
    )
    return ReleaseSpec.of(bundle) if entry["name"] is None else ReleaseSpec(entry["name"], bundle)
