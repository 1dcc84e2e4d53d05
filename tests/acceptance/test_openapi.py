"""Schemathesis over both OpenAPI documents as a running Headway publishes them: no 5xx, no undocumented answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.harness import Headway, application, openai_deployment, running
from tests.acceptance.stand import CHATTY, Provider, simulated_provider

POLICY = {
    "stages": ["10%", {"share": "100%", "approve": True}],
    "goal": {"metric": "thumbs_up", "margin": "5pp"},
    "baselines": {
        "thumbs_up": {"level": 0.7},
        "attempt_error_rate": {"level": 0.01},
        "fallback_rate": {"level": 0.01},
    },
}
# Half of all strings are names that exist: otherwise hardly a request would get as far as the provider.
CONFIGURATION = """
[dictionaries.names]
values = ["support", "support@first", "second", "user", "thumbs_up"]
[generation.dictionaries]
string = {dictionary = "names", probability = 0.5}
"""
# The first three guess what values mean, and guess wrong; and what Headway does not read is the provider's to refuse.
UNCHECKED = (
    "positive_data_acceptance",
    "use_after_free",
    "ensure_resource_availability",
    "negative_data_rejection",
)


@pytest.fixture(scope="module")
def explored(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Headway, Provider]]:
    """A Headway of its own: whoever explores the control plane revokes keys and moves shares."""
    with simulated_provider({"chatty": CHATTY}) as provider:
        headway = Headway(tmp_path_factory.mktemp("explored"), database_url=module_database_url)
        configuration = {
            "deployments": {"main": openai_deployment(provider.base_url, "chatty")},
            "applications": {"support": application("main", policy="careful"), "0": application("main")},
            "policies": {"careful": POLICY},
        }
        with running(headway, configuration):
            changed = application("main", "second", policy="careful", prompt={"text": "Be kind."})
            headway.write({**configuration, "applications": {**configuration["applications"], "support": changed}})
            headway.run("apply", "--yes", "--accept")
            yield headway, provider


def explore(url: str, key: str, folder: Path, examples: int) -> None:
    """Let Schemathesis send whatever fits the document, and much that does not."""
    configuration = folder / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "--config-file", configuration),
            *("run", f"{url}/openapi.json"),
            *("--header", f"Authorization: Bearer {key}", "--checks", "all"),
            *("--exclude-checks", ",".join(UNCHECKED)),
            *("--max-examples", str(examples), "--generation-database", "none", "--seed", "1"),
            *("--no-color", "--warnings", "off", "--suppress-health-check", "all"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stdout


def test_data_plane(explored: tuple[Headway, Provider], tmp_path: Path, proof: bool) -> None:
    """The data plane, the routes to a provider included."""
    headway, provider = explored
    explore(headway.url, headway.first_key, tmp_path, 300 if proof else 4)
    assert '"internal_error"' not in headway.log()
    assert provider.counts().answered > 0


def test_control_plane(explored: tuple[Headway, Provider], tmp_path: Path, proof: bool) -> None:
    """The control plane, with an administrator's key."""
    headway, _ = explored
    explore(headway.admin_url, headway.first_key, tmp_path, 300 if proof else 4)
    assert '"internal_error"' not in headway.log()
