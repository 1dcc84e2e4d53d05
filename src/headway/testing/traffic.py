"""Simulated users: they come back, converse, and rate the answers by a ground truth.

They talk to any OpenAI-compatible gateway as a plain OpenAI client does: each turn sends the whole conversation again.
What they do depends on the seed alone, not on timing: user 7's second conversation asks the same questions in each run,
and rates an answer the same if it comes from the same release.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aiohttp
import msgspec

from headway.clock import Clock, SystemClock, elapsed_ms
from headway.testing.behaviour import Lognormal
from headway.testing.draft import read_quality
from headway.testing.tally import Answer, Citation, SentRating, Tally, TrafficSummary

__all__ = ["QUESTIONS", "Traffic", "Truth", "like_by_quality", "run_traffic"]

_AT_ONCE = Lognormal(0)

Truth = Mapping[str, float] | Callable[[Answer], float | None] | None
"""How good an answer is, 0 to 1: by release, by a function (``None``: cannot tell), or as the answer's text says."""

QUESTIONS: tuple[str, ...] = (
    "How do I reset my password?",
    "Where can I see my invoices?",
    "Can I change my delivery address after ordering?",
    "My order has not arrived. What should I do?",
    "How do I cancel my subscription?",
    "Do you ship to Norway, and what does it cost?",
    "The app crashes when I open the settings page.",
    "How long does a refund take?",
)


def like_by_quality(quality: float) -> float:
    """Give the probability of a thumb up for a quality: the quality itself."""
    return quality


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Who comes, how often, and how they rate.

    Attributes:
        application: Sent as OpenAI's ``model``.
        truth: How good answers are. By default as their text says, which the provider simulator writes there.
        like: Probability of a thumb up for a quality from 0 to 1.
        users: Number of users.
        conversations_per_user: How often each comes back: everybody comes once before anybody comes again.
        turns: Fewest and most questions in a conversation; each number between is as likely.
        concurrency: Conversations at the same time: the next begins when one ends.
        conversations_per_second: Instead of that, conversations begin at random times at this rate, however long
            answers take (an open loop).
        think_seconds: Wait between an answer and the next question.
        streamed_ratio: Share of questions whose answer is streamed.
        rating_ratio: Share of answers that are rated.
        report_ratio: Share of answers that are reported as an issue, whatever their quality.
        metric: Which metric is rated.
        rating_values: What is sent for thumb down and for thumb up.
        ratings_with_key: Send the API key with a rating; else rate as a browser does, by the interaction id alone.
        parameters: More fields for each request, such as ``max_tokens``.
        send_user: Send the user's name as ``user``.
        send_conversation: Send the conversation's name as ``metadata.conversation_id``.
        system: A system message before each conversation.
        questions: What is asked, drawn at random.
        max_requests: No more questions than this.
        max_seconds: No question is sent after this.
        request_timeout_seconds: An answer that takes longer is given up; bounds the run together with ``max_seconds``.
        error_pause_seconds: A user whose question fails waits so long and ends the conversation.
        seed: Makes the users' choices repeatable.
    """

    application: str
    truth: Truth = None
    like: Callable[[float], float] = like_by_quality
    users: int = 20
    conversations_per_user: int = 2
    turns: tuple[int, int] = (1, 4)
    concurrency: int = 8
    conversations_per_second: float | None = None
    think_seconds: Lognormal = _AT_ONCE
    streamed_ratio: float = 0.5
    rating_ratio: float = 0.5
    report_ratio: float = 0.0
    metric: str = "thumbs_up"
    rating_values: tuple[Any, Any] = (False, True)
    ratings_with_key: bool = True
    parameters: Mapping[str, Any] = field(default_factory=dict)
    send_user: bool = True
    send_conversation: bool = False
    system: str | None = None
    questions: Sequence[str] = QUESTIONS
    max_requests: int = 100_000
    max_seconds: float = 600.0
    request_timeout_seconds: float = 60.0
    error_pause_seconds: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.turns[0] <= self.turns[1]:
            raise ValueError(f"turns are the fewest and the most questions of a conversation, not {self.turns}")
        if self.users < 1 or self.conversations_per_user < 1 or self.concurrency < 1 or not self.questions:
            raise ValueError("traffic needs at least one user, one conversation, one question and one at a time")
        if self.conversations_per_second is not None and self.conversations_per_second <= 0:
            raise ValueError("conversations_per_second must be above 0")
        for name in ("streamed_ratio", "rating_ratio", "report_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")


async def run_traffic(
    base_url: str,
    api_key: str,
    traffic: Traffic,
    *,
    clock: Clock | None = None,
    observe: Callable[[Answer], None] | None = None,
) -> TrafficSummary:
    """Let the users come, and return what happened once the last has gone.

    Args:
        base_url: Address of the gateway, with or without ``/v1`` at its end.
        api_key: Sent as a bearer token.
        traffic: Who comes and what they do.
        clock: Measures and waits.
        observe: Is shown each answer as it is complete, for progress displays.

    Example:
        ::

            truth = {"support@blunt": 0.55, "support@kind": 0.80}
            summary = await run_traffic(gateway_url, key, Traffic(application="support", truth=truth))
            print(summary.releases, summary.errors)
    """
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        crowd = _Crowd(session, base_url.rstrip("/").removesuffix("/v1"), api_key, traffic, clock or SystemClock())
        return await crowd.run(observe)


@dataclass(frozen=True, slots=True)
class _Visit:
    """One conversation of one user, with the random numbers that decide everything in it."""

    user: int
    conversation: int
    rng: random.Random

    @property
    def name(self) -> str:
        return f"user-{self.user}-conversation-{self.conversation}"


@dataclass(frozen=True, slots=True)
class _Turn:
    """What a user has made up their mind about before asking; drawn whole, so that no answer shifts what follows."""

    question: str
    streamed: bool
    rates: bool
    mood: float
    reports: bool
    think_seconds: float


class _FailedError(Exception):
    """A request failed; carries the status or the word that it is counted under."""


class _Crowd:
    def __init__(self, session: aiohttp.ClientSession, root: str, api_key: str, traffic: Traffic, clock: Clock) -> None:
        self._session = session
        self._root = root
        self._key = {"Authorization": f"Bearer {api_key}"}
        self._traffic = traffic
        self._clock = clock
        self._tally = Tally()
        self._started = clock.monotonic_seconds()

    async def run(self, observe: Callable[[Answer], None] | None) -> TrafficSummary:
        visits = self._visits()
        async with asyncio.TaskGroup() as group:
            if self._traffic.conversations_per_second is None:
                for _ in range(self._traffic.concurrency):
                    group.create_task(self._converse_in_turn(visits, observe))
            else:
                await self._let_in(group, visits, self._traffic.conversations_per_second, observe)
        return self._tally.summarise(self._clock.monotonic_seconds() - self._started)

    def _visits(self) -> Iterator[_Visit]:
        """Yield all conversations: in each round every user comes once, in another order each time."""
        traffic = self._traffic
        order = random.Random(f"{traffic.seed}/order")
        number = 0
        for _ in range(traffic.conversations_per_user):
            for user in order.sample(range(traffic.users), traffic.users):
                yield _Visit(user, number, random.Random(f"{traffic.seed}/{user}/{number}"))
                number += 1

    async def _converse_in_turn(self, visits: Iterator[_Visit], observe: Callable[[Answer], None] | None) -> None:
        for visit in visits:
            if not await self._goes_on_after(0):
                return
            await self._converse(visit, observe)

    async def _let_in(
        self,
        group: asyncio.TaskGroup,
        visits: Iterator[_Visit],
        per_second: float,
        observe: Callable[[Answer], None] | None,
    ) -> None:
        """Begin conversations at the times of a Poisson process, which do not wait for anybody."""
        gaps = random.Random(f"{self._traffic.seed}/gaps")
        due = self._started
        for visit in visits:
            due += gaps.expovariate(per_second)
            if not await self._goes_on_after(due - self._clock.monotonic_seconds()):
                return
            group.create_task(self._converse(visit, observe))

    async def _goes_on_after(self, seconds: float) -> bool:
        """Wait, and tell whether another question may be sent then; does not wait if it may not."""
        traffic = self._traffic
        then = self._clock.monotonic_seconds() + seconds
        if then - self._started >= traffic.max_seconds or self._tally.requests >= traffic.max_requests:
            return False
        if seconds > 0:
            await self._clock.sleep(seconds)
        return self._tally.requests < traffic.max_requests

    def _draw_turn(self, rng: random.Random) -> _Turn:
        traffic = self._traffic
        return _Turn(
            question=rng.choice(traffic.questions),
            streamed=rng.random() < traffic.streamed_ratio,
            rates=rng.random() < traffic.rating_ratio,
            mood=rng.random(),
            reports=rng.random() < traffic.report_ratio,
            think_seconds=traffic.think_seconds.draw(rng),
        )

    async def _converse(self, visit: _Visit, observe: Callable[[Answer], None] | None) -> None:
        traffic = self._traffic
        self._tally.conversations += 1
        turns = [self._draw_turn(visit.rng) for _ in range(visit.rng.randint(*traffic.turns))]
        messages: list[dict[str, str]] = [{"role": "system", "content": traffic.system}] if traffic.system else []
        for number, turn in enumerate(turns):
            if not await self._goes_on_after(turn.think_seconds if number else 0):
                return
            messages.append({"role": "user", "content": turn.question})
            self._tally.requests += 1
            try:
                answer = await self._ask(visit, number, turn, messages)
            except _FailedError as error:
                self._tally.errors[str(error)] += 1
                await self._goes_on_after(traffic.error_pause_seconds)
                return
            messages.append({"role": "assistant", "content": answer.text})
            self._tally.add_answer(answer)
            if observe is not None:
                observe(answer)
            await self._rate(turn, answer)
            if turn.reports:
                await self._report(answer)

    async def _ask(self, visit: _Visit, number: int, turn: _Turn, messages: Sequence[Mapping[str, str]]) -> Answer:
        traffic = self._traffic
        body: dict[str, Any] = {**traffic.parameters, "model": traffic.application, "messages": messages}
        if traffic.send_user:
            body["user"] = f"user-{visit.user}"
        if traffic.send_conversation:
            body["metadata"] = {"conversation_id": visit.name}
        if turn.streamed:
            body["stream"] = True
        sent = self._clock.monotonic_seconds()
        first_token: float | None = None
        async with self._post("/v1/chat/completions", self._key, body) as response:
            if turn.streamed:
                said, first_token = await self._read_stream(response)
            else:
                said = _read_document(await response.read())
        return Answer(
            interaction_id=said.interaction_id,
            release=response.headers.get("x-headway-release", ""),
            text=said.text,
            question=turn.question,
            user=visit.user,
            conversation=visit.conversation,
            turn=number,
            streamed=turn.streamed,
            latency_ms=elapsed_ms(sent, self._clock.monotonic_seconds()),
            first_token_ms=None if first_token is None else elapsed_ms(sent, first_token),
            citations=said.citations,
        )

    async def _read_stream(self, response: aiohttp.ClientResponse) -> tuple[_Said, float | None]:
        """Read an event stream to its end, and tell when its first text came."""
        interaction_id, texts, first = "", list[str](), None
        citations: tuple[Citation, ...] = ()
        rest = b""
        async for piece in response.content.iter_any():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
                if data == b"[DONE]" and interaction_id:
                    return _Said(interaction_id, "".join(texts), citations), first
                if not data:
                    continue
                chunk = _read_completion(data)
                interaction_id = interaction_id or chunk.id
                citations = citations or _read_citations(chunk)
                texts += [choice.text for choice in chunk.choices if choice.text]
                if texts and first is None:
                    first = self._clock.monotonic_seconds()
        raise _FailedError("broken")

    async def _rate(self, turn: _Turn, answer: Answer) -> None:
        quality = self._quality(answer)
        if not turn.rates or quality is None:
            return
        up = turn.mood < self._traffic.like(quality)
        value = self._traffic.rating_values[up]
        body = {"interaction_id": answer.interaction_id, "metric": self._traffic.metric, "value": value}
        try:
            async with self._post("/v1/feedback", self._key if self._traffic.ratings_with_key else {}, body):
                pass
        except _FailedError as error:
            self._tally.rating_errors[str(error)] += 1
        else:
            self._tally.ratings.append(SentRating(answer.interaction_id, answer.release, up))

    def _quality(self, answer: Answer) -> float | None:
        truth = self._traffic.truth
        if truth is None:
            return read_quality(answer.text)
        return truth(answer) if callable(truth) else truth.get(answer.release)

    async def _report(self, answer: Answer) -> None:
        body = {
            "title": f"Wrong answer to: {answer.question}"[:120],
            "description": f"The answer was: {answer.text[:1000]}",
            "severity": "medium",
            "interaction_ids": [answer.interaction_id],
        }
        try:
            async with self._post("/v1/reports", self._key, body) as response:
                report = _read_completion(await response.read())
        except _FailedError as error:
            self._tally.report_errors[str(error)] += 1
        else:
            self._tally.reports.append(report.id)

    @contextlib.asynccontextmanager
    async def _post(
        self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send JSON; everything that goes wrong until the block ends is a ``_FailedError``."""
        timeout = aiohttp.ClientTimeout(total=self._traffic.request_timeout_seconds)
        try:
            async with self._session.post(self._root + path, headers=headers, json=body, timeout=timeout) as response:
                if not 200 <= response.status < 300:
                    raise _FailedError(str(response.status))
                yield response
        except TimeoutError as error:
            raise _FailedError("timeout") from error
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as error:
            raise _FailedError("broken") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _FailedError("connection") from error


class _Said(NamedTuple):
    """What an answer says."""

    interaction_id: str
    text: str
    citations: tuple[Citation, ...]


def _read_document(body: bytes) -> _Said:
    """Read an answer that came whole."""
    answer = _read_completion(body)
    if not answer.id or not answer.choices:
        raise _FailedError("broken")
    return _Said(answer.id, "".join(choice.text for choice in answer.choices), _read_citations(answer))


def _read_citations(completion: _Completion) -> tuple[Citation, ...]:
    choices = completion.choices
    said = choices[0].message or choices[0].delta if choices else None
    return () if said is None or said.context is None else said.context.citations


class _Context(msgspec.Struct):
    citations: tuple[Citation, ...] = ()


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    context: _Context | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    message: _Message | None = None
    delta: _Message | None = None

    @property
    def text(self) -> str:
        """What it says; only the first choice counts, as users see one answer."""
        said = self.message or self.delta
        return "" if said is None or self.index else said.content or said.refusal or ""


class _Completion(msgspec.Struct):
    id: str = ""
    choices: list[_Choice] = []
    error: Any = None


def _read_completion(data: bytes) -> _Completion:
    try:
        completion = msgspec.json.decode(data, type=_Completion)
    except msgspec.DecodeError as error:
        raise _FailedError("broken") from error
    if completion.error is not None:
        raise _FailedError("broken")
    return completion
