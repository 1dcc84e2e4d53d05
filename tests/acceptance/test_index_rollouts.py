"""Index versions roll out like models: real documents, real builds, users who want the section that answers them."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from headway.testing import Answer, Behaviour, ProviderProcess, Traffic, run_traffic
from headway.testing.faq import Question, load_faq
from tests.acceptance.harness import Headway, openai_deployment, running, wait_for
from tests.acceptance.stand import call

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]

WARM_ANSWERS = 1_050
"""A baseline takes 1,000."""
ASKED = 8
"""How often each question has been asked by then, on average: nearly all have been asked at all."""
PATIENCE_SECONDS = 240.0
LOST_RATIO = 0.2
CONTENT, DISCONTENT = 0.95, 0.1
"""How likely somebody is to like an answer that has the section they need, and one that has not."""
POLICY: dict[str, Any] = {
    "stages": ["25%", "50%", "100%"],
    "goal": {"metric": "thumbs_up", "margin": "10pp", "weight": 0.5},
    "guardrails": [
        {"metric": "attempt_error_rate", "ratio": 2, "floor": "5%"},
        {"metric": "fallback_rate", "ratio": 2, "floor": "5%"},
        {"metric": "retrieval_error_rate", "ratio": 2, "floor": "5%"},
        {"metric": "empty_result_rate", "ratio": 2, "floor": "5%"},
        {"metric": "cited_answer_rate", "ratio": 0.7},
    ],
    "dwell": "3s",
    "feedback_window": "2s",
    "settle": "0s",
    "max_duration": "10m",
    "holdback": {"share": "2%", "duration": "5s"},
}
FRUGAL = POLICY | {"guardrails": [*POLICY["guardrails"], {"metric": "context_tokens", "ratio": 1.5}]}
CRUMBS, PARAGRAPHS = {"tokens": 16, "overlap": 0}, {"tokens": 160, "overlap": 16}
ENOUGH_WORDS = 60
"""Of an answer that long, or half of a shorter one, a user wants to have been given so much."""


def configuration(provider: ProviderProcess, chunk: Mapping[str, int]) -> dict[str, Any]:
    """Two applications, each on the latest version of an index of its own."""
    return {
        "deployments": {"main": openai_deployment(provider.base_url, "model")},
        "policies": {"hasty": POLICY, "frugal": FRUGAL},
        "indexes": {"handbook": {"lake": "file:./handbook"}, "guide": {"lake": "file:./guide", "chunk": dict(chunk)}},
        "applications": {
            "support": {"policy": "frugal", "release": {"deployment": "main", "index": "handbook"}},
            "advice": {"policy": "hasty", "release": {"deployment": "main", "index": "guide"}},
        },
    }


def write_documents(folder: Path, questions: list[Question]) -> None:
    """Write a document for each question: its text, and the section that answers it."""
    for question in questions:
        path = folder / question.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {question.text}\n\n{question.answer}\n")


@dataclass
class Users:
    """Users of an application, and what they have met."""

    application: str
    answering: Mapping[str, Mapping[str, int]]
    answers: int = 0
    hits: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    errors: dict[str, int] = field(default_factory=dict)

    def judge(self, answer: Answer) -> float:
        """Like an answer that was given enough of the section that answers the question."""
        for path, words in self.answering[answer.question].items():
            given = sum(len(each.content.split()) for each in answer.citations if each.document == path)
            if given >= min(ENOUGH_WORDS, words / 2):
                return CONTENT
        return DISCONTENT

    def note(self, answer: Answer) -> None:
        """Count an answer, and what it was given, by release."""
        self.answers += 1
        self.hits[answer.release][self.judge(answer) == CONTENT] += 1

    async def come(self, headway: Headway, seed: int) -> None:
        """Ask one question each, and rate the answer, until cancelled."""
        traffic = Traffic(
            application=self.application,
            truth=self.judge,
            users=1_000_000,
            conversations_per_user=1,
            turns=(1, 1),
            concurrency=4,
            streamed_ratio=0.2,
            rating_ratio=1.0,
            ratings_with_key=False,
            questions=tuple(self.answering),
            seed=seed,
        )
        summary = await run_traffic(headway.url, headway.first_key, traffic, observe=self.note)
        self.errors = dict(summary.errors)


@asynccontextmanager
async def coming(headway: Headway, crowds: list[Users]) -> AsyncIterator[None]:
    """Let users come while the block runs."""
    tasks = [asyncio.create_task(users.come(headway, seed)) for seed, users in enumerate(crowds)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def decided(headway: Headway) -> dict[str, dict[str, Any]]:
    """Wait until both rollouts are over."""

    def look() -> dict[str, dict[str, Any]]:
        rollouts = {each["application"]: each for each in headway.run_json("rollout", "list")}
        return rollouts if all(each["ended_at"] for each in rollouts.values()) else {}

    return await asyncio.to_thread(wait_for, "the end of the rollouts", look, PATIENCE_SECONDS)


async def test_a_poorer_index_version_goes_back_and_a_better_one_is_promoted(
    tmp_path: Path, database_url: str, proof: bool
) -> None:
    """The same release, applied after a build, begins a rollout; Headway finds out by itself which version is worse."""
    questions = list(load_faq().questions)[:: 1 if proof else 4]
    lost = {each.path for each in random.Random(7).sample(questions, round(LOST_RATIO * len(questions)))}
    answering: dict[str, dict[str, int]] = {}
    for question in questions:
        answering.setdefault(question.text, {})[question.path] = len(question.answer.split())
    write_documents(tmp_path / "handbook", questions)
    write_documents(tmp_path / "guide", questions)
    headway = Headway(tmp_path, database_url=database_url, environment={"HEADWAY_TICK_SECONDS": "1"})
    async with ProviderProcess({"model": Behaviour(answer_text="As the handbook has it [1].")}) as provider:
        headway.write(configuration(provider, CRUMBS))
        await build(headway)
        with running(headway):
            crowds = [Users("support", answering), Users("advice", answering)]
            async with coming(headway, crowds):
                for path in lost:
                    (tmp_path / "handbook" / path).unlink()
                headway.write(configuration(provider, PARAGRAPHS))
                await build(headway)
                enough = max(WARM_ANSWERS, ASKED * len(questions))
                await asyncio.to_thread(
                    wait_for, "the baseline", lambda: min(each.answers for each in crowds) > enough, PATIENCE_SECONDS
                )
                applied = await asyncio.to_thread(headway.run, "apply", "--yes")
                rollouts = await decided(headway)
            for each in crowds:
                print(each.application, each.answers, dict(each.hits))
            assert {name: each["state"] for name, each in rollouts.items()} == {
                "support": "rolled_back",
                "advice": "promoted",
            }
            for name, versions in (("support", "handbook@1 -> handbook@2"), ("advice", "guide@1 -> guide@2")):
                only = f"the releases differ in the index version only: {versions}"
                assert only in applied
                decisions = headway.run_json("rollout", "show", name)["decisions"]
                assert decisions[0]["message"].endswith(only)
                assert decisions[0]["metric"] == ("thumbs_up" if name == "support" else None)
                headway.run("rollout", "replay", name)
            check_losses(headway, rollouts, lost)


async def build(headway: Headway) -> None:
    """Build the next version of both indexes, as an operator does."""
    for index in ("handbook", "guide"):
        await asyncio.to_thread(headway.run, "index", "build", index)


def check_losses(headway: Headway, rollouts: Mapping[str, Mapping[str, Any]], lost: set[str]) -> None:
    """What was lost is named, wherever one looks: all of it, and nothing else."""
    number = rollouts["support"]["number"]
    url = f"{headway.admin_url}/admin/v1/rollouts/{number}/lost-documents?limit=1000"
    losses = call(url, key=headway.first_key).json["losses"]
    assert (losses["before"], losses["after"], losses["changed"]) == ("handbook@1", "handbook@2", 0)
    assert {each["state"] for each in losses["documents"]} == {"removed"}
    assert {each["path"] for each in losses["documents"]} == lost
    assert losses["interactions"] > losses["affected"] > LOST_RATIO / 2 * losses["interactions"]
    shown = headway.run("rollout", "show", "support")
    assert "answers came from documents that handbook@2 lacks: " in " ".join(shown.split())
    assert losses["documents"][0]["path"] in shown
    assert headway.run_json("rollout", "show", "advice")["losses"]["documents"] == []
