"""The demo's traffic: visitors ask with the unmodified OpenAI client, and rate with Headway's own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headway.cli.demo.screen import Screen
from headway.cli.demo.site import APPLICATION
from headway.cli.demo.visitors import VISITORS, Question, Verdict, Visitor, judge
from headway.client import AsyncHeadway, ClientError

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletionMessageParam

_TIMEOUT_SECONDS = 120.0
_BAD_EXAMPLES = 3


@dataclass
class Traffic:
    """What happened.

    Attributes:
        asked: Questions asked.
        problems: What went wrong, in words.
        bad: Ids of answers rated down, by release.
        report: Id of the report.
    """

    asked: int = 0
    problems: list[str] = field(default_factory=list)
    bad: dict[str, list[str]] = field(default_factory=dict)
    report: str | None = None


class Desk:
    """Where visitors ask: an application behind Headway, reached with OpenAI's client.

    Args:
        client: OpenAI's client, pointed at Headway.
        end_users: Takes their ratings; it has no API key, as the id of an answer is enough to rate it.
        screen: Shows what is said.
    """

    def __init__(self, client: AsyncOpenAI, end_users: AsyncHeadway, screen: Screen) -> None:
        self._client = client
        self._end_users = end_users
        self._screen = screen
        self.traffic = Traffic()
        self._commented: set[str] = set()

    async def visit(self, visitor: Visitor) -> None:
        """Hold a visitor's conversations, one after the other."""
        for conversation in visitor.conversations:
            messages: list[ChatCompletionMessageParam] = []
            for question in conversation:
                messages.append({"role": "user", "content": question.text})
                answer = await self._ask(visitor, question, messages)
                if answer is None:
                    break
                messages.append({"role": "assistant", "content": answer})

    async def report(self, developer: AsyncHeadway) -> None:
        """Report the release with the most bad answers as an issue, with examples."""
        bad = self.traffic.bad
        if not bad:
            return
        release = max(bad, key=lambda name: len(bad[name]))
        title = f"Answers of {release} lack the facts that visitors ask for"
        text = f"{len(bad[release])} answers did not name the fact asked for, or took too many words."
        examples = bad[release][:_BAD_EXAMPLES]
        try:
            receipt = await developer.report(title, text, severity="high", interaction_ids=examples)
        except ClientError as error:
            self.traffic.problems.append(f"the report was not taken: {error}")
        else:
            self.traffic.report = receipt.id

    async def _ask(
        self, visitor: Visitor, question: Question, messages: list[ChatCompletionMessageParam]
    ) -> str | None:
        self._screen.ask(visitor.name, question)
        self.traffic.asked += 1
        try:
            raw = await self._client.chat.completions.with_raw_response.create(
                model=APPLICATION, messages=messages, user=visitor.name.lower(), stream=True
            )
            release, identity, answer = raw.headers.get("x-headway-release", ""), "", ""
            async with raw.parse() as stream:
                async for chunk in stream:
                    identity = chunk.id
                    for choice in chunk.choices:
                        answer += choice.delta.content or ""
                    self._screen.hear(visitor.name, release, answer)
            verdict = judge(question, answer)
            remark = self._remark(release, verdict)
            await self._end_users.feedback(identity, "thumbs_up", verdict.good, comment=remark or None)
        except Exception as error:  # noqa: BLE001 - whatever a client raises, it is shown, and the others go on
            self.traffic.problems.append(str(error))
            self._screen.fail(visitor.name, str(error))
            return None
        if not verdict.good:
            self.traffic.bad.setdefault(release, []).append(identity)
        self._screen.rate(visitor.name, verdict, remark)
        return answer

    def _remark(self, release: str, verdict: Verdict) -> str:
        """The first visitor whom a release disappoints says so in words."""
        if verdict.good or release in self._commented:
            return ""
        self._commented.add(release)
        return "That is not what I asked."


def hold(base_url: str, key: str, screen: Screen) -> Traffic:
    """Let all visitors ask at the same time, and report what went wrong."""
    return asyncio.run(_hold(base_url, key, screen))


async def _hold(base_url: str, key: str, screen: Screen) -> Traffic:
    from openai import AsyncOpenAI  # noqa: PLC0415 - part of the demo extra

    origin = base_url.removesuffix("/v1")
    async with (
        AsyncOpenAI(base_url=base_url, api_key=key, timeout=_TIMEOUT_SECONDS, max_retries=0) as client,
        AsyncHeadway(origin) as end_users,
        AsyncHeadway(origin, key) as developer,
    ):
        desk = Desk(client, end_users, screen)
        with screen.talks():
            async with asyncio.TaskGroup() as group:
                for visitor in VISITORS:
                    group.create_task(desk.visit(visitor))
        await desk.report(developer)
    return desk.traffic
