"""Parsing in processes of their own: what one document does there harms no other, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from headway.errors import UnreadableDocumentError
from headway.lake.parsing.documents import parse
from headway.lake.parsing.parsed import Limits, Parsed
from headway.lake.parsing.workers import Parsers
from tests.unit.lake.files import encrypted, package, paragraphs, pdf, word

SLOW = b"---\na: " + b"[" * 65_000 + b"\n---\ntext"  # seconds in the YAML parser
MIB = 2**20


@pytest.fixture
async def parsers() -> AsyncIterator[Parsers]:
    async with Parsers(2, Limits(cpu_seconds=30)) as opened:
        yield opened


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "headway.lake.parsing.worker" in child.cmdline()]


async def refusal(parsers: Parsers, path: str, body: bytes) -> tuple[str, str]:
    with pytest.raises(UnreadableDocumentError) as caught:
        await parsers.parse(path, body)
    return caught.value.error_code, caught.value.message


async def test_documents_come_out_as_they_do_in_this_process(parsers: Parsers) -> None:
    documents = {"a.md": b"# A\n\none", "b.docx": word(), "c.pdf": pdf(["Page."]), "d.html": b"<h1>D</h1>four"}
    found = await asyncio.gather(*(parsers.parse(path, body) for path, body in documents.items()))
    assert found == [parse(path, body) for path, body in documents.items()]
    assert len(workers()) == 2


async def test_refusals_come_out_as_they_do_in_this_process(parsers: Parsers) -> None:
    for path, body in {
        "a.pdf": encrypted(pdf(["Secret."]), "password"),
        "b.docx": package(document=paragraphs("A" * 100_000_000)),
        "c.txt": bytes(range(256)),
        "d.md": b"",
    }.items():
        with pytest.raises(UnreadableDocumentError) as caught:
            parse(path, body)
        assert await refusal(parsers, path, body) == (caught.value.error_code, caught.value.message)


async def test_a_document_that_takes_too_long_is_ended_and_the_others_go_on() -> None:
    async with Parsers(2, Limits(cpu_seconds=0.5)) as parsers:
        async with asyncio.TaskGroup() as tasks:
            slow = tasks.create_task(refusal(parsers, "slow.md", SLOW))
            others = [tasks.create_task(parsers.parse("a.txt", b"text %d" % number)) for number in range(50)]
        assert slow.result() == ("document_too_large", "takes more than 0.5 s of computing time")
        assert [other.result().sections[0].text for other in others] == [f"text {number}" for number in range(50)]
        assert await refusal(parsers, "slow.md", SLOW) == slow.result()  # also after others, in the same process
        assert (await parsers.parse("a.txt", b"text")).sections[0].text == "text"


async def test_a_document_that_needs_too_much_memory_is_refused() -> None:
    async with Parsers(1, Limits(memory_bytes=256 * MIB)) as parsers:
        await parsers.parse("a.txt", b"text")
        for path, body in {"large.txt": "é".encode() * (50 * MIB), "large.html": b"<b>x</b>" * (4 * MIB)}.items():
            assert await refusal(parsers, path, body) == ("document_too_large", "needs more than 256 MiB of memory")
        assert (await parsers.parse("a.txt", b"text")).sections[0].text == "text"


@pytest.mark.fault
async def test_a_document_is_tried_again_when_the_process_had_ended_before_it(parsers: Parsers) -> None:
    await asyncio.gather(*(parsers.parse("a.txt", b"text") for _ in range(4)))
    for worker in workers():
        worker.kill()
        worker.wait()
    assert (await parsers.parse("a.txt", b"again")).sections[0].text == "again"


@pytest.mark.fault
async def test_a_document_over_which_the_process_dies_is_reported() -> None:
    async with Parsers(1) as parsers:
        parsing = asyncio.create_task(refusal(parsers, "slow.md", SLOW))
        while not workers() or workers()[0].cpu_times().user < 0.6:  # it has started and is at work
            assert not parsing.done()
            await asyncio.sleep(0.01)
        workers()[0].send_signal(signal.SIGSEGV)
        code, message = await parsing
        assert (code, message) == (
            "unreadable_document",
            "ends the parser (SIGSEGV): it is damaged, or needs too much memory",
        )


@pytest.mark.fault
async def test_a_document_is_tried_again_when_somebody_kills_the_process_over_it() -> None:
    async with Parsers(1, Limits(cpu_seconds=1.5)) as parsers:
        parsing = asyncio.create_task(refusal(parsers, "slow.md", SLOW))
        while not workers() or workers()[0].cpu_times().user < 0.6:  # it has started and is at work
            assert not parsing.done()
            await asyncio.sleep(0.01)
        workers()[0].kill()
        assert await parsing == ("document_too_large", "takes more than 1.5 s of computing time")


async def test_a_cancelled_document_leaves_no_half_request(parsers: Parsers) -> None:
    parsing = [asyncio.create_task(parsers.parse("a.md", SLOW)) for _ in range(4)]
    while len(workers()) < 2:
        assert not any(task.done() for task in parsing)
        await asyncio.sleep(0.01)
    for task in parsing:
        task.cancel()
    await asyncio.gather(*parsing, return_exceptions=True)
    assert [(await parsers.parse("a.txt", b"text %d" % number)).sections[0].text for number in range(4)] == [
        f"text {number}" for number in range(4)
    ]


async def test_the_processes_know_no_secret_and_end_with_their_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVIDER_API_KEY", "sk-secret")
    async with Parsers(1) as parsers:
        await parsers.parse("a.txt", b"text")
        (worker,) = workers()
        assert "PROVIDER_API_KEY" not in worker.environ()
        assert worker.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
    assert not worker.is_running()


@pytest.mark.fault
def test_the_processes_end_when_their_owner_is_killed() -> None:
    script = """
import asyncio
from headway.lake.parsing.workers import Parsers

async def main():
    async with Parsers(2) as parsers:
        await asyncio.gather(*(parsers.parse("a.txt", b"text") for _ in range(8)))
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        children = psutil.Process(owner.pid).children()
        assert len(children) == 2
        owner.kill()
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert (len(gone), alive) == (2, [])


async def test_a_file_of_the_working_directory_is_no_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parsers: Parsers
) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert (await parsers.parse("a.txt", b"text")).sections[0].text == "text"


async def test_damaged_files_never_end_the_build(parsers: Parsers, proof: bool) -> None:
    whole = {"a.pdf": pdf(["One page.", "Two."], [("One", 0)], title="T"), "b.docx": word()}
    chance = random.Random(7)
    for number in range(2_000 if proof else 60):
        path = chance.choice(list(whole))
        body = bytearray(whole[path])
        for _ in range(chance.randint(1, 20)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        if number % 3 == 0:
            del body[chance.randrange(len(body)) :]
        with contextlib.suppress(UnreadableDocumentError):
            assert isinstance(await parsers.parse(path, bytes(body)), Parsed)


async def test_a_large_pdf_is_read_or_refused_by_its_size(parsers: Parsers, proof: bool) -> None:
    size = (200 if proof else 20) * MIB
    large = pdf(["First page.", "Last page."], padding=size)
    parsed = await parsers.parse("large.pdf", large)
    assert [section.text for section in parsed.sections] == ["First page.", "Last page."]
    assert await refusal(parsers, "larger.pdf", bytes(256 * MIB + 1)) == (
        "document_too_large",
        "has 268,435,457 bytes; at most 268,435,456 are read: split it",
    )


async def test_thousands_of_pages_take_seconds(parsers: Parsers, proof: bool) -> None:
    pages = 5_000 if proof else 500
    body = pdf([f"Page {number}.\n" + "Some words of text.\n" * 40 for number in range(pages)])
    begun = time.perf_counter()
    parsed = await parsers.parse("long.pdf", body)
    print(f"{pages} pages, {len(body) / 1e6:.1f} MB: {pages / (time.perf_counter() - begun):.0f} pages/s")
    assert len(parsed.sections) == pages
    assert os.getpid() not in {worker.pid for worker in workers()}
