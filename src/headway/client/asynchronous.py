"""The client for asynchronous code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self, TypeVar

import aiohttp

from headway.client.calls import (
    Call,
    Options,
    change_call,
    checked_url,
    comment_call,
    feedback_call,
    get_call,
    list_call,
    read_answer,
    report_call,
    unreachable,
)
from headway.client.failures import ClientError
from headway.client.results import FeedbackReceipt, Report, ReportReceipt, Severity, Source, Status, Value

T = TypeVar("T")


class AsyncHeadway:
    """Sends feedback and reports from asynchronous code; the methods are those of ``Headway``.

    Use it as ``async with AsyncHeadway(...) as headway``, or ``await headway.close()`` at the end.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        timeout_seconds: float = 10.0,
        attempts: int = 4,
        backoff_seconds: float = 0.2,
    ) -> None:
        self._options = Options(checked_url(base_url), api_key, timeout_seconds, attempts, backoff_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def feedback(
        self,
        interaction_id: str,
        metric: str | None = None,
        value: Value | None = None,
        *,
        comment: str | None = None,
        correction: str | None = None,
        source: Source | None = None,
        author: str | None = None,
        choice: int | None = None,
    ) -> FeedbackReceipt:
        """Rate an answer: see ``Headway.feedback``."""
        return await self._send(
            feedback_call(
                interaction_id=interaction_id,
                metric=metric,
                value=value,
                comment=comment,
                correction=correction,
                source=source,
                author=author,
                choice=choice,
            )
        )

    async def conversation_feedback(
        self,
        conversation_id: str,
        metric: str | None = None,
        value: Value | None = None,
        *,
        application: str | None = None,
        comment: str | None = None,
        correction: str | None = None,
        source: Source | None = None,
        author: str | None = None,
    ) -> FeedbackReceipt:
        """Rate a whole conversation; needs an API key."""
        return await self._send(
            feedback_call(
                conversation_id=conversation_id,
                metric=metric,
                value=value,
                application=application,
                comment=comment,
                correction=correction,
                source=source,
                author=author,
            )
        )

    async def thumbs_up(self, interaction_id: str, *, comment: str | None = None) -> FeedbackReceipt:
        """Say that an answer is good."""
        return await self.feedback(interaction_id, "thumbs_up", value=True, comment=comment)

    async def thumbs_down(self, interaction_id: str, *, comment: str | None = None) -> FeedbackReceipt:
        """Say that an answer is not good."""
        return await self.feedback(interaction_id, "thumbs_up", value=False, comment=comment)

    async def stars(self, interaction_id: str, stars: float, *, comment: str | None = None) -> FeedbackReceipt:
        """Give an answer 1 to 5 stars."""
        return await self.feedback(interaction_id, "stars", stars, comment=comment)

    async def correction(self, interaction_id: str, text: str, *, comment: str | None = None) -> FeedbackReceipt:
        """Say what the answer should have been."""
        return await self.feedback(interaction_id, correction=text, comment=comment)

    async def report(
        self,
        title: str,
        description: str = "",
        *,
        severity: Severity = "medium",
        interaction_ids: Sequence[str] = (),
        application: str | None = None,
    ) -> ReportReceipt:
        """Report an issue, once: see ``Headway.report``."""
        return await self._send(report_call(title, description, severity, interaction_ids, application))

    async def get_report(self, report_id: str) -> Report:
        """Read a report of this API key with its interactions and events."""
        return await self._send(get_call(report_id))

    async def list_reports(self, status: Status | None = None) -> AsyncIterator[Report]:
        """List this API key's reports, newest first, page by page as they are read."""
        cursor: str | None = None
        while True:
            items, cursor = await self._send(list_call(status, cursor))
            for item in items:
                yield item
            if cursor is None:
                return

    async def change_report(
        self,
        report: Report,
        *,
        status: Status | None = None,
        severity: Severity | None = None,
        comment: str | None = None,
    ) -> Report:
        """Change a report that nobody has changed since it was read: see ``Headway.change_report``."""
        return await self._send(change_call(report, status, severity, comment))

    async def triage(self, report: Report, *, comment: str | None = None) -> Report:
        """Say that a report is understood and waits for its turn."""
        return await self.change_report(report, status="triaged", comment=comment)

    async def resolve(self, report: Report, *, comment: str | None = None) -> Report:
        """Close a report: its cause is gone."""
        return await self.change_report(report, status="resolved", comment=comment)

    async def reject(self, report: Report, *, comment: str | None = None) -> Report:
        """Close a report: nothing will be done."""
        return await self.change_report(report, status="rejected", comment=comment)

    async def reopen(self, report: Report, *, comment: str | None = None) -> Report:
        """Open a closed report again."""
        return await self.change_report(report, status="open", comment=comment)

    async def comment(self, report_id: str, text: str) -> Report:
        """Comment on a report."""
        return await self._send(comment_call(report_id, text))

    async def _send(self, call: Call[T]) -> T:
        for attempt in range(1, self._options.attempts + 1):
            try:
                return await self._try(call)
            except ClientError as error:
                pause = self._options.pause_seconds(call, attempt, error)
                if pause is None:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _try(self, call: Call[T]) -> T:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._options.timeout_seconds))
        url = self._options.base_url + call.path
        headers = self._options.headers(call)
        try:
            async with self._session.request(call.method, url, data=call.content(), headers=headers) as response:
                body = await response.read()
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            raise unreachable(self._options.base_url, error) from error
        return read_answer(call, response.status, response.headers.get("retry-after"), body)
