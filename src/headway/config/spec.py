"""What headway.yaml may hold, key by key, and what it becomes: one frozen specification."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, get_args

import msgspec
import yaml
from msgspec.structs import replace

from headway.config.document import Document, Place, nearest
from headway.config.indexes import INDEX, RELEASE_KEYS, IndexSpec, VersionSpec
from headway.config.policies import POLICY
from headway.config.schema import (
    INVALID,
    Absent,
    Choice,
    Duration,
    Flag,
    Json,
    Key,
    Listing,
    Named,
    Number,
    Secret,
    Table,
    Text,
    check_name,
    check_url,
    mapping,
)
from headway.domain.metric import BUILT_IN_FEEDBACK, Direction, FeedbackKind, FeedbackMetric
from headway.domain.policy import Policy
from headway.domain.release import Bundle, Deployment, Operation, ProviderKind
from headway.domain.snapshot import Unit
from headway.errors import NotFoundError

OPENAI_URL = "https://api.openai.com/v1"
MANUAL = "manual"
DAY_SECONDS = 86400
RESERVED_PARAMETERS = ("model", "messages", "input", "stream", "stream_options", "previous_response_id")

_RESERVED_HEADERS = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding"}
)

WEBHOOK_EVENTS = (
    "rollout.started",
    "rollout.advanced",
    "rollout.approval_needed",
    "rollout.paused",
    "rollout.resumed",
    "rollout.promoted",
    "rollout.rolled_back",
    "rollout.inconclusive",
    "rollout.alert",
)


class ReleaseSpec(msgspec.Struct, frozen=True):
    """The release that an application should get to."""

    name: str
    bundle: Bundle

    @classmethod
    def of(cls, bundle: Bundle) -> ReleaseSpec:
        """Name a release by its content."""
        return cls(f"r-{bundle.content_hash()[:8]}", bundle)

    def holding(self, bundle: Bundle) -> ReleaseSpec:
        """The release with other content; a name that was made from the content is made anew."""
        return ReleaseSpec.of(bundle) if self == ReleaseSpec.of(self.bundle) else ReleaseSpec(self.name, bundle)


class ApplicationSpec(msgspec.Struct, frozen=True):
    """An application as the file wants it; ``metrics`` are its feedback metrics by name."""

    unit: Unit
    policy: str
    record_content: bool
    retention_days: int
    metrics: dict[str, FeedbackMetric]
    release: ReleaseSpec


class WebhookSpec(msgspec.Struct, frozen=True):
    """Who is told of rollouts: a URL, the reference of the secret that signs, and of which events; empty for all."""

    url: str
    secret: str | None = None
    events: tuple[str, ...] = ()


class Specification(msgspec.Struct, frozen=True, omit_defaults=True):
    """The whole file, parsed, checked and frozen, prompts included. It holds no secret, only references.

    What is left out is not written, so that a file that does not use a new key keeps its hash.
    """

    deployments: dict[str, Deployment]
    metrics: dict[str, FeedbackMetric]
    applications: dict[str, ApplicationSpec]
    policies: dict[str, Policy] = {}
    webhooks: tuple[WebhookSpec, ...] = ()
    indexes: dict[str, IndexSpec] = {}

    def encode(self) -> bytes:
        """Write it as JSON, the same for equal content."""
        return msgspec.json.encode(self, order="sorted")

    def content_hash(self) -> str:
        """Hash its content: 64 hexadecimal characters."""
        return hashlib.sha256(self.encode()).hexdigest()


def specify_version(specification: Specification, index: str) -> VersionSpec:
    """Freeze what the next version of an index is to be built by.

    Raises:
        NotFoundError: The file has no such index; the message names the nearest.
    """
    found = specification.indexes.get(index)
    if found is None:
        hint = nearest(index, specification.indexes)
        raise NotFoundError(f"headway.yaml has no index called {index!r}{hint}", param="index")
    return VersionSpec(
        found, specification.deployments[found.embedder.deployment] if found.embedder.deployment else None
    )


def operate_version(built: VersionSpec, index: str, current: Specification) -> VersionSpec:
    """Give what a version was built by, with the credentials and limits of the file as it is now.

    Args:
        built: What it was built by.
        index: Name of its index.
        current: The file as it is applied.
    """
    deployment = built.deployment
    if deployment is not None:
        deployment = deployment.operated_as(current.deployments.get(deployment.name))
    service, found = built.index.azure_ai_search, current.indexes.get(index)
    now = None if found is None else found.azure_ai_search
    if service is None or now is None or service.endpoint != now.endpoint:  # a secret must not go to another host
        return replace(built, deployment=deployment)
    service = replace(service, auth=now.auth, api_key=now.api_key)
    return VersionSpec(replace(built.index, azure_ai_search=service), deployment)


def decode_specification(value: Any) -> Specification:
    """Read a specification back from plain JSON values.

    Raises:
        msgspec.ValidationError: It is not one.
    """
    return msgspec.convert(value, Specification)


@dataclass(frozen=True)
class PromptSource:
    """Where a prompt's template is: a file's path, or the text itself and the line where it begins."""

    path: str | None
    text: str | None
    line: int


@dataclass(frozen=True)
class Prompt:
    """The path of a template, or ``{text: ...}`` with the template itself."""

    def read(self, node: yaml.Node, place: Place, document: Document) -> PromptSource | Absent:
        """Read where the template is; the file itself is not opened."""
        if isinstance(node, yaml.ScalarNode):
            path = Text("the path of a file, or {text: ...}").read(node, place, document)
            if path is INVALID:
                return INVALID
            if "\n" in path:
                document.complain(place, "expected the path of a file; a template in place is written {text: ...}")
                return INVALID
            return PromptSource(path, None, node.start_mark.line + 1)
        pairs = mapping(node, place, document)
        if pairs is INVALID or [name for name, _ in pairs] != ["text"]:
            document.complain(place, "expected the path of a file, or {text: ...} and nothing else")
            return INVALID
        (_, child) = pairs[0]
        text = Text("a template").read(child, (*place, "text"), document)
        if text is INVALID:
            return INVALID
        block = isinstance(child, yaml.ScalarNode) and child.style in ("|", ">")
        return PromptSource(None, text, child.start_mark.line + (2 if block else 1))

    def describe(self) -> str:
        """Name both forms."""
        return "the path of a file, from the folder of headway.yaml; or {text: ...}"

    def format(self, value: Any) -> str:
        """Write the path."""
        return str(value)


def _check_header(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}", name, re.ASCII):
        raise ValueError("not a valid name of a header")
    if name.lower() in _RESERVED_HEADERS:
        raise ValueError("Headway sets this header itself")
    return name


def _check_header_value(value: str) -> str:
    if not value.isascii() or not value.isprintable() or len(value) > 4000:
        raise ValueError("the value of a header has at most 4000 printable ASCII characters")
    return value


def _check_parameter(name: str) -> str:
    if name in RESERVED_PARAMETERS:
        raise ValueError("a release cannot set this field: it belongs to the client or to Headway")
    return name


def _check_label(label: str) -> str:
    if len(label) > 100 or not label.isprintable():
        raise ValueError("a label has at most 100 printable characters")
    return label


_RUN = Operation()

PRICES = Table(
    {
        "input": Key(Number(), "Price of a million input tokens.", required=True),
        "output": Key(Number(), "Price of a million output tokens.", required=True),
        "cached_input": Key(Number(), "Price of a million cached input tokens; without it they cost the same."),
    }
)
TIMEOUTS = Table(
    {
        "connect": Key(Duration(), "Longest wait for a connection.", default=_RUN.connect_seconds),
        "first_token": Key(
            Duration(),
            "Of a streamed answer: longest wait for the first byte, and between two of them.",
            default=_RUN.first_token_seconds,
        ),
        "total": Key(Duration(), "Longest time for one call.", default=_RUN.total_seconds),
    }
)
QUEUE = Table(
    {
        "size": Key(
            Number(0, 100_000, whole=True),
            "Calls that may wait for a place, per worker; beyond it callers get 429.",
            default=_RUN.queue_size,
        ),
        "wait": Key(Duration(), "Longest wait for a place.", default=_RUN.queue_seconds),
    }
)
CIRCUIT = Table(
    {
        "failures": Key(
            Number(0, 1000, whole=True),
            "Failures in a row that open the circuit; 0 never opens it.",
            default=_RUN.breaker_failures,
        ),
        "open": Key(Duration(), "How long it stays open before one call may try.", default=_RUN.breaker_seconds),
    }
)
DEPLOYMENT = Table(
    {
        "provider": Key(
            Choice(get_args(ProviderKind)),
            "Dialect of the endpoint: `openai` is OpenAI and every server that speaks its API (vLLM, Ollama,"
            " llama.cpp).",
            required=True,
        ),
        "model": Key(
            Text("the name of a model"), "Model (openai) or deployment (azure_openai) to call.", required=True
        ),
        "base_url": Key(
            Text("a URL", check_url),
            f"For openai: the URL in front of `/chat/completions`. Without it: `{OPENAI_URL}`.",
        ),
        "endpoint": Key(Text("a URL", check_url), "For azure_openai, and required there: the resource's endpoint."),
        "api_version": Key(
            Text("an API version"), "For azure_openai: the `api-version`; without it the versionless `/openai/v1` API."
        ),
        "api_key": Key(Secret(), "Where the API key is."),
        "auth": Key(
            Choice(("api_key", "entra", "none")),
            "How to authenticate; `entra` is for azure_openai. Without it: `api_key` when there is one, else `none`.",
        ),
        "headers": Key(
            Named(Text("the value of a header", _check_header_value), "a header", _check_header),
            "Extra headers. A value may be a secret reference; that of a header that authenticates must be one.",
            default={},
        ),
        "usd_per_million_tokens": Key(PRICES, "Prices in US dollars; without them costs are not known."),
        "timeouts": Key(TIMEOUTS, "Timeouts of a call."),
        "attempts": Key(
            Number(1, 10, whole=True), "Tries on this deployment, the first included.", default=_RUN.attempts
        ),
        "max_concurrency": Key(
            Number(0, 100_000, whole=True),
            "Calls in flight per replica, shared out evenly among its workers; 0 is no limit.",
            default=_RUN.max_concurrency,
        ),
        "queue": Key(QUEUE, "Where calls wait when `max_concurrency` is reached."),
        "circuit": Key(CIRCUIT, "Circuit breaker."),
    }
)
METRIC = Table(
    {
        "kind": Key(
            Choice(get_args(FeedbackKind)),
            "`binary` (yes or no), `bounded` (minimum to maximum), `positive` (a number of at least 0), `label` (one of"
            " a few words) or `text`.",
            required=True,
        ),
        "direction": Key(Choice(get_args(Direction)), "Which way is better.", default="higher"),
        "source": Key(Choice(("feedback",)), "Where the values come from.", default="feedback"),
        "minimum": Key(Number(-1e15, 1e15), "Lowest value, for bounded. Without it: 0."),
        "maximum": Key(Number(-1e15, 1e15), "Highest value, for bounded. Without it: 1."),
        "labels": Key(Listing(Text("a label", _check_label), least=1), "The words, for label, and required there."),
        "end_users": Key(Flag(), "Whether end users may send it with nothing but the interaction's id.", default=True),
    }
)
RELEASE = Table(
    {
        "name": Key(
            Text("a name", check_name),
            "Name of the release. Without it: `r-` and the first 8 characters of its content hash.",
        ),
        "deployment": Key(Text("the name of a deployment"), "Deployment that answers.", required=True),
        "fallbacks": Key(
            Listing(Text("the name of a deployment")), "Deployments to try, in order, when it cannot.", default=[]
        ),
        "prompt": Key(Prompt(), "Jinja2 template of the system message that is put in front."),
        "parameters": Key(
            Named(Json(), "a request field", _check_parameter),
            "Request fields that the release sets, such as `temperature`; they win over the client's.",
            default={},
        ),
        "client_may_override": Key(
            Listing(Text("the name of a parameter, or system")),
            "Parameters where the client's own value wins; `system`: a client's own system message replaces the"
            " prompt.",
            default=[],
        ),
    }
    | RELEASE_KEYS
)
APPLICATION = Table(
    {
        "unit": Key(Choice(get_args(Unit)), "What is assigned to a release and stays with it.", default="conversation"),
        "policy": Key(
            Text("the name of a policy"),
            f"How releases are rolled out: a policy of this file, or `{MANUAL}`: an operator sets the share.",
            default=MANUAL,
        ),
        "record": Key(
            Choice(("full", "metadata")),
            "`full` keeps prompts and answers, `metadata` everything but them.",
            default="full",
        ),
        "retention": Key(
            Duration(DAY_SECONDS, 3650 * DAY_SECONDS),
            "How long interactions are kept, in whole days.",
            default=30 * DAY_SECONDS,
        ),
        "metrics": Key(
            Listing(Text("the name of a metric")),
            "Feedback it takes. Without it: all declared metrics and the built-in ones"
            f" ({', '.join(f'`{name}`' for name in BUILT_IN_FEEDBACK)}).",
        ),
        "release": Key(RELEASE, "The release that the application should get to.", required=True),
    }
)
WEBHOOK = Table(
    {
        "url": Key(Text("a URL", check_url), "Where messages are posted to.", required=True),
        "secret": Key(Secret(), "Where the secret is that signs them. Without it they are not signed."),
        "events": Key(Listing(Choice(WEBHOOK_EVENTS)), "Which events it is told of. Without it: all.", default=[]),
    }
)
FILE = Table(
    {
        "deployments": Key(Named(DEPLOYMENT, "a deployment"), "LLM endpoints.", required=True),
        "metrics": Key(Named(METRIC, "a metric"), "Feedback beside the built-in metrics.", default={}),
        "applications": Key(Named(APPLICATION, "an application"), "What clients call as `model`.", required=True),
        "policies": Key(
            Named(POLICY, "a policy"),
            f"How releases are rolled out, beside the built-in policy `{MANUAL}`.",
            default={},
        ),
        "webhooks": Key(Listing(WEBHOOK, repeats=True), "Who is told of rollouts.", default=[]),
        "indexes": Key(Named(INDEX, "an index"), "Search indexes over documents of a data lake.", default={}),
    }
)
