"""Takes feedback: whose answer it is about, whether the value fits, who speaks; then keeps it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from headway.clock import Clock, utc
from headway.domain.feedback import CHOICES, KEYLESS_TEXT_BYTES, TEXT_BYTES, Attribution, Feedback, Source, Target
from headway.domain.metric import BUILT_IN_FEEDBACK, FeedbackMetric
from headway.domain.snapshot import ApplicationRoute, KeyRoute, Snapshot
from headway.errors import AuthenticationError, InvalidRequestError, NotFoundError
from headway.feedback.keeping import Keeper, Outcome
from headway.feedback.targets import DAY_MS, application_by_name, attribution, read_interaction, same_application
from headway.feedback.texts import checked_text, required_text
from headway.ids import uuid7
from headway.storage.database import Database
from headway.storage.feedback import attribute_conversation

NAME_BYTES = 200
CONVERSATION_BYTES = 2000
_RESERVED_AUTHORS = ("unit:", "key:")
_CONVERSATION_TRIES = 5  # an answer's own interaction is written a little after the answer
_CONVERSATION_WAIT_SECONDS = 0.2


class FeedbackPost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ``POST /v1/feedback`` takes.

    Attributes:
        interaction_id: The ``id`` of the answer that it is about; this or ``conversation_id``.
        conversation_id: The conversation that it is about; needs an API key.
        metric: Name of the metric; may be left out where there is only a comment or a correction.
        value: Value of the metric.
        comment: Anything to add, in words.
        correction: What the answer should have been.
        source: Who speaks; end_user without an API key, else developer unless told.
        author: Name of who speaks; by default the unit (end users) or the API key.
        choice: Which of the answer's choices; 0 is the first, or the whole answer.
        application: The application of the conversation; needed where the key may use several.
    """

    interaction_id: str | None = None
    conversation_id: str | None = None
    metric: str | None = None
    value: bool | int | float | str | None = None
    comment: str | None = None
    correction: str | None = None
    source: Source | None = None
    author: str | None = None
    choice: int | None = None
    application: str | None = None


class Accepted(NamedTuple):
    """An accepted feedback value.

    Attributes:
        id: What stands for it.
        outcome: Whether it is new, was there already, or waits on disk for the database.
        metric: Name of the metric that it is a value of.
    """

    id: uuid.UUID
    outcome: Outcome
    metric: str


class _Subject(NamedTuple):
    target: Target
    target_id: str
    choice: int
    application: ApplicationRoute
    attribution: Attribution


class FeedbackIntake:
    """Takes feedback with an API key of scope ``feedback``, or with an interaction id alone."""

    def __init__(self, database: Database, keeper: Keeper, clock: Clock) -> None:
        self._database = database
        self._keeper = keeper
        self._clock = clock

    async def accept(self, snapshot: Snapshot, key: KeyRoute | None, post: FeedbackPost) -> Accepted:
        """Check a value, attribute it and keep it.

        Args:
            snapshot: Applications, metrics and signing keys.
            key: The caller's API key, its scope checked; None for a caller with nothing but an interaction id.
            post: What it says.

        Raises:
            InvalidRequestError: Something in it is wrong; ``FeedbackValueError`` for the value,
                ``InteractionIdError`` for the id.
            AuthenticationError: This needs an API key.
            PermissionDeniedError: The key may not use the application.
            NotFoundError: There is no such metric, application or conversation.
            ExpiredError: The interaction is past retention.
            LimitError: The author's history is full.
            StorageError: The database is away and what is needed of it is not on disk.
        """
        if key is None:
            _check_keyless(post)
        longest = KEYLESS_TEXT_BYTES if key is None else TEXT_BYTES
        comment = checked_text("comment", post.comment, longest)
        correction = checked_text("correction", post.correction, longest)
        subject = await self._subject(snapshot, key, post)
        name, metric, value = _metric(subject.application, post, {"correction": correction, "comment": comment})
        if key is None and not metric.end_users:
            raise AuthenticationError(
                f"the metric {name!r} is not for end users: send an API key", code="missing_api_key"
            )
        number, text = metric.parse(name, value)
        source = post.source or ("end_user" if key is None else "developer")
        now = self._clock.unix_ms()
        feedback = Feedback(
            id=uuid7(now),
            unix_ms=now,
            target=subject.target,
            target_id=subject.target_id,
            choice=subject.choice,
            attribution=subject.attribution,
            metric=name,
            number=number,
            text=checked_text("value", text, longest),
            comment=comment,
            correction=correction,
            source=source,
            author=_author(post, source, key, subject.attribution.unit),
            key=0 if key is None else key.number,
        )
        kept = await self._keeper.keep(feedback)
        return Accepted(kept.id, kept.outcome, name)

    async def _subject(self, snapshot: Snapshot, key: KeyRoute | None, post: FeedbackPost) -> _Subject:
        if (post.interaction_id is None) == (post.conversation_id is None):
            raise InvalidRequestError("send either interaction_id or conversation_id", param="interaction_id")
        if post.choice is not None and not 0 <= post.choice < CHOICES:
            raise InvalidRequestError(f"choice is a whole number from 0 to {CHOICES - 1}", param="choice")
        if post.interaction_id is not None:
            now = self._clock.unix_ms()
            interaction, application = read_interaction(snapshot, post.interaction_id, key, now)
            same_application(post.application, application)
            choice = interaction.choice if post.choice is None else post.choice
            target_id = str(uuid.UUID(bytes=interaction.uuid))
            return _Subject("interaction", target_id, choice, application, attribution(interaction))
        application = _conversation_application(snapshot, key, post.application)
        conversation = required_text("conversation_id", post.conversation_id, CONVERSATION_BYTES)
        found = await self._conversation(application, conversation)
        return _Subject("conversation", conversation, post.choice or 0, application, found)

    async def _conversation(self, application: ApplicationRoute, conversation: str) -> Attribution:
        since = utc(self._clock.unix_ms() - application.retention_days * DAY_MS)
        for attempt in range(_CONVERSATION_TRIES):
            if attempt:
                await self._clock.sleep(_CONVERSATION_WAIT_SECONDS)
            async with self._database.connection() as connection:
                found = await attribute_conversation(connection, application.number, conversation, since)
            if found is not None:
                return found
        message = f"no interaction of {application.name!r} in that conversation is recorded"
        raise NotFoundError(message, param="conversation_id")


def _check_keyless(post: FeedbackPost) -> None:
    if post.conversation_id is not None:
        needs = "feedback on a conversation"
    elif post.author is not None:
        needs = "naming an author"
    elif post.source not in (None, "end_user"):
        needs = f"the source {post.source!r}"
    else:
        return
    raise AuthenticationError(f"{needs} needs an API key with the scope 'feedback'", code="missing_api_key")


def _conversation_application(snapshot: Snapshot, key: KeyRoute | None, name: str | None) -> ApplicationRoute:
    if name is not None:
        return application_by_name(snapshot, name, key)
    usable = key.applications if key is not None and key.applications else tuple(snapshot.applications)
    if len(usable) != 1:
        raise InvalidRequestError("say which application the conversation belongs to", param="application")
    return application_by_name(snapshot, usable[0], key)


def _metric(
    application: ApplicationRoute, post: FeedbackPost, words: Mapping[str, str | None]
) -> tuple[str, FeedbackMetric, Any]:
    """Find the metric and its value; words alone are values of the metrics made for them."""
    name, value = post.metric, post.value
    if name is None:
        if value is not None:
            raise InvalidRequestError("say which metric the value is of", param="metric")
        name = next((word for word, text in words.items() if text is not None), None)
        if name is None:
            raise InvalidRequestError("send a metric with its value, a comment or a correction", param="metric")
    if value is None:
        value = words.get(name)
    metric = application.metrics.get(name) or (BUILT_IN_FEEDBACK.get(name) if name in words else None)
    if metric is None:
        known = ", ".join(sorted({*application.metrics, *words}))
        shown = name if len(name) <= 80 else name[:77] + "..."
        message = f"{application.name!r} has no metric {shown!r}; it has {known}"
        raise NotFoundError(message, code="unknown_metric", param="metric")
    if value is None:
        raise InvalidRequestError(f"the value of {name!r} is missing", param="value")
    return name, metric, value


def _author(post: FeedbackPost, source: Source, key: KeyRoute | None, unit: bytes) -> str:
    given = checked_text("author", post.author, NAME_BYTES)
    if given is not None:
        if given.startswith(_RESERVED_AUTHORS):
            reserved = " and ".join(map(repr, _RESERVED_AUTHORS))
            raise InvalidRequestError(f"names of authors must not start with {reserved}", param="author")
        return given
    return f"unit:{unit.hex()}" if key is None or source == "end_user" else f"key:{key.number}"
