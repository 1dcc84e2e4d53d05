"""headway index compare: what an operator types, and what is shown for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import Result

from headway.cli import comparison
from headway.domain.release import Retrieval
from headway.ids import Kind
from headway.retrieval.embedding import make_embedder
from headway.storage.database import Connection, Database
from tests import commands
from tests.asked import ask, found_application
from tests.indexes import SPEC


def headway(*arguments: str, status: int = 0) -> Result:
    return commands.headway("index", "compare", *arguments, status=status)


def compared(*arguments: str, status: int = 0) -> Any:
    return json.loads(headway(*arguments, "--json", status=status).stdout)


class Stand:
    """A folder, and a database with an application that searches ``handbook@1``."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder

    def run(self, work: Callable[[Connection], Awaitable[object]]) -> None:
        async def body() -> None:
            database = Database(self.url)
            await database.open()
            async with database.connection() as connection:
                await work(connection)
            await database.close()

        asyncio.run(body())

    def ask(self, *asked: dict[str, Any]) -> None:
        async def work(connection: Connection) -> None:
            for columns in asked:
                await ask(connection, **columns)

        self.run(work)

    def write(self, *lines: object, name: str = "queries.jsonl") -> str:
        (self.folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return name


@pytest.fixture
def stand(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Stand:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADWAY_DATABASE_URL", database_url)
    made = Stand(database_url, tmp_path)

    async def found(connection: Connection) -> None:
        async def embed(texts: Any) -> Any:
            embedder = make_embedder(SPEC, None, None)  # type: ignore[arg-type]  # the embedded one needs neither
            return await embedder.embed(texts)

        await found_application(connection, embed, retrieval=Retrieval("handbook", 1, top_k=2, turns=2))

    made.run(found)
    return made


LABELLED = (
    {"query": "how are trains booked?", "relevant": ["travel.md"]},
    {"query": "how many days of leave?", "relevant": ["leave.md"]},
)


def test_a_comparison_reads_at_a_glance(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    file = stand.write(*LABELLED, *[LABELLED[1]] * 10)
    narrow = Console(width=80, record=True, highlight=False)
    monkeypatch.setattr(comparison, "console", narrow)
    headway("handbook@1", "handbook", "--queries", file, "--top-k", "1")
    lines = narrow.export_text().splitlines()
    assert lines[0] == "handbook@1 → handbook@2"
    assert lines[1].startswith("12 queries, 12 with labels · first passage · meaning 50%, words 50% · all")
    assert "No difference is shown in how much of what answers is found, among the first 1." in lines
    assert "1 document of what was found before was removed." in lines
    assert "          before  after  difference          95% sure  better  worse  same" in lines
    (recall,) = [line.split() for line in lines if line.startswith("recall@1")]
    assert recall[1:4] == ["1.000", "0.917", "-0.083"]
    assert recall[-3:] == ["0", "1", "11"]
    assert "1 query lost an answer" in lines
    assert [line.split() for line in lines if line.startswith("travel.md")] == [
        ["travel.md", "removed", "1", "how", "are", "trains", "booked?"]
    ]


def test_places_are_told_where_they_change(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    for before, after, said in (("1", "2", "later"), ("2", "1", "earlier")):
        file = stand.write(*[LABELLED[0]] * 20)
        told = headway(f"handbook@{before}", f"handbook@{after}", "-q", file, "-k", "1").stdout
        assert f"The first answer comes {said} than in handbook@{before}." in told
        assert f"handbook@{after} answers {'worse' if said == 'later' else 'better'}:" in told


def test_without_labels_nothing_is_said_of_better_or_worse(stand: Stand) -> None:
    shown = headway("handbook@1", "handbook@2", "-q", stand.write({"query": "trains"}, {"query": "leave"})).stdout
    assert "No query says what answers it: whether a difference is for the better is not known." in shown
    assert "recall" not in shown
    assert "both find" in shown


def test_everything_is_in_the_json(stand: Stand) -> None:
    found = compared("handbook@1", "handbook@2", "-q", stand.write(*LABELLED), "--hybrid-weight", "0", "-k", "3")
    assert (found["before"], found["after"], found["queries"], found["asked"]) == ("handbook@1", "handbook@2", 2, None)
    assert (found["top_k"], found["hybrid_weight"]) == (3, 0.0)
    assert found["relevance"]["recall"]["difference"]["mean"] == -0.5
    assert found["relevance"]["ndcg"]["before"]["queries"] == 2
    assert found["lost"]["documents"][0]["document"] == "travel.md"
    assert found["lost"]["documents"][0]["state"] == "removed"
    assert found["empty"]["newly"] == 1


def test_queries_come_from_what_was_asked(stand: Stand) -> None:
    later = json.dumps(
        {"messages": [{"role": "user", "content": "trains"}, {"role": "user", "content": "how are they booked?"}]}
    )
    stand.ask(
        {"text": "how are trains booked?", "times": 3},
        {"text": later},
        {"text": "who pays?", "release": 2, "ago": "2 hours"},
        {"text": "answers of the candidate only", "kind": int(Kind.SHADOW)},
        {"text": "a text to embed", "operation": "embeddings"},
        {"text": "not stored", "request": None},
        {"text": '{"messages": [{"role": "system", "content": "hello"}]}'},
        {"text": '{"messages": 5}'},
        {"text": '{"input": "leave?"}', "operation": "responses"},
    )
    found = compared("handbook@1", "handbook@2", "--from-interactions", "help")
    assert found["asked"] == {"interactions": 9, "without_content": 1, "without_query": 2, "repeated": 2}
    assert (found["queries"], found["labelled"], found["relevance"]) == (4, 0, None)
    assert found["top_k"] == 2, "as the stable release"
    lost = {each["document"]: each for each in found["lost"]["documents"]}
    assert sorted(lost["travel.md"]["examples"]) == ["how are trains booked?", "trains\nhow are they booked?"]
    fewer = headway("handbook@1", "handbook@2", "--from-interactions", "help", "--limit", "1").stdout
    assert "1 recorded interaction\n" in fewer
    assert "1 query, 0 with labels · first 2 passages" in fewer


def test_what_was_asked_may_not_be_known(stand: Stand) -> None:
    arguments = ("handbook@1", "handbook@2", "--from-interactions", "help")
    assert "help has no queries: it was not asked anything yet" in headway(*arguments, status=1).stderr
    stand.ask({"text": '{"messages": []}'})
    assert "none of its 1 interactions asks for anything in words" in headway(*arguments, status=1).stderr
    stand.ask({"text": "x", "request": None, "times": 2})
    assert "the content of its 3 interactions is not stored" in headway(*arguments, status=1).stderr


def test_labelled_documents_and_who_sees_them(stand: Stand) -> None:
    file = stand.write({"query": "salary bands of managers", "relevant": ["salary/bands.md"]})
    for arguments, wanted in (((), 1.0), (("--group", "hr"), 1.0), (("--group", "it"), 0.0), (("--public",), 0.0)):
        found = compared("handbook@1", "handbook@2", "-q", file, *arguments)
        assert found["relevance"]["recall"]["before"]["mean"] == wanted, arguments


def test_a_pipeline_fails_unless_it_is_sure(stand: Stand) -> None:
    arguments = ("handbook@1", "handbook@2", "-q")
    same = stand.write(*[LABELLED[1]] * 40, name="same.jsonl")
    headway(*arguments, same, "--fail-below", "recall=-0.1", "--fail-below", "mrr=-0.1", "--fail-below", "ndcg=-1")
    failed = headway(*arguments, same, "--fail-below", "recall=-0.02", status=1).stderr
    assert "40 queries cannot rule it out, and at least 183 are needed to" in failed
    worse = stand.write(*LABELLED, name="worse.jsonl")
    assert (
        "recall: the difference may be -0.9"
        in headway(*arguments, worse, "--fail-below", "recall=-0.1", status=1).stderr
    )
    bare = stand.write({"query": "leave"}, name="bare.jsonl")
    assert "recall: no data" in headway(*arguments, bare, "--fail-below", "recall=-0.1", status=1).stderr


def test_misspelt_labels_are_told(stand: Stand) -> None:
    told = headway("handbook@1", "handbook@2", "-q", stand.write({"query": "leave", "relevant": "leaves.md"})).stderr
    assert "Labels name documents that neither version has: leaves.md" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either --queries FILE or --from-interactions APPLICATION"),
        (("-q", "x", "--from-interactions", "help"), "give either --queries FILE or --from-interactions APPLICATION"),
        (("-q", "missing.jsonl"), "missing.jsonl cannot be read: No such file or directory"),
        (("-q", "bad.jsonl"), "bad.jsonl, line 2: Object contains unknown field `text`; known are query and relevant"),
        (("-q", "good.jsonl", "--application", "hlep"), "no application is called 'hlep'; did you mean 'help'?"),
        (("-q", "good.jsonl", "--group", "a,b"), "'a,b' is no name of a group"),
        (("-q", "good.jsonl", "--group", "a", "--public"), "give either --group or --public"),
        (
            ("-q", "good.jsonl", "--fail-below", "recall"),
            "--fail-below recall: expected recall, mrr, ndcg and a number",
        ),
        (("-q", "good.jsonl", "--fail-below", "speed=1"), "--fail-below speed=1: expected recall, mrr, ndcg"),
    ],
)
def test_what_is_wrong_is_told(stand: Stand, arguments: tuple[str, ...], message: str) -> None:
    stand.write({"query": "a"}, {"text": "b"}, name="bad.jsonl")
    stand.write({"query": "a"}, name="good.jsonl")
    told = headway("handbook@1", "handbook@2", *arguments, status=1).stderr
    assert message in " ".join(told.split())


def test_ctrl_c_is_no_error(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(work: Coroutine[Any, Any, Any]) -> None:
        work.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "run_async", interrupt)
    assert headway("handbook@1", "handbook@2", "-q", stand.write(*LABELLED), status=130).stderr == "Stopped.\n"


def test_versions_that_are_not_there(stand: Stand) -> None:
    file = stand.write({"query": "a"})
    assert "there is no handbook@9" in headway("handbook@1", "handbook@9", "-q", file, status=1).stderr
    assert "no index called 'handbok'" in headway("handbok@1", "handbook@2", "-q", file, status=1).stderr
    assert "'handbook@x'" in headway("handbook@x", "handbook@2", "-q", file, status=1).stderr


def test_what_a_release_of_its_own_filters_counts(stand: Stand) -> None:
    """The parameters of an application's stable release are taken, its filter too; options win."""

    async def narrow(connection: Connection) -> None:
        await connection.execute(
            "UPDATE release SET bundle = jsonb_set(bundle, '{retrieval,filter}', '{\"path\": \"leave.md\"}')"
        )

    stand.run(narrow)
    file = stand.write({"query": "trains", "relevant": ["travel.md"]})
    plain = compared("handbook@1", "handbook@2", "-q", file)
    as_help = compared("handbook@1", "handbook@2", "-q", file, "--application", "help", "--minimum-score", "0.01")
    assert [each["relevance"]["recall"]["before"]["mean"] for each in (plain, as_help)] == [1.0, 0.0]
    assert (plain["top_k"], as_help["top_k"], as_help["minimum_score"]) == (10, 2, 0.01)


def test_an_application_without_an_index_has_nothing_to_search_by(stand: Stand, tmp_path: Path) -> None:
    async def bare(connection: Connection) -> None:
        await connection.execute("UPDATE release SET bundle = jsonb_set(bundle, '{retrieval}', 'null')")

    stand.run(bare)
    stand.ask({"text": "how are trains booked?"})
    file = stand.write({"query": "a"})
    told = headway("handbook@1", "handbook@2", "-q", file, "--application", "help", status=1).stderr
    assert "the stable release of help has no search index" in told
    assert compared("handbook@1", "handbook@2", "--from-interactions", "help")["top_k"] == 10
