"""Control of a simulator that runs in another process: a few routes below ``/_simulator/``.

::

    GET    /_simulator/counts               the totals (``Counts``)
    GET    /_simulator/received             the latest requests (list of ``Received``)
    DELETE /_simulator/received             forget them
    PUT    /_simulator/behaviours/{model}   a behaviour for one model
    PUT    /_simulator/default              a behaviour for all other models, or null to refuse them
    POST   /_simulator/play/{model}         a list of behaviours, one for each of the next requests
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from headway.testing.behaviour import Behaviour

if TYPE_CHECKING:
    from headway.testing.server import ProviderSimulator

__all__ = ["ControlError", "Controls"]

_encode = msgspec.json.Encoder().encode


class ControlError(Exception):
    """The control request is wrong; says how."""


class Controls:
    """Carries out control requests on a simulator."""

    def __init__(self, simulator: ProviderSimulator) -> None:
        self._simulator = simulator

    def handle(self, method: str, path: str, body: bytes) -> bytes:
        """Carry out one control request and return the JSON to answer.

        Raises:
            ControlError: There is no such route, or the behaviour is wrong.
        """
        simulator = self._simulator
        verb, _, model = path.removeprefix("/_simulator/").partition("/")
        try:
            match method, verb:
                case "GET", "counts":
                    return _encode(simulator.counts)
                case "GET", "received":
                    return _encode(list(simulator.received))
                case "DELETE", "received":
                    simulator.forget_received()
                case "PUT", "behaviours" if model:
                    simulator.set_behaviour(model, Behaviour.from_json(body))
                case "PUT", "default":
                    simulator.set_default(None if body.strip() == b"null" else Behaviour.from_json(body))
                case "POST", "play" if model:
                    behaviours = msgspec.json.decode(body, type=list[msgspec.Raw])
                    simulator.play(model, *(Behaviour.from_json(bytes(each)) for each in behaviours))
                case _:
                    raise ControlError(f"no such control: {method} {path}")
        except ValueError as error:
            raise ControlError(str(error)) from error
        return b"{}"
