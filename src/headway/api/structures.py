"""Structures of the domain as resources: the same fields, documented by the same docstrings."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from pydantic import Field, create_model
from pydantic_core import CoreSchema

from headway.api.resources import Resource

_ATTRIBUTE = re.compile(r" {4}(\w+(?:, \w+)*): (.+)")


class Mirrored:
    """Marks a field that shows a structure of the domain: ``Annotated[Policy, Mirrored()]``."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], CoreSchema]) -> CoreSchema:
        """Give pydantic the resource in place of the structure."""
        return handler(resource_of(source))


@cache
def resource_of(structure: type[msgspec.Struct]) -> type[Resource]:
    """Make the resource that shows a structure, and those that are in it."""
    summary, attributes = read_docstring(structure.__doc__ or "")
    hints = get_type_hints(structure)
    fields: dict[str, Any] = {
        name: (_translate(hints[name]), Field(description=attributes.get(name))) for name in structure.__struct_fields__
    }
    return create_model(structure.__name__, __base__=Resource, __doc__=summary, **fields)


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    r"""Split a docstring in Google style: what stands before its attributes, and what it says of each of them.

    Example:
        >>> read_docstring("One thing.\n\nAttributes:\n    a, b: Two of\n        its parts.")
        ('One thing.', {'a': 'Two of its parts.', 'b': 'Two of its parts.'})
    """
    summary, _, rest = inspect.cleandoc(text).partition("Attributes:")
    attributes: dict[str, str] = {}
    names: list[str] = []
    for line in rest.splitlines():
        found = _ATTRIBUTE.fullmatch(line)
        if found is not None:
            names = found[1].split(", ")
            attributes |= dict.fromkeys(names, found[2])
        elif line.strip():
            attributes |= {name: f"{attributes[name]} {line.strip()}" for name in names}
    return " ".join(summary.split()), attributes


def _translate(hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return resource_of(hint)
    arguments, origin = get_args(hint), get_origin(hint)
    if not arguments or origin is Literal:
        return hint
    translated = tuple(map(_translate, arguments))
    return Union[translated] if origin in (Union, types.UnionType) else origin[translated]  # noqa: UP007 - computed
