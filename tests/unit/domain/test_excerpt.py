"""Excerpts: what is shown of a long text, and that the marks stay where they belong."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headway.domain.excerpt import ELLIPSIS, Excerpt


def marked(excerpt: Excerpt) -> list[str]:
    return [piece for piece, is_marked in excerpt.pieces if is_marked]


def find(text: str, *words: str) -> Excerpt:
    marks = sorted((text.index(word), text.index(word) + len(word)) for word in words)
    return Excerpt(text, tuple(marks))


def test_a_short_text_stays_whole() -> None:
    excerpt = find("Leave is 25 days.", "Leave")
    assert excerpt.shorten(100) is excerpt
    assert excerpt.pieces == [("Leave", True), (" is 25 days.", False)]
    assert Excerpt("").pieces == []


def test_a_long_text_is_shown_where_most_is_marked() -> None:
    text = "rare " + "x " * 200 + "the days of paid leave are these " + "y " * 200
    short = find(text, "rare", "days", "paid", "leave").shorten(80)
    assert marked(short) == ["days", "paid", "leave"]
    assert short.text.startswith(ELLIPSIS)
    assert short.text.endswith(ELLIPSIS)
    assert len(short.text) <= 80


def test_without_marks_the_beginning_is_shown() -> None:
    short = Excerpt("word " * 100).shorten(52)
    assert short.text == "word " * 9 + "word" + ELLIPSIS


@given(st.text(alphabet="ab \n", min_size=1, max_size=300), st.integers(4, 100), st.data())
def test_what_is_marked_stays_marked_and_nothing_gets_too_long(text: str, most: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    marks = tuple(zip(cuts[::2], cuts[1::2], strict=False))
    whole = Excerpt(text, marks)
    short = whole.shorten(most)
    assert len(short.text) <= max(most, 1)
    assert short.text.strip(ELLIPSIS) in text
    assert "".join(piece for piece, _ in short.pieces) == short.text
    assert set(marked(short)) <= set(marked(whole))
