"""Requests are parsed as far as routing needs, and kept byte for byte."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import InvalidRequestError
from headway.gateway.parsing import ParsedRequest, parse_request
from tests.routes import ask

DEEP = 100_000
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=15,
)
READ = {"model", "stream", "stream_options", "user", "metadata", "previous_response_id", "background"}
READ |= {"safety_identifier"}


def parse(body: bytes, operation: Any = "chat", model: str | None = None) -> ParsedRequest:
    return parse_request(operation, body, model)


class TestFields:
    def test_what_routing_needs_is_read(self) -> None:
        parsed = ask(
            model="support@bold",
            stream=True,
            stream_options={"include_usage": True},
            user="ann",
            metadata={"conversation_id": "c1", "team": "blue"},
        )
        assert (parsed.model, parsed.stream, parsed.include_usage, parsed.user) == ("support@bold", True, True, "ann")
        assert (parsed.conversation, parsed.metadata["team"]) == ("c1", "blue")
        assert parsed.previous_response_id is None

    def test_nothing_but_the_model_is_needed(self) -> None:
        parsed = parse(b'{"model":"support"}')
        assert (parsed.stream, parsed.include_usage, parsed.user) == (False, False, None)
        assert (parsed.conversation, parsed.metadata) == (None, {})

    def test_nulls_are_as_good_as_nothing(self) -> None:
        nothing = dict.fromkeys(READ - {"model"})
        assert ask(**nothing).fields.keys() >= nothing.keys()
        parsed = ask(**nothing, messages=None)
        assert (parsed.stream, parsed.user, parsed.conversation, parsed.metadata) == (False, None, None, {})

    def test_the_model_of_the_path_wins(self) -> None:
        assert parse(b'{"model":"gpt-4"}', model="support").model == "support"
        assert parse(b"{}", model="support").model == "support"

    def test_a_safety_identifier_is_a_user(self) -> None:
        assert ask(safety_identifier="ann").user == "ann"
        assert ask(user="", safety_identifier="ann").user == "ann"
        assert ask(user="bob", safety_identifier="ann").user == "bob"
        assert ask(user="", safety_identifier="").user is None

    def test_embeddings_are_never_streamed(self) -> None:
        assert not ask("embeddings", stream=True).stream

    def test_only_responses_continue_a_response(self) -> None:
        assert ask("responses", previous_response_id="x").previous_response_id == "x"
        assert ask("chat", previous_response_id="x").previous_response_id is None

    @given(st.dictionaries(text.filter(lambda name: name not in READ), values, max_size=6), st.booleans())
    def test_unknown_fields_keep_their_bytes(self, fields: dict[str, Any], spaced: bool) -> None:
        colon, comma = (" :  ", " ,\n") if spaced else (":", ",")
        written = {
            name: json.dumps(value, ensure_ascii=spaced, indent=2 if spaced else None)
            for name, value in {**fields, "model": "m"}.items()
        }
        body = "{" + comma.join(json.dumps(name) + colon + value for name, value in written.items()) + "}"
        parsed = parse(body.encode())
        assert {name: bytes(raw) for name, raw in parsed.fields.items()} == {
            name: value.encode() for name, value in written.items()
        }
        again = msgspec.json.encode(parsed.fields)
        for value in written.values():
            assert value.encode() in again

    def test_numbers_are_not_rewritten(self) -> None:
        body = b'{"model":"m","a":1.0,"b":1e400,"c":12345678901234567890123456789,"d":-0.0,"e":1E5,"f":0.10}'
        assert msgspec.json.encode(parse(body).fields) == body

    def test_of_duplicate_names_the_last_is_read_and_sent(self) -> None:
        parsed = parse(b'{"model":"a","x":1,"\\u006dodel":"b","x":2}')
        assert parsed.model == "b"
        assert msgspec.json.encode(parsed.fields) == b'{"model":"b","x":2}'


class TestRefusals:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b" ",
            b"{",
            b'{"model":"m"',
            b'{"model":"m",}',
            b'{"model":"m"} x',
            b"{'model':'m'}",
            b'{"model":"m","x":NaN}',
            b'{"model":"m","x":01}',
            b'{"model":"m","x":1.2.3}',
            b'{"model":"m","x":"\n"}',
            b'{"model":"m","x":"\x00"}',
            b'{"model":"m","x":"\\q"}',
            b'\xef\xbb\xbf{"model":"m"}',
            '{"model":"m"}'.encode("utf-16"),
            b'{"model":"m","x":"\xff"}',
            b'{"model":"m","messages":[{"role":"user","content":"caf\xc3"}]}',
            b'{"model":"m","x":"\xed\xa0\x80"}',
            b'{"model":"m","user":"\\ud800"}',
            b'{"model":"m","x":"\\ud800 and on"}',
            b'{"model":"m","x":"\\udc00 and on"}',
            b'{"model":"m","\\udc00 and on":1}',
            b'{"model":"m","x":' + b"[" * DEEP + b"]" * DEEP + b"}",
            b'{"model":"m","x":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
            b'{"model":"m","metadata":{"a":' + b"[" * DEEP + b"]" * DEEP + b"}}",
            b'{"model":"m","messages":' + b"[" * DEEP,
        ],
        ids=lambda body: repr(body[:40]),
    )
    def test_what_is_not_json_is_refused(self, body: bytes) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            parse(body)
        assert caught.value.error_code == "invalid_json"

    @given(st.binary(max_size=60))
    def test_any_bytes_are_a_request_or_are_refused(self, body: bytes) -> None:
        try:
            parsed = parse(b'{"model":"m",' + body)
        except InvalidRequestError:
            return
        assert parsed.body.decode()

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"model": 5}, "model"),
            ({"model": None}, "model"),
            ({"model": ""}, "model"),
            ({"stream": "yes"}, "stream"),
            ({"stream": 1}, "stream"),
            ({"stream_options": True}, "stream_options"),
            ({"user": 5}, "user"),
            ({"user": ["ann"]}, "user"),
            ({"user": "a\0b"}, "user"),
            ({"safety_identifier": {}}, "safety_identifier"),
            ({"metadata": "x"}, "metadata"),
            ({"metadata": ["x"]}, "metadata"),
            ({"metadata": {"conversation_id": 5}}, "metadata.conversation_id"),
            ({"metadata": {"conversation_id": ["c"]}}, "metadata.conversation_id"),
            ({"metadata": {"conversation_id": "a\0b"}}, "metadata.conversation_id"),
            ({"previous_response_id": 5}, "previous_response_id"),
            ({"background": True}, "background"),
        ],
    )
    def test_a_field_of_the_wrong_type_is_named(self, fields: dict[str, Any], param: str) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            ask("responses", **fields)
        assert caught.value.param == param

    def test_a_missing_model_is_named(self) -> None:
        with pytest.raises(InvalidRequestError, match="name of an application") as caught:
            parse(b"{}")
        assert caught.value.param == "model"

    @pytest.mark.parametrize("body", [b"[]", b"5", b'"model"', b"null", b"true"])
    def test_what_is_no_object_is_refused(self, body: bytes) -> None:
        with pytest.raises(InvalidRequestError):
            parse(body)

    def test_numbers_that_nobody_can_hold_are_refused_in_metadata(self) -> None:
        with pytest.raises(InvalidRequestError):
            parse(b'{"model":"m","metadata":{"a":1e400}}')
        assert parse(b'{"model":"m","metadata":{"a":1' + b"0" * 30 + b"}}").metadata == {"a": 10**30}


class TestFirstUserMessage:
    def test_it_is_the_first_message_of_a_user_as_it_came(self) -> None:
        body = b'{"model":"m","messages":[{"role":"system","content":"s"},{"content" : "a\\u0062", "role":"user"},'
        assert parse(body + b'{"role":"user","content":"c"}]}').first_user_message() == b'"a\\u0062"'

    def test_it_may_be_a_list_of_parts(self) -> None:
        parts = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
        parsed = ask(messages=[{"role": "user", "content": parts}])
        assert json.loads(parsed.first_user_message()) == parts

    def test_it_stays_the_same_while_the_conversation_grows(self) -> None:
        first = [{"role": "user", "content": "hello"}]
        later = [*first, {"role": "assistant", "content": "hi", "tool_calls": []}, {"role": "user", "content": "more"}]
        assert ask(messages=first).first_user_message() == ask(messages=later).first_user_message()

    def test_a_text_input_and_the_list_that_it_becomes_are_one_conversation(self) -> None:
        later = [{"role": "user", "content": "hello"}, {"type": "reasoning", "summary": []}, {"role": "user"}]
        assert ask("responses").first_user_message() == ask("responses", input=later).first_user_message()

    @pytest.mark.parametrize("messages", [[], [{"role": "system", "content": "x"}], [{}], [{"role": None}]])
    def test_there_may_be_none(self, messages: list[Any]) -> None:
        assert ask(messages=messages).first_user_message() == b""
        assert ask("responses", input=messages).first_user_message() == b""

    def test_no_input_is_no_message(self) -> None:
        assert ask("responses", input=None).first_user_message() == b""
        assert parse(b'{"model":"m"}', "responses").first_user_message() == b""

    @pytest.mark.parametrize("messages", [None, "hello", 5, {"role": "user"}, ["hello"], [None], [[]]])
    def test_messages_of_the_wrong_shape_are_refused(self, messages: Any) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            ask(messages=messages).first_user_message()
        assert caught.value.param == "messages"

    def test_roles_are_given_in_order(self) -> None:
        messages = [{"role": "system"}, {"role": "user"}, {"role": None}, {"type": "x"}, {"role": "developer"}]
        assert ask(messages=messages).roles() == ["system", "user", "", "developer"]
        assert ask("responses", input=messages).roles() == ["system", "user", "", "developer"]
        assert ask("responses", input="hello").roles() == []
