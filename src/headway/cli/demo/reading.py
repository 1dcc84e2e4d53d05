"""The demo's reader: asks what only documents can answer, and is shown what each answer goes by."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from headway.cli.demo.documents import APPLICATION, QUESTIONS
from headway.cli.demo.screen import Reading, Screen, Source
from headway.testing.smollm import MODEL

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_TIMEOUT_SECONDS = 120.0
_MOST_TOKENS = 48


def read(base_url: str, key: str, model_url: str, screen: Screen) -> list[str]:
    """Ask the questions through Headway, and the bare model for comparison.

    Args:
        base_url: Of Headway's data plane.
        key: Its API key.
        model_url: Of the model itself, which knows no documents.
        screen: Shows what is answered.

    Returns:
        What went wrong, in words.
    """
    return asyncio.run(_read(base_url, key, model_url, screen))


async def _read(base_url: str, key: str, model_url: str, screen: Screen) -> list[str]:
    from openai import AsyncOpenAI, OpenAIError  # noqa: PLC0415 - part of the demo extra

    problems: list[str] = []
    async with (
        AsyncOpenAI(base_url=base_url, api_key=key, timeout=_TIMEOUT_SECONDS, max_retries=0) as headway,
        AsyncOpenAI(base_url=model_url, api_key="none", timeout=_TIMEOUT_SECONDS, max_retries=0) as model,
    ):
        for question in QUESTIONS:
            try:
                bare, _ = await _ask(model, MODEL, question)
                answer, sources = await _ask(headway, APPLICATION, question)
            except OpenAIError as error:
                problems.append(f"{question} {error}")
            else:
                screen.quote(Reading(question, bare, answer, tuple(sources)))
    return problems


async def _ask(client: AsyncOpenAI, model: str, question: str) -> tuple[str, list[Source]]:
    """Ask by an unmodified client; citations are a field of the message that it hands on."""
    answer = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=_MOST_TOKENS, temperature=0
    )
    message = answer.choices[0].message
    context: dict[str, Any] = (message.model_extra or {}).get("context") or {}
    sources = [
        Source(cited["title"], cited["document"], cited["score"], cited["index"], cited["content"])
        for cited in context.get("citations", ())
    ]
    return message.content or "", sources
