"""Prompt templates: Jinja2 in a sandbox, each standing alone."""

from __future__ import annotations

from types import TracebackType

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headway.config.document import nearest

PROMPT_VARIABLES = ("user", "metadata", "today", "passages")


class _Empty(dict[str, str]):
    """The metadata of a request that has none."""

    def __missing__(self, key: str) -> str:
        return ""


def compile_prompt(source: str) -> Template:
    """Compile a prompt: it can reach nothing but the variables it is rendered with, and an unknown one is an error.

    Raises:
        TemplateSyntaxError: It is no valid template; ``lineno`` says where.
    """
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    tree = environment.parse(source)
    if list(meta.find_referenced_templates(tree)):
        raise TemplateSyntaxError("a prompt stands alone: it cannot include, import or extend another", 1)
    unknown = meta.find_undeclared_variables(tree) - set(PROMPT_VARIABLES)
    for name in tree.find_all(nodes.Name):
        if name.name in unknown:
            message = f"unknown variable {name.name!r}{nearest(name.name, PROMPT_VARIABLES)}"
            raise TemplateSyntaxError(message, name.lineno)
    return environment.from_string(source)


def prompt_problem(source: str) -> tuple[int, str] | None:
    """Say what is wrong with a prompt: its line, from 1, and the reason; None when nothing is.

    The prompt is rendered once, for a request that names no user and has no metadata: whatever fails there would fail
    in front of a client.
    """
    try:
        compile_prompt(source).render(user="", metadata=_Empty(), today="2026-01-31", passages="")
    except TemplateSyntaxError as error:
        return error.lineno, error.message or "not a valid template"
    except RecursionError:
        return 1, "the template is nested too deeply"
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        return _line(error.__traceback__), f"fails for a request without user and metadata: {error}"
    return None


def _line(traceback: TracebackType | None) -> int:
    line = 1
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
