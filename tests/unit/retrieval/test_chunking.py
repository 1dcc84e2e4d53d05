"""Chunks: nothing lost, none too long, little repeated, along the document's structure."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headway.domain.knowledge import Chunk, Section
from headway.retrieval.chunking import approximate_tokens, chunk, embedded_text


def words(text: str) -> int:
    return len(text.split())


def uneven(text: str) -> int:
    """A count that is more for a whole than for its parts together, as no tokenizer's should be."""
    return len(text) // 3 + (len(text) // 40) ** 2


COUNTS: list[Callable[[str], int]] = [approximate_tokens, words, len, uneven]
TEXT = st.text(
    st.one_of(
        st.sampled_from(list("abc .,!?\n\n\n\t|`~#-1世界。é")),
        st.characters(codec="utf-8", exclude_characters="\0"),
    ),
    max_size=400,
)
BLOCK = st.sampled_from(
    [
        "One sentence. Another one! A third? ",
        "\n\n",
        "\n",
        "```python\nx = 1\n\ny = 2\n```\n",
        "| a | b |\n| 1 | 2 |\n",
        "- an item\n- another item\n",
        "wordwithoutanend" * 12,
        "~~~\nnever closed\n",
        " ",
        "多くの文字。終わり。",
    ]
)
PROSE = st.lists(st.one_of(BLOCK, st.text(max_size=30)), max_size=40).map("".join)
HEADINGS = st.lists(st.sampled_from(["A", "B", "Long heading of several words"]), max_size=3).map(tuple)
SECTIONS = st.lists(st.builds(Section, HEADINGS, st.one_of(TEXT, PROSE)), max_size=8)


def dense(text: str) -> str:
    return "".join(text.split())


def is_within(needle: str, haystack: str) -> bool:
    """Whether all of it comes in order in the other."""
    rest = iter(haystack)
    return all(character in rest for character in needle)


@given(SECTIONS, st.integers(16, 80), st.integers(0, 8), st.sampled_from(COUNTS))
@example([Section((), "x" * 1000)], 16, 8, len)
@example([Section(("A",), "a"), Section(("A",), "b" * 99), Section(("A",), "c")], 16, 0, len)
def test_nothing_is_lost_and_none_is_too_long(
    sections: list[Section], tokens: int, overlap: int, count: Callable[[str], int]
) -> None:
    chunks = chunk("Title", sections, tokens=tokens, overlap=overlap, count=count)
    everything = dense("".join(found.text for found in chunks))
    assert is_within("".join(dense(section.text) for section in sections), everything)
    assert [found.position for found in chunks] == list(range(len(chunks)))
    assert all(found.text == found.text.strip() != "" for found in chunks)
    assert [found for found in chunks if found.tokens != count(found.text) or found.tokens > tokens] == []
    assert chunks == chunk("Title", sections, tokens=tokens, overlap=overlap, count=count)


@given(PROSE, st.integers(16, 60), st.sampled_from(COUNTS))
def test_without_overlap_nothing_is_repeated(text: str, tokens: int, count: Callable[[str], int]) -> None:
    chunks = chunk("", [Section((), text)], tokens=tokens, overlap=0, count=count)
    assert "".join(dense(found.text) for found in chunks) == dense(text)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from([" ", ". ", ".\n\n", "\n", " "])), max_size=200),
    st.integers(16, 60),
    st.integers(0, 8),
    st.sampled_from([approximate_tokens, words, len]),
)
def test_what_is_repeated_is_within_the_overlap(
    pieces: list[tuple[int, str]], tokens: int, overlap: int, count: Callable[[str], int]
) -> None:
    # Numbered words: each occurs once, so a chunk is found where it was cut.
    text = "".join(f"<{number}{'w' * length}>{end}" for number, (length, end) in enumerate(pieces))
    chunks = chunk("", [Section((), text)], tokens=tokens, overlap=overlap, count=count)
    end = 0
    for found in chunks:
        begin = text.index(found.text, max(0, end - len(found.text) + 1))  # it goes on beyond the one before
        assert text[end:begin].strip() == ""
        assert count(text[begin:end].strip()) <= overlap
        end = begin + len(found.text)


@given(st.lists(st.builds(Section, HEADINGS, PROSE), max_size=8), st.integers(16, 80))
def test_top_headings_are_never_put_together(sections: list[Section], tokens: int) -> None:
    for heading in ("A", "B", "Long heading of several words"):
        alone = [section for section in sections if section.headings[:1] == (heading,)]
        found = [
            each for each in chunk("", sections, tokens=tokens, overlap=8) if each.heading.split(" > ")[0] == heading
        ]
        assert is_within(dense("".join(s.text for s in alone)), dense("".join(each.text for each in found)))


# --- structure ---


def prose(name: str, sentences: int) -> str:
    return " ".join(f"{name} has sentence number {number} here." for number in range(sentences))


def summary(chunks: list[Chunk]) -> list[tuple[str, str]]:
    return [(found.heading, found.text) for found in chunks]


def test_a_small_document_is_one_chunk_with_its_headings() -> None:
    sections = [
        Section(("Leave",), "What is due."),
        Section(("Leave", "Sick"), "Call first."),
        Section(("Leave", "Holiday"), ""),
        Section(("Leave", "Holiday", "Carry over"), "Until March."),
    ]
    text = "What is due.\n\n## Sick\n\nCall first.\n\n## Holiday\n\n### Carry over\n\nUntil March."
    assert summary(chunk("Leave", sections)) == [("Leave", text)]


def test_small_neighbours_of_one_parent_stay_together_and_others_apart() -> None:
    sections = [
        Section(("A", "a1"), prose("a1", 3)),
        Section(("A", "a2"), prose("a2", 3)),
        Section(("A", "a3"), prose("a3", 40)),
        Section(("B", "b1"), prose("b1", 3)),
    ]
    chunks = chunk("", sections, tokens=100, overlap=0)
    assert [found.heading for found in chunks][:2] == ["A", "A > a3"]
    assert chunks[0].text == f"## a1\n\n{prose('a1', 3)}\n\n## a2\n\n{prose('a2', 3)}"
    assert chunks[-1].heading == "B > b1"
    assert {found.heading for found in chunks[1:-1]} == {"A > a3"}


def test_rows_without_headings_share_chunks() -> None:
    rows = [Section((), f"name: row {number}\nvalue: {number}") for number in range(100)]
    chunks = chunk("table", rows, tokens=64)
    assert 10 < len(chunks) < 25
    assert all(found.heading == "" and "\n\n" in found.text for found in chunks)


def test_long_prose_is_cut_between_paragraphs() -> None:
    paragraphs = [prose(f"p{number}", 6) for number in range(9)]
    each = approximate_tokens(paragraphs[0])
    chunks = chunk("", [Section((), "\n\n".join(paragraphs))], tokens=2 * each + each // 2, overlap=0)
    assert [found.text for found in chunks[:2]] == ["\n\n".join(paragraphs[:2]), "\n\n".join(paragraphs[2:4])]


def test_a_long_paragraph_is_cut_between_sentences_and_repeats_whole_ones() -> None:
    text = prose("it", 60)
    chunks = chunk("", [Section((), text)], tokens=64, overlap=20)
    assert all(re.fullmatch(r"(it has sentence number \d+ here\.\s?)+", found.text) for found in chunks)
    for before, after in pairwise(chunks):
        sentences = before.text.split(". ")
        assert after.text.startswith(". ".join(sentences[-2:]) + " ")


def test_without_sentences_whole_words_are_repeated() -> None:
    text = " ".join(f"word{number}" for number in range(200))
    chunks = chunk("", [Section((), text)], tokens=40, overlap=9, count=words)
    for before, after in pairwise(chunks):
        assert before.text.split()[-9:] == after.text.split()[:9]


def test_code_and_tables_stay_whole_where_they_fit() -> None:
    code = "```python\n" + "\n\n".join(f"def f{number}():\n    return {number}" for number in range(5)) + "\n```"
    table = "| name | value |\n" + "\n".join(f"| row {number} | {number} |" for number in range(8))
    text = f"{prose('before', 8)}\n\n{code}\n{prose('between', 8)}\n\n{table}\n\n{prose('after', 8)}"
    chunks = chunk("", [Section((), text)], tokens=100, overlap=10)
    assert sum(code in found.text for found in chunks) == 1
    assert sum(table in found.text for found in chunks) == 1


def test_code_that_does_not_fit_is_cut_between_lines() -> None:
    lines = [f"value_{number} = compute({number})" for number in range(60)]
    chunks = chunk("", [Section((), "```\n" + "\n".join(lines) + "\n```")], tokens=64, overlap=16)
    cut = [line for found in chunks for line in found.text.split("\n") if "```" not in line]
    assert cut == lines


@pytest.mark.parametrize("text", ["", "   \n\n\t"])
def test_a_section_without_text_gives_no_chunk(text: str) -> None:
    assert chunk("", [Section(("A",), text)]) == []


def test_no_sections_give_no_chunks() -> None:
    assert chunk("", []) == []


@pytest.mark.parametrize(("tokens", "overlap"), [(15, 0), (64, 33), (64, -1)])
def test_sizes_out_of_range_are_refused(tokens: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="at least 16 tokens"):
        chunk("", [Section((), "text")], tokens=tokens, overlap=overlap)


# --- what is embedded ---


def test_the_hash_covers_title_headings_and_text() -> None:
    def content_hash(title: str, heading: str, text: str) -> str:
        return chunk(title, [Section((heading,), text)])[0].content_hash

    hashes = {
        content_hash("T", "h", "text"),
        content_hash("U", "h", "text"),
        content_hash("T", "i", "text"),
        content_hash("T", "h", "text."),
    }
    assert len(hashes) == 4
    assert content_hash("T", "h", "text") in hashes
    assert all(re.fullmatch("[0-9a-f]{64}", found) for found in hashes)


def test_a_title_that_is_the_first_heading_is_embedded_once() -> None:
    assert embedded_text("Leave", "Leave > Sick", "Call.") == "Leave > Sick\nCall."
    assert embedded_text("Leave", "Leaves", "Fall.") == "Leave\nLeaves\nFall."
    assert embedded_text("Leave", "", "Call.") == "Leave\nCall."


def test_the_approximation_counts_words_digits_marks_and_other_scripts() -> None:
    assert approximate_tokens("retrieval, 12!") == 2 + 1 + 2 + 1
    assert approximate_tokens("世界") == 2
    assert approximate_tokens("привет") == 2
    assert approximate_tokens(" \n\t") == 0
