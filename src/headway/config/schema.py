"""What a key may hold: kinds that read a YAML node, complain where it does not fit, and describe themselves."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol
from urllib.parse import urlsplit

import yaml

from headway.config.document import Document, Place, nearest, show
from headway.config.quantities import (
    Measure,
    format_duration,
    format_share,
    parse_duration,
    parse_measure,
    parse_share,
)

_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = frozenset(_TAG + name for name in ("str", "int", "float", "timestamp"))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_SAFE_INTEGER = 2**53


class Absent(Enum):
    """Stands for a value that could not be read: the problem has been noted, and the rest can still be checked."""

    INVALID = "invalid"


INVALID = Absent.INVALID


class Kind(Protocol):
    """Reads one kind of value."""

    def read(self, node: yaml.Node, place: Place, document: Document) -> Any:
        """Return the plain value, or INVALID after a complaint."""
        ...

    def describe(self) -> str:
        """Say for the reference page what the key takes."""
        ...

    def format(self, value: Any) -> str:
        """Write a value as it would stand in the file."""
        ...


def scalar(node: yaml.Node, place: Place, document: Document, expected: str) -> str | Absent:
    """Read a node as text, or complain that ``expected`` was."""
    if not isinstance(node, yaml.ScalarNode):
        what = "a mapping" if isinstance(node, yaml.MappingNode) else "a list"
        document.complain(place, f"expected {expected}, not {what}")
        return INVALID
    if node.tag == _TAG + "null":
        document.complain(place, f"expected {expected}, but there is no value")
        return INVALID
    return str(node.value)


@dataclass(frozen=True)
class Text:
    """Text that ``check`` accepts; it raises ValueError with the reason otherwise."""

    what: str = "text"
    check: Callable[[str], str] | None = None

    def read(self, node: yaml.Node, place: Place, document: Document) -> str | Absent:
        """Read text; numbers and dates are taken as they are written."""
        value = scalar(node, place, document, self.what)
        if value is INVALID:
            return INVALID
        if node.tag not in _TEXT_TAGS:
            document.complain(place, f"expected {self.what}, not {show(value)}; put it in quotes if you mean the text")
            return INVALID
        if not value.strip():
            document.complain(place, f"expected {self.what}, but it is empty")
            return INVALID
        try:
            return value if self.check is None else self.check(value)
        except ValueError as error:
            document.complain(place, str(error))
            return INVALID

    def describe(self) -> str:
        """Say what the text is."""
        return self.what

    def format(self, value: Any) -> str:
        """Write it plainly."""
        return str(value)


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    def read(self, node: yaml.Node, place: Place, document: Document) -> str | Absent:
        """Read one of the words."""
        value = scalar(node, place, document, self.describe())
        if value is INVALID or value in self.words:
            return value
        document.complain(place, f"expected {self.describe()}, not {show(value)}{self._hint(value)}")
        return INVALID

    def _hint(self, value: str) -> str:
        hint = nearest(value, self.words)
        return hint if "did you mean" in hint else ""

    def describe(self) -> str:
        """List the words."""
        return " or ".join(filter(None, (", ".join(self.words[:-1]), self.words[-1])))

    def format(self, value: Any) -> str:
        """Write the word."""
        return str(value)


@dataclass(frozen=True)
class Number:
    """A number between two bounds, both included unless ``between``."""

    minimum: float = 0.0
    maximum: float = math.inf
    whole: bool = False
    between: bool = False

    def read(self, node: yaml.Node, place: Place, document: Document) -> float | int | Absent:
        """Read a number within the bounds."""
        value = scalar(node, place, document, self.describe())
        if value is INVALID:
            return INVALID
        try:
            if isinstance(node, yaml.ScalarNode) and node.style is not None:
                raise ValueError("quoted")
            number: float | int = int(value) if self.whole else float(value)
        except ValueError:
            document.complain(place, f"expected {self.describe()}, not {show(value)}")
            return INVALID
        within = self.minimum <= number <= self.maximum and math.isfinite(number)
        if not within or (self.between and number in (self.minimum, self.maximum)):
            document.complain(place, f"expected {self.describe()}, not {value}")
            return INVALID
        return number

    def describe(self) -> str:
        """Say whole or not, and the bounds."""
        noun = "a whole number" if self.whole else "a number"
        if self.between:
            return f"{noun} between {self.minimum:g} and {self.maximum:g}"
        if math.isfinite(self.maximum):
            return f"{noun} from {self.minimum:g} to {self.maximum:.12g}"
        return f"{noun} of at least {self.minimum:g}" if math.isfinite(self.minimum) else noun

    def format(self, value: Any) -> str:
        """Write the number."""
        return f"{value:g}"


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def read(self, node: yaml.Node, place: Place, document: Document) -> bool | Absent:
        """Read true or false."""
        value = scalar(node, place, document, self.describe())
        if value in ("true", "false") and node.tag == _TAG + "bool":
            return value == "true"
        if value is not INVALID:
            document.complain(place, f"expected {self.describe()}, not {show(value)}")
        return INVALID

    def describe(self) -> str:
        """Say true or false."""
        return "true or false"

    def format(self, value: Any) -> str:
        """Write true or false."""
        return "true" if value else "false"


@dataclass(frozen=True)
class Duration:
    """A length of time in seconds, written as a number and a unit."""

    minimum: float = 0.001
    maximum: float = 86400.0

    def read(self, node: yaml.Node, place: Place, document: Document) -> float | Absent:
        """Read a duration within the bounds, in seconds."""
        value = scalar(node, place, document, "a duration such as 5s")
        if value is INVALID:
            return INVALID
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            document.complain(place, f"{error}, not {show(value)}")
            return INVALID
        if not self.minimum <= seconds <= self.maximum:
            document.complain(place, f"expected {self.describe()}, not {value}")
            return INVALID
        return seconds

    def describe(self) -> str:
        """Name the bounds."""
        return f"a duration from {format_duration(self.minimum)} to {format_duration(self.maximum)}"

    def format(self, value: Any) -> str:
        """Write it with its unit."""
        return format_duration(value)


@dataclass(frozen=True)
class Share:
    """A share of traffic, above 0 up to everything."""

    def read(self, node: yaml.Node, place: Place, document: Document) -> float | Absent:
        """Read a percentage or a fraction, as 0 to 1."""
        value = scalar(node, place, document, self.describe())
        if value is INVALID:
            return INVALID
        try:
            share = parse_share(value)
        except ValueError as error:
            document.complain(place, str(error) if value in str(error) else f"{error}, not {show(value)}")
            return INVALID
        if share == 0.0:
            document.complain(place, f"expected {self.describe()}, above 0, not {value}")
            return INVALID
        return share

    def describe(self) -> str:
        """Show what it looks like."""
        return "a share such as 10%"

    def format(self, value: Any) -> str:
        """Write it as a percentage."""
        return format_share(value)


@dataclass(frozen=True)
class Amount:
    """A number that may have pp, % or a unit of time behind it; what it means, others know."""

    what: str

    def read(self, node: yaml.Node, place: Place, document: Document) -> Measure | Absent:
        """Read the number and what stands behind it."""
        value = scalar(node, place, document, self.what)
        if value is INVALID:
            return INVALID
        try:
            return parse_measure(value)
        except ValueError:
            document.complain(place, f"expected {self.what}, not {show(value)}")
            return INVALID

    def describe(self) -> str:
        """Say what it is."""
        return self.what

    def format(self, value: Any) -> str:
        """Write it with what stands behind it."""
        scaled = value.value * 100 if value.form in ("pp", "%") else value.value
        return format_duration(value.value) if value.form == "time" else f"{scaled:g}{value.form.replace('plain', '')}"


@dataclass(frozen=True)
class Secret:
    """A reference to a secret; what is not one is never quoted, for it may be the secret itself."""

    def read(self, node: yaml.Node, place: Place, document: Document) -> str | Absent:
        """Read ``env:NAME`` or ``file:/path``."""
        value = scalar(node, place, document, self.describe())
        if value is INVALID:
            return INVALID
        problem = secret_problem(value)
        if problem:
            document.complain(place, problem)
            return INVALID
        return value

    def describe(self) -> str:
        """Name both forms."""
        return "a secret reference: env:NAME or file:/path"

    def format(self, value: Any) -> str:
        """Write the reference."""
        return str(value)


def secret_problem(value: str) -> str | None:
    """Say why a text is no secret reference, without quoting it; None when it is one."""
    scheme, _, rest = value.partition(":")
    if scheme == "env":
        return None if re.fullmatch(r"[A-Za-z_]\w*", rest, re.ASCII) else "env: needs the name of a variable: env:NAME"
    if scheme == "file":
        fits = rest.startswith("/") and len(rest) > 1 and rest.isprintable()
        return None if fits else "file: needs an absolute path: file:/path"
    return (
        "a secret is never written into this file, which is kept and shown: name where it is instead,"
        " as env:NAME or file:/path"
    )


@dataclass(frozen=True)
class Listing:
    """A list of one kind, each item once unless it may repeat."""

    of: Kind
    least: int = 0
    repeats: bool = False

    def read(self, node: yaml.Node, place: Place, document: Document) -> list[Any] | Absent:
        """Read the items; a list with a bad item is INVALID."""
        if not isinstance(node, yaml.SequenceNode):
            document.complain(place, f"expected {self.describe()}")
            return INVALID
        items: list[Any] = []
        sound = True
        for number, child in enumerate(node.value):
            item_place = (*place, str(number))
            document.lines[item_place] = child.start_mark.line + 1
            item = self.of.read(child, item_place, document)
            if item is not INVALID and item in items and not self.repeats:
                document.complain(item_place, f"{self.of.format(item)} is in the list twice")
                item = INVALID
            sound = sound and item is not INVALID
            items.append(item)
        if len(items) < self.least:
            document.complain(place, f"expected at least {self.least} item")
            return INVALID
        return items if sound else INVALID

    def describe(self) -> str:
        """Name the kind of the items."""
        return f"a list of: {self.of.describe()}"

    def format(self, value: Any) -> str:
        """Write it in brackets."""
        return f"[{', '.join(self.of.format(item) for item in value)}]"


@dataclass(frozen=True)
class Json:
    """Any JSON value."""

    def read(self, node: yaml.Node, place: Place, document: Document) -> Any:
        """Read a value that JSON can hold."""
        if isinstance(node, yaml.MappingNode):
            values = {}
            for key, child in document.pairs(node, place):
                values[key] = self.read(child, (*place, key), document)
            return INVALID if INVALID in values.values() else values
        if isinstance(node, yaml.SequenceNode):
            items = [self.read(child, place, document) for child in node.value]
            return INVALID if INVALID in items else items
        return self._scalar(node, place, document)

    def _scalar(self, node: yaml.Node, place: Place, document: Document) -> Any:
        if node.tag in (_TAG + "str", _TAG + "timestamp"):
            return str(node.value)
        try:
            value = yaml.constructor.SafeConstructor().construct_object(node)
        except (yaml.YAMLError, ValueError):
            value = INVALID
        sound = value is None or isinstance(value, bool | int | float)
        if not sound or (isinstance(value, float) and not math.isfinite(value)):
            document.complain(place, "expected a JSON value")
            return INVALID
        if isinstance(value, int) and abs(value) > _SAFE_INTEGER:
            document.complain(place, "the number is too large for JSON; put it in quotes")
            return INVALID
        return value

    def describe(self) -> str:
        """Say JSON."""
        return "any JSON value"

    def format(self, value: Any) -> str:
        """Write it as JSON."""
        return json.dumps(value)


@dataclass(frozen=True)
class Key:
    """One key of a table.

    Attributes:
        kind: What it takes.
        doc: What it is for, for the reference page.
        required: It must be there.
        default: Its value when it is not.
    """

    kind: Kind
    doc: str
    required: bool = False
    default: Any = None


@dataclass(frozen=True)
class Table:
    """A mapping with known keys.

    Attributes:
        keys: The keys.
        later: Keys of a later version of Headway, with what to say about them.
    """

    keys: Mapping[str, Key]
    later: Mapping[str, str] = field(default_factory=dict)

    def read(self, node: yaml.Node, place: Place, document: Document) -> dict[str, Any] | Absent:
        """Read the keys; absent ones get their default, wrong and missing ones are INVALID in the result."""
        pairs = mapping(node, place, document)
        if pairs is INVALID:
            return INVALID
        values = {name: INVALID if key.required else key.default for name, key in self.keys.items()}
        given = {name for name, _ in pairs}
        for name, child in pairs:
            values[name] = self._read_key(name, child, place, document)
        missing = [name for name, key in self.keys.items() if key.required and name not in given]
        if missing:
            plural = "s" if len(missing) > 1 else ""
            document.complain(place, f"missing key{plural}: {', '.join(missing)}")
        return values

    def _read_key(self, name: str, node: yaml.Node, place: Place, document: Document) -> Any:
        key = self.keys.get(name)
        if key is not None:
            return key.kind.read(node, (*place, name), document)
        reason = self.later.get(name) or f"unknown key{nearest(name, self.keys)}"
        document.complain((*place, name), reason)
        return INVALID

    def describe(self) -> str:
        """List the keys."""
        return f"a mapping with {', '.join(self.keys)}"

    def format(self, value: Any) -> str:
        """Write it in braces."""
        given = {name: item for name, item in value.items() if item is not None}
        return "{" + ", ".join(f"{name}: {self.keys[name].kind.format(item)}" for name, item in given.items()) + "}"


@dataclass(frozen=True)
class Either:
    """A plain value, or a mapping: of several tables, the first that has a required key of which one is given."""

    plain: Kind
    tables: tuple[Table, ...]

    def read(self, node: yaml.Node, place: Place, document: Document) -> Any:
        """Read what is there: the plain value, or a dictionary."""
        if not isinstance(node, yaml.MappingNode):
            return self.plain.read(node, place, document)
        given = {key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)}
        fits = (table for table in self.tables if any(table.keys[key].required for key in given & table.keys.keys()))
        return next(fits, self.tables[0]).read(node, place, document)

    def describe(self) -> str:
        """Name the plain value."""
        return f"{self.plain.describe()}; or a mapping, see below"

    def format(self, value: Any) -> str:
        """Write it plainly, or in braces."""
        for table in self.tables:
            if isinstance(value, Mapping) and value.keys() == table.keys.keys():
                return table.format(value)
        return self.plain.format(value)


@dataclass(frozen=True)
class Named:
    """A mapping from names to one kind."""

    of: Kind
    noun: str
    check: Callable[[str], str] | None = None

    def read(self, node: yaml.Node, place: Place, document: Document) -> dict[str, Any] | Absent:
        """Read the entries; wrong ones are INVALID in the result."""
        pairs = mapping(node, place, document)
        if pairs is INVALID:
            return INVALID
        values = {}
        for name, child in pairs:
            value = self.of.read(child, (*place, name), document)
            try:
                (self.check or check_name)(name)
            except ValueError as error:
                document.complain((*place, name), str(error))
                value = INVALID
            values[name] = value
        return values

    def describe(self) -> str:
        """Say what the names are of."""
        return f"a mapping from the name of {self.noun} to {self.of.describe()}"

    def format(self, value: Any) -> str:
        """Write it in braces."""
        return "{" + ", ".join(f"{name}: {self.of.format(item)}" for name, item in value.items()) + "}"


def mapping(node: yaml.Node, place: Place, document: Document) -> list[tuple[str, yaml.Node]] | Absent:
    """Read a node as a mapping; a key with nothing behind it is an empty one."""
    if isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "null":
        return []
    if isinstance(node, yaml.MappingNode):
        return document.pairs(node, place)
    document.complain(place, "expected a mapping (key: value)")
    return INVALID


def check_name(name: str) -> str:
    """Return the name when it can stand in a URL, a header and a command.

    Raises:
        ValueError: It cannot.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("a name begins with a letter or digit and has at most 64 letters, digits, '.', '_' or '-'")
    return name


def check_url(url: str) -> str:
    """Return the URL without a slash at its end.

    Raises:
        ValueError: It is not an http(s) URL, or carries credentials or a query.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError("expected a URL such as https://example.com/v1") from error
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL with credentials in it is refused; use api_key or headers with a secret reference")
    if parts.query or parts.fragment:
        raise ValueError("the URL may not have a query or a fragment")
    plain = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not plain:
        raise ValueError("expected a URL such as https://example.com/v1")
    return url.rstrip("/")
