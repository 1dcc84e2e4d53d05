"""Documents that are lost with a candidate's index version, as those who look at its rollout are told."""

from __future__ import annotations

import json

import pytest
from psycopg.types.json import Jsonb
from typer.testing import CliRunner

from headway.cli import app
from headway.clock import ManualClock, SystemClock
from headway.providers.webhooks import WebhookClient
from headway.rollouts.manual import set_share
from headway.rollouts.webhooks import Courier
from headway.storage import outbox
from headway.storage.database import Database
from headway.storage.losses import Losses, LostDocument, describe_losses, describe_share_lost
from headway.storage.rollouts import describe, find_rollout
from tests.asked import ask, found_application
from tests.lakes import CountingEmbedder

LOST = "answers came from documents that handbook@2 lacks or has changed: travel.md (3), pay.md (1)"


@pytest.fixture
async def asked(database: Database) -> Database:
    """Rollout 1, rolled back, from handbook@1 to handbook@2, which lacks a document and has changed another."""
    async with database.connection() as connection:
        await found_application(connection, CountingEmbedder().embed)
        await connection.execute("UPDATE application SET policy = 'manual'")
        await connection.execute(
            "INSERT INTO configuration (applied_by, source, spec, hash) VALUES ('ann', '', %s, '')",
            (Jsonb({"deployments": {}, "webhooks": [{"url": "http://127.0.0.1:1/hook"}]}),),
        )
        await ask(connection, "train?", ["travel.md"], times=3, ago="1 minute")
        await ask(connection, "paid?", ["pay.md", "leave.md"], ago="1 minute")
        await connection.execute(
            "INSERT INTO rollout_stage (rollout_id, stage, share, author, reason) VALUES (1, 1, 0.5, 'ann', 'try')"
        )
        await set_share(connection, "help", "on-2", 0.0, author="ann")
    return database


def losses(removed: int, changed: int) -> Losses:
    """Losses of two documents that are named, and others."""
    documents = (LostDocument("a.md", "A", "removed", 1200), LostDocument("b.md", "B", "changed", 4))
    named = documents[0 if removed else 1 : 2 if changed else 1]
    return Losses("handbook@1", "handbook@2", 2000, 1300, removed, changed, named)


def test_losses_in_words() -> None:
    assert describe_losses(losses(0, 0)) == ""
    assert describe_losses(losses(1, 0)) == "answers came from documents that handbook@2 lacks: a.md (1,200)"
    assert describe_losses(losses(7, 1), most=1).endswith("lacks or has changed: a.md (1,200) and 7 more")
    assert describe_losses(losses(0, 2)).endswith("handbook@2 has changed: b.md (4) and 1 more")
    assert describe_share_lost(losses(0, 0), "r-1").startswith("every document that the latest 2,000 answers of r-1")
    gone = "1,300 of the latest 2,000 answers of r-1 had passages of documents that handbook@2 lacks"
    assert describe_share_lost(losses(3, 0), "r-1") == gone
    assert describe_share_lost(losses(3, 1), "r-1") == f"{gone}; 1 document that they came from has changed"
    assert describe_share_lost(losses(0, 2), "r-1").endswith(
        ": 2 documents that they came from have changed in handbook@2"
    )
    nothing = Losses("handbook@1", "handbook@2", 0, 0, 0, 0, ())
    assert describe_share_lost(nothing, "r-1") == "no answer of r-1 from handbook@1 is recorded"


async def test_a_webhook_names_them_at_every_attempt(asked: Database) -> None:
    clock = ManualClock(unix_ms=SystemClock().unix_ms())
    async with asked.connection() as connection:
        rollout = await find_rollout(connection, 1)
        data = {**describe(rollout), "message": "harm"}
        for event in ("rollout.rolled_back", "rollout.alert"):
            await outbox.add(connection, event, data, clock.unix_ms())
    client = WebhookClient(1.0)
    await client.start()
    courier = Courier(asked, clock, client)
    for _ in range(2):
        assert await courier.deliver() == 2
        clock.advance(60)
    await client.close()
    async with asked.connection() as connection:
        cursor = await connection.execute("SELECT event, body FROM webhook_delivery WHERE attempts = 2")
        told = {event: json.loads(body)["data"] for event, body in await cursor.fetchall()}
    assert told["rollout.alert"] == data
    assert told["rollout.rolled_back"] == data | {
        "message": f"harm; {LOST}",
        "lost_documents": [
            {"path": "travel.md", "title": "Travel", "state": "removed", "interactions": 3},
            {"path": "pay.md", "title": "Pay", "state": "changed", "interactions": 1},
        ],
    }


async def test_a_rollback_for_another_reason_is_told_as_it_is(asked: Database) -> None:
    clock = ManualClock(unix_ms=SystemClock().unix_ms())
    async with asked.connection() as connection:
        rollout = await find_rollout(connection, 1)
        data = {**describe(rollout), "differs": ["model"], "message": "harm"}
        await outbox.add(connection, "rollout.rolled_back", data, clock.unix_ms())
    client = WebhookClient(1.0)
    await client.start()
    assert await Courier(asked, clock, client).deliver() == 1
    await client.close()
    async with asked.connection() as connection:
        cursor = await connection.execute("SELECT body FROM webhook_delivery")
        assert [json.loads(body)["data"] for (body,) in await cursor.fetchall()] == [data]


async def test_a_rollback_is_told_even_if_nothing_can_be_found_out_about_it(asked: Database) -> None:
    clock = ManualClock(unix_ms=SystemClock().unix_ms())
    async with asked.connection() as connection:
        data = {**describe(await find_rollout(connection, 1)), "message": "harm"}
        await outbox.add(connection, "rollout.rolled_back", data, clock.unix_ms())
        await connection.execute("ALTER TABLE index_document RENAME COLUMN content_hash TO gone")
    client = WebhookClient(1.0)
    await client.start()
    assert await Courier(asked, clock, client).deliver() == 1
    await client.close()
    async with asked.connection() as connection:
        cursor = await connection.execute("SELECT attempts, problem IS NOT NULL, body FROM webhook_delivery")
        [(attempts, failed, body)] = await cursor.fetchall()
    assert (attempts, failed, json.loads(body)["data"]) == (1, True, data | {"lost_documents": []})


@pytest.mark.usefixtures("asked")
def test_show_lists_them(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_DATABASE_URL", database_url)
    text = " ".join(CliRunner().invoke(app, ["rollout", "show", "help"]).stdout.split())
    assert "Lost with handbook@2 3 of the latest 4 answers of on-1 had passages of documents" in text
    assert "travel.md Travel removed 3 pay.md Pay changed 1" in text
    assert "differs in index version (handbook@1 -> handbook@2)" in text
    shown = json.loads(CliRunner().invoke(app, ["rollout", "show", "help", "--json"]).stdout)
    assert [each["path"] for each in shown["losses"]["documents"]] == ["travel.md", "pay.md"]
    assert shown["rollout"]["difference"]["parts"] == ["index"]
