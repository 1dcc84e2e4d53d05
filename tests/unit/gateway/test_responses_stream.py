"""Streams of the Responses API: cut anywhere, written in any way, they come out the same but for the ids."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.interaction import Interaction
from headway.gateway.answers import JunkError, check_answer, rewrite_answer
from headway.gateway.streams import ResponsesStream
from headway.testing.responses import ResponsesAnswer
from tests.routes import ANSWER_ID, begun
from tests.streams import DONE, Framing, cut, cut_places, event, framings, payloads, response_answers, run

OURS = ANSWER_ID.decode()
BEFORE = "hw_" + "b" * 79


def rewriter(previous: str | None = None) -> tuple[ResponsesStream, Interaction]:
    interaction = begun("responses", stream=True)
    return ResponsesStream(interaction, ANSWER_ID, previous.encode() if previous else None, True), interaction


def response(status: str = "in_progress", provider_id: str = "resp_1", **fields: Any) -> dict[str, Any]:
    return {"id": provider_id, "object": "response", "status": status, "model": "m", "output": [], **fields}


def created(**fields: Any) -> bytes:
    body = {"type": "response.created", "sequence_number": 0, "response": response(**fields)}
    return event(body, "response.created")


def final(status: str = "completed", **fields: Any) -> bytes:
    kind = f"response.{status}"
    return event({"type": kind, "sequence_number": 9, "response": response(status, **fields)}, kind)


def delta(text: Any, kind: str = "response.output_text.delta") -> bytes:
    return event({"type": kind, "sequence_number": 1, "item_id": "msg_1", "delta": text}, kind)


class TestSimulated:
    @given(response_answers, framings, cut_places)
    def test_only_ids_change_wherever_it_is_cut(
        self, answer: ResponsesAnswer, framing: Framing, places: list[int]
    ) -> None:
        data = b"".join(framing.frames(answer.events()))
        previous = BEFORE if answer.request["previous_response_id"] else None
        stream, interaction = rewriter(previous)
        sent = run(stream, cut(data, places))
        key = answer.answer_id.removeprefix("resp_").encode()
        assert sent == data.replace(b"resp_" + key, ANSWER_ID).replace(b"resp_before", BEFORE.encode())
        assert interaction.provider_id == answer.answer_id
        assert stream.saw_content
        assert stream.error is None
        assert stream.sequence_number == len([item for item in payloads(sent) if item != "[DONE]"]) - 1

    @given(response_answers, framings, cut_places)
    def test_it_is_recorded_like_the_answer_without_streaming(
        self, answer: ResponsesAnswer, framing: Framing, places: list[int]
    ) -> None:
        previous = BEFORE if answer.request["previous_response_id"] else None
        stream, streamed = rewriter(previous)
        run(stream, cut(b"".join(framing.frames(answer.events())), places))
        whole, body = begun("responses"), answer.body()
        given_back = previous.encode() if previous else None
        rewritten = rewrite_answer(whole, body, check_answer("responses", body), ANSWER_ID, given_back)
        assert json.loads(stream.transcript()) == json.loads(rewritten)
        for name in ("refused", "filtered", "finish_reason", "error", "provider_id", "provider_model"):
            assert getattr(streamed, name) == getattr(whole, name)
        for name in ("input_tokens", "output_tokens", "cached_tokens"):
            assert getattr(streamed, name) == getattr(whole, name)

    @given(response_answers, framings, st.integers(0, 2**20))
    def test_a_torn_stream_is_noticed(self, answer: ResponsesAnswer, framing: Framing, place: int) -> None:
        data = b"".join(framing.frames(answer.events())[:-1])
        stream, _ = rewriter()
        stream.feed(data[: place % (len(data) + 1)])
        with pytest.raises(JunkError):
            stream.finish()
        stream.transcript()


class TestIds:
    @pytest.mark.parametrize("text", ["resp_1", '"id":"resp_1"', "resp_0", 'data: "id": "resp_1"\n\n'])
    def test_in_a_text_they_stay(self, text: str) -> None:
        said = [{"id": "msg_1", "type": "message", "content": [{"type": "output_text", "text": text}]}]
        events = [
            created(previous_response_id="resp_0"),
            delta(text),
            final(output=said, previous_response_id="resp_0"),
        ]
        stream, _ = rewriter(BEFORE)
        sent = payloads(run(stream, events))
        assert sent[0]["response"]["id"] == sent[2]["response"]["id"] == OURS
        assert sent[0]["response"]["previous_response_id"] == sent[2]["response"]["previous_response_id"] == BEFORE
        assert sent[1]["delta"] == sent[2]["response"]["output"][0]["content"][0]["text"] == text

    def test_a_different_one_at_the_end(self) -> None:
        stream, interaction = rewriter()
        sent = payloads(run(stream, [created(), delta("a"), final(provider_id="resp_2")]))
        assert [item["response"]["id"] for item in sent if "response" in item] == [OURS, OURS]
        assert interaction.provider_id == "resp_2"

    def test_in_an_unusual_spelling(self) -> None:
        begun_with = (
            b'data: {"type":"response.created","response":{"id" : "resp_1","previous_response_id" : "resp_0"}}\n\n'
        )
        stream, _ = rewriter(BEFORE)
        sent = payloads(run(stream, [begun_with, final(previous_response_id="resp_0")]))
        assert [item["response"]["id"] for item in sent] == [OURS, OURS]
        assert [item["response"]["previous_response_id"] for item in sent] == [BEFORE, BEFORE]

    def test_a_previous_one_that_the_client_did_not_send_stays(self) -> None:
        stream, _ = rewriter()
        sent = payloads(run(stream, [created(previous_response_id="resp_0"), final(previous_response_id="resp_0")]))
        assert sent[1]["response"]["previous_response_id"] == "resp_0"


class TestEnds:
    def test_an_incomplete_response_is_an_answer(self) -> None:
        stream, interaction = rewriter()
        run(stream, [created(), delta("a"), final("incomplete", incomplete_details={"reason": "max_output_tokens"})])
        assert (interaction.finish_reason, stream.error) == ("max_output_tokens", None)

    def test_a_failed_response_is_passed_on_and_noticed(self) -> None:
        failed = final("failed", error={"code": "server_error", "message": "sorry"})
        stream, interaction = rewriter()
        sent = run(stream, [created(), failed])
        assert sent.endswith(failed.replace(b"resp_1", ANSWER_ID))
        assert stream.error
        assert (interaction.finish_reason, interaction.error) == ("failed", "provider_error")

    @pytest.mark.parametrize(
        "error",
        [
            {"type": "error", "code": "server_error", "message": "overloaded", "sequence_number": 3},
            {"type": "error", "error": {"type": "server_error", "message": "overloaded"}},
            {"error": {"message": "overloaded"}},
            {"error": "overloaded"},
        ],
    )
    def test_an_error_event_is_passed_on_and_noticed(self, error: dict[str, Any]) -> None:
        for pieces in ([created(), event(error)], [created() + event(error)]):
            stream, _ = rewriter()
            assert run(stream, pieces).endswith(event(error))
            assert stream.error == "overloaded"

    def test_refusals_are_noticed_as_they_come(self) -> None:
        stream, interaction = rewriter()
        stream.feed(created() + delta("No", "response.refusal.delta"))
        assert interaction.refused

    def test_the_last_blank_line_may_be_missing_and_done_may_come(self) -> None:
        stream, _ = rewriter()
        assert payloads(run(stream, [created(), final().rstrip()]))[1]["response"]["id"] == OURS
        stream, _ = rewriter()
        assert run(stream, [created(), final(), DONE]).endswith(DONE)

    def test_what_came_of_a_torn_answer_is_kept(self) -> None:
        stream, _ = rewriter()
        stream.feed(created() + delta("a") + delta("b") + delta(5) + final()[:30])
        with pytest.raises(JunkError):
            stream.finish()
        assert json.loads(stream.transcript())["output"][0]["content"] == [{"type": "output_text", "text": "ab"}]

    @pytest.mark.parametrize(
        "junk",
        [
            b"data: <html>\n\n",
            b"data: []\n\n",
            b'data: {"type":5}\n\n',
            b'data: {"type":"response.created","response":[]}\n\n',
            b'data: {"type":"response.created","response":{"id":"caf\xc3"}}\n\n',
            b'data: {"x":' + b"[" * 100_000 + b"\n\n",
        ],
        ids=lambda junk: repr(junk[:40]),
    )
    def test_junk_is_an_error(self, junk: bytes) -> None:
        for pieces in ([junk], [created(), junk], [created() + junk]):
            stream, _ = rewriter()
            with pytest.raises(JunkError):
                run(stream, pieces)
