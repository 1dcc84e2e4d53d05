"""The reference pages say what the code says."""

import re
from pathlib import Path

import pytest

from headway.config import spec
from headway.config.load import load
from headway.config.schema import Key, Kind, Named, Table
from headway.config.settings import Settings

DOCS = Path(__file__).resolve().parents[3] / "docs"
TABLES = {
    "The file": spec.FILE,
    "Deployments": spec.DEPLOYMENT,
    "Prices": spec.PRICES,
    "Timeouts": spec.TIMEOUTS,
    "Queue": spec.QUEUE,
    "Circuit": spec.CIRCUIT,
    "Metrics": spec.METRIC,
    "Applications": spec.APPLICATION,
    "Releases": spec.RELEASE,
}


def takes(kind: Kind) -> str:
    if isinstance(kind, Table):
        return "a mapping, see below"
    if isinstance(kind, Named) and isinstance(kind.of, Table):
        return f"a mapping from the name of {kind.noun} to its keys, see below"
    return kind.describe()


def row(name: str, key: Key) -> str:
    default = f"`{key.kind.format(key.default)}`" if key.default not in (None, {}, []) else ""
    return f"| `{name}` | {takes(key.kind)} | {'required' if key.required else default} | {key.doc} |"


def section(page: str, heading: str) -> str:
    """The part of a page under a heading, up to the next one."""
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"no section {heading}"
    return found[1]


@pytest.mark.parametrize("heading", TABLES)
def test_every_key_of_the_file_is_documented_as_it_is_read(heading: str) -> None:
    rows = re.findall(
        r"^\| `.*$", section((DOCS / "reference" / "configuration.md").read_text(), heading), re.MULTILINE
    )
    assert rows == [row(name, key) for name, key in TABLES[heading].keys.items()]


def test_no_table_of_keys_is_left_out() -> None:
    found = set()
    pending: list[Kind] = [spec.FILE]
    while pending:
        kind = pending.pop()
        if isinstance(kind, Table):
            found.add(id(kind))
            pending += [key.kind for key in kind.keys.values()]
        elif isinstance(kind, Named):
            pending.append(kind.of)
    assert found == {id(table) for table in TABLES.values()}


def test_the_examples_of_the_page_are_sound(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "support.j2").write_text("Help.\n")
    examples = re.findall(
        r"```yaml\n(deployments:.*?)```", (DOCS / "reference" / "configuration.md").read_text(), re.DOTALL
    )
    assert examples
    for example in examples:
        (tmp_path / "headway.yaml").write_text(example)
        assert load(tmp_path / "headway.yaml").specification.applications


def test_every_setting_is_documented_with_its_default() -> None:
    rows = re.findall(r"^\| `HEADWAY_.*$", (DOCS / "reference" / "settings.md").read_text(), re.MULTILINE)
    documented = {cells[1].strip("` "): cells[2].strip("` ") for cells in (line.split("|") for line in rows)}
    defaults = {name: getattr(Settings(), name) for name in Settings.__struct_fields__}
    assert documented == {
        f"HEADWAY_{name.upper()}": ""
        if default is None
        else f"{default:g}"
        if isinstance(default, float)
        else str(default)
        for name, default in defaults.items()
    }
