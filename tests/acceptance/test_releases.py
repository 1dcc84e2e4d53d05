"""Releases: who gets which, how a share moves, what a release changes, and what stays secret."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from headway.clock import SystemClock
from headway.testing import Behaviour, ErrorReply
from tests.acceptance.harness import wait_for
from tests.acceptance.stand import BLUNT, KIND, Reply, Stand, call, unique


def converse(stand: Stand, application: str, question: str, turns: int = 1) -> list[str]:
    """Hold a conversation as clients do, resending the history; each turn over a new connection, so to any worker.

    Returns:
        The release of each turn.
    """
    messages: list[dict[str, Any]] = []
    releases = []
    for turn in range(turns):
        messages.append({"role": "user", "content": question if turn == 0 else f"and {turn}?"})
        body = {"model": application, "messages": messages}
        answer = call(f"{stand.headway.base_url}/chat/completions", body, key=stand.key)
        assert answer.status == 200, answer
        messages.append(answer.json["choices"][0]["message"])
        releases.append(answer.headers["x-headway-release"])
    return releases


def converse_all(stand: Stand, application: str, questions: list[str], turns: int = 1) -> dict[str, str]:
    """Hold many conversations, eight at a time, each of which must stay on one release."""
    with ThreadPoolExecutor(8) as pool:
        held = list(pool.map(lambda question: converse(stand, application, question, turns), questions))
    split = [releases for releases in held if len(set(releases)) > 1]
    assert not split, f"{len(split)} conversations changed their release: {split[:3]}"
    return {question: releases[0] for question, releases in zip(questions, held, strict=True)}


def test_conversations_stay_on_their_release(stand: Stand) -> None:
    """Sixty conversations of three turns at a share of 50%: none changes its release, each release gets its share."""
    chosen = converse_all(stand, "support", [unique(f"sticky {number}") for number in range(60)], turns=3)
    candidates = sum(release == BLUNT for release in chosen.values())
    assert 15 <= candidates <= 45, f"{candidates} of 60 at a share of 50%"


def test_explicit_units(stand: Stand) -> None:
    """A header or a conversation id keeps together what would otherwise be conversations of their own."""
    for number in range(4):
        unit = unique(f"unit {number}")
        by_header = {
            stand.chat("support", unique("hello"), headers={"x-headway-unit": unit}).headers["x-headway-release"]
            for _ in range(6)
        }
        by_metadata = {
            stand.chat("support", unique("hello"), metadata={"conversation_id": unit}).headers["x-headway-release"]
            for _ in range(6)
        }
        assert len(by_header) == 1
        assert by_header == by_metadata


def test_growing_a_share_never_moves_a_conversation_back(stand: Stand) -> None:
    """From 20% to 50% to 80% to everything: who has the candidate keeps it."""
    questions = [unique(f"growing {number}") for number in range(60)]
    assert set(converse_all(stand, "growing", questions).values()) == {KIND}
    before: set[str] = set()
    counts = []
    for share in ("20%", "50%", "80%", "100%"):
        stand.headway.run("share", "growing", BLUNT, share, "--reason", f"looks good, {share}")
        stand.headway.wait_for_snapshot()
        chosen = converse_all(stand, "growing", questions)
        candidates = {question for question, release in chosen.items() if release == BLUNT}
        assert before <= candidates, f"at {share}, {len(before - candidates)} conversations were moved back"
        before = candidates
        counts.append(len(candidates))
    assert counts[0] <= 30, counts
    assert 10 <= counts[1] <= 50, counts
    assert counts[3] == 60
    (rollout,) = stand.headway.run_json("rollout", "list", "growing")
    assert (rollout["state"], rollout["candidate"]) == ("promoted", BLUNT)
    stages = stand.headway.rows(
        "SELECT s.share, s.reason FROM rollout_stage s WHERE s.rollout_id = %s ORDER BY s.stage", rollout["number"]
    )
    assert [stage["share"] for stage in stages][:3] == [0.2, 0.5, 0.8]
    assert stages[0]["reason"] == "looks good, 20%"


def test_pins_need_the_scope(stand: Stand) -> None:
    """Without the scope `pin` a key cannot choose a release; with it, whatever the conversation's own release."""
    key = stand.headway.create_key("no pins")
    refused = stand.chat(f"support@{BLUNT}", unique("pin"), key=key)
    assert (refused.status, refused.code) == (403, "insufficient_scope")
    assert stand.chat("support", unique("pin"), key=key).status == 200
    question = unique("pinned")
    for release in (KIND, BLUNT, KIND):
        answer = stand.chat(f"support@{release}", question)
        assert answer.headers["x-headway-release"] == release
        assert stand.headway.interaction(answer.json["id"])["kind"] == 2
    unknown = stand.chat("support@never", question)
    assert (unknown.status, unknown.code) == (404, "release_not_found")


def test_a_share_is_live_in_every_worker_within_a_second(stand: Stand) -> None:
    """While requests run, one release takes over from the other: nothing fails, and a second later it has it all."""
    stop = threading.Event()

    def keep_asking(number: int) -> list[Reply]:
        answers = []
        while not stop.is_set():
            answers.append(stand.chat("shifting", unique(f"shifting {number}")))
        return answers

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(keep_asking, number) for number in range(4)]
        try:
            stand.headway.run("share", "shifting", BLUNT, "100%")
            promoted_ms = stand.headway.value(
                "SELECT (extract(epoch FROM max(created_at)) * 1000)::bigint FROM routing_snapshot"
            )
            wait_for("a second and a half", lambda: SystemClock().unix_ms() > promoted_ms + 1500)
        finally:
            stop.set()
        answers = [answer for each in running for answer in each.result()]
    assert {answer.status for answer in answers} == {200}
    signer = stand.headway.snapshot().signing.signer()
    by_start = sorted((signer.read(each.json["id"]).unix_ms, each.headers["x-headway-release"]) for each in answers)
    lags = [start - promoted_ms for start, release in by_start if release == KIND]
    late = [start - promoted_ms for start, release in by_start if release == BLUNT]
    assert min(lags) < 0, "nothing ran before the switch"
    assert max(late) > 1000, "nothing ran a second after the switch"
    assert max(lags) < 1000, f"an old release answered {max(lags)} ms after the switch"
    print(f"{len(answers)} requests; the last of the old release {max(0, *lags)} ms after the switch")


def test_prompt_and_parameters_are_the_releases(stand: Stand) -> None:
    """The provider gets the release's prompt, filled in, its parameters, and the deployment's model."""
    question = unique("what do you hear?")
    stand.chat(f"support@{KIND}", question, user="Ann", temperature=0.2, top_p=0.5)
    (kind,) = stand.provider.received(question)
    assert kind.body["messages"] == [
        {"role": "system", "content": "You are kind, Ann."},
        {"role": "user", "content": question},
    ]
    assert (kind.body["model"], kind.body["temperature"], kind.body["top_p"]) == ("chatty", 0.7, 0.5)
    assert kind.headers["authorization"] == f"Bearer {stand.provider_secret}"
    question = unique("and in a response?")
    body = {"model": f"support@{BLUNT}", "input": question, "temperature": 0.2}
    call(f"{stand.headway.base_url}/responses", body, key=stand.key)
    (blunt,) = stand.provider.received(question)
    assert (blunt.body["instructions"], blunt.body["temperature"]) == ("You are blunt.", 0.1)


def test_what_a_client_may_override(stand: Stand) -> None:
    """Where the release allows it, the client's system message and parameters win; and nothing of it is recorded."""
    question = unique("override")
    messages = [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": question}]
    body = {"model": "overriding", "messages": messages, "temperature": 1.5}
    answer = call(f"{stand.headway.base_url}/chat/completions", body, key=stand.key)
    (received,) = stand.provider.received(question)
    assert (received.body["messages"], received.body["temperature"]) == (messages, 1.5)
    record = stand.headway.interaction(answer.json["id"])
    assert (record["request"], record["answer"]) == (None, None)
    assert record["output_tokens"] > 0
    question = unique("no override")
    stand.chat("overriding", question)
    (received,) = stand.provider.received(question)
    assert received.body["messages"][0] == {"role": "system", "content": "You are kind, stranger."}
    assert received.body["temperature"] == 0.7


def test_a_response_continues_where_it_began(stand: Stand) -> None:
    """While the share moves to everything, later turns keep the release, deployment and conversation of the first."""
    url = f"{stand.headway.base_url}/responses"
    stand.headway.run("share", "continuing", BLUNT, "50%")
    stand.headway.wait_for_snapshot()
    first = [call(url, {"model": "continuing", "input": unique(f"begin {n}")}, key=stand.key) for n in range(10)]
    assert {answer.headers["x-headway-release"] for answer in first} == {KIND, BLUNT}
    stand.headway.run("share", "continuing", BLUNT, "100%")
    stand.headway.wait_for_snapshot()
    for begun in first:
        previous = begun
        for turn in range(3):  # each over a new connection: to either worker
            body = {"model": "continuing", "input": f"more {turn}", "previous_response_id": previous.json["id"]}
            previous = call(url, body, key=stand.key)
            assert previous.status == 200, previous
            assert previous.headers["x-headway-release"] == begun.headers["x-headway-release"]
        one, other = (stand.headway.interaction(each.json["id"]) for each in (begun, previous))
        for name in ("release", "deployment", "conversation", "unit"):
            assert one[name] == other[name], name
    fresh = call(url, {"model": "continuing", "input": unique("fresh")}, key=stand.key)
    assert fresh.headers["x-headway-release"] == BLUNT


@pytest.mark.parametrize("stream", [False, True])
def test_secrets_stay_secret(stand: Stand, stream: bool) -> None:
    """The provider's key and the callers' keys are in no table, file, log or answer, also not after errors."""
    leaky = ErrorReply(status=401, message=f"Incorrect API key: {stand.provider_secret}", code="invalid_api_key")
    stand.provider.play("fragile", Behaviour(errors=(leaky,)))
    refused = stand.chat("fragile", unique("leak"), stream=stream)
    assert (refused.status, refused.code) == (502, "provider_rejected")
    answered = stand.chat("support", unique("no leak"), stream=stream)
    stand.headway.interaction(answered.headers["x-headway-interaction"])
    stand.headway.interaction(refused.headers["x-headway-interaction"])
    places = {"answers": repr((refused, answered)), "log": stand.headway.log(), "output": stand.headway.output()}
    for table in stand.headway.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        name = table["tablename"]
        places[name] = json.dumps([row["row"] for row in stand.headway.rows(f'SELECT t::text AS row FROM "{name}" t')])
    for path in stand.headway.folder.rglob("*"):
        if path.is_file():
            places[path.name] = path.read_bytes().decode("latin-1")
    assert stand.headway.interaction(refused.headers["x-headway-interaction"])["error"] == "provider_rejected"
    for secret in (stand.provider_secret, stand.key):
        for form in (secret, secret.encode().hex()):
            assert not [name for name, text in places.items() if form in text]
    # The first key of all is shown once, at the first start, and nowhere else.
    first = stand.headway.first_key
    assert [name for name, text in places.items() if first in text] == ["output", "output-1.txt"]
