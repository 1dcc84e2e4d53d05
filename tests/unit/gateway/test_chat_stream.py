"""Streams of chat completions: cut anywhere, written in any way, they come out the same but for id and usage."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.interaction import Interaction
from headway.gateway.answers import JunkError, check_answer, rewrite_answer
from headway.gateway.streams import ChatStream
from headway.testing.chat import ChatAnswer
from tests.routes import ANSWER_ID, begun
from tests.streams import DONE, Framing, chat_answers, chunk, cut, cut_places, event, framings, payloads, run

OURS = ANSWER_ID.decode()
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def rewriter(*, hide: bool = True, keep: bool = True) -> tuple[ChatStream, Interaction]:
    interaction = begun(stream=True)
    return ChatStream(interaction, ANSWER_ID, hide_usage=hide, keep=keep), interaction


def rewrite(*frames: bytes, hide: bool = True) -> tuple[bytes, Interaction]:
    stream, interaction = rewriter(hide=hide)
    return run(stream, [b"".join(frames)]), interaction


def expected(frame: bytes, answer: ChatAnswer, *, hide: bool) -> bytes:
    """What should become of one frame."""
    comment, _, _ = frame.rpartition(b"event:") if b"event:" in frame else frame.rpartition(b"data:")
    if hide and b'"choices":[]' in frame.replace(b" ", b"") and b"completion_tokens" in frame:
        return comment
    frame = frame.replace(answer.answer_id.encode(), ANSWER_ID)
    frame = frame.replace(b'"id":""', b'"id":"' + ANSWER_ID + b'"').replace(b'"id": ""', b'"id": "' + ANSWER_ID + b'"')
    return frame.replace(b',"usage":null', b"").replace(b', "usage": null', b"") if hide else frame


class TestSimulated:
    @given(chat_answers, framings, cut_places, st.booleans())
    def test_only_id_and_usage_change_wherever_it_is_cut(
        self, answer: ChatAnswer, framing: Framing, places: list[int], hide: bool
    ) -> None:
        frames = framing.frames(answer.events())
        stream, interaction = rewriter(hide=hide)
        sent = run(stream, cut(b"".join(frames), places))
        assert sent == b"".join(expected(frame, answer, hide=hide) for frame in frames)
        usage = answer.plan.usage
        told = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        recorded = (interaction.input_tokens, interaction.output_tokens, interaction.cached_tokens)
        assert recorded == (told if answer.behaviour.reports_usage else (None, None, None))
        assert interaction.provider_id == answer.answer_id
        assert interaction.provider_fingerprint == answer.behaviour.fingerprint
        assert stream.saw_content
        assert stream.error is None

    @given(chat_answers, framings, cut_places)
    def test_the_transcript_is_the_answer_without_streaming(
        self, answer: ChatAnswer, framing: Framing, places: list[int]
    ) -> None:
        stream, streamed = rewriter()
        run(stream, cut(b"".join(framing.frames(answer.events())), places))
        whole = begun()
        rewrite_answer(whole, answer.body(), check_answer("chat", answer.body()), ANSWER_ID)
        written, spoken = json.loads(answer.body()), json.loads(stream.transcript())
        assert spoken["model"] == written["model"]
        assert [_said(choice) for choice in spoken["choices"]] == [_said(choice) for choice in written["choices"]]
        for name in ("refused", "filtered", "provider_id", "provider_model", "input_tokens", "output_tokens"):
            assert getattr(streamed, name) == getattr(whole, name)
        assert streamed.finish_reason == whole.finish_reason

    @given(chat_answers, framings, cut_places, st.integers(0, 2**20))
    def test_a_torn_stream_is_noticed_and_what_was_passed_on_is_kept(
        self, answer: ChatAnswer, framing: Framing, places: list[int], end: int
    ) -> None:
        frames = framing.frames(answer.events())
        torn = b"".join(frames[: _first_end(frames)])
        stream, _ = rewriter()
        sent = b"".join([stream.feed(piece) for piece in cut(torn[: end % (len(torn) + 1)], places)])
        with pytest.raises(JunkError):
            stream.finish()
        assert all(item["id"] == OURS for item in payloads(sent))
        kept = {choice["index"]: choice["message"] for choice in json.loads(stream.transcript())["choices"]}
        assert {index: message["content"] or "" for index, message in kept.items()} == _texts(sent, "content")
        assert {index: message.get("refusal") or "" for index, message in kept.items()} == _texts(sent, "refusal")


def _first_end(frames: list[bytes]) -> int:
    """Number of the first chunk that finishes a choice."""
    ends = (b'"finish_reason":"', b'"finish_reason": "')
    return next(number for number, frame in enumerate(frames) if any(end in frame for end in ends))


def _texts(sent: bytes, name: str) -> dict[int, str]:
    """What a client has read, by choice."""
    read: dict[int, str] = {}
    for item in payloads(sent):
        for choice in item["choices"]:
            read[choice["index"]] = read.get(choice["index"], "") + (choice["delta"].get(name) or "")
    return read


def _said(choice: dict[str, Any]) -> Any:
    message = choice["message"]
    return (
        choice["index"],
        choice["finish_reason"],
        *(message.get(name) for name in ("content", "refusal", "tool_calls")),
    )


class TestIds:
    def test_a_different_one_in_each_chunk(self) -> None:
        frames = [
            chunk("a", provider_id="c1"),
            chunk("b", provider_id="c2"),
            chunk("c", "stop", provider_id="c3"),
            DONE,
        ]
        for pieces in ([b"".join(frames)], frames):
            stream, interaction = rewriter()
            sent = run(stream, pieces)
            assert [item["id"] for item in payloads(sent)[:-1]] == [OURS] * 3
            assert interaction.provider_id == "c3"

    @pytest.mark.parametrize("provider_id", ["", None])
    def test_an_empty_one_first_and_in_between(self, provider_id: str | None) -> None:
        frames = [
            chunk(provider_id=provider_id),
            chunk("a"),
            chunk("b", provider_id=provider_id),
            chunk("c"),
            chunk(None, "stop"),
            DONE,
        ]
        for pieces in ([b"".join(frames)], frames):
            stream, interaction = rewriter()
            sent = run(stream, pieces)
            assert [item["id"] for item in payloads(sent)[:-1]] == [OURS] * 5
            assert interaction.provider_id == "c1"

    def test_none_at_all(self) -> None:
        frames = [
            b'data: {"choices":[{"delta":{"content":"a"}}],"p":1.0}\n\n',
            b'data: {"choices":[{"finish_reason":"stop"}]}\n\n',
        ]
        sent, interaction = rewrite(*frames)
        assert sent.startswith(b'data: {"id":"' + ANSWER_ID + b'","choices":[{"delta":{"content":"a"}}],"p":1.0}\n\n')
        assert interaction.provider_id is None

    @pytest.mark.parametrize(
        "text", ["c1", '"c1"', '"id":"c1"', '{"id": "c1"}', 'data: {"id":"c1"}', '\n\ndata: "id":"c1"']
    )
    def test_in_a_text_it_stays(self, text: str) -> None:
        frames = [
            chunk(""),
            chunk(text),
            chunk(text, logprobs={"content": [{"token": text}]}),
            chunk(None, "stop"),
            DONE,
        ]
        for pieces in ([b"".join(frames)], frames):
            stream, _ = rewriter()
            sent = run(stream, pieces)
            assert [item["choices"][0]["delta"].get("content") for item in payloads(sent)[:-1]] == [
                "",
                text,
                text,
                None,
            ]
            assert [item["id"] for item in payloads(sent)[:-1]] == [OURS] * 4
            assert json.loads(stream.transcript())["choices"][0]["message"]["content"] == text * 2

    @pytest.mark.parametrize("id_", [b'"id" : "c1"', b'"id":\t"c1"', b'"\\u0069d":"c1"', b'"id":"\\u0063\\u0031"'])
    def test_in_an_unusual_spelling(self, id_: bytes) -> None:
        frame = b"data: {" + id_ + b',"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
        sent, interaction = rewrite(frame, DONE)
        assert payloads(sent)[0] == {"id": OURS, "choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}
        assert interaction.provider_id == "c1"

    def test_other_lines_of_an_event_stay(self) -> None:
        frame = b'id: 7\r\nevent: chunk\r\nretry: 5\r\ndata: {"choices":[],\r\ndata: "object":"x"}\r\n\r\n'
        sent, _ = rewrite(frame, DONE)
        assert (
            sent
            == b'id: 7\r\nevent: chunk\r\nretry: 5\r\ndata: {"id":"'
            + ANSWER_ID
            + b'","choices":[],"object":"x"}\r\n\r\n'
            + DONE
        )


class TestUsage:
    LAST = event({"id": "c1", "choices": [], "usage": USAGE})

    def test_it_is_shown_to_who_asked_and_recorded_always(self) -> None:
        frames = [chunk("a", usage=None), chunk(None, "stop", usage=None), self.LAST, DONE]
        for hide in (True, False):
            sent, interaction = rewrite(*frames, hide=hide)
            assert [item.get("usage", "-") for item in payloads(sent)[:-1]] == (
                ["-", "-"] if hide else [None, None, USAGE]
            )
            assert (interaction.input_tokens, interaction.output_tokens) == (5, 2)

    @pytest.mark.parametrize(
        "last",
        [
            b'{"id":"c1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":%b,"timings":{"a":1.0}}',
            b'{"id": "c1", "choices": [{"delta": {}, "finish_reason": "stop"}], "usage": %b, "t":{"a":1.0}}',
            b'{"usage":%b,"id":"c1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"timings":{"a":1.0}}',
            b'{"id" : "c1" , "usage" : %b , "choices":[{"delta":{},"finish_reason" : "stop"}],"timings":{"a":1.0}}',
        ],
    )
    def test_on_a_chunk_that_finishes(self, last: bytes) -> None:
        sent, interaction = rewrite(chunk("a"), event(last % json.dumps(USAGE).encode()), DONE)
        finish = payloads(sent)[1]
        assert finish["id"] == OURS
        assert finish["choices"][0]["finish_reason"] == "stop"
        assert "usage" not in finish
        assert b'{"a":1.0}' in sent.replace(b'"a": ', b'"a":')
        assert (interaction.input_tokens, interaction.output_tokens) == (5, 2)

    def test_by_bytes_where_these_are_unmistakable(self) -> None:
        usage = b'{ "prompt_tokens":5 }'
        frame = b'data: {"id":"c1","a":[1 ,2],"choices":[{"finish_reason":"stop"}],"usage":' + usage + b',"b":1e5}\n\n'
        sent, _ = rewrite(frame, DONE)
        assert sent == frame.replace(b',"usage":' + usage, b"").replace(b"c1", ANSWER_ID) + DONE

    def test_on_every_chunk_the_last_one_counts(self) -> None:
        frames = [chunk(str(n), usage={"prompt_tokens": 5, "completion_tokens": n}) for n in range(3)]
        sent, interaction = rewrite(*frames, chunk(None, "stop"), DONE)
        assert b"usage" not in sent
        assert (interaction.input_tokens, interaction.output_tokens) == (5, 2)

    def test_a_text_about_usage_stays(self) -> None:
        text = ',"usage":null "usage":{} , "usage": null'
        sent, _ = rewrite(chunk(""), chunk(text), chunk(text), chunk(None, "stop"), DONE)
        assert [item["choices"][0]["delta"].get("content") for item in payloads(sent)[1:3]] == [text, text]

    def test_counts_may_be_floats(self) -> None:
        _, interaction = rewrite(chunk("a", "stop", usage={"prompt_tokens": 5.0, "completion_tokens": 2.0}), DONE)
        assert (interaction.input_tokens, interaction.output_tokens) == (5, 2)


class TestEnds:
    def test_done_may_be_missing(self) -> None:
        sent, interaction = rewrite(chunk("a"), chunk(None, "stop"))
        assert len(payloads(sent)) == 2
        assert interaction.finish_reason == "stop"

    def test_the_last_blank_line_may_be_missing(self) -> None:
        for ending in (b"", b"\n", b"\r\n"):
            sent, _ = rewrite(chunk("a"), chunk("b", "stop"), DONE.rstrip() + ending)
            assert payloads(sent)[-1] == "[DONE]"
            sent, _ = rewrite(chunk("a"), chunk("b", "stop").rstrip() + ending)
            assert payloads(sent)[-1]["id"] == OURS

    def test_a_stream_that_only_says_it_is_done_is_done(self) -> None:
        assert rewrite(b"data:[DONE]\n\n")[0] == b"data:[DONE]\n\n"

    def test_without_a_finish_reason_it_is_torn(self) -> None:
        stream, _ = rewriter()
        assert len(payloads(stream.feed(chunk("a") + chunk("b")))) == 2
        with pytest.raises(JunkError, match="before the answer was complete"):
            stream.finish()
        assert json.loads(stream.transcript())["choices"][0]["message"]["content"] == "ab"

    def test_a_torn_tail_is_not_passed_on(self) -> None:
        stream, _ = rewriter()
        stream.feed(chunk("a") + chunk("b", "stop")[:20])
        with pytest.raises(JunkError):
            stream.finish()
        assert json.loads(stream.transcript())["choices"][0]["message"]["content"] == "a"

    def test_nothing_goes_out_behind_the_end(self) -> None:
        sent, _ = rewrite(chunk("a", "stop"), DONE, b"data: junk\n\n", b"more junk")
        assert payloads(sent)[-1] == "[DONE]"
        stream, _ = rewriter()
        sent = run(stream, [chunk("a", "stop"), DONE, b"data: junk\n\n", b"junk"])
        assert payloads(sent)[-1] == "[DONE]"

    def test_an_empty_stream_is_torn(self) -> None:
        with pytest.raises(JunkError):
            rewrite()


class TestErrors:
    @pytest.mark.parametrize(
        "frame",
        [
            event({"error": {"message": "overloaded", "type": "server_error"}}),
            event({"type": "error", "error": {"message": "overloaded"}}, "error"),
            event({"error": "overloaded"}),
            event({"object": "error", "message": "overloaded", "code": 500}),
            event(
                {"id": "c1", "choices": [{"index": 0, "delta": {"content": ""}}], "error": {"message": "overloaded"}}
            ),
            event(
                {"id": "c1", "choices": [{"delta": {}, "finish_reason": "error"}], "error": {"message": "overloaded"}}
            ),
        ],
    )
    def test_an_error_event_is_passed_on_and_noticed(self, frame: bytes) -> None:
        for pieces in ([chunk("a"), frame], [chunk("a") + frame], [chunk("a"), chunk("b") + frame + DONE]):
            stream, _ = rewriter()
            sent = run(stream, pieces)
            assert frame.replace(b"c1", ANSWER_ID) in sent
            assert stream.error

    @pytest.mark.parametrize(
        "junk",
        [
            b"data: <html>\n\n",
            b"data: \n\n",
            b"data: []\n\n",
            b'data: "hello"\n\n',
            b'data: {"id": <<not JSON>>\n\n',
            b'data: {"id":"torn\n","choices":[]}\n\n',
            b'data: {"choices":5}\n\n',
            b'data: {"id":"caf\xc3"}\n\n',
            b'data: {"x":' + b"[" * 100_000 + b"\n\n",
        ],
        ids=lambda junk: repr(junk[:30]),
    )
    def test_junk_is_an_error(self, junk: bytes) -> None:
        for pieces in ([junk], [chunk("a"), junk], [chunk("a") + junk], [chunk("a"), chunk("b") + junk]):
            stream, _ = rewriter()
            with pytest.raises(JunkError):
                run(stream, pieces)
            stream.transcript()

    def test_lines_that_are_no_fields_pass(self) -> None:
        odd = b": comment\n\n\x00\x01garbage\n\nfoo: bar\n\n{}\n\n\n\n"
        sent, _ = rewrite(odd, chunk("a"), odd, chunk("b", "stop"), DONE)
        assert len(payloads(sent)) == 3
        assert sent.count(odd) == 2

    def test_an_endless_event_is_an_error(self) -> None:
        stream, _ = rewriter()
        piece = b"data: " + b"x" * (4 * 1024 * 1024)
        with pytest.raises(JunkError, match="16 MB"):
            run(stream, [piece] * 8)


class TestOddServers:
    """Shapes seen in the wild that must not break an answer."""

    @pytest.mark.parametrize(
        "odd",
        [
            {"choices": [{"index": 0, "delta": None, "content_filter_results": {}}]},
            {"choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {"start_offset": 1}}]},
            {"choices": None},
            {"choices": [{"index": 0, "delta": {"content": [{"type": "thinking", "thinking": []}]}}]},
            {"choices": [{"index": 0, "delta": {"content": {"a": 1}, "refusal": "", "tool_calls": {}}}]},
            {"choices": [{"index": 0, "delta": {"tool_calls": [None, 5, {"index": "x", "function": 5}]}}]},
            {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": {"a": 1}}}]}}]},
        ],
    )
    def test_pass(self, odd: dict[str, Any]) -> None:
        frames = [chunk("a"), event({"id": "c1", **odd}), event({"id": "", **odd}), chunk("b", "stop"), DONE]
        for pieces in ([b"".join(frames)], frames):
            stream, _ = rewriter()
            sent = payloads(run(stream, pieces))
            assert [item["id"] for item in sent[:-1]] == [OURS] * 4
            assert sent[1] == {"id": OURS, **odd}
            assert json.loads(stream.transcript())["choices"][0]["finish_reason"] == "stop"

    def test_lists_of_parts_are_kept_as_parts(self) -> None:
        thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
        stream, _ = rewriter()
        run(stream, [chunk([thinking]), chunk("a"), chunk(None, "stop")])
        assert json.loads(stream.transcript())["choices"][0]["message"]["content"] == [thinking, "a"]

    def test_reasoning_is_kept_beside_the_text(self) -> None:
        stream, _ = rewriter()
        thought = event({"id": "c1", "choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]})
        run(stream, [thought, thought, chunk("a", "stop")])
        message = json.loads(stream.transcript())["choices"][0]["message"]
        assert message == {"role": "assistant", "content": "a", "reasoning_content": "hmhm"}

    def test_calls_without_numbers_stay_apart(self) -> None:
        calls = [
            {"id": f"call_{n}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for n in range(2)
        ]
        stream, _ = rewriter()
        frames = [event({"id": "c1", "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}) for call in calls]
        run(stream, [*frames, chunk(None, "tool_calls")])
        assert json.loads(stream.transcript())["choices"][0]["message"]["tool_calls"] == calls

    def test_of_several_choices_the_first_ones_reason_counts(self) -> None:
        ends = [
            {"index": 1, "delta": {}, "finish_reason": "content_filter"},
            {"index": 0, "delta": {}, "finish_reason": "length"},
        ]
        _, interaction = rewrite(chunk("a"), *[event({"id": "c1", "choices": [end]}) for end in ends], DONE)
        assert (interaction.finish_reason, interaction.filtered) == ("length", True)

    def test_a_refusal_in_the_middle_is_noticed(self) -> None:
        refusal = event({"id": "c1", "choices": [{"index": 0, "delta": {"refusal": '"No"'}}]})
        for pieces in ([chunk("") + refusal + chunk(None, "stop")], [chunk(""), refusal, chunk(None, "stop")]):
            stream, interaction = rewriter()
            run(stream, pieces)
            assert interaction.refused


def test_what_is_not_kept_costs_no_memory() -> None:
    stream, _ = rewriter(keep=False)
    run(stream, [chunk("a"), chunk("b", "stop"), DONE])
    assert json.loads(stream.transcript())["choices"] == []


def test_content_is_seen_when_it_comes() -> None:
    stream, _ = rewriter()
    stream.feed(event({"id": "c1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}))
    assert not stream.saw_content
    stream.feed(chunk("a"))
    assert stream.saw_content
