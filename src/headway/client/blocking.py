"""The client for ordinary code."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

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


class Headway:
    """Sends feedback and reports; may be shared between threads.

    Args:
        base_url: Of the data plane, like ``http://127.0.0.1:8080``.
        api_key: With scope ``feedback``; without one only what end users may say.
        timeout_seconds: Longest wait for one attempt.
        attempts: Tries in all, where trying again does no harm.
        backoff_seconds: Wait before the second try; doubled each time.
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

    def feedback(
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
        """Rate an answer. The same again changes nothing; another value replaces the author's earlier one.

        Args:
            interaction_id: The answer's ``id``.
            metric: Name of the metric; may be left out where there is only a comment or a correction.
            value: Value of the metric.
            comment: Anything to add, in words.
            correction: What the answer should have been.
            source: Who speaks; other than end_user it needs an API key.
            author: Name of who speaks; needs an API key.
            choice: Which of the answer's choices; 0 is the first, or the whole answer.

        Raises:
            ClientError: It was not taken; one of its subclasses says why.
        """
        return self._send(
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

    def conversation_feedback(
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
        """Rate a whole conversation; needs an API key. Otherwise like ``feedback``."""
        return self._send(
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

    def thumbs_up(self, interaction_id: str, *, comment: str | None = None) -> FeedbackReceipt:
        """Say that an answer is good."""
        return self.feedback(interaction_id, "thumbs_up", value=True, comment=comment)

    def thumbs_down(self, interaction_id: str, *, comment: str | None = None) -> FeedbackReceipt:
        """Say that an answer is not good."""
        return self.feedback(interaction_id, "thumbs_up", value=False, comment=comment)

    def stars(self, interaction_id: str, stars: float, *, comment: str | None = None) -> FeedbackReceipt:
        """Give an answer 1 to 5 stars."""
        return self.feedback(interaction_id, "stars", stars, comment=comment)

    def correction(self, interaction_id: str, text: str, *, comment: str | None = None) -> FeedbackReceipt:
        """Say what the answer should have been."""
        return self.feedback(interaction_id, correction=text, comment=comment)

    def report(
        self,
        title: str,
        description: str = "",
        *,
        severity: Severity = "medium",
        interaction_ids: Sequence[str] = (),
        application: str | None = None,
    ) -> ReportReceipt:
        """Report an issue, once, however often the connection fails meanwhile; needs an API key.

        Args:
            title: One line.
            description: The rest.
            severity: How bad it is.
            interaction_ids: ``id`` of the answers that it is about.
            application: The application, where no answers are named.

        Raises:
            ClientError: It was not taken.
        """
        return self._send(report_call(title, description, severity, interaction_ids, application))

    def get_report(self, report_id: str) -> Report:
        """Read a report of this API key with its interactions and events.

        Raises:
            MissingError: There is none.
        """
        return self._send(get_call(report_id))

    def list_reports(self, status: Status | None = None) -> Iterator[Report]:
        """List this API key's reports, newest first, page by page as they are read."""
        cursor: str | None = None
        while True:
            items, cursor = self._send(list_call(status, cursor))
            yield from items
            if cursor is None:
                return

    def change_report(
        self,
        report: Report,
        *,
        status: Status | None = None,
        severity: Severity | None = None,
        comment: str | None = None,
    ) -> Report:
        """Change a report that nobody has changed since it was read.

        Raises:
            ConflictError: Somebody has, or it cannot go to that status.
        """
        return self._send(change_call(report, status, severity, comment))

    def triage(self, report: Report, *, comment: str | None = None) -> Report:
        """Say that a report is understood and waits for its turn."""
        return self.change_report(report, status="triaged", comment=comment)

    def resolve(self, report: Report, *, comment: str | None = None) -> Report:
        """Close a report: its cause is gone."""
        return self.change_report(report, status="resolved", comment=comment)

    def reject(self, report: Report, *, comment: str | None = None) -> Report:
        """Close a report: nothing will be done."""
        return self.change_report(report, status="rejected", comment=comment)

    def reopen(self, report: Report, *, comment: str | None = None) -> Report:
        """Open a closed report again."""
        return self.change_report(report, status="open", comment=comment)

    def comment(self, report_id: str, text: str) -> Report:
        """Comment on a report."""
        return self._send(comment_call(report_id, text))

    def _send(self, call: Call[T]) -> T:
        for attempt in range(1, self._options.attempts + 1):
            try:
                return self._try(call)
            except ClientError as error:
                pause = self._options.pause_seconds(call, attempt, error)
                if pause is None:
                    raise
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _try(self, call: Call[T]) -> T:
        base = urlsplit(self._options.base_url)
        kind = http.client.HTTPSConnection if base.scheme == "https" else http.client.HTTPConnection
        connection = kind(base.hostname or "", base.port, timeout=self._options.timeout_seconds)
        try:
            connection.request(call.method, base.path + call.path, call.content(), self._options.headers(call))
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(self._options.base_url, error) from error
        finally:
            connection.close()
        return read_answer(call, response.status, response.headers.get("retry-after"), body)
