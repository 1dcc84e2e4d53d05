"""Run the provider simulator as a command: ``python -m headway.testing.provider --port 8081``.

Prints one line of JSON with its address once it listens, then serves until SIGINT or SIGTERM. Its behaviour can be
changed while it runs: see ``headway.testing.control``.

Example:
    ::

        python -m headway.testing.provider --port 8081 --behaviour gpt-4o-mini='{"first_token_ms": {"median": 80}}'
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop

from headway.testing.behaviour import Behaviour
from headway.testing.server import ProviderSimulator, refusing_port

__all__ = ["ProviderSimulator", "main", "refusing_port"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        default = None if options.only_known else _read_behaviour(options.default or "{}")
        behaviours = {model: _read_behaviour(text) for model, text in map(_split, options.behaviour)}
    except (ValueError, OSError) as error:
        parser.error(str(error))
    simulator = ProviderSimulator(
        behaviours,
        default=default,
        seed=options.seed,
        api_keys=options.api_key,
        host=options.host,
        port=options.port,
    )
    uvloop.run(_serve(simulator, with_stdin=options.with_stdin))
    return 0


async def _serve(simulator: ProviderSimulator, *, with_stdin: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, stop.set)
    if with_stdin:
        loop.add_reader(sys.stdin.fileno(), stop.set)
    async with simulator:
        address = {"base_url": simulator.base_url, "azure_endpoint": simulator.azure_endpoint, "pid": os.getpid()}
        sys.stdout.write(msgspec.json.encode(address).decode() + "\n")
        sys.stdout.flush()
        await stop.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m headway.testing.provider",
        description="Serve OpenAI's API with scripted answers, latency, errors and faults.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one (default)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: %(default)s)")
    parser.add_argument(
        "--behaviour",
        action="append",
        default=[],
        metavar="MODEL=JSON",
        help="behaviour for one model: JSON, or the path of a JSON file; may be repeated",
    )
    parser.add_argument("--default", metavar="JSON", help="behaviour for all other models: JSON or a path")
    parser.add_argument("--only-known", action="store_true", help="refuse other models with 404")
    parser.add_argument("--with-stdin", action="store_true", help="stop when the standard input is closed")
    parser.add_argument("--api-key", action="append", default=[], help="accept only this key; may be repeated")
    return parser


def _split(option: str) -> tuple[str, str]:
    model, equals, text = option.partition("=")
    if not model or not equals:
        raise ValueError(f"--behaviour takes MODEL=JSON, not {option!r}")
    return model, text


def _read_behaviour(text: str) -> Behaviour:
    """Read a behaviour from JSON, or from the file of that name."""
    return Behaviour.from_json(text if text.lstrip().startswith("{") else Path(text).read_bytes())


if __name__ == "__main__":
    sys.exit(main())
