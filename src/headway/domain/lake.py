"""How a lake is written down: its URL, its options, and the patterns that choose a subset of its paths. Pure syntax."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_SCHEMES = ("file", "s3", "abfs", "abfss")
_SECRET = re.compile(r"secret|password|token|credential|connection_string|(?:^|_)(?:key|sas)$", re.IGNORECASE)


def check_url(url: str) -> str:
    """Give a lake's URL back.

    Raises:
        ValueError: It is no URL of a lake, or holds a secret; the message does not show it.
    """
    scheme, colon, rest = url.partition(":")
    place = rest.removeprefix("//")
    problem = ""
    if not colon or scheme not in _SCHEMES or "::" in url or not url.isprintable():
        problem = "is not file:/folder, s3://bucket/folder or abfs://container@account.dfs.core.windows.net/folder"
    elif scheme != "file" and (not rest.startswith("//") or not place.strip("/") or place.startswith("/")):
        problem = f"needs the name of a bucket or container: {scheme}://name/folder"
    elif scheme == "file" and rest.startswith("//") and not place.startswith("/"):
        problem = "names a host: write file:/folder, or file:./folder"
    elif scheme == "file" and not rest:
        problem = "names no folder: write file:/folder, or file:./folder"
    elif ":" in place.partition("/")[0].partition("@")[0]:
        problem = "holds a secret: give it under secrets, as env:NAME or file:/path"
    if problem:
        raise ValueError(f"the lake's URL {problem}")
    return url


def find_secrets(options: Any) -> Iterator[str]:
    """Name the options that are secrets, those within others too."""
    for name, value in options.items() if isinstance(options, dict) else ():
        if is_secret(str(name)):
            yield str(name)
        yield from find_secrets(value)


def is_secret(option: str) -> bool:
    """Say whether an option of a store is a secret, by its name."""
    return _SECRET.search(option) is not None


def split_pattern(pattern: str) -> list[str]:
    """Split a pattern into its names; one that ends in ``**`` is any name below.

    Raises:
        ValueError: It makes no sense; the message says why.

    Example:
        >>> split_pattern("docs/**")
        ['docs', '**', '*']
    """
    names = pattern.split("/")
    if not pattern:
        problem = "is empty"
    elif pattern.startswith("/"):
        problem = "begins with a slash: patterns start at the lake's root, without one"
    elif pattern.endswith("/"):
        problem = f"ends with a slash: {pattern}** is all below that folder"
    elif any(name in ("", ".", "..") for name in names):
        problem = "holds an empty name, . or .., which no path does"
    elif any("**" in name and name != "**" for name in names):
        problem = "has ** beside other characters: it stands alone between slashes, as in **/*.md"
    elif re.search(r"\{[^{}]*,[^{}]*\}", pattern):
        problem = "has alternatives in braces: give one pattern for each"
    else:
        return [*names, "*"] if names[-1] == "**" else names
    raise ValueError(f"pattern {pattern!r} {problem}")
