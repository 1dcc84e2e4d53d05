"""Webhooks: delivers what decisions have put in the outbox, signed, and again until it has arrived.

Messages follow Standard Webhooks. Each is delivered at least once, under one id; a later one may come first.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import asdict, replace
from urllib.parse import urlsplit

import msgspec
import structlog
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from psycopg import InterfaceError, OperationalError

from headway.clock import Clock
from headway.errors import ConfigurationError, StorageError
from headway.providers.credentials import resolve_secret
from headway.providers.webhooks import WebhookClient, WebhookError
from headway.storage import audit, outbox
from headway.storage.database import Connection, Database
from headway.storage.decisions import CONTROLLER
from headway.storage.losses import Losses, describe_losses, find_losses
from headway.storage.outbox import Delivery

_log = structlog.get_logger("headway.rollouts.webhooks")

_ROLLED_BACK = "rollout.rolled_back"
_NAMED = 5  # lost documents
_POLL_SECONDS = 1.0
_AT_ONCE = 100
_LEASE_SECONDS = 60.0  # longer than any call: who dies in one leaves the message to others
_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_SECONDS = 86_400.0
_SECRET_PREFIX = "whsec_"  # noqa: S105 - what a secret begins with is none
_SECRET_BYTES = range(24, 65)


class Courier(Collector):
    """Delivers messages; every replica may run one, each message is one courier's at a time.

    Args:
        database: Where the outbox is.
        clock: Says when.
        client: Started.
    """

    def __init__(self, database: Database, clock: Clock, client: WebhookClient) -> None:
        self._database = database
        self._clock = clock
        self._client = client
        self._under_way = 0
        self._counts = {"delivered": 0, "postponed": 0, "given_up": 0}

    def collect(self) -> Iterator[Metric]:
        """Give the metrics of this courier, for Prometheus."""
        counter = CounterMetricFamily(
            "headway_webhook_attempts", "Attempts to deliver a message to a webhook.", labels=("result",)
        )
        for result, count in self._counts.items():
            counter.add_metric([result], count)
        yield counter

    async def run(self) -> None:
        """Deliver what is due until cancelled, whatever happens to the database; no webhook waits for a slow one."""
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    due = await self._claim(_AT_ONCE - self._under_way)
                except StorageError as error:
                    _log.info("webhooks_wait", detail=error.message)
                    due = []
                for delivery in due:
                    group.create_task(self._deliver(delivery))
                if not due:
                    await self._clock.sleep(_POLL_SECONDS)

    async def deliver(self) -> int:
        """Make one attempt at the messages that are due, and wait for what comes of it.

        Returns:
            How many there were.

        Raises:
            StorageError: The database is away.
        """
        due = await self._claim(_AT_ONCE)
        await asyncio.gather(*map(self._deliver, due))
        return len(due)

    async def _claim(self, limit: int) -> list[Delivery]:
        if limit == 0:
            return []
        async with self._database.connection() as connection:
            due = await outbox.claim(connection, self._clock.unix_ms(), lease_seconds=_LEASE_SECONDS, limit=limit)
        self._under_way += len(due)
        return due

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            if delivery.event == _ROLLED_BACK:
                delivery = await self._name_losses(delivery)
            problem = await self._attempt(delivery)
            async with self._database.connection() as connection:
                await self._settle(connection, delivery, problem)
        except StorageError as error:
            _log.info("webhooks_wait", detail=error.message)  # its fate could not be written down: it comes again
        finally:
            self._under_way -= 1

    async def _name_losses(self, delivery: Delivery) -> Delivery:
        """Say in a message of a rollback which documents the candidate's index version has lost.

        This takes a moment, which a decision must not: so it is done here, before the first attempt.
        """
        message = msgspec.json.decode(delivery.body)
        data = message["data"]
        if "index" not in data.get("differs", ()) or "lost_documents" in data:
            return delivery
        async with self._database.connection() as connection:
            losses = await self._find_losses(connection, data["rollout"])
            data["lost_documents"] = [] if losses is None else [asdict(each) for each in losses.documents]
            told = "" if losses is None else describe_losses(losses)
            data["message"] = f"{data['message']}; {told}" if told else data["message"]
            body = msgspec.json.encode(message).decode()
            await outbox.complete(connection, delivery, body)
        return replace(delivery, body=body)

    async def _find_losses(self, connection: Connection, rollout: int) -> Losses | None:
        try:
            async with connection.transaction():
                return await find_losses(connection, rollout, limit=_NAMED)
        except (OperationalError, InterfaceError):  # the database is away
            raise
        except Exception:  # noqa: BLE001 - a rollback has to be told, whatever cannot be found out about it
            _log.exception("losses_unknown", rollout=rollout)
            return None

    async def _attempt(self, delivery: Delivery) -> str | None:
        """Deliver a message.

        Returns:
            What went wrong, if something did.
        """
        body = delivery.body.encode()
        timestamp = self._clock.unix_ms() // 1000
        headers = {
            "content-type": "application/json",
            "webhook-id": f"msg_{delivery.id.hex}",
            "webhook-timestamp": str(timestamp),
        }
        try:
            if delivery.secret is not None:
                secret = resolve_secret(delivery.secret)
                headers["webhook-signature"] = sign(secret, headers["webhook-id"], timestamp, body)
            await self._client.post(delivery.url, headers, body)
        except (WebhookError, ConfigurationError) as error:
            _log.warning("webhook_failed", **_describe(delivery), problem=str(error))
            return str(error)
        return None

    async def _settle(self, connection: Connection, delivery: Delivery, problem: str | None) -> None:
        """Write down what has become of a message."""
        if problem is None:
            self._counts["delivered"] += 1
            await outbox.settle(connection, delivery, self._clock.unix_ms())
            return
        next_ms = self._next_ms(delivery)
        self._counts["given_up" if next_ms is None else "postponed"] += 1
        await outbox.postpone(connection, delivery, problem, next_ms)
        if next_ms is None:
            description = _describe(delivery)
            _log.error("webhook_given_up", **description, problem=problem)
            await audit.record(
                connection,
                author=CONTROLLER,
                action="webhook.give_up",
                subject=f"webhook message {delivery.id}",
                reason=problem,
                detail=description,
            )

    def _next_ms(self, delivery: Delivery) -> int | None:
        """Say when to try again: after twice as long as the last time, for a day; then never."""
        pause_seconds = _FIRST_PAUSE_SECONDS * 2.0 ** (delivery.attempts - 1)
        next_ms = self._clock.unix_ms() + int(pause_seconds * 1000)
        last_ms = delivery.created_at.timestamp() * 1000 + _LONGEST_SECONDS * 1000
        return next_ms if next_ms <= last_ms else None


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Sign a message as Standard Webhooks has it.

    Args:
        secret: ``whsec_`` and the base64 of 24 to 64 bytes.
        message_id: The header ``webhook-id``.
        timestamp: The header ``webhook-timestamp``, in Unix seconds.
        body: As it is sent.

    Returns:
        The header ``webhook-signature``.

    Raises:
        ConfigurationError: The secret does not look like that.
    """
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(_SECRET_PREFIX) or len(key) not in _SECRET_BYTES:
        raise ConfigurationError(
            "a webhook's secret is whsec_ and the base64 of 24 to 64 random bytes; this makes one:"
            " echo whsec_$(openssl rand -base64 32)"
        )
    content = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    return f"v1,{base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()}"


def _describe(delivery: Delivery) -> dict[str, object]:
    # Not the whole address: some carry a token.
    return {"message": delivery.event, "host": urlsplit(delivery.url).hostname, "attempt": delivery.attempts}
