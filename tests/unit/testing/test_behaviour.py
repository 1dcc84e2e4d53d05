import doctest
import importlib
import random
import statistics

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.testing import Behaviour, ErrorReply, Fault, Lognormal, rate_limited
from headway.testing.draft import draw_plan, split_tokens
from headway.testing.question import Question, read_chat


@pytest.mark.parametrize("module", ["behaviour", "draft", "embeddings", "instance", "server", "tally"])
def test_examples_in_docstrings_hold(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"headway.testing.{module}"))
    assert tried
    assert not failed


def test_lognormal_has_its_median_its_tail_and_its_maximum() -> None:
    rng = random.Random(5)
    draws = sorted(Lognormal(100, sigma=0.5, maximum=400).draw(rng) for _ in range(4000))
    assert statistics.median(draws) == pytest.approx(100, rel=0.05)
    assert draws[int(0.95 * len(draws))] == pytest.approx(100 * 2.718281828 ** (1.645 * 0.5), rel=0.1)
    assert draws[-1] <= 400


def test_a_behaviour_reads_back_from_json() -> None:
    behaviour = Behaviour(
        first_token_ms=Lognormal(80, 0.3, 500),
        errors=(rate_limited(2, ratio=0.1, as_date=True), ErrorReply(ratio=0.2, headers={"x-a": "b"})),
        fault=Fault.GZIP_JUNK,
        quality_by_prompt={"kind": 0.9},
        rejects=frozenset({"store"}),
    )
    fields = msgspec.to_builtins(behaviour)
    for name in ("headers_ms", "inter_token_ms", "answer_tokens"):
        del fields[name]["maximum"]  # infinity
    assert Behaviour.from_json(msgspec.json.encode(fields)) == behaviour


@pytest.mark.parametrize(
    "wrong",
    [
        {"quality": 1.1},
        {"fault_ratio": -0.1},
        {"quality_by_prompt": {"a": 2}},
        {"errors": (rate_limited(ratio=0.6), rate_limited(ratio=0.6))},
        {"refusal_ratio": 0.6, "content_filter_ratio": 0.6},
        {"write_bytes": 0},
        {"event_tokens": 0},
        {"write_pause_ms": -1},
    ],
)
def test_impossible_behaviours_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Behaviour(**wrong)  # type: ignore[arg-type]  # any field


@pytest.mark.parametrize("wrong", [{"status": 200}, {"status": 600}, {"ratio": 2}])
def test_impossible_errors_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        ErrorReply(**wrong)  # type: ignore[arg-type]  # any field


@pytest.mark.parametrize("text", ['{"fault": "nonsense"}', '{"unknown": 1}', "[]", "{", '{"quality": "good"}', "3"])
def test_wrong_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Behaviour.from_json(text)


@given(st.text())
def test_tokens_join_to_the_text(text: str) -> None:
    assert "".join(split_tokens(text)) == text


def test_plans_repeat_and_one_request_takes_nothing_from_the_next() -> None:
    behaviour = Behaviour(
        headers_ms=Lognormal(5, 1),
        refusal_ratio=0.3,
        errors=(rate_limited(ratio=0.3),),
        fault=Fault.END_EARLY,
        fault_ratio=0.3,
    )
    question = Question(model="m", choices=2)
    runs = [[draw_plan(behaviour, question, rng) for _ in range(50)] for rng in map(random.Random, (1, 1, 2))]
    assert runs[0] == runs[1] != runs[2]
    assert len({plan.key for plan in runs[0]}) == 50
    assert {plan.error is None for plan in runs[0]} == {True, False}
    assert all(plan.fault is None for plan in runs[0] if plan.error)


def test_prompt_tokens_grow_with_the_conversation() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a" * 40}, {"type": "image_url"}]}]
    first = read_chat({"model": "m", "messages": messages})
    assert first.prompt_tokens == 14
    assert read_chat({"model": "m", "messages": messages * 3}).prompt_tokens == 42
