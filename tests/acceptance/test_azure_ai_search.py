"""Azure AI Search end to end, against a simulator of its documented REST API: built, searched, cited, dropped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from headway.testing import Behaviour
from headway.testing.search_service import HeldIndex, Scripted, SearchServiceSimulator
from tests.acceptance.harness import Headway, application, openai_deployment, running, wait_for
from tests.acceptance.stand import Provider, Stand, call, simulated_provider, unique

KEY = "an-admin-key-that-nobody-sees"
DOCUMENTS = {
    "leave.md": "# Annual leave\n\nEverybody has 25 days of annual leave.\n",
    "travel.md": "# Travel\n\nTrains are booked in second class.\n",
    "hr/salaries.md": "# Salaries\n\nThe salary of a manager is 90,000: zanzibar.\n",
}
LEAFLETS = HeldIndex(
    {
        "name": "leaflets",
        "fields": [
            {"name": "key", "type": "Edm.String", "key": True},
            {"name": "text", "type": "Edm.String", "searchable": True},
            {"name": "url", "type": "Edm.String"},
        ],
    },
    '"0x1"',
    {"a": {"key": "a", "text": "Umbrellas are in the hall.", "url": "https://leaflets/umbrellas"}},
)


def configuration(provider: Provider, endpoint: str, **applications: Any) -> dict[str, Any]:
    azure = {"endpoint": endpoint, "api_key": "env:SEARCH_KEY"}
    found = {**azure, "index": "leaflets", "fields": {"content": "text", "document": "url"}}
    return {
        "deployments": {"main": openai_deployment(provider.base_url, "model")},
        "indexes": {
            "handbook": {"lake": "file:./docs", "labels": {"hr/**": ["hr"]}, "azure_ai_search": azure},
            "leaflets": {"azure_ai_search": found},
        },
        "applications": {"plain": application("main"), **applications},
    }


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    """Where the service runs."""
    with start_blocking_portal() as opened:
        yield opened


@pytest.fixture(scope="module")
def service(portal: BlockingPortal) -> Iterator[SearchServiceSimulator]:
    with portal.wrap_async_context_manager(SearchServiceSimulator(admin_keys=[KEY])) as simulator:
        simulator.indexes["leaflets"] = LEAFLETS
        yield simulator


@pytest.fixture(scope="module")
def stand(
    module_database_url: str, tmp_path_factory: pytest.TempPathFactory, service: SearchServiceSimulator
) -> Iterator[Stand]:
    """Headway with an index that it built in the service, and one that was there."""
    folder = tmp_path_factory.mktemp("azure")
    for path, text in DOCUMENTS.items():
        (folder / "docs" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "docs" / path).write_text(text)
    headway = Headway(folder, database_url=module_database_url, environment={"SEARCH_KEY": KEY})
    behaviour = Behaviour(answer_text="You have 25 days [1].")
    with (
        simulated_provider({"model": behaviour}) as provider,
        running(headway, configuration(provider, service.endpoint)),
    ):
        built = headway.run("index", "build", "handbook")
        assert "handbook@1 is published: 3 documents, 3 chunks (3 embedded)" in built
        assert "leaflets@1 is published: the index 'leaflets' of" in headway.run("index", "build", "leaflets")
        support = application("main", index="handbook@1", top_k=2)
        leaflets = application("main", index="leaflets@1")
        headway.write(configuration(provider, service.endpoint, support=support, leaflets=leaflets))
        headway.run("apply", "--yes")
        headway.wait_for_snapshot()
        yield Stand(headway, provider, headway.create_key("web", "--scope", "invoke"), "")


def test_answers_cite_what_is_found_there(stand: Stand, service: SearchServiceSimulator) -> None:
    question = unique("How many days of annual leave do I have?")
    with openai.OpenAI(base_url=stand.headway.base_url, api_key=stand.key, max_retries=0) as client:
        answer = client.chat.completions.create(model="support", messages=[{"role": "user", "content": question}])
    citations = (answer.choices[0].message.model_extra or {})["context"]["citations"]
    assert (citations[0]["document"], citations[0]["index"]) == ("leave.md", "handbook@1")
    assert citations[0]["content"] == "Everybody has 25 days of annual leave."
    (received,) = stand.provider.received(question)
    assert "25 days of annual leave" in str(received.body)
    record = stand.headway.interaction(answer.id)
    assert (record["passages"], record["cited"]) == (len(citations), True)
    assert record["retrieved"] == [each["chunk"] for each in citations]
    assert service.calls[-1].body["search"].startswith("How many days of annual leave do I have")


def test_searches_find_what_their_groups_may_see(stand: Stand) -> None:
    hr = stand.headway.run_json("keys", "create", "hr", "--scope", "invoke")
    stand.headway.run("keys", "groups", str(hr["number"]), "hr")
    for key, sees in ((stand.key, False), (hr["key"], True)):
        wanted = {"application": "support", "query": "What is the salary of a manager?"}
        found = call(f"{stand.headway.base_url}/search", wanted, key=key)
        assert found.status == 200, found
        assert ("zanzibar" in found.body.decode()) is sees
    assert "zanzibar" not in stand.headway.log()


def test_an_index_that_exists_is_searched_as_it_is(stand: Stand) -> None:
    wanted = {"application": "leaflets", "query": "Where are the umbrellas?"}
    found = call(f"{stand.headway.base_url}/search", wanted, key=stand.key).json
    assert [(each["document"], each["score"]) for each in found["passages"]] == [("https://leaflets/umbrellas", 1.0)]
    assert "Umbrellas are in the hall." in stand.headway.run("index", "search", "leaflets", "umbrellas")
    assert stand.headway.run("index", "list", "leaflets").splitlines()[1].split()[:5] == [
        "leaflets@1", "published", "1", "-", "-"
    ]  # fmt: skip
    shown = stand.headway.run("index", "show", "leaflets@1")
    assert "1 when it was pinned" in shown
    assert "none: words only" in shown


def test_a_search_that_fails_is_recorded(stand: Stand, service: SearchServiceSimulator) -> None:
    service.script("search.post.search", Scripted(403, "no more"))
    failed = stand.chat("support", unique("How many days?"))
    assert (failed.status, failed.json["error"]["code"]) == (503, "retrieval_failed")
    assert "no more" not in failed.body.decode()
    assert "no more" in stand.headway.log()
    assert KEY not in stand.headway.log()


def test_a_dropped_version_is_gone_there(stand: Stand, service: SearchServiceSimulator) -> None:
    built = stand.headway.run_json("index", "build", "handbook")
    remote = built["progress"]["remote"]
    assert remote in service.indexes
    stand.headway.run("index", "drop", built["label"])
    assert remote not in service.indexes
    assert stand.headway.run_json("index", "show", "handbook@1")["progress"]["remote"] in service.indexes


@pytest.mark.fault
def test_a_build_that_is_killed_while_it_writes_goes_on(
    stand: Stand, service: SearchServiceSimulator, portal: BlockingPortal
) -> None:
    (stand.headway.folder / "docs" / "pets.md").write_text("# Pets\n\nDogs are welcome on Fridays.\n")
    before = stand.headway.run_json("index", "show", "handbook")["number"]
    service.calls.clear()
    service.hang("search.index")
    command = [sys.executable, "-m", "headway", "index", "build", "handbook"]
    build = subprocess.Popen(
        command, cwd=stand.headway.folder, env=stand.headway.environment, stderr=subprocess.DEVNULL
    )
    wait_for("the first write", lambda: any(call.path.endswith("search.index") for call in service.calls))
    build.kill()
    build.wait(10)
    portal.call(service.go_on)  # what was under way when it was killed is written as well
    shown = wait_for(
        "the new version",
        lambda: (found := stand.headway.run_json("index", "show", "handbook"))["number"] > before and found,
    )
    written = service.indexes[shown["progress"]["remote"]].documents
    assert sorted(each["path"] for each in written.values()) == ["hr/salaries.md", "leave.md", "pets.md", "travel.md"]
    assert (shown["progress"]["embedded"], shown["progress"]["reused"]) == (1, 3)
