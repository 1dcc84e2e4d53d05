"""A local folder as a lake: what is listed, in which order, what is left out and why, what changes meanwhile."""

from __future__ import annotations

import os
import re
import shutil
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest

from headway.errors import ChangedDocumentError, ConfigurationError, HeadwayError, LakeError, UnreadableDocumentError
from headway.lake.sources import Lake, LakeObject, Skipped, Source, open_lake


def no_secrets(reference: str) -> str:
    raise AssertionError(reference)


def lake_of(folder: Path, **wanted: Any) -> Lake:
    return open_lake(Source(url=f"file:{folder}", **wanted), no_secrets)


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")


def paths(lake: Lake) -> list[str]:
    return [found.path for found in lake.walk()]


def one(lake: Lake) -> LakeObject:
    (found,) = lake.walk()
    assert isinstance(found, LakeObject)
    return found


def refusal(lake: Lake) -> tuple[str, str]:
    with pytest.raises(LakeError) as caught:
        paths(lake)
    return caught.value.error_code, caught.value.message


def test_files_are_listed_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ["b.md", "a/z.md", "a/b/c.md", "a.md", "a-b.md", "a/B.md", "é.md", "a b.md", "a/b.md"]
    write(tmp_path, *names)
    assert paths(lake_of(tmp_path)) == sorted(names)
    found = next(lake_of(tmp_path).walk())
    assert isinstance(found, LakeObject)
    assert found.size == len("text of a b.md")
    assert datetime.fromisoformat(found.modified).tzinfo is not None
    assert found == next(lake_of(tmp_path).walk())


def test_a_subset_is_what_patterns_prefix_and_age_leave(tmp_path: Path) -> None:
    write(tmp_path, "a.md", "a.txt", "hr/leave.md", "hr/old/leave.md", "it/vpn.md", ".git/x.md", "hr/.draft.md")
    assert paths(lake_of(tmp_path, include=("**/*.md",), exclude=("**/old/**",))) == [
        "a.md",
        "hr/leave.md",
        "it/vpn.md",
    ]
    assert paths(lake_of(tmp_path, include=("hr/*.md", "it/**"))) == ["hr/leave.md", "it/vpn.md"]
    assert paths(lake_of(tmp_path, prefix="hr/l")) == ["hr/leave.md"]
    os.utime(tmp_path / "it/vpn.md", (2_000_000_000, 2_000_000_000))
    recent = lake_of(tmp_path, modified_since=datetime(2033, 5, 18, tzinfo=UTC))
    assert paths(recent) == ["it/vpn.md"]
    assert one(recent).modified == "2033-05-18T03:33:20+00:00"


def test_folders_that_can_hold_nothing_of_the_subset_are_not_listed(tmp_path: Path) -> None:
    write(tmp_path, "docs/a.md", "docs/drafts/b.md", "big/c.md", ".git/d.md")
    lake = lake_of(tmp_path, include=("docs/**/*.md",), exclude=("docs/drafts/**",))
    listed = []
    ls = lake._files.ls

    def noting(path: str, *, detail: bool) -> Any:
        listed.append(path)
        return ls(path, detail=detail)

    lake._files.ls = noting
    assert paths(lake) == ["docs/a.md"]
    assert listed == [str(tmp_path / "docs")]


def test_links_lead_to_files_inside_the_root_only(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(root, "real.md", "folder/a.md")
    write(outside, "secret.md", "folder/b.md")
    (root / "inside.md").symlink_to("real.md")
    (root / "out.md").symlink_to(outside / "secret.md")
    (root / "sneaky.md").symlink_to("../outside/secret.md")
    (root / "broken.md").symlink_to("nowhere.md")
    (root / "loop").symlink_to(root)
    (root / "away").symlink_to(outside / "folder")
    (root / "skipped.txt").symlink_to(outside / "secret.md")
    lake = lake_of(root, include=("**/*.md",))
    found = list(lake.walk())
    listed = {each.path: each for each in found if isinstance(each, LakeObject)}
    assert list(listed) == ["folder/a.md", "inside.md", "real.md"]
    assert listed["inside.md"].etag == listed["real.md"].etag
    assert lake.read(listed["inside.md"], 100) == b"text of real.md"
    assert {each.path: each.reason for each in found if isinstance(each, Skipped)} == {
        "away": "is a link to a folder: those are not followed",
        "broken.md": "is a link that leads nowhere",
        "loop": "is a link to a folder: those are not followed",
        "out.md": "is a link to a place outside the lake",
        "sneaky.md": "is a link to a place outside the lake",
    }


def test_a_root_that_is_a_link_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "real", "a.md")
    (tmp_path / "link").symlink_to("real")
    lake = lake_of(tmp_path / "link")
    assert lake.read(one(lake), 100) == b"text of a.md"


def test_what_is_no_file_is_reported_and_never_opened(tmp_path: Path) -> None:
    write(tmp_path, "a.md")
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "pipe.txt").symlink_to("pipe.md")
    lake = lake_of(tmp_path)
    assert [each for each in lake.walk() if isinstance(each, Skipped)] == [
        Skipped("pipe.md", "is not a file"),
        Skipped("pipe.txt", "is not a file"),
    ]
    found = next(lake.walk())
    assert isinstance(found, LakeObject)
    (tmp_path / "a.md").unlink()
    os.mkfifo(tmp_path / "a.md")
    with pytest.raises(UnreadableDocumentError, match="is not a file"):
        lake.read(found, 100)


def test_names_that_are_not_utf_8_are_reported_each_by_its_own(tmp_path: Path) -> None:
    write(tmp_path, "a.md")
    for name in (b"b\xff.md", b"b\xfe.md", b"b\\udcff.md", b"b\\udcff\xfe.md", b"b\xff\xfe.md"):
        (tmp_path / os.fsdecode(name)).write_text("text")
    found = list(lake_of(tmp_path).walk())
    assert [each.path for each in found if isinstance(each, LakeObject)] == ["a.md", "b\\udcff.md"]
    skipped = [each for each in found if isinstance(each, Skipped)]
    assert sorted(each.path for each in skipped) == [
        r"./b\\udcff\udcfe.md",
        r"./b\udcfe.md",
        r"./b\udcff.md",
        r"./b\udcff\udcfe.md",
    ]
    assert {each.reason for each in skipped} == {
        "its name cannot be a path: empty, . or .. between slashes, or not UTF-8"
    }


def test_a_path_that_is_too_long_to_keep_is_reported(tmp_path: Path) -> None:
    folder = "/".join(f"{number:x}" + "é" * 100 for number in range(14))
    write(tmp_path, "a.md", f"{folder}/x.md", f"{folder}/y.md")
    found = list(lake_of(tmp_path).walk())
    assert [each.path for each in found if isinstance(each, LakeObject)] == ["a.md"]
    skipped = [each for each in found if isinstance(each, Skipped)]
    assert {each.reason for each in skipped} == {"its path has 2,832 bytes; at most 2,000 are read"}
    assert len({each.path for each in skipped}) == 2
    assert max(len(each.path) for each in skipped) < 250


def test_a_missing_root_an_empty_one_and_one_without_matches_are_told_apart(tmp_path: Path) -> None:
    gone, empty = tmp_path / "gone", tmp_path / "empty"
    empty.mkdir()
    write(tmp_path / "full", "a.txt")
    assert refusal(lake_of(gone)) == ("lake_missing", f"there is no file:{gone}")
    assert refusal(lake_of(empty)) == ("lake_empty", f"file:{empty} is empty")
    lake = lake_of(tmp_path / "full", include=("*.md", "docs/**"), exclude=("x/**",), prefix="d")
    message = "matches: include *.md, docs/**; exclude x/**; prefix d"
    assert refusal(lake) == ("lake_empty", f"no file of file:{tmp_path / 'full'} {message}")
    code, message = refusal(lake_of(tmp_path / "full/a.txt"))
    assert (code, message.partition(" is a file")[1:2]) == ("lake_missing", (" is a file",))


def test_a_file_that_changes_after_it_was_listed_is_found_out(tmp_path: Path) -> None:
    write(tmp_path, "a.md")
    lake = lake_of(tmp_path)
    path = tmp_path / "a.md"
    listed = one(lake)
    assert lake.read(listed, 100) == b"text of a.md"

    times = path.stat()
    path.write_text("text in a.md")  # as long as before, and as old
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ChangedDocumentError, match="changed after it was listed"):
        lake.read(listed, 100)

    listed = lake.look("a.md")
    assert lake.read(listed, 100) == b"text in a.md"
    path.unlink()
    with pytest.raises(ChangedDocumentError, match="is gone") as caught:
        lake.read(listed, 100)
    assert caught.value.error_code == "document_gone"
    with pytest.raises(ChangedDocumentError, match="is gone"):
        lake.look("a.md")

    path.symlink_to("/etc/hostname")
    with pytest.raises(UnreadableDocumentError, match="outside the lake"):
        lake.read(listed, 100)


def test_a_file_that_changes_while_it_is_read_is_found_out(tmp_path: Path) -> None:
    write(tmp_path, "a.md")
    lake = lake_of(tmp_path)
    listed = one(lake)
    read = lake._files.cat_file

    def slowly(*arguments: Any, **keywords: Any) -> Any:
        body = read(*arguments, **keywords)
        (tmp_path / "a.md").write_text("other")
        return body

    lake._files.cat_file = slowly
    with pytest.raises(ChangedDocumentError):
        lake.read(listed, 100)


def test_a_lake_that_goes_away_is_not_a_lake_whose_files_are_gone(tmp_path: Path) -> None:
    write(tmp_path / "lake", "a.md", "x/b.md")
    lake = lake_of(tmp_path / "lake")
    walk = lake.walk()
    listed = next(walk)
    assert isinstance(listed, LakeObject)
    shutil.rmtree(tmp_path / "lake")
    with pytest.raises(LakeError, match="there is no file:") as caught:
        lake.read(listed, 100)
    assert caught.value.error_code == "lake_missing"
    with pytest.raises(LakeError, match="there is no file:"):
        list(walk)


def test_a_folder_that_goes_during_the_listing_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "a/1.md", "b/2.md", "c/3.md")
    walk = lake_of(tmp_path).walk()
    next(walk)
    shutil.rmtree(tmp_path / "b")
    assert [found.path for found in walk] == ["c/3.md"]


def test_a_size_limit_is_kept(tmp_path: Path) -> None:
    write(tmp_path, "a.md")
    lake = lake_of(tmp_path)
    with pytest.raises(UnreadableDocumentError, match="has 12 bytes; at most 11 are read") as caught:
        lake.read(one(lake), 11)
    assert caught.value.error_code == "document_too_large"
    (tmp_path / "a.md").write_bytes(b"")
    assert lake.read(one(lake), 0) == b""


def denied(*_: Any, **__: Any) -> Any:
    raise PermissionError(13, "Permission denied")


def test_what_may_not_be_read_is_reported_and_what_may_not_be_listed_ends_it(tmp_path: Path) -> None:
    # Tests may run as root, who may read all: the refusal is the file system's, put in by hand.
    write(tmp_path, "a.md", "b/c.md")
    lake = lake_of(tmp_path, include=("*.md",))
    listed = one(lake)
    lake._files.cat_file = denied
    with pytest.raises(UnreadableDocumentError, match=r"may not be read: .*Permission denied"):
        lake.read(listed, 100)
    lake._files.ls = denied
    code, message = refusal(lake)
    assert code == "lake_forbidden"
    assert re.fullmatch(r"folder \. of file:.* cannot be listed: .*; grant access, or exclude it", message)


def test_a_file_whose_name_sounds_like_a_refusal_is_no_refusal(tmp_path: Path) -> None:
    write(tmp_path, "forbidden/permission-401.md")
    lake = lake_of(tmp_path)
    listed = one(lake)

    def fail(path: str, **_: Any) -> Any:
        raise OSError(5, "Input/output error", path)

    lake._files.cat_file = fail
    with pytest.raises(LakeError, match=r"cannot be read: .*Input/output error.*permission-401") as caught:
        lake.read(listed, 100)
    assert caught.value.error_code == "lake_unavailable"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("./docs", "is not file:/folder"),
        ("https://example.com/docs", "is not file:/folder"),
        ("simplecache::s3://bucket", "is not file:/folder"),
        ("file:", "names no folder"),
        ("file://host/docs", "names a host"),
        ("s3://", "needs the name of a bucket"),
        ("s3:/bucket", "needs the name of a bucket"),
        ("s3://key:secret@bucket/docs", "holds a secret"),
    ],
)
def test_urls_that_make_no_sense_are_refused(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        open_lake(Source(url=url), no_secrets)


@pytest.mark.parametrize(
    "options",
    [{"key": "x"}, {"account_key": "x"}, {"client_kwargs": {"aws_secret_access_key": "x"}}, {"sas_token": "x"}],
)
def test_a_secret_among_the_options_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="give it under secrets"):
        open_lake(Source(url="s3://bucket", options=options), no_secrets)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise ImportError("s3fs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigurationError, match=re.escape("pip install 'headway[s3]'")):
        open_lake(Source(url="s3://bucket"), no_secrets)


def test_relative_urls_begin_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "docs", "a.md")
    monkeypatch.chdir(tmp_path)
    assert paths(open_lake(Source(url="file:./docs"), no_secrets)) == ["a.md"]


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def test_a_lake_in_memory(memory: Any) -> None:
    for name in ("a.md", "x/b.md"):
        memory.pipe_file(f"/lake/{name}", name.encode())
    lake = open_lake(Source(url="memory://lake", include=("**/*.md",)), no_secrets)
    listed = [each for each in lake.walk() if isinstance(each, LakeObject)]
    assert [(each.path, lake.read(each, 10)) for each in listed] == [("a.md", b"a.md"), ("x/b.md", b"x/b.md")]
    memory.pipe_file("/lake/a.md", b"b.md")
    with pytest.raises(HeadwayError, match="changed after"):
        lake.read(listed[0], 10)


def test_a_large_lake_is_listed_a_folder_at_a_time(tmp_path: Path, proof: bool) -> None:
    folders, files = (300, 1_000) if proof else (20, 200)
    for folder in range(folders):
        (tmp_path / f"{folder:03}").mkdir()
        for file in range(files):
            (tmp_path / f"{folder:03}/{file:04}.md").touch()
    begun = time.perf_counter()
    tracemalloc.start()
    count = sum(1 for _ in lake_of(tmp_path).walk())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{count / (time.perf_counter() - begun):,.0f} files/s, {peak / 1e6:.1f} MB")
    assert count == folders * files
    assert peak < 5_000 * files + 2_000_000
