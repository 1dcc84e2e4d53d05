"""Test kit for those who build on Headway: a provider that misbehaves on command, users that rate, a clock that waits.

* ``ProviderSimulator``: OpenAI's API on a loopback socket, with scripted latency, errors, faults and quality.
* ``ProviderProcess``: the same in a process of its own, for load and for tests that block.
* ``run_traffic``: users who come back, converse and rate the answers by a ground truth.
* ``ManualClock``: a clock that stands still until a test advances it.
* ``headway.testing.search_service``: the part of Azure AI Search's REST API that Headway uses.

See ``docs/howto/test-with-the-simulator.md``.
"""

from headway.clock import ManualClock
from headway.testing.behaviour import (
    Behaviour,
    ErrorReply,
    Fault,
    Lognormal,
    context_length_exceeded,
    overloaded,
    prompt_filtered,
    rate_limited,
    server_error,
)
from headway.testing.draft import read_quality
from headway.testing.ledger import Counts, Outcome, Received
from headway.testing.process import ProviderProcess
from headway.testing.server import ProviderSimulator, refusing_port
from headway.testing.tally import Answer, Citation, Quantiles, ReleaseTally, SentRating, TrafficSummary
from headway.testing.traffic import Traffic, Truth, run_traffic

__all__ = [
    "Answer",
    "Behaviour",
    "Citation",
    "Counts",
    "ErrorReply",
    "Fault",
    "Lognormal",
    "ManualClock",
    "Outcome",
    "ProviderProcess",
    "ProviderSimulator",
    "Quantiles",
    "Received",
    "ReleaseTally",
    "SentRating",
    "Traffic",
    "TrafficSummary",
    "Truth",
    "context_length_exceeded",
    "overloaded",
    "prompt_filtered",
    "rate_limited",
    "read_quality",
    "refusing_port",
    "run_traffic",
    "server_error",
]
