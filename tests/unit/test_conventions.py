"""The project's sizes, names and docstrings, counted."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("src", "tests", "benchmarks")
MODULE_LINES = 600
FUNCTION_LINES = 60
PARAMETERS = 8
EMPTY_NAMES = frozenset({"utils", "util", "common", "helpers", "helper", "manager", "managers", "misc"})

# Where a file was written, or where a package came from, is nobody's business in the tree.
MACHINE_PATH = re.compile(r"(?<![\w.~:/-])/(?:work|root|home/\w+|Users/\w+|tmp/\w+|opt/\w+)/\w")
REGISTRY_HOST = re.compile(
    r"\b(?:pypi\.org|pythonhosted\.org|npmjs\.org|registry\.yarnpkg\.com|deb\.debian\.org|proxy\.golang\.org)\b"
    r"|--(?:index|extra-index|find)-(?:url|links)\b"
)
SAMPLE_PATHS_ALLOWED = ("docs/", "README.md")  # examples of a reader's own machine

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def tracked_files() -> list[Path]:
    """Every file that is or would be committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def functions(tree: ast.Module) -> Iterator[FunctionNode]:
    for node in ast.walk(tree):
        if isinstance(node, FunctionNode):
            yield node


def oversized(source: str) -> list[str]:
    """What in a module is longer or wider than the conventions allow."""
    found = []
    lines = source.count("\n") + 1 - source.endswith("\n")
    if lines > MODULE_LINES:
        found.append(f"module has {lines} lines, at most {MODULE_LINES}")
    for node in functions(ast.parse(source)):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LINES:
            found.append(f"{node.name} (line {node.lineno}) has {length} lines, at most {FUNCTION_LINES}")
        parameters = parameter_count(node)
        if parameters > PARAMETERS:
            found.append(f"{node.name} (line {node.lineno}) has {parameters} parameters, at most {PARAMETERS}")
    return found


def parameter_count(node: FunctionNode) -> int:
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args]
    receiver = 1 if named and named[0].arg in {"self", "cls"} else 0
    starred = (arguments.vararg is not None) + (arguments.kwarg is not None)
    return len(named) + len(arguments.kwonlyargs) + starred - receiver


def undocumented(source: str) -> list[str]:
    """The public names of a module that have no docstring."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else ["the module itself"]
    found += _undocumented_members(tree.body, "")
    return found


def _undocumented_members(body: list[ast.stmt], prefix: str) -> list[str]:
    found = []
    for node in body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or node.name.startswith("_"):
            continue
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        if decorators & {"overload", "typing.overload", "override", "typing.override", f"{node.name}.setter"}:
            continue
        if not ast.get_docstring(node):
            found.append(f"{prefix}{node.name} (line {node.lineno})")
        if isinstance(node, ast.ClassDef):
            found += _undocumented_members(node.body, f"{prefix}{node.name}.")
    return found


def leaks(name: str, text: str) -> list[str]:
    """Lines that name a path of somebody's machine or the host of a package registry."""
    patterns = [REGISTRY_HOST] if name.startswith(SAMPLE_PATHS_ALLOWED) else [REGISTRY_HOST, MACHINE_PATH]
    return [
        f"{name}:{number}: {line.strip()[:100]}"
        for number, line in enumerate(text.splitlines(), start=1)
        if any(pattern.search(line) for pattern in patterns)
    ]


def empty_name(path: Path) -> bool:
    return path.stem in EMPTY_NAMES or path.parent.name in EMPTY_NAMES


def named(path: Path, found: list[str]) -> list[str]:
    return [f"{path.relative_to(ROOT)}: {item}" for item in found]


# --- the tree ---


def test_modules_functions_and_parameters_keep_to_their_sizes() -> None:
    found = [item for path in python_files(*SOURCES) for item in named(path, oversized(path.read_text()))]
    assert found == []


def test_public_names_have_docstrings() -> None:
    found = [item for path in python_files("src") for item in named(path, undocumented(path.read_text()))]
    assert found == []


def test_no_module_has_an_empty_name() -> None:
    assert [str(path.relative_to(ROOT)) for path in python_files(*SOURCES) if empty_name(path)] == []


def test_no_machine_path_and_no_registry_host_in_tracked_files() -> None:
    found = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" not in content[:8192]:
            found += leaks(path.relative_to(ROOT).as_posix(), content.decode("utf-8", "replace"))
    assert found == []


def test_constraints_hold_names_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[a-z0-9.+!]+", line)] == []


# --- each check can fail ---


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("x = 1\n" * (MODULE_LINES + 1), "module has 601 lines"),
        ("def f():\n" + "    x = 1\n" * FUNCTION_LINES, "f (line 1) has 61 lines"),
        ("class A:\n    async def f(self):\n" + "        x = 1\n" * FUNCTION_LINES, "f (line 2) has 61 lines"),
        ("def f(a, b, c, d, e, *f, g, h, **i): ...\n", "f (line 1) has 9 parameters"),
    ],
)
def test_too_large_is_found(source: str, complaint: str) -> None:
    assert [item for item in oversized(source) if item.startswith(complaint)]


@pytest.mark.parametrize(
    "source",
    [
        "x = 1\n" * MODULE_LINES,
        "def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1),
        "class A:\n    def f(self, a, b, c, d, e, f, g, h): ...\n",
    ],
)
def test_the_largest_allowed_passes(source: str) -> None:
    assert oversized(source) == []


def test_missing_docstrings_are_found() -> None:
    source = "class A:\n    def f(self): ...\n    def _g(self): ...\nasync def h(): ...\ndef _i(): ...\n"
    assert undocumented(source) == ["the module itself", "A (line 1)", "A.f (line 2)", "h (line 4)"]


def test_empty_names_are_found() -> None:
    assert empty_name(Path("src/headway/utils.py"))
    assert empty_name(Path("src/headway/common/keys.py"))
    assert not empty_name(Path("src/headway/keys.py"))


@pytest.mark.parametrize(
    "line",
    [
        "open('" + "/" + "home/ann/data')",
        "cd " + "/" + "root/project",
        "https://" + "files.pythonhosted" + ".org/x.whl",
        "--" + "index-url x",
    ],
)
def test_leaks_are_found(line: str) -> None:
    assert leaks("src/x.py", f"first\n{line}\n") == [f"src/x.py:2: {line}"]
