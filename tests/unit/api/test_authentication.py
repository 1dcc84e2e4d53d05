"""API keys in requests: where they are found, and what is wrong with them."""

import hashlib
from typing import Any

import pytest

from headway.api.authentication import authenticate, identify
from headway.domain.access import has_scope, may_use, require_application, require_scope
from headway.domain.snapshot import SCOPES, KeyRoute, SigningKeys, Snapshot
from headway.errors import AuthenticationError, PermissionDeniedError

NOW = 1_790_000_000_000


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def snapshot(**keys: Any) -> Snapshot:
    routes = {
        digest(f"hw-{name}"): KeyRoute(number, name, **{"scopes": ("invoke",), **more})
        for number, (name, more) in enumerate(keys.items(), start=1)
    }
    signing = SigningKeys({1: b"k" * 32}, 1, b"u" * 32)
    return Snapshot(1, NOW, {}, {}, routes, (digest("hw-gone"),), signing)


KEYS = snapshot(web={}, old={"expires_unix_ms": NOW}, young={"expires_unix_ms": NOW + 1})


@pytest.mark.parametrize(
    "headers",
    [
        {b"authorization": b"Bearer hw-web"},
        {b"authorization": b"bearer   hw-web "},
        {b"api-key": b"hw-web"},
        {b"api-key": b" hw-web"},
        {b"authorization": b"Bearer hw-web", b"api-key": b"hw-nobody"},
        {b"authorization": b"Basic YTpi", b"api-key": b"hw-web"},
        {b"authorization": b"", b"api-key": b"hw-web"},
    ],
)
def test_where_a_key_may_be(headers: dict[bytes, bytes]) -> None:
    assert authenticate(KEYS, headers, NOW).name == "web"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({b"authorization": b""}, "missing_api_key"),
        ({b"authorization": b"Bearer"}, "missing_api_key"),
        ({b"authorization": b"Bearer "}, "missing_api_key"),
        ({b"authorization": b"Basic aHctd2Vi"}, "missing_api_key"),
        ({b"authorization": b"hw-web"}, "missing_api_key"),
        ({b"authorization": b"Bearer hw-nobody"}, "invalid_api_key"),
        ({b"authorization": b"Bearer hw-web2"}, "invalid_api_key"),
        ({b"authorization": b"Bearer \xff\xfe"}, "invalid_api_key"),
        ({b"authorization": b"Bearer " + digest("hw-web").encode()}, "invalid_api_key"),
        ({b"api-key": b"hw-gone"}, "revoked_api_key"),
        ({b"api-key": b"hw-old"}, "expired_api_key"),
    ],
)
def test_what_is_wrong_with_a_key(headers: dict[bytes, bytes], code: str) -> None:
    with pytest.raises(AuthenticationError) as caught:
        authenticate(KEYS, headers, NOW)
    assert caught.value.error_code == code


def test_a_key_ends_at_its_time() -> None:
    headers = {b"api-key": b"hw-young"}
    assert authenticate(KEYS, headers, NOW).name == "young"
    with pytest.raises(AuthenticationError):
        authenticate(KEYS, headers, NOW + 1)


def test_no_key_is_not_a_wrong_key() -> None:
    assert identify(KEYS, {}, NOW) is None
    with pytest.raises(AuthenticationError):
        identify(KEYS, {b"api-key": b"hw-nobody"}, NOW)


def test_admin_includes_view_and_nothing_else() -> None:
    admin = KeyRoute(1, "admin", ("admin",))
    assert [scope for scope in SCOPES if has_scope(admin, scope)] == ["view", "admin"]
    for scope in SCOPES:
        assert has_scope(KeyRoute(1, "own", (scope,)), scope)
    with pytest.raises(PermissionDeniedError, match="'pin'"):
        require_scope(admin, "pin")


def test_keys_for_some_applications() -> None:
    assert may_use(KeyRoute(1, "all", ("invoke",)), "support")
    seller = KeyRoute(1, "seller", ("invoke",), applications=("sales",))
    require_application(seller, "sales")
    with pytest.raises(PermissionDeniedError) as caught:
        require_application(seller, "support")
    assert caught.value.error_code == "application_not_allowed"
