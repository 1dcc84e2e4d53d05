"""A rollout is led back and forth under load: no request fails or waits, and every worker follows within a second."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headway.ids import InteractionId
from headway.testing import Behaviour, Lognormal, ProviderProcess
from tests.acceptance.harness import Headway, application, openai_deployment, running, wait_for
from tests.acceptance.stand import unique

pytestmark = pytest.mark.timeout(300)

WORKERS = 4
CONNECTIONS = 32
"""Kept open and taken in turn, so that every worker has some of them and answers all the time."""
WINDOW_SECONDS = 0.5
"""Requests that begin so long after a command are held against those that began so long before it."""
BEHAVIOURS = {
    "quick": Behaviour(first_token_ms=Lognormal(20), answer_tokens=Lognormal(8)),
    "slow": Behaviour(first_token_ms=Lognormal(2000), inter_token_ms=Lognormal(100), answer_tokens=Lognormal(20)),
}


def configuration(provider: ProviderProcess, release: str) -> dict[str, Any]:
    """Two applications under a policy that never has enough evidence: people take its steps."""
    levels = ("error_rate", "attempt_error_rate", "fallback_rate")
    policy = {
        "stages": ["10%", "25%", "50%", "75%", "100%"],
        "goal": {"metric": "error_rate", "ratio": 1.5},
        "baselines": {name: {"level": 0.01} for name in levels},
        "min_units": 1_000_000,
        "dwell": "1s",
    }
    return {
        "deployments": {model: openai_deployment(provider.base_url, model) for model in BEHAVIOURS},
        "policies": {"patient": policy},
        "applications": {
            model: application(model, release, prompt={"text": f"You are the {release}."}, policy="patient")
            for model in BEHAVIOURS
        },
    }


@asynccontextmanager
async def site(folder: Path, database_url: str) -> AsyncIterator[tuple[Headway, ProviderProcess]]:
    """Headway with four workers, and both applications at the first stage of their rollouts."""
    headway = Headway(folder, database_url=database_url, workers=WORKERS, environment={"HEADWAY_TICK_SECONDS": "0.5"})
    async with ProviderProcess(BEHAVIOURS) as provider:
        with running(headway, configuration(provider, "first")):
            headway.write(configuration(provider, "second"))
            await asyncio.to_thread(headway.run, "apply", "--yes", "--accept")
            await asyncio.to_thread(headway.wait_for_snapshot)
            yield headway, provider


# --- what users see -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """One request: when it began, how long it took, and the answer's id, or what went wrong."""

    began: float
    seconds: float
    answer_id: str
    problem: str


@dataclass
class Users:
    """Requests that come at a steady rate, whether or not those before have been answered.

    Args:
        headway: Who is asked.
        rate_per_second: How many come.
    """

    headway: Headway
    rate_per_second: float
    asked: list[Asked] = field(default_factory=list)

    @asynccontextmanager
    async def coming(self) -> AsyncIterator[None]:
        """Let them come until the block ends; all are answered then."""
        connections = [aiohttp.ClientSession() for _ in range(CONNECTIONS)]
        leaving = asyncio.Event()
        coming = asyncio.create_task(self._come(itertools.cycle(connections), leaving))
        try:
            yield
        finally:
            leaving.set()
            await coming
            for connection in connections:
                await connection.close()

    async def _come(self, connections: itertools.cycle[aiohttp.ClientSession], leaving: asyncio.Event) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                if leaving.is_set():
                    return
                await asyncio.sleep(began + number / self.rate_per_second - time.monotonic())
                group.create_task(self._ask(next(connections)))

    async def _ask(self, connection: aiohttp.ClientSession) -> None:
        began, answer_id = time.monotonic(), ""
        try:
            status, headers, body = await ask(connection, self.headway, "quick", unique("now"))
            answer_id = headers.get("x-headway-interaction", "")
            problem = "" if status == 200 else f"{status}: {body[:200]!r}"
        except (aiohttp.ClientError, TimeoutError) as error:
            problem = repr(error)
        self.asked.append(Asked(began, time.monotonic() - began, answer_id, problem))


async def ask(
    connection: aiohttp.ClientSession, headway: Headway, model: str, *said: str, stream: bool = False
) -> tuple[int, Mapping[str, str], bytes]:
    """Ask, and give the answer's status, headers and body."""
    body = {"model": model, "messages": [{"role": "user", "content": text} for text in said], "stream": stream}
    headers = {"authorization": f"Bearer {headway.first_key}"}
    timeout = aiohttp.ClientTimeout(total=20)
    async with connection.post(
        f"{headway.base_url}/chat/completions", json=body, headers=headers, timeout=timeout
    ) as answer:
        return answer.status, answer.headers, await answer.read()


# --- the switches ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Switch:
    """A command: when it was sent, when it was decided (Unix milliseconds), and where new interactions are booked."""

    command: str
    sent: float
    decided_ms: float
    route: tuple[int, int]


class Operator:
    """Leads the rollout of an application over the control API."""

    def __init__(self, session: aiohttp.ClientSession, headway: Headway, application_name: str) -> None:
        self._session = session
        self._headway = headway
        self._application = application_name
        query = "SELECT r.id FROM rollout r JOIN application a ON a.id = r.application_id WHERE a.name = %s"
        self._rollout = int(headway.value(query, application_name))

    async def do(self, command: str) -> Switch:
        """Send a command."""
        sent = time.monotonic()
        if command == "start":
            wish = {"release": "second", "accept": True, "retry": True}
            found = await self._post(f"applications/{self._application}/rollouts", wish)
            at = found["rollout"]["started_at"]
        else:
            found = await self._post(f"rollouts/{self._rollout}/{command}", {"reason": "test"})
            at = found["decision"]["at"]
        rollout = found["rollout"]
        self._rollout = rollout["number"]
        route = (0, 0) if rollout["ended_at"] else (rollout["number"], rollout["stage"])
        return Switch(command, sent, datetime.fromisoformat(at).timestamp() * 1000, route)

    async def _post(self, path: str, wish: dict[str, Any]) -> Any:
        headers = {"authorization": f"Bearer {self._headway.first_key}"}
        async with self._session.post(
            f"{self._headway.admin_url}/admin/v1/{path}", json=wish, headers=headers
        ) as answer:
            assert answer.status in (200, 201), await answer.text()
            return await answer.json()


CALM_SECONDS = 2 * WINDOW_SECONDS + 0.1
"""Between two commands: what comes after one is not what comes before the next."""
ROUND = ("rollback", "start", "advance", "advance", "pause", "resume", "advance")


async def test_switches_under_load(tmp_path: Path, database_url: str, proof: bool) -> None:
    """Roll back, start, advance, pause, resume, again and again: nobody fails or waits, all workers follow at once."""
    rate, rounds = (500.0, 8) if proof else (150.0, 1)
    async with site(tmp_path, database_url) as (headway, _), aiohttp.ClientSession() as session:
        operator, users = Operator(session, headway, "quick"), Users(headway, rate)
        switches: list[Switch] = []
        async with users.coming():
            for command in ROUND * rounds:
                await asyncio.sleep(CALM_SECONDS)
                switches.append(await operator.do(command))
            await asyncio.sleep(CALM_SECONDS)
        assert [each.problem for each in users.asked if each.problem] == []
        signer = headway.snapshot().signing.signer()
        booked = [signer.read(each.answer_id) for each in users.asked]
        check_lags(switches, booked)
        check_waits(switches, users.asked)
        check_recorded(headway, len(booked))


def check_lags(switches: Sequence[Switch], booked: Sequence[InteractionId]) -> None:
    """From a second after a decision on, every interaction goes where it says, whichever worker took it."""
    lags = []
    for switch, later in zip(switches, [*switches[1:], None], strict=True):
        until = later.decided_ms if later else math.inf
        since = [each for each in booked if switch.decided_ms <= each.unix_ms < until]
        stale = [each.unix_ms for each in since if (each.rollout, each.stage) != switch.route]
        assert len(stale) < len(since)
        lags.append(max(stale, default=switch.decided_ms) - switch.decided_ms)
    print("the last interaction that was booked as before, after:")
    print(", ".join(f"{switch.command} {lag:.0f} ms" for switch, lag in zip(switches, lags, strict=True)))
    assert max(lags) < 1000


def check_waits(switches: Sequence[Switch], asked: Sequence[Asked]) -> None:
    """The slowest of a hundred requests after commands is as slow as that of a hundred before them."""
    sent = [switch.sent for switch in switches]
    calm = [each.seconds for each in asked if any(-WINDOW_SECONDS <= each.began - at < 0.0 for at in sent)]
    busy = [each.seconds for each in asked if any(0.0 <= each.began - at < WINDOW_SECONDS for at in sent)]
    for name, found in (("before", calm), ("after", busy)):
        typical, slow, slowest = (quantile(found, part) for part in (0.5, 0.99, 1.0))
        print(
            f"{WINDOW_SECONDS:g} s {name} {len(sent)} commands: {len(found):,} requests,"
            f" p50 {typical:.1f}, p99 {slow:.1f}, slowest {slowest:.1f} ms"
        )
    assert quantile(busy, 0.99) < 2 * quantile(calm, 0.99) + 50


def quantile(seconds: Sequence[float], part: float) -> float:
    """A quantile, in milliseconds."""
    return sorted(seconds)[int(part * (len(seconds) - 1))] * 1000


def check_recorded(headway: Headway, answers: int) -> None:
    """All workers have answered, and what they answered is recorded once."""
    count = "SELECT count(*) FROM interaction"
    wait_for("all interactions", lambda: headway.value(count) >= answers, 30)
    assert headway.value(count) == answers
    assert headway.value("SELECT count(DISTINCT worker) FROM recorder_batch") >= WORKERS


async def test_requests_in_flight_on_rollback(tmp_path: Path, database_url: str) -> None:
    """They end where they began, streamed or not; the next request of the same conversations goes to stable."""
    async with site(tmp_path, database_url) as (headway, provider), aiohttp.ClientSession() as session:
        operator = Operator(session, headway, "slow")
        await operator.do("advance")
        await operator.do("advance")
        await asyncio.to_thread(headway.wait_for_snapshot)
        questions = [unique("slow") for _ in range(60)]
        flying = [
            asyncio.create_task(ask(session, headway, "slow", question, stream=number % 2 == 0))
            for number, question in enumerate(questions)
        ]
        async with asyncio.timeout(20):
            while (await provider.counts()).requests < len(questions):  # noqa: ASYNC110  # it is another process
                await asyncio.sleep(0.01)
        await operator.do("rollback")
        await asyncio.to_thread(headway.wait_for_snapshot)
        assert not any(each.done() for each in flying)
        after = [asyncio.create_task(ask(session, headway, "slow", question)) for question in questions]
        ended = await asyncio.gather(*flying)
        assert {status for status, _, _ in ended} == {200}
        assert all(body.endswith(b"data: [DONE]\n\n") for _, _, body in ended[::2])
        releases = [headers["x-headway-release"] for _, headers, _ in ended]
        assert set(releases) == {"first", "second"}
        answered = {(status, headers["x-headway-release"]) for status, headers, _ in await asyncio.gather(*after)}
        assert answered == {(200, "first")}
