"""Which paths of a lake belong to a subset: include and exclude patterns.

A pattern is held against the whole path from the lake's root, name by name between the slashes. ``*`` is any part of
one name, ``?`` one character, ``[a-c]`` and ``[!a-c]`` one of a set, ``**`` any number of folders, none included; as
the last name it is everything below. Case counts, on every kind of lake; how an accent is composed does not: a label
must hold for a folder that a Mac has named, too. As in a shell, an include's wildcards do not match a name that begins
with a dot; an exclude's do.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence

from headway.domain.lake import split_pattern
from headway.errors import ConfigurationError

_WILD = re.compile(r"[*?\[]")

# How far each include and each exclude has come: positions in its names.
State = tuple[tuple[frozenset[int], ...], tuple[frozenset[int], ...]]


class _Pattern:
    """One pattern as a machine that reads a path name by name."""

    def __init__(self, text: str, *, hidden: bool) -> None:
        try:
            names = split_pattern(_composed(text))
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        self.folders = _literal(names)
        self._names = [None if name == "**" else _compile(name, hidden=hidden) for name in names]
        self._open_ended = names[-2:] == ["**", "*"]
        self._hidden = hidden

    def start(self) -> frozenset[int]:
        return self._closed({0})

    def step(self, state: frozenset[int], name: str) -> frozenset[int]:
        reached = set()
        for position in state:
            if position == len(self._names):
                continue
            expected = self._names[position]
            if expected is None:  # **
                if self._hidden or not name.startswith("."):
                    reached.add(position)
            elif expected.match(name):
                reached.add(position + 1)
        return self._closed(reached)

    def _closed(self, state: set[int]) -> frozenset[int]:
        waiting = list(state)
        while waiting:
            position = waiting.pop()
            if position < len(self._names) and self._names[position] is None and position + 1 not in state:
                state.add(position + 1)
                waiting.append(position + 1)
        return frozenset(state)

    def accepts(self, state: frozenset[int]) -> bool:
        return len(self._names) in state

    def swallows(self, state: frozenset[int]) -> bool:
        """Whether all below matches."""
        return self._open_ended and len(self._names) - 2 in state


def _literal(names: list[str]) -> list[str]:
    """The folders in front of the first wildcard, as far as there is one way to write them."""
    return list(itertools.takewhile(lambda name: name.isascii() and not _WILD.search(name), names[:-1]))


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _compile(name: str, *, hidden: bool) -> re.Pattern[str]:
    guard = r"(?!\.)" if not hidden and _WILD.match(name) else ""
    return re.compile(guard + fnmatch.translate(name))


class Globs:
    """Says which paths belong to a subset, and which folders may hold some, so that the others are never listed.

    Args:
        include: A path must match one of these.
        exclude: And none of these.
        hidden: Let the includes' wildcards match names that begin with a dot: for access labels, say, which must
            hold for every path below a folder.

    Raises:
        ConfigurationError: A pattern makes no sense; the message says why.

    Example:
        >>> globs = Globs(["**/*.md"], ["drafts/**"])
        >>> globs.match("hr/leave.md"), globs.match("drafts/leave.md"), globs.match(".git/x.md")
        (True, False, False)
    """

    def __init__(self, include: Sequence[str], exclude: Sequence[str] = (), *, hidden: bool = False) -> None:
        self._include = [_Pattern(text, hidden=hidden) for text in include]
        self._exclude = [_Pattern(text, hidden=True) for text in exclude]

    @property
    def base(self) -> str:
        """The deepest folder that holds all that can match: where a listing begins; empty for the root."""
        shared: list[str] = []
        for names in zip(*(pattern.folders for pattern in self._include), strict=False):
            if len(set(names)) > 1:
                break
            shared.append(names[0])
        return "/".join(shared)

    def start(self) -> State:
        """The state before any name was read."""
        return tuple(p.start() for p in self._include), tuple(p.start() for p in self._exclude)

    def step(self, state: State, name: str) -> State:
        """Read one more name of a path."""
        name = _composed(name)
        include = tuple(p.step(s, name) for p, s in zip(self._include, state[0], strict=True))
        exclude = tuple(p.step(s, name) for p, s in zip(self._exclude, state[1], strict=True))
        return include, exclude

    def accepts(self, state: State) -> bool:
        """Say whether the path read so far belongs to the subset."""
        return any(p.accepts(s) for p, s in zip(self._include, state[0], strict=True)) and not any(
            p.accepts(s) for p, s in zip(self._exclude, state[1], strict=True)
        )

    def may_hold(self, state: State) -> bool:
        """Say whether a folder, read so far, can hold a path of the subset."""
        return any(state[0]) and not any(p.swallows(s) for p, s in zip(self._exclude, state[1], strict=True))

    def read(self, names: Iterable[str]) -> State:
        """The state after these names."""
        state = self.start()
        for name in names:
            state = self.step(state, name)
        return state

    def match(self, path: str) -> bool:
        """Say whether a whole path belongs to the subset."""
        return self.accepts(self.read(path.split("/")))
