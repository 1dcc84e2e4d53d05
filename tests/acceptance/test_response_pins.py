"""Later turns of stored responses by callers who also pin, and units named in any alphabet."""

from __future__ import annotations

from tests.acceptance.stand import BLUNT, KIND, Stand, call, unique


def test_a_later_turn_cannot_be_pinned_to_another_release(stand: Stand) -> None:
    url = f"{stand.headway.base_url}/responses"
    first = call(url, {"model": f"support@{KIND}", "input": unique("pinned")}, key=stand.key).json
    more = {"input": "and more", "previous_response_id": first["id"]}
    same = call(url, {"model": f"support@{KIND}", **more}, key=stand.key)
    assert same.status == 200
    other = call(url, {"model": f"support@{BLUNT}", **more}, key=stand.key)
    assert (other.status, other.code) == (400, "release_mismatch")
    unpinned = stand.headway.create_key("no pins", "--scope", "invoke")
    assert call(url, {"model": f"support@{KIND}", "input": "hello"}, key=unpinned).status == 403


def test_a_unit_is_the_same_in_the_header_and_in_the_metadata(stand: Stand) -> None:
    name = unique("беседа-東京")
    by_header = stand.chat("support", "one", headers={"x-headway-unit": name.encode().decode("latin-1")})
    by_metadata = stand.chat("support", "two", metadata={"conversation_id": name})
    units = {stand.headway.read_id(reply.json["id"]).unit for reply in (by_header, by_metadata)}
    assert len(units) == 1
