"""What differs between two releases, by parts and by values."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import msgspec
import pytest

from headway.domain.difference import (
    Change,
    Difference,
    Part,
    compare,
    describe_parts,
    explain_difference,
    explain_incomparable,
    find_difference,
)
from headway.domain.policy import MetricRule, Policy, StageRule
from headway.domain.release import Bundle, Endpoint, Retrieval

ENDPOINT = Endpoint("openai", "http://127.0.0.1:9/v1", "small")
OTHER = msgspec.structs.replace(ENDPOINT, model="large")
STABLE = Bundle((("main", ENDPOINT),), "Be kind.", {"temperature": 0.5}, (), Retrieval("handbook", 3))
CHANGES: dict[Part, dict[str, object]] = {
    "model": {"deployments": (("main", OTHER),)},
    "prompt": {"prompt": "Be blunt."},
    "index": {"retrieval": Retrieval("handbook", 4)},
    "retrieval": {"retrieval": Retrieval("handbook", 3, top_k=8)},
    "parameters": {"parameters": {"temperature": 0.7}},
}


def test_a_release_does_not_differ_from_itself() -> None:
    found = find_difference(STABLE, STABLE)
    assert found == Difference((), "handbook@3", "handbook@3")
    assert (describe_parts(found), explain_difference(found)) == ("", "")


@pytest.mark.parametrize("part", CHANGES)
def test_each_part_is_told_apart(part: Part) -> None:
    found = find_difference(STABLE, msgspec.structs.replace(STABLE, **CHANGES[part]))
    assert found.parts == (part,)
    assert explain_difference(found).startswith("the releases differ in the ")
    assert " only" in explain_difference(found)


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(("model", "prompt", "index", "parameters"), 2)])
def test_of_several_parts_none_is_to_blame(one: Part, other: Part) -> None:
    found = find_difference(STABLE, msgspec.structs.replace(STABLE, **CHANGES[one], **CHANGES[other]))
    assert found.parts == (one, other)
    assert "cannot tell these apart: rolled out one after the other, it can" in explain_difference(found)


def test_index_and_retrieval() -> None:
    found = find_difference(STABLE, msgspec.structs.replace(STABLE, retrieval=Retrieval("handbook", 4, top_k=8)))
    assert describe_parts(found) == "index version (handbook@3 -> handbook@4) and retrieval parameters"


@pytest.mark.parametrize(
    "model",
    [
        (("main", msgspec.structs.replace(ENDPOINT, base_url="http://127.0.0.1:8/v1")),),
        (("main", ENDPOINT), ("spare", OTHER)),
        (("renamed", ENDPOINT),),
    ],
)
def test_endpoint_fallbacks_and_name_are_the_model(model: tuple[tuple[str, Endpoint], ...]) -> None:
    assert find_difference(STABLE, msgspec.structs.replace(STABLE, deployments=model)).parts == ("model",)


def test_what_clients_may_override_is_a_parameter() -> None:
    changed = msgspec.structs.replace(STABLE, client_may_override=("temperature",))
    assert find_difference(STABLE, changed).parts == ("parameters",)


def test_parameters_of_retrieval_come_and_go_with_the_index() -> None:
    bare = msgspec.structs.replace(STABLE, retrieval=None)
    grounded = msgspec.structs.replace(STABLE, retrieval=Retrieval("handbook", 4, top_k=8))
    gained, lost = find_difference(bare, grounded), find_difference(grounded, bare)
    assert gained.parts == lost.parts == ("index",)
    assert explain_difference(gained) == "the releases differ in the index version only: none -> handbook@4"
    assert explain_difference(lost) == "the releases differ in the index version only: handbook@4 -> none"
    assert compare(bare, grounded).changes == (Change("index", None, "handbook@4"), Change("top_k", None, "8"))
    assert compare(STABLE, grounded).changes == (Change("index", "handbook@3", "handbook@4"), Change("top_k", "5", "8"))


@dataclass(frozen=True)
class Case:
    """Which of two releases have an index, what a policy asks, and what is said of it."""

    stable: bool
    candidate: bool
    metrics: tuple[str, ...]
    told: str


@pytest.mark.parametrize(
    "case",
    [
        Case(True, True, ("empty_result_rate",), ""),
        Case(False, False, ("error_rate",), ""),
        Case(False, True, ("error_rate",), ""),
        Case(False, True, ("error_rate", "retrieval_p95"), "the stable release has no index"),
        Case(True, False, ("cited_answer_rate",), "the candidate release has no index"),
        Case(False, False, ("context_tokens",), "neither release has an index"),
    ],
)
def test_retrieval_is_compared_between_releases_that_both_retrieve(case: Case) -> None:
    rules = [MetricRule(name, "guardrail", "event_ratio", "ratio", "lower", 1.5, 1.25, 0.5) for name in case.metrics]
    policy = Policy("careful", (StageRule(0.5), StageRule(1.0)), tuple(rules))
    bare = msgspec.structs.replace(STABLE, retrieval=None)
    told = explain_incomparable(policy, STABLE if case.stable else bare, STABLE if case.candidate else bare)
    assert told.startswith(case.told)
    assert bool(told) == bool(case.told)
    if told:
        assert case.metrics[-1] in told


def test_the_same_release_has_no_difference() -> None:
    bundle = Bundle((("main", ENDPOINT),), "Be kind.", {"temperature": 0.5})
    found = compare(bundle, bundle)
    assert (found.changes, found.prompt) == ((), ())


def test_everything_that_differs_is_named() -> None:
    stable = Bundle((("main", ENDPOINT),), "One.\nTwo.\nThree.\n", {"temperature": 0.5, "stop": ["a"]})
    other = msgspec.structs.replace(ENDPOINT, model="large", api_version="2")
    candidate = Bundle(
        (("next", other), ("spare", ENDPOINT)),
        "One.\n-- Two.\nThree.\n",
        {"temperature": 0.5},
        ("temperature",),
        Retrieval("handbook", 3),
    )
    found = compare(stable, candidate)
    assert found.changes == (
        Change("deployment", "main", "next"),
        Change("model", "small", "large"),
        Change("endpoint", "openai at http://127.0.0.1:9/v1", "openai at http://127.0.0.1:9/v1 (2)"),
        Change("stop", '["a"]', None),
        Change("fallbacks", None, "spare (small)"),
        Change("client may override", None, "temperature"),
        Change("index", None, "handbook@3"),
    )
    assert found.prompt == (("same", "One."), ("removed", "Two."), ("added", "-- Two."), ("same", "Three."))


def test_far_changes_of_a_prompt_are_apart() -> None:
    lines = [f"line {number}" for number in range(20)]
    changed = ["first", *lines[1:-1], "last"]
    found = compare(Bundle((("main", ENDPOINT),), "\n".join(lines)), Bundle((("main", ENDPOINT),), "\n".join(changed)))
    assert [sign for sign, _ in found.prompt] == [
        "removed", "added", "same", "same", "gap", "same", "same", "removed", "added",
    ]  # fmt: skip


def test_a_prompt_that_begins_with_dashes_is_not_lost() -> None:
    found = compare(Bundle((("main", ENDPOINT),), "-- a"), Bundle((("main", ENDPOINT),)))
    assert found.prompt == (("removed", "-- a"),)
