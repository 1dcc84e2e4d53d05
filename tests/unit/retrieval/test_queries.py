"""Queries with labels, read of files; and what is said of a file that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.errors import InvalidRequestError
from headway.retrieval import queries
from headway.retrieval.queries import Label, LabelledQuery, make_query, read_queries


def write(folder: Path, text: str, name: str = "queries.jsonl") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_lines_of_json(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '\ufeff{"query": " how much leave? ", "relevant": ["leave.md", "rules.md#Days off"]}\n'
        "\n"
        '{"id": 7, "query": "laptops?", "relevant": [{"document": "it.md", "heading": "A > B", "grade": 2}]}\r\n'
        '{"query": "third chunk?", "relevant": [{"document": "it.md", "position": 2}]}\n'
        '{"query": "one?", "relevant": "one.md"}\n'
        '{"query": "nobody knows"}\n{"query": "nor this", "relevant": null}',
    )
    assert read_queries(path) == [
        LabelledQuery("how much leave?", (Label("leave.md"), Label("rules.md", "Days off"))),
        LabelledQuery("laptops?", (Label("it.md", "A > B", grade=2),)),
        LabelledQuery("third chunk?", (Label("it.md", position=2),)),
        LabelledQuery("one?", (Label("one.md"),)),
        LabelledQuery("nobody knows"),
        LabelledQuery("nor this"),
    ]


def test_rows_of_csv(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'id,query,relevant\n1,"how much, and when?",leave.md; rules.md#Days off\n2,"two\nlines",\n',
        "queries.CSV",
    )
    assert read_queries(path) == [
        LabelledQuery("how much, and when?", (Label("leave.md"), Label("rules.md", "Days off"))),
        LabelledQuery("two\nlines"),
    ]
    assert read_queries(write(tmp_path, "query\na\n", "bare.csv")) == [LabelledQuery("a")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is no JSON object: "),
        ('"text"', "line 2: Expected `object`, got `str`; known are query and relevant"),
        ('{"relevant": []}', "line 2: Object missing required field `query`"),
        ('{"query": "a", "relevent": []}', "line 2: Object contains unknown field `relevent`; known are query and"),
        ('{"query": 5}', "line 2: Expected `str`, got `int` - at `$.query`"),
        ('{"query": " "}', "line 2: query is empty"),
        ('{"query": "%s"}' % ("a" * 2001), "line 2: query has 2,001 characters; 2,000 is the most"),
        ('{"query": "a", "relevant": [5]}', "line 2: Expected `str | object`, got `int`"),
        ('{"query": "a", "relevant": ["#Heading"]}', "line 2: relevant: a document has no path"),
        ('{"query": "a", "relevant": [{"document": "a", "grade": 0}]}', "line 2: relevant: a: grade is a number"),
        ('{"query": "a", "relevant": ["a", {"document": "a", "grade": 2}]}', "line 2: relevant: a has two grades"),
        ('{"query": "a", "x": ' + "[" * 5000, "line 2: "),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, f'{{"query": "fine"}}\n{line}\n')
    with pytest.raises(InvalidRequestError) as failed:
        read_queries(path)
    assert f"{path}, {message}" in failed.value.message
    assert failed.value.param == "queries"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,relevant\na,b\n", "line 1: the first row names the columns; expected query and relevant"),
        ("", "line 1: the first row names the columns"),
        ("query,relevant\na,b,c\n", "line 2: has more fields than the first row names; quote what has a comma"),
        ('query\n"a\n', "unexpected end of data"),
        ("query\na\n,\n", "line 3: has more fields"),
        ("query,relevant\n,leave.md\n", "line 2: query is empty"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as failed:
        read_queries(write(tmp_path, text, "queries.csv"))
    assert message in failed.value.message


def test_files_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, message in (("missing", "No such file"), (".", "Is a directory")):
        with pytest.raises(InvalidRequestError, match=f"cannot be read: {message}"):
            read_queries(tmp_path / name)
    with pytest.raises(InvalidRequestError, match="has no queries"):
        read_queries(write(tmp_path, "\n\n"))
    with pytest.raises(InvalidRequestError, match="has no queries"):
        read_queries(write(tmp_path, "query\n", "empty.csv"))
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"query": "Größe"}'.encode("latin-1"))
    with pytest.raises(InvalidRequestError, match="is not UTF-8"):
        read_queries(latin)
    monkeypatch.setattr(queries, "MOST_QUERIES", 2)
    with pytest.raises(InvalidRequestError, match="has more than 2 queries"):
        read_queries(write(tmp_path, '{"query": "a"}\n' * 3))


def test_labels_that_say_the_same_count_once() -> None:
    assert make_query("a\0b", ["x.md", "x.md"]) == LabelledQuery("a b", (Label("x.md"),))
    assert make_query("a", "x.md#H").relevant == (Label("x.md", "H"),)
