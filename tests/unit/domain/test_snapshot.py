"""Snapshots: what is written is read back, and nothing else is."""

import msgspec
import pytest

from headway.domain.release import Prices
from headway.domain.snapshot import decode_snapshot, encode_snapshot
from headway.ids import InteractionId, Kind, uuid7
from tests.routes import make_application, make_deployment, make_key, make_release, make_rollout, make_snapshot


def test_what_is_written_is_read_back() -> None:
    main = make_deployment(usd_per_million_tokens=Prices(1, 2), headers=(("a", "env:B"),), api_key="file:/k")
    snapshot = make_snapshot(
        make_application(rollout=make_rollout(0.25, salt=bytes(range(16)))),
        make_application(number=2, name="søren", unit="user", record_content=False),
        releases={1: make_release(1, "one", main, make_deployment("b"), prompt="{{ user }}", parameters={"n": [1]})},
        keys={"f" * 64: make_key("invoke", "pin", monthly_usd=1.5, applications=("søren",), expires_unix_ms=5)},
        revoked=("e" * 64,),
    )
    assert decode_snapshot(encode_snapshot(snapshot)) == snapshot


def test_its_signer_reads_what_another_worker_issued() -> None:
    snapshot = make_snapshot()
    interaction = InteractionId(Kind.PINNED, uuid7(5), 1, 2, 0, 0, 0, 0, b"12345678", 9)
    text = snapshot.signing.signer().issue(interaction)
    assert decode_snapshot(encode_snapshot(snapshot)).signing.signer().read(text) == interaction


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b'{"number": "x"}', b"\xff\xfe", b'{"number": 1'])
def test_anything_else_is_an_error(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_snapshot(body)
