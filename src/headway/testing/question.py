"""What a request asks of the simulated provider, read from either of OpenAI's request shapes.

Raises ``RequestError`` where OpenAI would answer 400. Fields that do not change the answer are not looked at: the
simulator keeps the whole body in its list of received requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Question", "RequestError", "Tool", "count_tokens", "read_chat", "read_responses"]

_TOKENS_PER_MESSAGE = 4
_SYSTEM_ROLES = ("system", "developer")


class RequestError(Exception):
    """The request is one that OpenAI answers with an error.

    Args:
        message: For a person.
        param: The field at fault.
        code: OpenAI's error code.
        status: HTTP status.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call: its name and the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The part of a request that shapes its answer.

    Attributes:
        model: As asked for.
        system_text: All system and developer messages, or the instructions.
        prompt_tokens: Estimated: a token for every four characters, and four for every message.
        stream: Answer as an event stream.
        include_usage: The stream ends with a usage chunk (chat only).
        choices: Number of answers.
        max_tokens: Length limit of each answer.
        tools: Functions offered.
        tool_choice: ``none``, ``auto``, ``required``, or the name of the function to call.
        parallel_tools: More than one function may be called.
        from_user: The last message is the user's (not a tool's result).
        schema: JSON schema of the answer, ``{}`` for any JSON object, ``None`` for text.
        logprobs: Number of alternatives per token, ``None`` without logprobs.
    """

    model: str
    system_text: str = ""
    prompt_tokens: int = 0
    stream: bool = False
    include_usage: bool = False
    choices: int = 1
    max_tokens: int | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    parallel_tools: bool = True
    from_user: bool = True
    schema: Mapping[str, Any] | None = None
    logprobs: int | None = None


def count_tokens(text: str) -> int:
    """Estimate tokens: one for every four characters begun."""
    return -(-len(text) // 4)


def read_chat(body: Any, *, model: str | None = None) -> Question:
    """Read the body of ``POST /v1/chat/completions``.

    Args:
        body: The parsed JSON.
        model: The deployment of an Azure path, which takes the place of ``model`` in the body.

    Raises:
        RequestError: It lacks something, or something is of the wrong type.
    """
    fields = _object(body)
    messages = _field(fields, "messages", list)
    if not messages or not all(isinstance(message, dict) for message in messages):
        raise RequestError("'messages' must be a list of at least one message object.", param="messages")
    texts = [_text(message.get("content")) for message in messages]
    options = fields.get("stream_options")
    stream = fields.get("stream") is True
    if options is not None and not stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise RequestError(message, param="stream_options")
    choices = fields.get("n") or 1
    if not isinstance(choices, int) or not 1 <= choices <= 128:
        raise RequestError("'n' must be an integer between 1 and 128.", param="n")
    return Question(
        model=model or _field(fields, "model", str),
        system_text="\n".join(
            text for text, message in zip(texts, messages, strict=True) if message.get("role") in _SYSTEM_ROLES
        ),
        prompt_tokens=_prompt_tokens(texts),
        stream=stream,
        include_usage=stream and isinstance(options, dict) and options.get("include_usage") is True,
        choices=choices,
        max_tokens=_limit(fields, "max_completion_tokens") or _limit(fields, "max_tokens"),
        tools=_tools(fields.get("tools"), nested=True),
        tool_choice=_tool_choice(fields.get("tool_choice"), nested=True),
        parallel_tools=fields.get("parallel_tool_calls") is not False,
        from_user=messages[-1].get("role") != "tool",
        schema=_schema(fields.get("response_format"), nested=True),
        logprobs=_alternatives(fields) if fields.get("logprobs") is True else None,
    )


def read_responses(body: Any, *, history_tokens: int = 0) -> Question:
    """Read the body of ``POST /v1/responses``.

    Args:
        body: The parsed JSON.
        history_tokens: Tokens of the responses that ``previous_response_id`` leads back to.

    Raises:
        RequestError: It lacks something, or something is of the wrong type.
    """
    fields = _object(body)
    given = _field(fields, "input", (str, list))
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not items or not all(isinstance(item, dict) for item in items):
        raise RequestError("'input' must be a string or a list of at least one input item.", param="input")
    texts = [_text(item.get("content", item.get("output"))) for item in items]
    instructions = fields.get("instructions")
    system = [text for text, item in zip(texts, items, strict=True) if item.get("role") in _SYSTEM_ROLES]
    if isinstance(instructions, str):
        system.insert(0, instructions)
        texts.append(instructions)
    text = fields.get("text")
    include = fields.get("include")
    logprobs = isinstance(include, list) and "message.output_text.logprobs" in include
    return Question(
        model=_field(fields, "model", str),
        system_text="\n".join(system),
        prompt_tokens=_prompt_tokens(texts) + history_tokens,
        stream=fields.get("stream") is True,
        include_usage=True,
        max_tokens=_limit(fields, "max_output_tokens"),
        tools=_tools(fields.get("tools"), nested=False),
        tool_choice=_tool_choice(fields.get("tool_choice"), nested=False),
        parallel_tools=fields.get("parallel_tool_calls") is not False,
        from_user=items[-1].get("type") != "function_call_output",
        schema=_schema(text.get("format"), nested=False) if isinstance(text, dict) else None,
        logprobs=_alternatives(fields) if logprobs else None,
    )


def _object(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise RequestError("We could not parse the JSON body of your request: it must be a JSON object.")
    return body


def _field(fields: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    if fields.get(name) is None:
        raise RequestError(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if not isinstance(fields[name], kind):
        raise RequestError(f"Invalid type for '{name}'.", param=name, code="invalid_type")
    return fields[name]


def _limit(fields: Mapping[str, Any], name: str) -> int | None:
    limit = fields.get(name)
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise RequestError(f"'{name}' must be a positive integer.", param=name, code="integer_below_min_value")
    return limit


def _alternatives(fields: Mapping[str, Any]) -> int:
    count = fields.get("top_logprobs") or 0
    if not isinstance(count, int) or not 0 <= count <= 20:
        raise RequestError("'top_logprobs' must be an integer between 0 and 20.", param="top_logprobs")
    return count


def _tool_choice(given: Any, *, nested: bool) -> str:
    """Read which tool must be called: a word, or the name of a function."""
    if given is None:
        return "auto"
    function = given.get("function") if nested and isinstance(given, dict) else given
    name = function.get("name") if isinstance(function, dict) else function
    if not isinstance(name, str):
        raise RequestError("Invalid type for 'tool_choice'.", param="tool_choice", code="invalid_type")
    return name


def _prompt_tokens(texts: Iterable[str]) -> int:
    return sum(count_tokens(text) + _TOKENS_PER_MESSAGE for text in texts)


def _text(content: Any) -> str:
    """Return the text of a message's content: a string, or a list of parts of which some are text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""


def _tools(given: Any, *, nested: bool) -> tuple[Tool, ...]:
    """Read function tools; chat completions nest them in ``function``, responses do not."""
    if given is None:
        return ()
    if not isinstance(given, list):
        raise RequestError("Invalid type for 'tools': expected an array.", param="tools", code="invalid_type")
    tools = []
    for tool in given:
        function = tool.get("function") if nested and isinstance(tool, dict) else tool
        if isinstance(function, dict) and isinstance(tool, dict) and tool.get("type") == "function":
            tools.append(Tool(str(function.get("name")), function.get("parameters") or {}))
    return tuple(tools)


def _schema(format_: Any, *, nested: bool) -> Mapping[str, Any] | None:
    """Return the JSON schema that the answer must fit; chat completions nest it in ``json_schema``."""
    if not isinstance(format_, dict):
        return None
    if format_.get("type") == "json_object":
        return {}
    if format_.get("type") == "json_schema":
        holder = format_.get("json_schema") if nested else format_
        schema = holder.get("schema") if isinstance(holder, dict) else None
        return schema if isinstance(schema, dict) else {}
    return None
