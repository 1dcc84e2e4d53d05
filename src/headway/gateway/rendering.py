"""Rendering: the request that a release sends to a provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jinja2
import jinja2.meta
import msgspec

from headway.config.prompts import compile_prompt
from headway.domain.interaction import Operation
from headway.domain.release import Endpoint
from headway.domain.snapshot import ReleaseRoute
from headway.errors import ConfigurationError, InvalidRequestError
from headway.gateway.parsing import ParsedRequest

# What a release's parameter is called where the Responses API has another name for it, or keeps it inside a field.
_RESPONSES_NAMES = {"max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens"}
_RESPONSES_INSIDE = {
    "reasoning_effort": ("reasoning", "effort"),
    "verbosity": ("text", "verbosity"),
    "response_format": ("text", "format"),
}
_CHAT_ONLY = frozenset(("stop", "n", "logprobs", "logit_bias", "seed", "frequency_penalty", "presence_penalty"))
_EMBEDDING_PARAMETERS = frozenset(("dimensions", "encoding_format"))
# Two names of one thing: setting one must not leave the other to the client.
_ALIASES = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_SYSTEM_ROLES = frozenset(("system", "developer"))
_NULL = msgspec.Raw(b"null")
_TRUE = msgspec.Raw(b"true")
# All that a template can meet: what is wrong in it, or runs out.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RuntimeError,
    MemoryError,
)


class _Rule(NamedTuple):
    """A parameter of the release in the words of one operation.

    Attributes:
        name: The field.
        inside: The key inside the field, where it is one.
        value: Its value.
        alias: Another name of the same thing.
        yields: The client's own value wins.
    """

    name: str
    inside: str | None
    value: msgspec.Raw
    alias: str | None
    yields: bool


class ReleaseRenderer:
    """Turns a client's request into the provider request of one release. Made once per release and snapshot.

    Templates see ``user``, ``metadata`` (the request's), ``today`` (an ISO date, UTC) and ``passages``: what a grounded
    answer goes by. Where a template does not name them, they stand behind the prompt.

    Raises:
        ConfigurationError: The release's prompt is not a template, or fails whatever the request.
    """

    def __init__(self, release: ReleaseRoute) -> None:
        bundle = release.bundle
        self._system_yields = "system" in bundle.client_may_override
        self._rules: dict[Operation, list[_Rule]] = {
            operation: list(_rules(operation, bundle.parameters, frozenset(bundle.client_may_override)))
            for operation in ("chat", "responses", "embeddings")
        }
        self._template: jinja2.Template | None = None
        self._constant: str | None = None
        self._places_passages = False
        if bundle.prompt is not None:
            try:
                template = compile_prompt(bundle.prompt)
                named = jinja2.meta.find_undeclared_variables(template.environment.parse(bundle.prompt))
                self._places_passages = "passages" in named
                if named:
                    self._template = template
                else:
                    self._constant = template.render()
            except _TEMPLATE_ERRORS as error:
                message = f"the prompt template of release {release.name!r} fails: {error}"
                raise ConfigurationError(message) from error
        self._models: dict[Endpoint, msgspec.Raw] = {}

    def render(self, parsed: ParsedRequest, today: str, passages: str = "") -> dict[str, msgspec.Raw]:
        """Apply the prompt, the passages and the parameters; what remains is the deployment's model name.

        Args:
            parsed: The client's request.
            today: ISO date for the template.
            passages: What the answer goes by, as the model shall read it; empty for none.

        Raises:
            ConfigurationError: The template fails on this request.
            InvalidRequestError: A field that the release builds on has the wrong shape.
        """
        fields = self.set_parameters(parsed)
        if parsed.operation != "embeddings":
            prompt = self._constant if self._template is None else self._fill(parsed, today, passages)
            if prompt is not None or passages:
                self._add_prompt(fields, parsed, prompt, passages)
        if parsed.operation == "chat":
            if parsed.stream and not parsed.include_usage:
                fields["stream_options"] = _with_usage(fields.get("stream_options"))
            if "metadata" in fields and fields.get("store") != _TRUE:
                del fields["metadata"]  # It was for Headway; OpenAI refuses it where the completion is not stored.
        return fields

    def set_parameters(self, parsed: ParsedRequest) -> dict[str, msgspec.Raw]:
        """Give the request's fields with the release's parameters among them.

        Raises:
            InvalidRequestError: A field that a parameter goes into has the wrong shape.
        """
        fields = dict(parsed.fields)
        for rule in self._rules[parsed.operation]:
            _apply(rule, fields)
        return fields

    def encode(self, fields: dict[str, msgspec.Raw], endpoint: Endpoint) -> bytes:
        """Write the body of the call to one deployment."""
        model = self._models.get(endpoint)
        if model is None:
            model = self._models[endpoint] = msgspec.Raw(msgspec.json.encode(endpoint.model))
        fields["model"] = model
        return msgspec.json.encode(fields)

    def _fill(self, parsed: ParsedRequest, today: str, passages: str) -> str:
        assert self._template is not None
        metadata = _Metadata(parsed.metadata)
        try:
            return self._template.render(user=parsed.user or "", metadata=metadata, today=today, passages=passages)
        except _TEMPLATE_ERRORS as error:
            raise ConfigurationError(f"the release's prompt template fails on this request: {error}") from error

    def _add_prompt(
        self, fields: dict[str, msgspec.Raw], parsed: ParsedRequest, prompt: str | None, passages: str
    ) -> None:
        """Put the prompt and the passages in front; a client's own prompt may replace the release's, never passages."""
        own = fields.get("instructions", _NULL) if parsed.operation == "responses" else _NULL
        if self._system_yields and (own != _NULL or _SYSTEM_ROLES.intersection(parsed.roles())):
            prompt = None
        elif self._places_passages:
            passages = ""
        parts = [part for part in (prompt, passages or None) if part is not None]
        if not parts:
            return
        if parsed.operation == "responses":
            if own != _NULL:
                parts.append(_text(own, "instructions"))
            fields["instructions"] = msgspec.Raw(msgspec.json.encode("\n\n".join(parts)))
            return
        rest = bytes(fields.get("messages", _NULL))
        if rest[:1] != b"[":
            raise InvalidRequestError("`messages` must be a list of messages", param="messages")
        system = msgspec.json.encode({"role": "system", "content": "\n\n".join(parts)})
        separator = b"" if rest[1:].lstrip()[:1] == b"]" else b","
        fields["messages"] = msgspec.Raw(b"[" + system + separator + rest[1:])


class _Metadata(dict[str, Any]):
    """The request's metadata: a key that a client left out renders as nothing, as clients cannot be trusted."""

    def __missing__(self, key: str) -> jinja2.Undefined:
        return jinja2.ChainableUndefined(name=key)  # so does what a template looks for below it


def _rules(operation: Operation, parameters: Mapping[str, Any], overridable: frozenset[str]) -> list[_Rule]:
    rules = []
    for name, value in parameters.items():
        if (name in _EMBEDDING_PARAMETERS) != (operation == "embeddings"):
            continue
        sent, inside, alias = name, None, None
        if operation == "chat":
            alias = _ALIASES.get(name)
        if operation == "responses":
            if name in _CHAT_ONLY:
                continue
            sent, inside = _RESPONSES_INSIDE.get(name, (_RESPONSES_NAMES.get(name, name), None))
            if name == "response_format":
                value = _text_format(value)  # noqa: PLW2901 - the same thing in the other API's words
        rules.append(_Rule(sent, inside, msgspec.Raw(msgspec.json.encode(value)), alias, name in overridable))
    return rules


def _text_format(response_format: Any) -> Any:
    """Chat's ``response_format`` as the ``text.format`` of the Responses API, which has one level less."""
    if not isinstance(response_format, dict) or not isinstance(response_format.get("json_schema"), dict):
        return response_format
    return {"type": response_format.get("type"), **response_format["json_schema"]}


def _apply(rule: _Rule, fields: dict[str, msgspec.Raw]) -> None:
    if rule.inside is not None:
        given = _object(fields.get(rule.name, _NULL), rule.name)
        if not (rule.yields and rule.inside in given):
            fields[rule.name] = msgspec.Raw(msgspec.json.encode({**given, rule.inside: rule.value}))
        return
    if rule.yields and (rule.name in fields or rule.alias in fields):
        return
    if rule.alias is not None:
        fields.pop(rule.alias, None)
    fields[rule.name] = rule.value


def _object(field: msgspec.Raw, name: str) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(field, type=dict[str, msgspec.Raw] | None) or {}
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"`{name}` must be an object", param=name) from error


def _text(field: msgspec.Raw, name: str) -> str:
    try:
        return msgspec.json.decode(field, type=str)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"`{name}` must be a string", param=name) from error


def _with_usage(options: msgspec.Raw | None) -> msgspec.Raw:
    given = msgspec.json.decode(options) if options is not None else None
    return msgspec.Raw(msgspec.json.encode({**(given or {}), "include_usage": True}))
