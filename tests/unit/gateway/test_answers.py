"""Whole answers: what they say is recorded, the id is replaced, every other byte stays."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.interaction import Interaction
from headway.gateway.answers import JunkError, check_answer, decode_body, rewrite_answer
from tests.routes import ANSWER_ID, begun

CHAT: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4o-mini-2024",
    "system_fingerprint": "fp_1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}},
}
RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "model": "gpt-4o-mini-2024",
    "previous_response_id": "resp_0",
    "output": [{"id": "msg_1", "type": "message", "content": [{"type": "output_text", "text": "hi"}]}],
    "usage": {"input_tokens": 12, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 8}},
}
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ids = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=20)


def rewrite(raw: bytes, operation: Any = "chat", previous: bytes | None = None) -> tuple[bytes, Interaction]:
    interaction = begun(operation)
    return rewrite_answer(interaction, raw, check_answer(operation, raw), ANSWER_ID, previous), interaction


def dumped(body: dict[str, Any], *, spaced: bool = False) -> bytes:
    return json.dumps(body, ensure_ascii=spaced, separators=None if spaced else (",", ":")).encode()


class TestRecorded:
    def test_a_chat_completion(self) -> None:
        _, interaction = rewrite(dumped(CHAT))
        assert (interaction.provider_id, interaction.provider_model) == ("chatcmpl-1", "gpt-4o-mini-2024")
        assert (interaction.provider_fingerprint, interaction.finish_reason) == ("fp_1", "stop")
        assert (interaction.input_tokens, interaction.cached_tokens, interaction.output_tokens) == (12, 8, 3)
        assert (interaction.refused, interaction.filtered, interaction.error) == (False, False, None)

    def test_a_response(self) -> None:
        _, interaction = rewrite(dumped(RESPONSE), "responses")
        assert (interaction.provider_id, interaction.finish_reason) == ("resp_1", "completed")
        assert (interaction.input_tokens, interaction.cached_tokens, interaction.output_tokens) == (12, 8, 3)

    def test_embeddings(self) -> None:
        body = {"object": "list", "model": "e", "data": [], "usage": {"prompt_tokens": 5, "total_tokens": 5}}
        raw, interaction = rewrite(dumped(body), "embeddings")
        assert raw == dumped(body)
        assert (interaction.input_tokens, interaction.output_tokens, interaction.cached_tokens) == (5, 0, None)

    @pytest.mark.parametrize(
        ("usage", "recorded"),
        [
            (None, (None, None, None)),
            ({}, (None, None, None)),
            ({"prompt_tokens": 5}, (5, 0, None)),
            ({"completion_tokens": 5}, (None, 5, None)),
            ({"prompt_tokens": 5.0, "completion_tokens": 2.0}, (5, 2, None)),
            ({"prompt_tokens": 5, "prompt_tokens_details": None}, (5, 0, None)),
            ({"prompt_tokens": 5, "prompt_tokens_details": {}}, (5, 0, None)),
            ({"prompt_tokens": -5, "completion_tokens": 10**30}, (None, None, None)),
            ({"total_tokens": 5}, (None, None, None)),
        ],
    )
    def test_usage_as_far_as_it_is_told(self, usage: Any, recorded: tuple[Any, ...]) -> None:
        _, interaction = rewrite(dumped({**CHAT, "usage": usage}))
        assert (interaction.input_tokens, interaction.output_tokens, interaction.cached_tokens) == recorded

    def test_refusals_and_filters(self) -> None:
        refusal = {"finish_reason": "stop", "message": {"content": None, "refusal": "I'm sorry"}}
        assert rewrite(dumped({**CHAT, "choices": [refusal]}))[1].refused
        second = [{"finish_reason": "stop"}, {"finish_reason": "content_filter"}]
        _, interaction = rewrite(dumped({**CHAT, "choices": second}))
        assert (interaction.finish_reason, interaction.filtered) == ("stop", True)
        said = [{"type": "reasoning"}, {"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]
        assert rewrite(dumped({**RESPONSE, "output": said}), "responses")[1].refused

    def test_an_incomplete_response_says_why(self) -> None:
        cut = {**RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "content_filter"}}
        _, interaction = rewrite(dumped(cut), "responses")
        assert (interaction.finish_reason, interaction.filtered, interaction.error) == ("content_filter", True, None)

    def test_a_failed_response_is_an_error(self) -> None:
        failed = {**RESPONSE, "status": "failed", "error": {"code": "server_error", "message": "sorry"}}
        _, interaction = rewrite(dumped(failed), "responses")
        assert (interaction.error, interaction.release_error) == ("provider_error", True)


class TestBytes:
    @given(ids, st.lists(text, max_size=3), st.booleans())
    def test_nothing_but_the_id_changes(self, provider_id: str, texts: list[str], spaced: bool) -> None:
        says = [*texts, provider_id, f'"id":"{provider_id}"', f'{{"id": "{provider_id}"}}', f'"{provider_id}"']
        choices = [{"index": n, "message": {"content": said}, "finish_reason": "stop"} for n, said in enumerate(says)]
        body = {"object": "x", "id": provider_id, "choices": choices, "n": 1.0}
        raw, _ = rewrite(dumped(body, spaced=spaced))
        assert raw == dumped({**body, "id": ANSWER_ID.decode()}, spaced=spaced)

    def test_numbers_and_blanks_stay(self) -> None:
        raw = b'{ "id": "a",\n "x":1e5, "choices" : [ {"finish_reason": "stop" , "p":-0.10} ] }\n'
        assert rewrite(raw)[0] == raw.replace(b'"a"', b'"' + ANSWER_ID + b'"')

    @pytest.mark.parametrize("name", [b'"id" : "a"', b'"id"\n:"a"', b'"i\\u0064":"a"', b'"id":"\\u0061"'])
    def test_an_unusual_spelling_costs_blanks_at_most(self, name: bytes) -> None:
        raw, _ = rewrite(b"{" + name + b',"choices":[{"text":"b"}]}')
        assert json.loads(raw) == {"id": ANSWER_ID.decode(), "choices": [{"text": "b"}]}

    @pytest.mark.parametrize("start", ['{"id":"",', '{"id":null,', "{"])
    def test_an_answer_without_an_id_gets_one(self, start: str) -> None:
        raw, interaction = rewrite(start.encode() + b'"choices":[{"p":1.0}]}')
        assert raw == b'{"id":"' + ANSWER_ID + b'","choices":[{"p":1.0}]}'
        assert not interaction.provider_id

    def test_the_previous_id_is_the_clients_again(self) -> None:
        raw, _ = rewrite(dumped(RESPONSE), "responses", b"hw_previous")
        assert json.loads(raw) == {**RESPONSE, "id": ANSWER_ID.decode(), "previous_response_id": "hw_previous"}
        raw, _ = rewrite(dumped(RESPONSE, spaced=True), "responses", b"hw_previous")
        assert b'"previous_response_id": "hw_previous"' in raw

    def test_a_text_that_is_the_previous_id_stays(self) -> None:
        said = {
            **RESPONSE,
            "output": [{"content": [{"type": "output_text", "text": "resp_0"}]}],
            "metadata": {"a": "resp_1"},
        }
        raw, _ = rewrite(dumped(said), "responses", b"hw_previous")
        assert json.loads(raw) == {**said, "id": ANSWER_ID.decode(), "previous_response_id": "hw_previous"}


class TestJunk:
    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"<html>",
            b"[]",
            b"5",
            b"null",
            b'{"id":"a"}',
            b'{"error":{"message":"no"}}',
            b'{"choices":{}}',
            b'{"choices":[5]}',
            b'{"id":"a","choices":[',
            b'{"id":"caf\xc3',
            b'{"id":5,"choices":[]}',
            b'data: {"choices":[]}',
            b'{"choices":[],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        ],
        ids=lambda raw: repr(raw[:30]),
    )
    def test_is_not_an_answer(self, raw: bytes) -> None:
        with pytest.raises(JunkError):
            check_answer("chat", raw)

    @pytest.mark.parametrize("raw", [b"{}", b'{"error":{}}', b'{"choices":[]}'])
    def test_is_not_an_embedding(self, raw: bytes) -> None:
        with pytest.raises(JunkError):
            check_answer("embeddings", raw)

    @given(st.binary(max_size=50) | text.map(str.encode))
    def test_any_bytes_are_read_or_junk(self, raw: bytes) -> None:
        try:
            decode_body(raw)
        except JunkError:
            return
        assert isinstance(json.loads(raw), dict)
