"""Structures of the domain as resources: nothing is declared twice."""

import doctest
from typing import Annotated, Literal

import msgspec
import pytest
from pydantic import BaseModel, ValidationError

from headway.api import structures
from headway.api.structures import Mirrored, read_docstring, resource_of


class Part(msgspec.Struct, frozen=True):
    """A part.

    Attributes:
        size: How large.
    """

    size: float


class Whole(msgspec.Struct, frozen=True):
    """The whole, which
    takes two lines.

    Attributes:
        name: What it is called: in words,
            and in the next line.
        first, last: Two of its parts.
        kind: Which one.
    """

    name: str
    first: Part
    last: Part | None
    kind: Literal["a", "b"] = "a"
    more: tuple[Part, ...] = ()
    pair: tuple[int, int] = (0, 0)
    named: dict[str, Part] = {}


class Shown(BaseModel):
    """Something that shows it."""

    whole: Annotated[Whole, Mirrored()] | None


def test_examples() -> None:
    assert doctest.testmod(structures).failed == 0


def test_a_resource_has_the_fields_and_the_words_of_its_structure() -> None:
    schema = Shown.model_json_schema()
    whole = schema["$defs"]["Whole"]
    assert whole["description"] == "The whole, which takes two lines."
    assert list(whole["properties"]) == list(Whole.__struct_fields__)
    described = {name: each.get("description") for name, each in whole["properties"].items()}
    assert described["name"] == "What it is called: in words, and in the next line."
    assert described["first"] == described["last"] == "Two of its parts."
    assert whole["properties"]["kind"]["enum"] == ["a", "b"]
    assert whole["properties"]["more"]["items"] == {"$ref": "#/$defs/Part"}
    assert schema["$defs"]["Part"]["properties"]["size"]["type"] == "number"
    assert set(whole["required"]) == set(Whole.__struct_fields__), "an answer always has them all"


def test_it_takes_what_the_structure_is_written_as_and_nothing_else() -> None:
    whole = Whole("x", Part(1.0), None, "b", (Part(2.0),), (3, 4), {"y": Part(5.0)})
    plain = msgspec.json.decode(msgspec.json.encode(whole))
    written = Shown.model_validate({"whole": plain}).model_dump(mode="json")["whole"]
    assert written == plain
    assert Shown.model_validate({"whole": None}).whole is None
    for wrong in ({**plain, "extra": 1}, {**plain, "kind": "c"}, {**plain, "first": {"size": "large"}}):
        with pytest.raises(ValidationError):
            Shown.model_validate({"whole": wrong})


def test_one_resource_per_structure() -> None:
    assert resource_of(Part) is resource_of(Part)


def test_docstrings_without_attributes() -> None:
    assert read_docstring("") == ("", {})
    assert read_docstring("One.\n\nMore of it.\n") == ("One. More of it.", {})
