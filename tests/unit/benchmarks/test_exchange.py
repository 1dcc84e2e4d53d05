import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.exchange import Endpoint, ResponseReader, write_answer, write_requests

PLAIN = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKED = b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello \r\n5;a=b\r\nworld\r\n0\r\n\r\n"


@given(st.lists(st.sampled_from([PLAIN, CHUNKED]), min_size=1, max_size=3), st.data())
def test_responses_are_read_however_their_bytes_arrive(responses: list[bytes], data: st.DataObject) -> None:
    reader = ResponseReader()
    for response in responses:
        reader.start()
        cuts = sorted(data.draw(st.sets(st.integers(1, len(response) - 1))))
        parts = [response[start:end] for start, end in itertools.pairwise([0, *cuts, len(response)])]
        assert [reader.feed(part) for part in parts] == [False] * len(cuts) + [True]
        assert reader.status == (200 if response is PLAIN else 503)
        assert bytes(reader.body) == b"hello world"


@pytest.mark.parametrize(
    "junk",
    [
        PLAIN + b"more",
        CHUNKED + b"more",
        CHUNKED.replace(b"world\r\n", b"world!\r\n"),
        CHUNKED[:-2] + b"trailer: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
    ],
)
def test_what_is_not_one_framed_response_is_refused(junk: bytes) -> None:
    with pytest.raises(ValueError):
        ResponseReader().feed(junk)


def test_requests_are_whole_and_differ_in_their_first_user_message() -> None:
    endpoint = Endpoint(8080, headers={"authorization": "Bearer key"})
    first, second = itertools.islice(write_requests(endpoint, iter([7, 8]), stream=True), 2)
    bodies = []
    for request in (first, second):
        head, _, body = request.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
        assert b"\r\nauthorization: Bearer key" in head
        assert f"content-length: {len(body)}".encode() in head
        bodies.append(json.loads(body))
    assert "0000000007" in bodies[0]["messages"][0]["content"]
    assert bodies[0]["messages"][0] != bodies[1]["messages"][0]
    assert bodies[0]["messages"][1:] == bodies[1]["messages"][1:]
    assert 500 < len(json.dumps(bodies[0])) < 700


def test_the_answer_is_of_the_size_that_is_claimed() -> None:
    assert 900 < len(write_answer()) < 1100
    assert json.loads(write_answer())["usage"]["total_tokens"] == 197
