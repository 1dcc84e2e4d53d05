"""What was asked and answered, out of the JSON that was recorded: chat completions and responses."""

from __future__ import annotations

from typing import Any

import msgspec

_LONGEST = 4000


def read_question(request: str | None) -> str | None:
    """Give the last thing that the user said; None where it was not recorded or cannot be told."""
    body = _decode(request)
    if not isinstance(body, dict):
        return None
    asked = body.get("messages", body.get("input"))
    if isinstance(asked, list):
        said = [part for part in asked if isinstance(part, dict) and part.get("role") == "user"]
        asked = said[-1].get("content") if said else None
    return _cut(_join(asked))


def read_answer(answer: str | None) -> str | None:
    """Give the text of an answer; None where it was not recorded or holds none."""
    body = _decode(answer)
    if not isinstance(body, dict):
        return None
    choices = body.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        message = choices[0].get("message")
        if not isinstance(message, dict):
            return None
        return _cut(_join(message.get("content")) or _join(message.get("refusal")) or _calls(message.get("tool_calls")))
    output = body.get("output")
    if isinstance(output, list):
        parts = [_join(item.get("content")) for item in output if isinstance(item, dict)]
        return _cut("\n".join(part for part in parts if part))
    return None


def _decode(text: str | None) -> Any:
    try:
        return None if text is None else msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None


def _join(content: Any) -> str:
    """Text, or the texts among a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part.get("text", part.get("refusal")) for part in content if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _calls(calls: Any) -> str:
    if not isinstance(calls, list):
        return ""
    functions = [
        call["function"] for call in calls if isinstance(call, dict) and isinstance(call.get("function"), dict)
    ]
    return "\n".join(f"calls {each.get('name')}({each.get('arguments')})" for each in functions)


def _cut(text: str) -> str | None:
    return None if not text else text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
