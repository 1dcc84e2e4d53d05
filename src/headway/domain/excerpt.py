"""A text with the places that a query's words have in it, and the part of it that is worth showing first."""

from __future__ import annotations

from bisect import bisect_right

import msgspec

ELLIPSIS = "…"


class Excerpt(msgspec.Struct, frozen=True):
    """A text, or a part of one, with marks.

    Attributes:
        text: As it is shown.
        marks: Where something is marked: beginning and end, in order, without overlap.
    """

    text: str
    marks: tuple[tuple[int, int], ...] = ()

    @property
    def pieces(self) -> list[tuple[str, bool]]:
        """The text in pieces, each with whether it is marked.

        Example:
            >>> Excerpt("paid holiday", ((5, 12),)).pieces
            [('paid ', False), ('holiday', True)]
        """
        pieces, reached = [], 0
        for begin, end in self.marks:
            pieces += [(self.text[reached:begin], False), (self.text[begin:end], True)]
            reached = end
        pieces.append((self.text[reached:], False))
        return [piece for piece in pieces if piece[0]]

    def shorten(self, most: int) -> Excerpt:
        """Give the part of at most so many characters that has the most marks; an ellipsis stands for what is left out.

        Example:
            >>> Excerpt("one two three four", ((14, 18),)).shorten(10)
            Excerpt(text='…four', marks=((1, 5),))
        """
        if len(self.text) <= most:
            return self
        room = max(1, most - 2 * len(ELLIPSIS))
        begin = self._begin(room)
        end = self._end(begin + room)
        front = ELLIPSIS if begin else ""
        shift = len(front) - begin
        marks = tuple((low + shift, high + shift) for low, high in self.marks if low >= begin and high <= end)
        return Excerpt(front + self.text[begin:end] + (ELLIPSIS if end < len(self.text) else ""), marks)

    def _begin(self, room: int) -> int:
        """Where the part of that length with the most marks begins: a little before its first mark, with a word."""
        lows = [low for low, _ in self.marks]
        counts = [bisect_right(lows, low + room * 3 // 4) - place for place, low in enumerate(lows)]
        if not counts or (lows[0] < room // 2 and max(counts) == counts[0]):
            return 0
        first = lows[counts.index(max(counts))]
        begin = min(first - room // 8, len(self.text) - room)
        # Back to nowhere is worse than a cut word: languages without blanks have none to look for.
        following = self.text.find(" ", max(begin, 0), first)
        return max(0, begin) if following < 0 or begin <= 0 else following + 1

    def _end(self, end: int) -> int:
        if end >= len(self.text):
            return len(self.text)
        blank = self.text.rfind(" ", end - 30, end + 1)
        return end if blank <= 0 else blank
