"""The provider simulator in a process of its own: for load, for blocking clients, for tests that kill it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from headway.testing.behaviour import Behaviour
from headway.testing.ledger import Counts, Received

__all__ = ["ProviderProcess"]

_START_SECONDS = 20.0
_STOP_SECONDS = 5.0


class ProviderProcess:
    """Runs ``python -m headway.testing.provider`` from ``async with`` to its end, and controls it.

    Args:
        behaviours: By model name.
        default: For all other models.
        seed: Makes runs repeatable.
        port: Port to listen on; 0 takes a free one.

    Example:
        ::

            async with ProviderProcess({"gpt-4o-mini": Behaviour()}) as provider:
                ...  # point a gateway at provider.base_url
                await provider.set_behaviour("gpt-4o-mini", Behaviour(errors=(overloaded(),)))
                assert (await provider.counts()).cancelled == 0
    """

    def __init__(
        self,
        behaviours: Mapping[str, Behaviour] | None = None,
        *,
        default: Behaviour | None = None,
        seed: int = 0,
        port: int = 0,
    ) -> None:
        self._behaviours = dict(behaviours or {})
        self._default = default or Behaviour()
        self._arguments = ("--seed", str(seed), "--port", str(port))
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self.azure_endpoint = ""
        """What Azure's clients call ``azure_endpoint``; known once started."""
        self.base_url = ""
        """What OpenAI's clients call ``base_url``; known once started."""

    async def __aenter__(self) -> Self:
        arguments = [*self._arguments, "--default", _encode(self._default)]
        for model, behaviour in self._behaviours.items():
            arguments += ["--behaviour", f"{model}={_encode(behaviour)}"]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "headway.testing.provider",
            "--with-stdin",  # a pipe that this process holds: the simulator does not outlive it, even if it is killed
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), _START_SECONDS)
            address = msgspec.json.decode(line)
        except (TimeoutError, msgspec.DecodeError) as error:
            await self._end()
            raise RuntimeError("the provider simulator did not start; its error output says why") from error
        except asyncio.CancelledError:
            await self._end()
            raise
        self.base_url = address["base_url"]
        self.azure_endpoint = address["azure_endpoint"]
        self._session = aiohttp.ClientSession(base_url=f"{self.azure_endpoint}/_simulator/")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
        await self._end()

    @property
    def pid(self) -> int:
        """Number of the process; known once started."""
        assert self._process is not None, "not started"
        return self._process.pid

    async def set_behaviour(self, model: str, behaviour: Behaviour) -> None:
        """Treat requests for ``model`` in this way from now on."""
        await self._call("PUT", f"behaviours/{model}", _encode(behaviour))

    async def set_default(self, behaviour: Behaviour | None) -> None:
        """Treat requests for all other models in this way from now on; ``None`` refuses them."""
        await self._call("PUT", "default", "null" if behaviour is None else _encode(behaviour))

    async def play(self, model: str, *behaviours: Behaviour) -> None:
        """Treat the next requests for ``model`` in these ways, one each, and then as before."""
        await self._call("POST", f"play/{model}", f"[{','.join(map(_encode, behaviours))}]")

    async def counts(self) -> Counts:
        """Return the totals since the start."""
        return msgspec.json.decode(await self._call("GET", "counts"), type=Counts)

    async def received(self) -> Sequence[Received]:
        """Return the latest 10,000 requests, oldest first."""
        return msgspec.json.decode(await self._call("GET", "received"), type=list[Received])

    async def forget_received(self) -> None:
        """Empty the list of received requests; totals stay."""
        await self._call("DELETE", "received")

    async def kill(self) -> None:
        """Kill the process at once (SIGKILL), as a crash would."""
        assert self._process is not None, "not started"
        self._process.kill()
        await self._process.wait()

    async def _call(self, method: str, path: str, body: str | None = None) -> bytes:
        assert self._session is not None, "not started"
        async with self._session.request(method, path, data=body) as answer:
            content = await answer.read()
            if answer.status != 200:
                raise ValueError(content.decode())
            return content

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


def _encode(behaviour: Behaviour) -> str:
    """Write a behaviour as JSON; infinity, which JSON lacks, is written by leaving the field out."""
    fields: dict[str, Any] = msgspec.to_builtins(behaviour)
    for value in fields.values():
        if isinstance(value, dict) and value.get("maximum") == float("inf"):
            del value["maximum"]
    return msgspec.json.encode(fields).decode()
