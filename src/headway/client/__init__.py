"""The Python client for feedback and reports: typed, sync and async, on its own.

Answers come from the OpenAI client as ever; what their ``id`` is good for is here::

    from headway.client import Headway

    headway = Headway("http://127.0.0.1:8080")
    headway.thumbs_up(answer.id)
    headway.correction(answer.id, "The refund period is 30 days.")

With an API key of scope ``feedback`` there is more: other sources and authors, conversations, reports. Every call has
a timeout; calls that can be repeated without harm are repeated when the connection fails or the server is busy.
"""

from headway.client.asynchronous import AsyncHeadway
from headway.client.blocking import Headway
from headway.client.failures import (
    AccessError,
    ClientError,
    ConflictError,
    InvalidError,
    LimitError,
    MissingError,
    ServerError,
    UnreachableError,
)
from headway.client.results import FeedbackReceipt, Report, ReportEvent, ReportReceipt

__all__ = [
    "AccessError",
    "AsyncHeadway",
    "ClientError",
    "ConflictError",
    "FeedbackReceipt",
    "Headway",
    "InvalidError",
    "LimitError",
    "MissingError",
    "Report",
    "ReportEvent",
    "ReportReceipt",
    "ServerError",
    "UnreachableError",
]
