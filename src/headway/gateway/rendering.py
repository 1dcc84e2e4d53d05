"""Rendering: the request that a release sends to a provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox
import msgspec

from headway.domain.interaction import Operation
from headway.domain.release import Endpoint
from headway.domain.snapshot import ReleaseRoute
from headway.errors import ConfigurationError
from headway.gateway.parsing import ParsedRequest

# What a release's parameter is called where the Responses API has another name for it.
_RESPONSES_NAMES = {"max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens"}
_CHAT_ONLY = frozenset(
    ("response_format", "stop", "n", "logprobs", "logit_bias", "seed", "frequency_penalty", "presence_penalty")
)
_EMBEDDING_PARAMETERS = frozenset(("dimensions", "encoding_format"))
# Two names of one thing: setting one must not leave the other to the client.
_ALIASES = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_SYSTEM_ROLES = frozenset(("system", "developer"))

_environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=False
)


class ReleaseRenderer:
    """Turns a client's request into the provider request of one release. Made once per release and snapshot.

    Templates see ``user``, ``metadata`` (the request's) and ``today`` (an ISO date, UTC).
    """

    def __init__(self, release: ReleaseRoute) -> None:
        bundle = release.bundle
        self._overridable = frozenset(bundle.client_may_override)
        self._parameters: dict[Operation, dict[str, msgspec.Raw]] = {
            operation: _parameters_for(operation, bundle.parameters)
            for operation in ("chat", "responses", "embeddings")
        }
        self._template: jinja2.Template | None = None
        self._constant: str | None = None
        if bundle.prompt is not None:
            template = _environment.from_string(bundle.prompt)
            if jinja2.meta.find_undeclared_variables(_environment.parse(bundle.prompt)):
                self._template = template
            else:
                self._constant = template.render()
        self._models: dict[Endpoint, msgspec.Raw] = {}

    def render(self, parsed: ParsedRequest, today: str) -> dict[str, msgspec.Raw]:
        """Apply the prompt and the parameters; what remains is the deployment's model name.

        Args:
            parsed: The client's request.
            today: ISO date for the template.

        Raises:
            ConfigurationError: The template fails on this request.
        """
        fields = dict(parsed.fields)
        for name, value in self._parameters[parsed.operation].items():
            alias = _ALIASES.get(name)
            if name in self._overridable and (name in fields or (alias and alias in fields)):
                continue
            if alias:
                fields.pop(alias, None)
            fields[name] = value
        if parsed.operation != "embeddings":
            prompt = self._constant if self._template is None else self._fill(parsed, today)
            if prompt is not None:
                self._add_prompt(fields, parsed, prompt)
        if parsed.stream and parsed.operation == "chat" and not parsed.include_usage:
            fields["stream_options"] = _with_usage(fields.get("stream_options"))
        return fields

    def encode(self, fields: dict[str, msgspec.Raw], endpoint: Endpoint) -> bytes:
        """Write the body of the call to one deployment."""
        model = self._models.get(endpoint)
        if model is None:
            model = self._models[endpoint] = msgspec.Raw(msgspec.json.encode(endpoint.model))
        fields["model"] = model
        return msgspec.json.encode(fields)

    def _fill(self, parsed: ParsedRequest, today: str) -> str:
        assert self._template is not None
        try:
            return self._template.render(user=parsed.user or "", metadata=_Metadata(parsed.metadata), today=today)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise ConfigurationError(f"the release's prompt template fails on this request: {error}") from error

    def _add_prompt(self, fields: dict[str, msgspec.Raw], parsed: ParsedRequest, prompt: str) -> None:
        if parsed.operation == "responses":
            own = fields.get("instructions")
            if own is not None and bytes(own) != b"null":
                if "system" in self._overridable:
                    return
                prompt = f"{prompt}\n\n{msgspec.json.decode(own)}"
            fields["instructions"] = msgspec.Raw(msgspec.json.encode(prompt))
            return
        if "system" in self._overridable and _SYSTEM_ROLES.intersection(parsed.roles()):
            return
        rest = bytes(fields.get("messages", b"[]")).strip()
        if rest[:1] != b"[":
            return  # Not a list of messages: the provider says so in its own words.
        system = msgspec.json.encode({"role": "system", "content": prompt})
        separator = b"" if rest[1:].lstrip()[:1] == b"]" else b","
        fields["messages"] = msgspec.Raw(b"[" + system + separator + rest[1:])


class _Metadata(dict[str, Any]):
    """The request's metadata: a key that a client left out renders as nothing, as clients cannot be trusted."""

    def __missing__(self, key: str) -> str:
        return ""


def _parameters_for(operation: Operation, parameters: Mapping[str, Any]) -> dict[str, msgspec.Raw]:
    chosen = {}
    for name, value in parameters.items():
        if operation == "embeddings" and name not in _EMBEDDING_PARAMETERS:
            continue
        if operation == "chat" and name in _EMBEDDING_PARAMETERS:
            continue
        if operation == "responses" and (name in _CHAT_ONLY or name in _EMBEDDING_PARAMETERS):
            continue
        sent = _RESPONSES_NAMES.get(name, name) if operation == "responses" else name
        chosen[sent] = msgspec.Raw(msgspec.json.encode(value))
    return chosen


def _with_usage(options: msgspec.Raw | None) -> msgspec.Raw:
    given = msgspec.json.decode(options) if options is not None else None
    return msgspec.Raw(msgspec.json.encode({**(given or {}), "include_usage": True}))
