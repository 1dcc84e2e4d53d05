"""Webhooks: what decisions tell, signed, again until it arrives, and given up where it can be seen."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest
from psycopg.types.json import Jsonb

from headway.clock import ManualClock
from headway.config.spec import Specification, WebhookSpec
from headway.domain.policy import StageRule
from headway.domain.rollout import Command
from headway.errors import ConfigurationError
from headway.providers.webhooks import WebhookClient
from headway.rollouts.operations import take
from headway.rollouts.webhooks import Courier, sign
from headway.storage.database import Database
from tests.sockets import http_answer, listening, read_request
from tests.trial import POLICY, Trial, begin_trial, next_trial

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Message(NamedTuple):
    """A message as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Somebody's webhook; answers with ``status``, the last one for ever."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.heard = asyncio.Event()
        self.statuses = ["204 No Content"]
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?of=us"

    def events(self) -> list[str]:
        return [json.loads(each.body)["type"] for each in self.messages]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, headers, body = await read_request(reader)
        self.messages.append(Message(head, headers, body))
        self.heard.set()
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if status == "silence":
            await reader.read()
        writer.write(http_answer(status, b"", "Location: http://127.0.0.1:1/", "Connection: close"))
        await writer.drain()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    found = Receiver()
    async with listening(found.serve) as found.port:
        yield found


Employ = Callable[..., AbstractAsyncContextManager[Courier]]


@pytest.fixture
def employ(database: Database, clock: ManualClock) -> Employ:
    """Employ a courier."""

    @asynccontextmanager
    async def courier(total_seconds: float = 15.0) -> AsyncIterator[Courier]:
        client = WebhookClient(total_seconds)
        await client.start()
        try:
            yield Courier(database, clock, client)
        finally:
            await client.close()

    return courier


async def configure(database: Database, *webhooks: dict[str, Any]) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO configuration (applied_by, source, spec, hash) VALUES ('ann', '', %s, '')",
            (Jsonb({"deployments": {}, "webhooks": webhooks}),),
        )


async def outbox(trial: Trial) -> list[tuple[Any, ...]]:
    return await trial.rows(
        "SELECT event, attempts, next_at, delivered_at IS NOT NULL, problem FROM webhook_delivery"
        " ORDER BY created_at, id"
    )


def test_the_signature_is_that_of_standard_webhooks() -> None:
    secret, message_id = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek"
    signature = sign(secret, message_id, 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("secret", ["s3cret", "whsec_", "whsec_###", base64.b64encode(KEY).decode(), "whsec_AAAA"])
def test_a_secret_of_another_shape_is_refused(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="whsec_ and the base64 of 24 to 64 random bytes"):
        sign(secret, "msg_1", 1, b"{}")


async def test_a_decision_is_told(
    database: Database, clock: ManualClock, receiver: Receiver, employ: Employ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", SECRET)
    await configure(database, {"url": receiver.url, "secret": "env:HOOK"})
    trial = await begin_trial(database, clock)
    await trial.take("advance", "we know it")
    async with employ() as courier:
        assert await courier.deliver() == 2
        assert await courier.deliver() == 0
    assert sorted(receiver.events()) == ["rollout.advanced", "rollout.started"]
    told = next(each for each in receiver.messages if b"advanced" in each.body)
    assert told.path == "POST /hook?of=us HTTP/1.1"
    assert told.headers["content-type"] == "application/json"
    signed = f"{told.headers['webhook-id']}.{told.headers['webhook-timestamp']}.".encode() + told.body
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert told.headers["webhook-signature"] == f"v1,{expected}"
    assert int(told.headers["webhook-timestamp"]) == clock.unix_ms() // 1000
    told_of = json.loads(told.body)
    assert datetime.fromisoformat(told_of["timestamp"]) == datetime.fromtimestamp(clock.unix_ms() / 1000, UTC)
    assert told_of["data"] == {
        "rollout": trial.number,
        "application": "support",
        "stable": "calm",
        "candidate": "bold",
        "policy": "careful",
        "state": "ramp",
        "stage": 2,
        "share": 0.5,
        "differs": ["prompt"],
        "stable_index": None,
        "candidate_index": None,
        "decision": 1,
        "outcome": "advance",
        "reason": "command",
        "message": "advanced from 20% to 50% past the gates: we know it",
        "metric": None,
        "author": "ann",
    }
    assert [row[2:] for row in await outbox(trial)] == [(None, True, None)] * 2


async def test_every_event(database: Database, clock: ManualClock, receiver: Receiver, employ: Employ) -> None:
    await configure(database, {"url": receiver.url})
    trial = await begin_trial(database, clock)
    for command in ("pause", "resume", "advance", "advance", "promote"):
        await trial.take(command)
    second = await next_trial(database, clock, candidate="calm")  # bold is stable now
    await second.take("rollback")
    async with employ() as courier:
        while await courier.deliver():
            pass
    assert sorted(receiver.events()) == sorted(
        [
            *("rollout.started", "rollout.paused", "rollout.resumed", "rollout.advanced", "rollout.advanced"),
            *("rollout.promoted", "rollout.started", "rollout.rolled_back"),
        ]
    )
    assert all("webhook-signature" not in each.headers for each in receiver.messages)


async def test_a_webhook_hears_what_it_asked_for(
    database: Database, clock: ManualClock, receiver: Receiver, employ: Employ
) -> None:
    await configure(
        database,
        {"url": receiver.url, "events": ["rollout.rolled_back"]},
        {"url": receiver.url.replace("/hook", "/other"), "events": ["rollout.paused", "rollout.rolled_back"]},
    )
    trial = await begin_trial(database, clock)
    await trial.take("pause")
    await trial.take("rollback")
    async with employ() as courier:
        assert await courier.deliver() == 3
    heard = sorted((each.path.split()[1][:5], json.loads(each.body)["type"]) for each in receiver.messages)
    assert heard == [("/hook", "rollout.rolled_back"), ("/othe", "rollout.paused"), ("/othe", "rollout.rolled_back")]


async def test_what_is_rolled_back_is_not_told(database: Database, clock: ManualClock, receiver: Receiver) -> None:
    await configure(database, {"url": receiver.url, "events": ["rollout.paused"]})
    trial = await begin_trial(database, clock)
    async with database.connection() as connection:
        await take(connection, trial.number, "pause", author="ann", reason="", now_ms=clock.unix_ms())
        await connection.rollback()
    assert await outbox(trial) == []


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        ("500 Sorry", "it answers 500"),
        ("404 Who", "it answers 404"),
        ("302 There", "it answers 302, and redirects are not followed"),
    ],
)
async def test_an_unhappy_answer_is_tried_again_under_the_same_id(
    status: str, problem: str, database: Database, clock: ManualClock, receiver: Receiver, employ: Employ
) -> None:
    await configure(database, {"url": receiver.url})
    trial = await begin_trial(database, clock)
    receiver.statuses = [status, "200 OK"]
    async with employ() as courier:
        assert await courier.deliver() == 1
        ((_, attempts, next_at, delivered, found),) = await outbox(trial)
        assert (attempts, delivered, found) == (1, False, problem)
        assert next_at.timestamp() * 1000 == clock.unix_ms() + 5_000
        assert await courier.deliver() == 0
        clock.advance(5)
        assert await courier.deliver() == 1
        text = generate_latest(registered(courier)).decode()
    first, second = receiver.messages
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert int(second.headers["webhook-timestamp"]) == int(first.headers["webhook-timestamp"]) + 5
    assert [row[1:] for row in await outbox(trial)] == [(2, None, True, None)]
    assert 'headway_webhook_attempts_total{result="delivered"} 1.0' in text
    assert 'headway_webhook_attempts_total{result="postponed"} 1.0' in text


def registered(courier: Courier) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(courier)
    return registry


async def test_pauses_grow_until_a_day_has_passed(
    database: Database, clock: ManualClock, receiver: Receiver, employ: Employ
) -> None:
    await configure(database, {"url": receiver.url})
    trial = await begin_trial(database, clock)
    receiver.statuses = ["503 Not now"]
    began_ms, pauses = clock.unix_ms(), []
    async with employ() as courier:
        while True:
            assert await courier.deliver() == 1
            ((_, _, next_at, _, _),) = await outbox(trial)
            if next_at is None:
                break
            pauses.append(next_at.timestamp() - clock.unix_ms() / 1000)
            clock.advance(pauses[-1])
        clock.advance(86_400)
        assert await courier.deliver() == 0
    assert pauses == [5 * 2**attempt for attempt in range(len(pauses))]
    assert 8 * 3600 < (clock.unix_ms() - began_ms) / 1000 - 86_400 <= 86_400
    assert [row[1:] for row in await outbox(trial)] == [(len(pauses) + 1, None, False, "it answers 503")]
    ((reason, host),) = await trial.rows(
        "SELECT reason, detail->>'host' FROM audit_log WHERE action = 'webhook.give_up'"
    )
    assert (reason, host) == ("it answers 503", "127.0.0.1")


async def test_nobody_there_no_answer_no_secret(
    database: Database, clock: ManualClock, receiver: Receiver, employ: Employ
) -> None:
    receiver.statuses = ["silence"]
    await configure(
        database,
        {"url": "http://127.0.0.1:1/nobody"},
        {"url": receiver.url},
        {"url": receiver.url, "secret": "env:NO_SUCH_HOOK"},
    )
    trial = await begin_trial(database, clock)
    async with employ(total_seconds=0.2) as courier:
        assert await courier.deliver() == 3
    problems = sorted(str(row[4]) for row in await outbox(trial))
    assert problems[0].startswith("ClientConnectorError")
    assert problems[1:] == [
        "no answer within 0.2 s",
        "secret env:NO_SUCH_HOOK: the environment variable is not set",
    ]


COMMANDS: tuple[Command, ...] = ("pause", "resume", "advance")


async def test_a_webhook_that_hangs_keeps_no_other_waiting(
    database: Database, clock: ManualClock, receiver: Receiver, employ: Employ
) -> None:
    silent = Receiver()
    silent.statuses = ["silence"]
    async with listening(silent.serve) as silent.port, employ() as courier, asyncio.timeout(10):
        await configure(database, {"url": silent.url}, {"url": receiver.url})
        trial = await begin_trial(database, clock)
        running = asyncio.create_task(courier.run())
        for command in COMMANDS:
            await receiver.heard.wait()
            receiver.heard.clear()
            while clock.sleepers == 0:  # noqa: ASYNC110  # the clock tells nobody
                await asyncio.sleep(0.01)
            await trial.take(command)
            clock.advance(1)
        await receiver.heard.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert receiver.events() == ["rollout.started", "rollout.paused", "rollout.resumed", "rollout.advanced"]


async def test_two_couriers_share_the_work(
    database: Database, clock: ManualClock, receiver: Receiver, employ: Employ
) -> None:
    await configure(database, {"url": receiver.url})
    policy = replace(POLICY, stages=tuple(StageRule((step + 1) / 40) for step in range(40)))
    trial = await begin_trial(database, clock, policy)
    for _ in range(30):
        await trial.take("advance")
    async with employ() as one, employ() as other:
        while sum(await asyncio.gather(one.deliver(), other.deliver())):
            pass
    ids = [each.headers["webhook-id"] for each in receiver.messages]
    assert len(ids) == len(set(ids)) == 31
    assert {row[3] for row in await outbox(trial)} == {True}


async def test_a_courier_that_dies_leaves_its_messages_to_others(
    database: Database, clock: ManualClock, receiver: Receiver, employ: Employ
) -> None:
    await configure(database, {"url": receiver.url})
    trial = await begin_trial(database, clock)
    receiver.statuses = ["silence", "200 OK"]
    async with employ() as courier:
        dying = asyncio.ensure_future(courier.deliver())
        await receiver.heard.wait()
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
    async with employ() as courier:
        assert await courier.deliver() == 0  # it may still arrive
        clock.advance(60)
        assert await courier.deliver() == 1
    assert [row[1:] for row in await outbox(trial)] == [(2, None, True, None)]
    assert len({each.headers["webhook-id"] for each in receiver.messages}) == 1


async def test_an_application_s_configuration_carries_webhooks(database: Database, clock: ManualClock) -> None:
    """What ``headway apply`` writes is what the outbox reads."""
    specification = Specification({}, {}, {}, webhooks=(WebhookSpec("http://127.0.0.1:9/", "env:HOOK"),))
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO configuration (applied_by, source, spec, hash) VALUES ('ann', '', %s, '')",
            (specification.encode().decode(),),
        )
    trial = await begin_trial(database, clock)
    ((url, secret, body),) = await trial.rows("SELECT url, secret, body FROM webhook_delivery")
    assert (url, secret) == ("http://127.0.0.1:9/", "env:HOOK")
    assert msgspec.json.decode(body)["type"] == "rollout.started"
