"""What headway.yaml says of Azure AI Search, and what it becomes."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.config.azure_search import AzureFields, AzureSearchSpec
from headway.config.changes import compare
from headway.config.indexes import IndexSpec, VersionSpec
from headway.config.load import load
from headway.config.spec import operate_version

FILE = """
deployments:
  d: {{provider: openai, base_url: "http://h/v1", model: m}}
applications:
  a: {{release: {{deployment: d}}}}
indexes:
  i: {index}
"""


def freeze(folder: Path, index: str) -> IndexSpec:
    (folder / "headway.yaml").write_text(FILE.format(index=index))
    return load(folder / "headway.yaml").specification.indexes["i"]


@pytest.mark.parametrize(
    "endpoint", ["https://c.search.windows.net", "http://127.0.0.1:80", "http://localhost", "http://[::1]:1"]
)
def test_an_index_that_headway_builds(tmp_path: Path, endpoint: str) -> None:
    made = freeze(tmp_path, f'{{lake: "file:/docs", azure_ai_search: {{endpoint: "{endpoint}/", api_key: env:KEY}}}}')
    assert made.azure_ai_search == AzureSearchSpec(endpoint, "api_key", "env:KEY")
    assert (made.is_pinned, made.lake.url) == (False, "file:/docs")


def test_an_index_that_exists(tmp_path: Path) -> None:
    azure = (
        "{endpoint: 'https://c', index: wiki-2, fields: {content: c, vector: v, metadata: {dept: d}}, semantic: best}"
    )
    made = freeze(tmp_path, f"{{azure_ai_search: {azure}, embedder: local-static}}")
    fields = AzureFields("c", vector="v", metadata={"dept": "d"})
    assert made.azure_ai_search == AzureSearchSpec("https://c", "entra", None, "wiki-2", fields, "best")
    assert (made.is_pinned, made.lake.url) == (True, "")


def test_without_it_the_database_is_searched(tmp_path: Path) -> None:
    made = freeze(tmp_path, '{lake: "file:/docs"}')
    assert (made.azure_ai_search, made.is_pinned) == (None, False)


def test_a_change_is_told_in_the_words_of_the_file(tmp_path: Path) -> None:
    specifications = []
    for azure in ("", ", azure_ai_search: {endpoint: 'https://c', api_key: env:KEY}"):
        (tmp_path / "headway.yaml").write_text(FILE.format(index=f'{{lake: "file:/docs"{azure}}}'))
        specifications.append(load(tmp_path / "headway.yaml").specification)
    (change,) = compare(*specifications)
    assert change.subject == "index i"
    assert {detail for detail in change.details if not detail.endswith("-> none")} == {
        "azure_ai_search.endpoint: none -> https://c",
        "azure_ai_search.api_key: none -> env:KEY",
    }


@pytest.mark.parametrize("endpoint", ["https://c", "https://elsewhere"])
def test_a_version_is_searched_with_the_credentials_of_now_in_its_own_service(tmp_path: Path, endpoint: str) -> None:
    index = '{{lake: "file:/docs", azure_ai_search: {{endpoint: "{}", api_key: {}}}}}'
    built = VersionSpec(freeze(tmp_path, index.format("https://c", "env:OLD")))
    (tmp_path / "headway.yaml").write_text(FILE.format(index=index.format(endpoint, "env:NEW")))
    operated = operate_version(built, "i", load(tmp_path / "headway.yaml").specification)
    secret = "env:NEW" if endpoint == "https://c" else "env:OLD"
    assert operated.index.azure_ai_search == AzureSearchSpec("https://c", "api_key", secret)
