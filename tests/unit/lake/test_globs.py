"""Patterns: what they match, which folders they let a listing skip, which make no sense."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import ConfigurationError
from headway.lake.globs import Globs

Form = Literal["NFC", "NFD"]
NAME = st.sampled_from(["a", "b.md", "c.txt", ".hidden", "A"])
PATH = st.lists(NAME, min_size=1, max_size=4).map("/".join)
PATTERN = st.lists(st.sampled_from(["a", "*", "*.md", "**", "?", "[ab]*", ".*"]), min_size=1, max_size=4).map("/".join)


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("*.md", ["a.md"], ["x/a.md", "a.MD", "a.mdx"]),
        ("**/*.md", ["a.md", "x/a.md", "x/y/a.md"], ["a.txt", ".a.md", ".git/a.md", "x/.y/a.md"]),
        ("docs/**", ["docs/a", "docs/x/a.md"], ["docs", "doc/a", "x/docs/a", "docs/.a"]),
        ("**", ["a", "x/a"], [".a", "x/.a", ".x/a"]),
        ("docs/**/end", ["docs/end", "docs/x/y/end"], ["docs/x", "end"]),
        (".github/**", [".github/a"], [".github/.a"]),
        ("?[!b]c", ["aac", "xyc"], ["abc", "aab"]),
        ("a+b(1).md", ["a+b(1).md"], ["aab1.md"]),
    ],
)
def test_patterns_match(pattern: str, matching: list[str], other: list[str]) -> None:
    globs = Globs([pattern])
    assert [path for path in matching if not globs.match(path)] == []
    assert [path for path in other if globs.match(path)] == []


def test_an_exclude_wins_and_reaches_hidden_names() -> None:
    globs = Globs(["**", ".git/**"], [".git/**", "drafts/**", "**/old.*"])
    assert [path for path in ("a", "x/new.md") if globs.match(path)] == ["a", "x/new.md"]
    assert [path for path in ("drafts/a", "drafts/x/y", "x/old.md", ".git/config") if globs.match(path)] == []


def test_hidden_names_match_where_that_is_asked_for() -> None:
    assert Globs(["hr/**"], hidden=True).match("hr/.private/a.md")
    assert not Globs(["hr/**"]).match("hr/.private/a.md")


@pytest.mark.parametrize(
    ("patterns", "base"),
    [
        (["**"], ""),
        (["docs/**"], "docs"),
        (["docs/a/*.md", "docs/a/b/**"], "docs/a"),
        (["docs/a/**", "other/**"], ""),
        (["readme.md"], ""),
        (["x/[a]/b"], "x"),
    ],
)
def test_a_listing_begins_where_something_can_match(patterns: list[str], base: str) -> None:
    assert Globs(patterns).base == base


@given(st.lists(PATTERN, min_size=1, max_size=3), st.lists(PATTERN, max_size=2), PATH)
def test_no_folder_is_skipped_that_holds_a_match(include: list[str], exclude: list[str], path: str) -> None:
    globs = Globs(include, exclude)
    if globs.match(path):
        assert (path + "/").startswith(globs.base + "/" if globs.base else "")
        names = path.split("/")
        assert all(globs.may_hold(globs.read(names[:depth])) for depth in range(len(names)))


@given(PATTERN, PATH)
def test_patterns_match_as_the_regular_expression_that_they_mean(pattern: str, path: str) -> None:
    pieces = {"a": "a", "*": "[^/]*", "*.md": r"[^/]*\.md", "?": "[^/]", "[ab]*": "[ab][^/]*", ".*": r"\.[^/]*"}
    names = pattern.split("/")
    regex = ""
    for number, name in enumerate(names):
        if name == "**":
            regex += "(?:[^/]+/)*[^/]+" if number == len(names) - 1 else "(?:[^/]+/)*"
        else:
            regex += pieces[name] + ("" if number == len(names) - 1 else "/")
    assert Globs([pattern], hidden=True).match(path) == bool(re.fullmatch(regex, path))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("of_pattern", ["NFC", "NFD"])
def test_accents_match_however_they_are_composed(
    form: Literal["NFC", "NFD"], of_pattern: Literal["NFC", "NFD"]
) -> None:
    pattern, path = unicodedata.normalize(of_pattern, "hr/gehälter/**"), unicodedata.normalize(form, "hr/gehälter/a.md")
    globs = Globs([pattern])
    assert globs.match(path)
    assert globs.base == "hr"
    assert globs.may_hold(globs.read(path.split("/")[:2]))
    assert not Globs(["**"], [pattern]).match(path)


def test_an_excluded_folder_is_not_listed() -> None:
    globs = Globs(["**/*.md"], ["drafts/**"])
    assert not globs.may_hold(globs.read(["drafts"]))
    assert not globs.may_hold(globs.read(["drafts", "x"]))
    assert globs.may_hold(globs.read(["draft"]))
    assert not globs.may_hold(globs.read([".git"]))


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("", "is empty"),
        ("/a", "begins with a slash"),
        ("a/", "a/** is all below"),
        ("a//b", "empty name"),
        ("../a", "empty name"),
        ("**.md", "stands alone"),
        ("*.{md,txt}", "one pattern for each"),
    ],
)
def test_patterns_without_sense_are_refused(pattern: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(complaint)):
        Globs([pattern])
