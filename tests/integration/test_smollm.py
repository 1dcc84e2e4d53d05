"""The demo's language model: a real server in its own process."""

import os
import signal
import subprocess
import sys
import time

import openai
import psutil
import pytest
from openai.types.chat import ChatCompletionMessageParam

from headway.errors import ConfigurationError
from headway.testing.smollm import MODEL, serve_smollm

pytestmark = pytest.mark.real_model


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def await_end(pid: int, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.02)


def test_it_answers_streams_and_ends_with_the_block() -> None:
    with serve_smollm() as base_url:
        [server] = [child for child in psutil.Process().children() if "headway.testing.smollm" in child.cmdline()]
        client = openai.OpenAI(base_url=base_url, api_key="any", max_retries=0)
        question: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
        answer = client.chat.completions.create(model=MODEL, messages=question, max_tokens=16)
        assert answer.choices[0].message.content
        assert answer.usage
        assert answer.usage.completion_tokens > 0
        with client.chat.completions.create(
            model=MODEL, messages=question, max_tokens=8, stream=True, stream_options={"include_usage": True}
        ) as stream:
            pieces = list(stream)
        assert len([piece for piece in pieces if piece.choices and piece.choices[0].delta.content]) > 1
        assert pieces[-1].usage
        assert pieces[-1].usage.completion_tokens > 0
        client.close()
    assert not alive(server.pid)


def test_it_ends_when_its_parent_is_killed() -> None:
    program = "import sys\nfrom headway.testing.smollm import serve_smollm\n"
    program += "with serve_smollm() as url:\n    print(url, flush=True)\n    sys.stdin.read()\n"
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith(b"http://127.0.0.1:")
        [server] = psutil.Process(parent.pid).children()
        os.kill(parent.pid, signal.SIGKILL)
        await_end(server.pid)
    finally:
        parent.kill()
        parent.communicate()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="make demo"), serve_smollm():
        pass


def test_a_server_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ConfigurationError, match="did not start"), serve_smollm():
        pass
