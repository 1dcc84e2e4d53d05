"""The reference pages say what the code says."""

import re
from pathlib import Path
from typing import get_args

import pytest

from headway.config import azure_search, indexes, policies, spec
from headway.config.load import load
from headway.config.schema import Either, Key, Kind, Listing, Named, Table
from headway.config.settings import Settings
from headway.domain.metric import BUILT_IN_FEEDBACK, MEASURED, find_metric, method_for
from headway.domain.rollout import Outcome, Reason, State

DOCS = Path(__file__).resolve().parents[3] / "docs"
REFERENCE = DOCS / "reference"
CONFIGURATION = {
    "The file": spec.FILE,
    "Deployments": spec.DEPLOYMENT,
    "Prices": spec.PRICES,
    "Timeouts": spec.TIMEOUTS,
    "Queue": spec.QUEUE,
    "Circuit": spec.CIRCUIT,
    "Metrics": spec.METRIC,
    "Applications": spec.APPLICATION,
    "Releases": spec.RELEASE,
    "Retrieval": indexes.RETRIEVAL,
    "Webhooks": spec.WEBHOOK,
    "Indexes": indexes.INDEX,
    "Lakes": indexes.LAKE,
    "Embedders": indexes.EMBEDDER,
    "Chunks": indexes.CHUNK,
    "Azure AI Search": azure_search.AZURE_SEARCH,
    "Fields": azure_search.AZURE_FIELDS,
}
POLICIES = {
    "Keys": policies.POLICY,
    "Stages": policies.STEP,
    "Shadow stage": policies.MIRROR,
    "Goal": policies.GOAL,
    "Guardrails": policies.GUARDRAIL,
    "Holdback": policies.HOLDBACK,
    "Kill switch": policies.KILL_SWITCH,
    "Baselines": policies.DECLARED,
}
TABLES = [("configuration.md", heading, table) for heading, table in CONFIGURATION.items()]
TABLES += [("policies.md", heading, table) for heading, table in POLICIES.items()]


def takes(kind: Kind) -> str:
    if isinstance(kind, Table):
        return "a mapping, see below"
    if isinstance(kind, Listing) and isinstance(kind.of, Table):
        return "a list of mappings, see below"
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


def cells(page: str, heading: str, column: int) -> list[list[str]]:
    """The code in one column of the tables under a heading, row by row."""
    rows = re.findall(r"^\|(.*)\|$", section((REFERENCE / page).read_text(), heading), re.MULTILINE)
    return [re.findall(r"`([^`]+)`", row.split("|")[column]) for row in rows[2:]]


@pytest.mark.parametrize(
    ("page", "heading", "table"), TABLES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_key_of_the_file_is_documented_as_it_is_read(page: str, heading: str, table: Table) -> None:
    rows = re.findall(r"^\| `.*$", section((REFERENCE / page).read_text(), heading), re.MULTILINE)
    assert rows == [row(name, key) for name, key in table.keys.items()]


def test_no_table_of_keys_is_left_out() -> None:
    found = set()
    pending: list[Kind] = [spec.FILE]
    while pending:
        kind = pending.pop()
        if isinstance(kind, Table):
            found.add(id(kind))
            pending += [key.kind for key in kind.keys.values()]
        elif isinstance(kind, Named | Listing):
            pending.append(kind.of)
        elif isinstance(kind, Either):
            pending += kind.tables
    assert found == {id(table) for _, _, table in TABLES}


@pytest.mark.parametrize("page", ["configuration.md", "policies.md"])
def test_the_examples_of_the_pages_are_sound(page: str, tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "support.j2").write_text("Help.\n")
    examples = re.findall(r"```yaml\n((?:deployments|policies):.*?)```", (REFERENCE / page).read_text(), re.DOTALL)
    assert examples
    for example in examples:
        before = "" if example.startswith("deployments") else _DEPLOYMENTS
        (tmp_path / "headway.yaml").write_text(before + example)
        assert load(tmp_path / "headway.yaml").specification.applications


_DEPLOYMENTS = """\
deployments:
  main: {provider: openai, base_url: http://h/v1, model: m, usd_per_million_tokens: {input: 1, output: 2}}
"""


def test_the_methods_are_those_of_the_page() -> None:
    documented = {
        name: (kind[0], form[0], method[0])
        for names, kind, form, method in zip(
            *(cells("policies.md", "Metrics and methods", column) for column in range(4)), strict=True
        )
        for name in names
    }
    numeric = [name for name, metric in BUILT_IN_FEEDBACK.items() if metric.kind != "text"]
    kinds = {name: find_metric(name, BUILT_IN_FEEDBACK).kind for name in [*MEASURED, *numeric]}
    assert set(documented) == set(kinds)
    for name, (kind, key, method) in documented.items():
        assert kind == kinds[name]
        assert method == method_for(kinds[name], "points" if key == "margin" else "ratio")


@pytest.mark.parametrize(
    ("heading", "codes"), [("States", get_args(State)), ("Outcomes", get_args(Outcome)), ("Reasons", get_args(Reason))]
)
def test_all_codes_of_decisions_are_explained(heading: str, codes: tuple[str, ...]) -> None:
    explained = [code for row in cells("policies.md", heading, 0) for code in row]
    assert sorted(explained) == sorted(codes)


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
