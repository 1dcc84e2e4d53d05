"""S3 and Azure storage as lakes, through their real clients: listing, reading, and what goes wrong there."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from headway.errors import ChangedDocumentError, ConfigurationError, LakeError, UnreadableDocumentError
from headway.lake.sources import Lake, LakeObject, Skipped, Source, open_lake
from tests.integration.lake.stores import ACCOUNT, MOMENT, Store, blobs, s3

NAMES = ("docs/a.md", *(f"docs/x/{number}.md" for number in range(7)), "docs/x/b.txt", "docs-old/c.md", "top.md")
SECRET = base64.b64encode(b"a very secret account key " * 2).decode()


class Account:
    """A store, and lakes in it."""

    def __init__(self, kind: str, store: Store) -> None:
        self.kind = kind
        self.store = store
        self.secrets = (
            {"key": "AKIAGOOD", "secret": SECRET}
            if kind == "s3"
            else {
                "connection_string": f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={SECRET};"
                f"BlobEndpoint=http://127.0.0.1:{store.port}/{ACCOUNT};"
            }
        )
        self.scheme = {"s3": "s3", "blobs": "abfs"}[kind]

    def open(self, place: str = "lake/docs", **wanted: Any) -> Lake:
        options = {"endpoint_url": f"http://127.0.0.1:{self.store.port}"} if self.kind == "s3" else {}
        references = {name: f"env:{name}" for name in self.secrets}
        source = Source(url=f"{self.scheme}://{place}", options=options, secrets=references, **wanted)
        return open_lake(source, lambda reference: self.secrets[reference.removeprefix("env:")])


@pytest.fixture(params=["s3", "blobs"])
def account(request: pytest.FixtureRequest) -> Iterator[Account]:
    serving = {"s3": s3, "blobs": blobs}[request.param]
    with serving() as store:
        store.objects.update({f"lake/{name}": name.encode() for name in NAMES})
        yield Account(request.param, store)


def listed(lake: Lake) -> list[LakeObject]:
    return [found for found in lake.walk() if isinstance(found, LakeObject)]


def refusal(lake: Lake) -> tuple[str, str]:
    with pytest.raises(LakeError) as caught:
        list(lake.walk())
    return caught.value.error_code, caught.value.message


def test_objects_are_listed_over_several_pages_and_read(account: Account) -> None:
    lake = account.open(include=("**/*.md",))
    found = listed(lake)
    assert [each.path for each in found] == ["a.md", *(f"x/{number}.md" for number in range(7))]
    assert {each.modified for each in found} == {MOMENT.isoformat()}
    assert found[0].etag == account.store.etag("lake/docs/a.md")
    assert [lake.read(each, 100).decode() for each in found] == [f"docs/{each.path}" for each in found]


def test_other_folders_are_not_listed(account: Account) -> None:
    lake = account.open("lake", include=("docs/x/*.md", "docs/x/*.txt"))
    assert len(listed(lake)) == 8
    assert not any("docs-old" in request for request in account.store.requests)
    assert [each.path for each in listed(account.open("lake", include=("*.md",)))] == ["top.md"]


def test_an_object_that_changes_or_goes_is_found_out(account: Account) -> None:
    lake = account.open(include=("*.md",))
    (found,) = listed(lake)
    account.store.objects["lake/docs/a.md"] = b"docs/b.md"
    with pytest.raises(ChangedDocumentError, match="changed after it was listed"):
        lake.read(found, 100)
    assert lake.read(lake.look("a.md"), 100) == b"docs/b.md"
    del account.store.objects["lake/docs/a.md"]
    with pytest.raises(ChangedDocumentError, match="is gone") as caught:
        lake.read(found, 100)
    assert caught.value.error_code == "document_gone"


def test_an_empty_object_and_a_size_limit(account: Account) -> None:
    account.store.objects["lake/docs/a.md"] = b""
    lake = account.open()
    found = listed(lake)
    assert lake.read(found[0], 100) == b""
    with pytest.raises(UnreadableDocumentError, match="at most 3 are read"):
        lake.read(found[1], 3)


def test_an_object_that_may_not_be_read_is_no_failure_of_the_lake(account: Account) -> None:
    account.store.forbidden.add("lake/docs/a.md")
    lake = account.open(include=("*.md",))
    (found,) = listed(lake)
    with pytest.raises(UnreadableDocumentError, match=r"may not be read: .*AccessDenied"):
        lake.read(found, 100)


def test_wrong_credentials_are_named_and_never_shown(account: Account) -> None:
    lake = account.open(include=("*.md",))
    (found,) = listed(lake)
    account.store.key = "another key"
    code, message = refusal(lake)
    assert code == "lake_forbidden"
    assert message.startswith(f"{account.scheme}://lake/docs refuses the credentials: ")
    assert not any(secret in message for secret in (SECRET, "AKIAGOOD"))
    # In the middle of a build, too: documents are not skipped one by one.
    with pytest.raises(LakeError, match="refuses the credentials"):
        lake.read(found, 100)


def test_a_store_that_fails_or_is_away_is_named(account: Account) -> None:
    lake = account.open(include=("*.md",))
    (found,) = listed(lake)
    account.store.failing = True
    assert refusal(lake)[0] == "lake_unavailable"
    with pytest.raises(LakeError, match="cannot be reached"):
        lake.read(found, 100)


def test_an_object_whose_name_sounds_like_a_refusal_is_no_refusal(account: Account) -> None:
    name = "lake/docs/403-forbidden-credentials.md"
    account.store.objects[name] = b"text"
    lake = account.open(include=("403*.md",))
    (found,) = listed(lake)
    account.store.broken.add(name)
    with pytest.raises(LakeError, match="cannot be read") as caught:
        lake.read(found, 100)
    assert caught.value.error_code == "lake_unavailable"


def test_missing_places_are_told_apart(account: Account) -> None:
    scheme = account.scheme
    assert refusal(account.open("lake/nothing")) == ("lake_missing", f"there is no {scheme}://lake/nothing")
    assert refusal(account.open("nobody")) == ("lake_missing", f"there is no {scheme}://nobody")
    assert refusal(account.open("lake/docs/a.md"))[1].endswith("is a file: name its folder, and the file under include")
    assert refusal(account.open(include=("none/*.md",)))[0] == "lake_empty"


def test_a_secret_that_cannot_be_read_is_said_before_anything_is_asked(account: Account) -> None:
    def missing(reference: str) -> str:
        raise ConfigurationError(f"secret {reference}: the environment variable is not set")

    with pytest.raises(ConfigurationError, match="secret env:KEY: the environment variable is not set"):
        open_lake(Source(url="s3://lake", secrets={"key": "env:KEY"}), missing)
    assert account.store.requests == []


def test_names_that_are_no_paths_are_reported() -> None:
    with s3() as store:
        store.objects.update({"lake/docs/a.md": b"a", "lake/docs//b.md": b"b", "lake/docs/empty/": b""})
        found = list(Account("s3", store).open().walk())
    assert [each.path for each in found] == [".//", "a.md"]
    assert isinstance(found[0], Skipped)
