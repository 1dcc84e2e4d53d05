"""Markdown: YAML front matter, headings; the text stays as it is written, code and tables included."""

from __future__ import annotations

import re
from typing import Any

import yaml
from markdown_it import MarkdownIt

from headway.errors import UnreadableDocumentError
from headway.lake.parsing.parsed import Limits, Outline, Parsed, file_title, plain
from headway.lake.parsing.texts import decode, one_line

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.MULTILINE | re.DOTALL)
_FRONT_MATTER_CHARACTERS = 65_536
_ANCHOR = re.compile(r"\s*\{[#.:][^{}]*\}\s*\Z")


def parse_markdown(path: str, body: bytes, limits: Limits) -> Parsed:
    """Parse a Markdown file (CommonMark)."""
    text = decode(body)
    metadata, text = _split_front_matter(text)
    outline = Outline(limits)
    lines = text.split("\n")
    # Blocks alone: what stands inside a paragraph stays as it is written.
    blocks = MarkdownIt("commonmark")
    blocks.core.ruler.enableOnly(["normalize", "block"])
    inline = MarkdownIt("commonmark")
    tokens = blocks.parse(text)
    begin = 0
    for position, token in enumerate(tokens):
        if token.level or token.map is None:
            continue
        if token.type == "heading_open":
            outline.add("\n".join(lines[begin : token.map[0]]))
            outline.enter(int(token.tag[1:]), _heading(inline, tokens[position + 1].content))
            begin = token.map[1]
        elif token.type == "html_block" and _is_comment(token.content.strip()):
            outline.add("\n".join(lines[begin : token.map[0]]))
            begin = token.map[1]
    outline.add("\n".join(lines[begin:]))
    sections = outline.sections()
    title = metadata.get("title")
    title = one_line(title) if isinstance(title, str) else ""
    return Parsed(title or outline.first_heading or file_title(path), sections, metadata)


def _is_comment(html: str) -> bool:
    return html.startswith("<!--") and html.find("-->", 4) == len(html) - 3


def _heading(inline: MarkdownIt, source: str) -> str:
    """A heading without its markup."""
    source = _ANCHOR.sub("", source)
    if len(source) > 1000:
        return source
    parts = []
    for token in inline.parseInline(source)[0].children or []:
        if token.type in ("text", "code_inline"):
            parts.append(token.content)
        elif token.type in ("softbreak", "hardbreak"):
            parts.append(" ")
        elif token.type == "image":
            parts.append(token.content)
    return "".join(parts)


def _split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    found = _FRONT_MATTER.match(text[:_FRONT_MATTER_CHARACTERS]) if text.startswith("---") else None
    if found is None:
        return {}, text
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # A few aliases can stand for gigabytes.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(found[1], Loader=loader)):
            raise UnreadableDocumentError("its front matter holds an alias (*name): those are not read")
        value = yaml.load(found[1], Loader=loader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 2}" if mark else ""
        problem = getattr(error, "problem", None) or "a value makes no sense"
        raise UnreadableDocumentError(f"its front matter is not sound YAML{place}: {problem}") from None
    if value is None:
        return {}, text[found.end() :]
    if not isinstance(value, dict):  # a line across the page, not front matter
        return {}, text
    return plain(value), text[found.end() :]
