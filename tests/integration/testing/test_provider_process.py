"""The simulator as a process of its own, and as a command."""

import asyncio
import sys
from typing import Any

import aiohttp
import psutil
import pytest

from headway.testing import Behaviour, Fault, Lognormal, Outcome, ProviderProcess, overloaded
from headway.testing.provider import main

_ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


async def _ask(provider: ProviderProcess) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(provider.base_url + "/chat/completions", json=_ASKED) as answer,
    ):
        await answer.read()
        return answer.status


async def test_a_process_serves_is_controlled_and_ends() -> None:
    slow = Behaviour(first_token_ms=Lognormal(1, sigma=0.5), fault=Fault.INVALID_JSON, fault_ratio=0)
    async with ProviderProcess({"m": slow}, seed=5) as provider:
        assert await _ask(provider) == 200
        await provider.play("m", Behaviour(errors=(overloaded(1),)), Behaviour(errors=(overloaded(ratio=0),)))
        assert [await _ask(provider) for _ in range(2)] == [503, 200]
        await provider.set_behaviour("m", Behaviour(errors=(overloaded(),)))
        assert await _ask(provider) == 503
        counts = await provider.counts()
        assert (counts.requests, counts.answered, counts.errors) == (4, 2, 2)
        received = await provider.received()
        assert [each.outcome for each in received] == [
            Outcome.ANSWERED,
            Outcome.ERROR,
            Outcome.ANSWERED,
            Outcome.ERROR,
        ]
        assert received[0].body == _ASKED
        await provider.forget_received()
        assert await provider.received() == []
        await provider.set_default(None)
        with pytest.raises(ValueError, match="no such control"):
            await provider.play("")
        pid = provider.pid
    assert not psutil.pid_exists(pid)


async def test_resets_are_resets_under_uvloop_too() -> None:
    async with ProviderProcess() as provider:
        port = int(provider.azure_endpoint.rsplit(":", 1)[1])
        body = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "hello"}]}'
        for fault in (Fault.RESET_BEFORE_HEADERS, Fault.RESET_MID_STREAM):
            await provider.play("m", Behaviour(fault=fault))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
            writer.write(body)
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), 5)
            writer.close()


async def test_a_killed_process_is_gone() -> None:
    async with ProviderProcess() as provider:
        await provider.kill()
        with pytest.raises(aiohttp.ClientConnectionError):
            await _ask(provider)


async def test_a_process_does_not_outlive_the_one_that_started_it() -> None:
    starter = (
        "import asyncio, sys\n"
        "from headway.testing import ProviderProcess\n"
        "async def main():\n"
        "    async with ProviderProcess() as provider:\n"
        "        print(provider.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", starter, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    provider = psutil.Process(int(await parent.stdout.readline()))
    parent.kill()
    await parent.wait()
    # Somebody else reaps it, so "gone" may for a moment mean "zombie".
    for _ in range(500):
        if not provider.is_running() or provider.status() == psutil.STATUS_ZOMBIE:
            return
        await asyncio.sleep(0.01)
    provider.kill()
    raise AssertionError("the simulator outlived the process that had started it")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--behaviour", "m"], "MODEL=JSON"),
        (["--behaviour", 'm={"quality": 2}'], "between 0 and 1"),
        (["--behaviour", 'm={"qualty": 1}'], "unknown field"),
        (["--default", "no-such-file.json"], "no-such-file.json"),
    ],
)
def test_wrong_options_are_explained(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err
