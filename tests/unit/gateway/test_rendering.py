"""Rendering: the release's prompt and parameters are applied, and a client cannot get around them."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import ConfigurationError, InvalidRequestError
from headway.gateway.parsing import parse_request
from headway.gateway.rendering import ReleaseRenderer
from tests.routes import ask, make_deployment, make_release

TODAY = "2026-09-21"


def render(parsed: Any, **bundle: Any) -> dict[str, Any]:
    """What the provider is sent, decoded."""
    renderer = ReleaseRenderer(make_release(**bundle))
    sent = renderer.encode(renderer.render(parsed, TODAY), make_deployment(model="gpt").endpoint)
    decoded: dict[str, Any] = json.loads(sent)
    return decoded


def render_bytes(body: bytes, **bundle: Any) -> bytes:
    renderer = ReleaseRenderer(make_release(**bundle))
    parsed = parse_request("chat", body)
    return renderer.encode(renderer.render(parsed, TODAY), make_deployment(model="gpt").endpoint)


class TestPassingThrough:
    def test_a_release_without_prompt_changes_only_the_model(self) -> None:
        body = b'{"messages" : [ {"role":"user", "content":"caf\\u00e9"} ],"model":"s","tools": [{"a" : 1.0}],"x":1e5}'
        assert render_bytes(body) == (
            b'{"messages":[ {"role":"user", "content":"caf\\u00e9"} ],"model":"gpt","tools":[{"a" : 1.0}],"x":1e5}'
        )

    def test_embeddings_get_no_prompt(self) -> None:
        assert render(ask("embeddings"), prompt="Be brief.") == {"model": "gpt", "input": "hello"}

    def test_each_deployment_gets_its_own_model(self) -> None:
        renderer = ReleaseRenderer(make_release())
        fields = renderer.render(ask(), TODAY)
        models = [
            json.loads(renderer.encode(fields, make_deployment(model=name).endpoint))["model"]
            for name in ("a", 'b"\\é', "a")
        ]
        assert models == ["a", 'b"\\é', "a"]

    def test_the_request_is_not_changed_for_the_next_one(self) -> None:
        parsed = ask(temperature=1)
        before = dict(parsed.fields)
        render(parsed, prompt="Be brief.", parameters={"temperature": 0})
        assert parsed.fields == before

    def test_metadata_of_a_chat_goes_on_only_with_what_is_stored(self) -> None:
        metadata = {"conversation_id": "c1"}
        assert "metadata" not in render(ask(metadata=metadata))
        assert "metadata" not in render(ask(metadata=metadata, store=False))
        assert render(ask(metadata=metadata, store=True))["metadata"] == metadata
        assert render(ask(metadata=metadata), parameters={"store": True})["metadata"] == metadata
        assert render(ask("responses", metadata=metadata))["metadata"] == metadata


class TestPrompt:
    def test_it_is_put_in_front(self) -> None:
        sent = render(ask(), prompt="Be brief.")
        assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]

    @pytest.mark.parametrize("messages", ["[]", "[ ]", "[\n\t]", ' [{"role":"user"}] ', '[\n {"role":"user"}\n]'])
    def test_whatever_the_blanks(self, messages: str) -> None:
        sent = json.loads(render_bytes(b'{"model":"m","messages":' + messages.encode() + b"}", prompt="P"))
        assert sent["messages"] == [{"role": "system", "content": "P"}, *json.loads(messages)]

    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
    def test_a_user_cannot_break_out_of_it(self, user: str) -> None:
        sent = render(ask(user=user), prompt="<{{ user }}>")
        assert sent["messages"][0] == {"role": "system", "content": f"<{user}>"}
        assert len(sent["messages"]) == 2

    def test_it_sees_user_metadata_and_date(self) -> None:
        sent = render(ask(user="ann", metadata={"team": "blue"}), prompt="{{user}} {{metadata.team}} {{today}}")
        assert sent["messages"][0]["content"] == f"ann blue {TODAY}"

    def test_what_a_client_leaves_out_is_empty(self) -> None:
        prompt = "[{{user}}{{metadata.team}}{{metadata['x']}}{{metadata.x.y['z']}}]"
        assert render(ask(), prompt=prompt)["messages"][0]["content"] == "[]"

    def test_a_users_text_is_no_template(self) -> None:
        sent = render(ask(user="{{ 7 * 7 }}", metadata={"a": "{% for %}"}), prompt="{{ user }} {{ metadata.a }}")
        assert sent["messages"][0]["content"] == "{{ 7 * 7 }} {% for %}"

    @pytest.mark.parametrize("role", ["system", "developer"])
    def test_a_clients_own_system_message_replaces_it_only_where_declared(self, role: str) -> None:
        messages = [{"role": "user", "content": "a"}, {"role": role, "content": "Be long."}]
        sent = render(ask(messages=messages), prompt="P")
        assert sent["messages"] == [{"role": "system", "content": "P"}, *messages]
        sent = render(ask(messages=messages), prompt="P", client_may_override=("system",))
        assert sent["messages"] == messages
        assert render(ask(), prompt="P", client_may_override=("system",))["messages"][0]["content"] == "P"

    @pytest.mark.parametrize("messages", ["hello", {"role": "user"}, None, 5])
    def test_messages_of_the_wrong_shape_do_not_get_around_it(self, messages: Any) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            render(ask(messages=messages), prompt="P")
        assert caught.value.param == "messages"

    def test_a_request_without_messages_does_not_become_a_prompt_alone(self) -> None:
        with pytest.raises(InvalidRequestError):
            render_bytes(b'{"model":"m"}', prompt="P")

    def test_messages_given_twice_do_not_get_around_it(self) -> None:
        body = b'{"model":"m","messages":[{"role":"user","content":"a"}],"messages":[{"role":"user","content":"b"}]}'
        sent = render_bytes(body, prompt="P")
        assert sent.count(b'"messages"') == 1
        assert json.loads(sent)["messages"][0] == {"role": "system", "content": "P"}


class TestInstructions:
    """Of the Responses API."""

    def test_they_are_the_prompt(self) -> None:
        for fields in ({}, {"instructions": None}):
            assert render(ask("responses", **fields), prompt="P")["instructions"] == "P"
        assert "instructions" not in render(ask("responses"))

    def test_a_clients_own_come_behind_it(self) -> None:
        sent = render(ask("responses", instructions='Say "no".'), prompt="P")
        assert sent["instructions"] == 'P\n\nSay "no".'

    def test_a_clients_own_replace_it_where_declared(self) -> None:
        overridable = {"prompt": "P", "client_may_override": ("system",)}
        assert render(ask("responses", instructions="Q"), **overridable)["instructions"] == "Q"
        said = [{"role": "developer", "content": "Q"}, {"role": "user", "content": "hello"}]
        assert "instructions" not in render(ask("responses", input=said), **overridable)
        assert render(ask("responses"), **overridable)["instructions"] == "P"

    @pytest.mark.parametrize("instructions", [5, ["Q"], {"text": "Q"}, True])
    def test_they_must_be_text(self, instructions: Any) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            render(ask("responses", instructions=instructions), prompt="P")
        assert caught.value.param == "instructions"


class TestTemplates:
    @pytest.mark.parametrize(
        "prompt",
        [
            "{{ user.__class__ }}",
            "{{ user.__class__.__mro__[1].__subclasses__() }}",
            "{{ ''['__class__']['__base__'] }}",
            "{{ metadata.__init__.__globals__ }}",
            "{{ user|attr('__class__') }}",
            "{{ '{0.__class__.__init__.__globals__}'.format(user) }}",
            "{{ metadata.update({'a': 1}) }}",
            "{{ metadata.clear() }}",
            "{{ metadata.setdefault('a', 1) }}",
            "{% set x = [] %}{{ x.append(1) }}{{ user }}",
            "{{ range(10 ** 9)|list }}{{ user }}",
            "{{ (1).__class__ }}",
            "{{ today.format.__self__ }}",
            "{{ self._TemplateReference__context }}",
            "{{ self.__init__.__globals__ }}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}{{ user }}",
            "{{ m.x.y }}",
            "{{ user + 1 }}",
            "{{ 1 / 0 }}",
            "{{ 1 / (user|length) }}",
            "{{ 'é'.encode('ascii') }}{{ user }}",
            "{{ [][3].x }}{{ user }}",
            "{{ user.unknown.thing }}",
            "{% include 'x' %}",
            "{% import 'os' as os %}",
            "{{ config }}",
            "{{ cycler.__init__.__globals__.os }}",
            "{{ lipsum.__globals__ }}",
            "{{ user",
            "{% endfor %}",
        ],
    )
    def test_what_a_template_may_not_or_cannot_is_an_error_that_says_so(self, prompt: str) -> None:
        with pytest.raises(ConfigurationError, match="template"):
            render(ask(), prompt=prompt)

    def test_dunders_reach_nothing(self) -> None:
        sent = render(ask(), prompt="[{{ metadata['__class__'] }}{{ user['__class__'] is defined }}]")
        assert sent["messages"][0]["content"] == "[False]"

    def test_harmless_templates_work(self) -> None:
        prompt = (
            "{% if metadata.vip %}Dear {{ user|title }}{% else %}Hello{% endif %}{% for i in range(3) %}!{% endfor %}"
        )
        assert render(ask(), prompt=prompt)["messages"][0]["content"] == "Hello!!!"
        sent = render(ask(user="ann", metadata={"vip": "1"}), prompt=prompt)
        assert sent["messages"][0]["content"] == "Dear Ann!!!"

    def test_markup_is_not_escaped(self) -> None:
        assert render(ask(user="<b>&"), prompt="{{ user }}")["messages"][0]["content"] == "<b>&"


class TestParameters:
    def test_the_releases_win(self) -> None:
        sent = render(ask(temperature=2, top_p=0.5), parameters={"temperature": 0.1, "stop": ["x"]})
        assert (sent["temperature"], sent["top_p"], sent["stop"]) == (0.1, 0.5, ["x"])

    def test_a_client_may_override_what_is_declared(self) -> None:
        bundle = {"parameters": {"temperature": 0.1, "seed": 1}, "client_may_override": ("temperature",)}
        assert render(ask(temperature=2, seed=3), **bundle)["temperature"] == 2
        assert render(ask(temperature=2, seed=3), **bundle)["seed"] == 1
        assert render(ask(), **bundle)["temperature"] == 0.1

    @pytest.mark.parametrize("ours", ["max_tokens", "max_completion_tokens"])
    @pytest.mark.parametrize("theirs", ["max_tokens", "max_completion_tokens"])
    def test_a_limit_has_two_names(self, ours: str, theirs: str) -> None:
        sent = render(ask(**{theirs: 9999}), parameters={ours: 10})
        assert (sent.get(ours), 9999 in sent.values()) == (10, False)
        assert len({"max_tokens", "max_completion_tokens"} & set(sent)) == 1
        sent = render(ask(**{theirs: 9999}), parameters={ours: 10}, client_may_override=(ours,))
        assert (sent.get(theirs), 10 in sent.values()) == (9999, False)

    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    def test_a_limit_has_a_third_name_in_responses(self, name: str) -> None:
        asked = ask("responses", max_output_tokens=9999)
        assert render(asked, parameters={name: 10})["max_output_tokens"] == 10
        assert name not in render(asked, parameters={name: 10})
        assert render(asked, parameters={name: 10}, client_may_override=(name,))["max_output_tokens"] == 9999

    def test_what_only_chat_has_is_not_sent_to_responses(self) -> None:
        sent = render(ask("responses"), parameters={"stop": ["x"], "n": 2, "seed": 1, "temperature": 0.5})
        assert sent == {"model": "gpt", "input": "hello", "temperature": 0.5}

    def test_what_responses_keep_inside_a_field_is_put_there(self) -> None:
        schema = {"name": "answer", "strict": True, "schema": {"type": "object"}}
        parameters = {
            "reasoning_effort": "low",
            "verbosity": "high",
            "response_format": {"type": "json_schema", "json_schema": schema},
        }
        sent = render(ask("responses", reasoning={"summary": "auto", "effort": "high"}), parameters=parameters)
        assert sent["reasoning"] == {"summary": "auto", "effort": "low"}
        assert sent["text"] == {"verbosity": "high", "format": {"type": "json_schema", **schema}}
        assert render(ask(), parameters=parameters).items() >= parameters.items()

    def test_a_client_may_override_inside_a_field_too(self) -> None:
        bundle = {"parameters": {"reasoning_effort": "low"}, "client_may_override": ("reasoning_effort",)}
        assert render(ask("responses", reasoning={"effort": "high"}), **bundle)["reasoning"] == {"effort": "high"}
        sent = render(ask("responses", reasoning={"summary": "auto"}), **bundle)
        assert sent["reasoning"] == {"summary": "auto", "effort": "low"}

    def test_a_field_that_should_hold_it_must_be_an_object(self) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            render(ask("responses", reasoning="high"), parameters={"reasoning_effort": "low"})
        assert caught.value.param == "reasoning"

    def test_embeddings_get_their_own_parameters_only(self) -> None:
        parameters = {"temperature": 0.5, "dimensions": 256}
        sent = render(ask("embeddings", dimensions=1024), parameters=parameters)
        assert sent == {"model": "gpt", "input": "hello", "dimensions": 256}
        assert "dimensions" not in render(ask(), parameters=parameters)
        assert "dimensions" not in render(ask("responses"), parameters=parameters)

    @given(
        st.dictionaries(st.sampled_from(["temperature", "max_tokens", "max_completion_tokens", "stop"]), st.integers())
    )
    def test_no_client_gets_around_them(self, fields: dict[str, int]) -> None:
        parameters = {"temperature": "ours", "max_tokens": "ours", "stop": "ours"}
        sent = render(ask(**fields), parameters=parameters)
        assert {name: sent.get(name) for name in parameters} == parameters
        assert "max_completion_tokens" not in sent


class TestStreamedUsage:
    def test_it_is_asked_for_where_the_client_did_not(self) -> None:
        asked: list[dict[str, Any]] = [{}, {"stream_options": None}, {"stream_options": {}}]
        for options in [*asked, {"stream_options": {"include_usage": False}}]:
            assert render(ask(stream=True, **options))["stream_options"] == {"include_usage": True}

    def test_other_options_stay(self) -> None:
        sent = render(ask(stream=True, stream_options={"include_obfuscation": False}))
        assert sent["stream_options"] == {"include_obfuscation": False, "include_usage": True}

    def test_a_clients_own_wish_is_sent_as_it_came(self) -> None:
        parsed = parse_request(
            "chat", b'{"model":"m","messages":[],"stream":true,"stream_options":{ "include_usage":true }}'
        )
        renderer = ReleaseRenderer(make_release())
        assert renderer.render(parsed, TODAY)["stream_options"] == msgspec.Raw(b'{ "include_usage":true }')

    def test_elsewhere_it_is_not_asked_for(self) -> None:
        assert "stream_options" not in render(ask())
        assert "stream_options" not in render(ask("responses", stream=True))
        assert "stream_options" not in render(ask("embeddings", stream=True))
