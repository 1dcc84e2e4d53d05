"""The newcomer's first half hour, on a real model: ask, rate, comment, correct, report, and find it all recorded."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from headway.client import Headway as HeadwayClient
from headway.testing.smollm import MODEL, serve_smollm
from tests.acceptance.harness import Headway, application, openai_deployment, running

pytestmark = pytest.mark.real_model

QUESTION = "What is the capital of France? Answer in one short sentence."


@pytest.fixture
def headway() -> Iterator[Headway]:
    """Headway from one command, with its embedded database, in front of a real model."""
    folder = Path(tempfile.mkdtemp(prefix="headway-newcomer-"))
    folder.chmod(0o755)  # as root, PostgreSQL runs as somebody else
    prices = {"input": 0.1, "output": 0.4}
    try:
        with serve_smollm() as base_url:
            model = openai_deployment(base_url, MODEL, usd_per_million_tokens=prices)
            prompt = {"text": "You are a helpful assistant. Answer briefly."}
            release = application("local", "plain", prompt=prompt, parameters={"max_tokens": 24, "temperature": 0})
            with running(
                Headway(folder), {"deployments": {"local": model}, "applications": {"support": release}}
            ) as made:
                yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_newcomer(headway: Headway) -> None:
    """One command, the unmodified client, and everything is found under the release that gave the answers."""
    question: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
    with openai.OpenAI(base_url=headway.base_url, api_key=headway.first_key, max_retries=0) as client:
        answer = client.chat.completions.create(model="support", messages=question)
        text = answer.choices[0].message.content
        assert text
        history: list[ChatCompletionMessageParam] = [
            *question,
            {"role": "assistant", "content": text},
            {"role": "user", "content": "Are you sure?"},
        ]
        chunks = list(client.chat.completions.create(model="support", messages=history, stream=True))
        response = client.responses.create(model="support", input="Say hello.")
    (streamed,) = {chunk.id for chunk in chunks}
    assert response.output_text
    assert len(chunks) > 3

    people = HeadwayClient(headway.url, headway.first_key)
    assert people.thumbs_up(answer.id, comment="Quick!").outcome == "created"
    assert people.correction(streamed, "Yes, it is Paris.").outcome == "created"
    report = people.report("Too short", "It does not say since when.", severity="low", interaction_ids=[answer.id])
    browser = HeadwayClient(headway.url)  # an end user has nothing but the id of the answer
    assert browser.stars(response.id, 4).outcome == "created"

    for answer_id in (answer.id, streamed, response.id):
        record = headway.interaction(answer_id)
        assert (record["release_name"], record["status"], record["error"]) == ("plain", 200, None)
        assert record["output_tokens"] > 0
        assert record["cost_usd"] > 0
        assert 0 <= record["overhead_ms"] < record["total_ms"]
    first, second = headway.interaction(answer.id), headway.interaction(streamed)
    assert first["conversation"] == second["conversation"]
    assert 0 < second["first_token_ms"] < second["total_ms"]
    assert json.loads(first["answer"])["choices"][0]["message"]["content"] == text

    interactions = headway.run_json("interactions", "list", "--application", "support")
    assert [each["release"] for each in interactions] == ["plain"] * 3
    feedback = headway.run_json("feedback", "list", "--release", "plain")
    assert {(each["metric"], each["source"]) for each in feedback} == {
        ("thumbs_up", "developer"),
        ("correction", "developer"),
        ("stars", "end_user"),
    }
    (listed,) = headway.run_json("reports", "list")
    assert (listed["id"], listed["title"], listed["status"]) == (str(report.id), "Too short", "open")
    headway.run("reports", "resolve", listed["id"])
    assert people.get_report(listed["id"]).status == "resolved"
