"""The YAML file as a tree that knows its lines, and the problems found in it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from headway.errors import ConfigurationError

Place = tuple[str, ...]  # the keys that lead to a value

_MOST_BYTES = 1_000_000
_MOST_NODES = 100_000
_DEEPEST = 40
_SHOWN_CHARACTERS = 40
# Shapes that well-known secrets have. The applied file is kept in the database: none of these may get there.
_SECRETS = re.compile(
    r"\b(?:sk-[\w-]{16,}|hw-[\w-]{40,}|gh[pousr]_\w{30,}|xox[abpr]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+)|-----BEGIN [A-Z ]*PRIVATE KEY-----|(?i:\bbearer\s+[\w.~+/-]{16,})"
)


@dataclass(frozen=True)
class Problem:
    """Something wrong in a file.

    Attributes:
        file: The file as the operator named it.
        line: Line in that file, from 1.
        place: Path of the key, such as ``applications.support.unit``; empty for the file as a whole.
        message: What is wrong and what would be right.
    """

    file: str
    line: int
    place: str
    message: str

    def __str__(self) -> str:
        """One line: file:line: key: message."""
        return ": ".join(part for part in (f"{self.file}:{self.line}", self.place, self.message) if part)


@dataclass
class Document:
    """A file that is being read: its tree, the line of each key, and the problems so far."""

    file: str
    root: yaml.Node | None = None
    problems: list[Problem] = field(default_factory=list)
    lines: dict[Place, int] = field(default_factory=dict)

    def complain(self, place: Place, message: str, *, line: int | None = None, file: str | None = None) -> None:
        """Note a problem at a key; its line is that of the key, or of the nearest key above it."""
        nearest = place
        while line is None:
            line = self.lines.get(nearest, None if nearest else 1)
            nearest = nearest[:-1]
        self.problems.append(Problem(file or self.file, line, ".".join(place), message))

    def pairs(self, node: yaml.MappingNode, place: Place) -> list[tuple[str, yaml.Node]]:
        """List the keys of a mapping with their values, and remember their lines; each key once."""
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self.complain(place, "a key must be plain text", line=line)
            elif key.tag == "tag:yaml.org,2002:merge":
                self.complain(place, "merge keys (<<) are not supported; write the keys out", line=line)
            elif key.value in found:
                first = self.lines[*place, key.value]
                message = f"the key is given twice; it is already on line {first}"
                self.complain((*place, key.value), message, line=line)
            else:
                self.lines[*place, key.value] = line
                found[key.value] = value
        return list(found.items())


def parse(text: str, file: str) -> Document:
    """Parse YAML; problems of syntax, size and characters are noted in the document."""
    document = Document(file)
    if len(text.encode("utf-8", "surrogatepass")) > _MOST_BYTES:
        document.complain((), "the file is larger than 1 MB")
        return document
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        # Not the error's own text: it quotes the line, and a secret may be on it.
        mark = error.problem_mark or error.context_mark
        context = f" ({error.context})" if error.context else ""
        line = 1 if mark is None else mark.line + 1
        document.complain((), f"not valid YAML: {error.problem}{context}", line=line)
        return document
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.complain((), "the file holds a character that YAML does not allow", line=line)
        return document
    except RecursionError:
        document.complain((), "the file is nested too deeply")
        return document
    if _is_sound(document, root):
        document.root = root
    return document


def scan_for_secrets(text: str, document: Document) -> None:
    """Complain of lines that hold what looks like a secret, comments too: the file is kept as it stands."""
    known = {problem.line for problem in document.problems if "secret" in problem.message}
    for number, line in enumerate(text.splitlines(), start=1):
        if number not in known and _SECRETS.search(line):
            message = "this line seems to hold a secret; give it as env:NAME or file:/path instead"
            document.complain((), message, line=number)


def read(path: Path, shown: str) -> str:
    """Read a text file.

    Raises:
        ConfigurationError: It does not exist, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigurationError(f"{shown} does not exist") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{shown} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise ConfigurationError(f"{shown} cannot be read: {error.strerror}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the known name nearest to a wrong one: "; did you mean 'x'?", or which there are, or nothing."""
    names = sorted(known)
    matches = difflib.get_close_matches(name.lower(), [known.lower() for known in names], n=1, cutoff=0.6)
    if matches:
        found = next(known for known in names if known.lower() == matches[0])
        return f"; did you mean {found!r}?"
    if not names:
        return ""
    return f"; known are {', '.join(names)}" if len(names) <= 12 else ""


def show(value: str) -> str:
    """Quote a value for a message, shortened; what may be a secret is not quoted."""
    if _SECRETS.search(value):
        return "(not shown: it may be a secret)"
    return repr(value if len(value) <= _SHOWN_CHARACTERS else value[: _SHOWN_CHARACTERS - 3] + "...")


def _is_sound(document: Document, root: yaml.Node | None) -> bool:
    """Check the whole tree for what no key may hold, aliases followed, in bounded work."""
    pending: list[tuple[yaml.Node | None, int]] = [(root, 0)]
    seen = 0
    sound = True
    while pending:
        node, depth = pending.pop()
        seen += 1
        if seen > _MOST_NODES or depth > _DEEPEST:
            document.complain((), "the file is nested too deeply, or its aliases expand to too much")
            return False
        if isinstance(node, yaml.MappingNode):
            pending += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            pending += [(part, depth + 1) for part in node.value]
        elif isinstance(node, yaml.ScalarNode) and re.search("[\x00\ud800-\udfff]", node.value):
            document.complain((), "text may not hold NUL or lone surrogates", line=node.start_mark.line + 1)
            sound = False
    return sound
