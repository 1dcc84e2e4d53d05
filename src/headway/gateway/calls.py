"""Provider calls: attempts, waits and fallbacks, all inside the release that was assigned."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import structlog

from headway.clock import Clock, elapsed_ms
from headway.domain.interaction import Interaction
from headway.domain.release import Deployment
from headway.domain.snapshot import ReleaseRoute
from headway.errors import (
    ConfigurationError,
    HeadwayError,
    LimitError,
    OverloadedError,
    ProviderError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from headway.gateway.answers import Body, JunkError, check_answer
from headway.gateway.deployments import Deployments, DeploymentState
from headway.gateway.parsing import ParsedRequest
from headway.gateway.rendering import ReleaseRenderer
from headway.gateway.tracing import Trace
from headway.providers.client import CallError, ProviderAnswer, ProviderClient

_log = structlog.get_logger("headway.gateway.calls")
_BACKOFF_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0
_USAGE_OPTION = "stream_options"
_NULL = msgspec.Raw(b"null")
_RETRIED = frozenset((408, 429, 500, 502, 503, 504, 529))
# The operator's fault, not the caller's: another deployment may do better, and the caller must not see the text.
_OPERATORS = frozenset((401, 403, 404))


class _Failure(NamedTuple):
    """Why a call gave no answer; ``again`` says whether the same deployment may be tried once more."""

    error: HeadwayError
    again: bool = False
    wait_seconds: float | None = None


@dataclass(slots=True)
class Opened:
    """An answer that has begun. ``close`` must be called once, whatever happens.

    Attributes:
        answer: Its status and headers.
        body: The whole body, or the first piece of a stream.
        content: What was read from a whole answer; None for a stream or an error.
        pieces: The further pieces of a stream, None for a whole answer.
    """

    answer: ProviderAnswer
    body: bytes
    content: Body | None
    pieces: AsyncIterator[bytes] | None
    deployment: Deployment
    state: DeploymentState

    def take_body(self) -> bytes:
        """Give the body and let go of it: a stream may last long."""
        body, self.body = self.body, b""
        return body

    def close(self) -> None:
        """Give the place back and drop the connection if the answer is still coming."""
        self.answer.close()
        self.state.gate.leave()


class _Bodies(NamedTuple):
    """The bodies of the calls to one deployment."""

    renderer: ReleaseRenderer
    parsed: ParsedRequest
    fields: dict[str, msgspec.Raw]
    deployment: Deployment

    def encode(self, asks_usage: bool) -> bytes:
        """Write a body, without Headway's own wish for usage in the stream if the deployment does not take that."""
        fields = self.fields
        if not asks_usage and self._wish_is_ours():
            fields = {name: value for name, value in fields.items() if name != _USAGE_OPTION}
        return self.renderer.encode(fields, self.deployment.endpoint)

    def refused_for_usage(self, opened: Opened) -> bool:
        """Say whether the deployment refuses the request for a field that the client has not sent."""
        return opened.answer.status in (400, 422) and self._wish_is_ours() and _USAGE_OPTION.encode() in opened.body

    def _wish_is_ours(self) -> bool:
        given = self.parsed.fields.get(_USAGE_OPTION, _NULL)
        return given == _NULL and _USAGE_OPTION in self.fields


class Caller:
    """Makes the provider calls of an interaction."""

    def __init__(self, client: ProviderClient, deployments: Deployments, clock: Clock, rng: random.Random) -> None:
        self._client = client
        self._deployments = deployments
        self._clock = clock
        self._rng = rng

    async def call(
        self,
        release: ReleaseRoute,
        renderer: ReleaseRenderer,
        parsed: ParsedRequest,
        fields: dict[str, msgspec.Raw],
        interaction: Interaction,
        trace: Trace | None,
        only: str | None = None,
    ) -> Opened:
        """Call the release's deployments in order until one answers.

        Args:
            release: Whose deployments.
            renderer: Writes the body for each.
            parsed: The request.
            fields: Its rendered fields.
            interaction: Is told of attempts, errors, waits and the deployment.
            trace: Of this request, if traces are on.
            only: Name of the one deployment that may answer.

        Returns:
            The answer: any 2xx, or a 4xx that is the caller's to see.

        Raises:
            HeadwayError: None answered; the error is the last one's.
        """
        failure: _Failure | None = None
        for position, deployment in enumerate(release.deployments):
            if only is not None and deployment.name != only:
                continue
            interaction.deployment, interaction.fallback = deployment.name, position > 0
            state = self._deployments.state(deployment)
            now = self._deployments.now()
            if not state.breaker.allows(now):
                message = f"deployment {deployment.name!r} keeps failing and is given a rest"
                wait = state.breaker.wait_seconds(now)
                failure = failure or _Failure(ProviderUnavailableError(message, retry_after_seconds=wait))
                continue
            try:
                await state.gate.enter(deployment.name)
            except OverloadedError as error:
                failure = _Failure(error)
                continue
            finally:
                interaction.queue_ms += elapsed_ms(now, self._deployments.now())
            bodies = _Bodies(renderer, parsed, fields, deployment)
            outcome = await self._attempt_all(deployment, state, bodies, interaction, trace)
            if isinstance(outcome, Opened):
                return outcome
            failure = outcome
        if failure is None:
            raise ConfigurationError(f"release {release.name!r} has no deployment {only!r}")
        raise failure.error

    async def _attempt_all(
        self,
        deployment: Deployment,
        state: DeploymentState,
        bodies: _Bodies,
        interaction: Interaction,
        trace: Trace | None,
    ) -> Opened | _Failure:
        kept = False
        try:
            attempt = 0
            asks_usage = state.takes_usage_option
            while True:
                attempt += 1
                interaction.attempts += 1
                outcome = await self._attempt(deployment, state, bodies.parsed, bodies.encode(asks_usage), trace)
                if isinstance(outcome, Opened):
                    if asks_usage and bodies.refused_for_usage(outcome):
                        asks_usage = False
                        attempt -= 1
                        continue
                    if not asks_usage and outcome.answer.status < 400:
                        state.takes_usage_option = False
                    state.breaker.succeed()
                    kept = True
                    return outcome
                interaction.attempt_errors += 1
                if not isinstance(outcome.error, LimitError):
                    state.breaker.fail(self._deployments.now())
                wait = self._wait_seconds(attempt, outcome)
                if attempt >= deployment.operation.attempts or wait is None:
                    return outcome
                await self._clock.sleep(wait)
        finally:
            if not kept:
                state.gate.leave()

    def _wait_seconds(self, attempt: int, failure: _Failure) -> float | None:
        """How long to wait before the next attempt; None when there should be none here."""
        if not failure.again:
            return None
        backoff = _BACKOFF_SECONDS * 2.0 ** (attempt - 1) * (0.5 + self._rng.random())
        asked = failure.wait_seconds
        if asked is None:
            return backoff
        return None if asked > _LONGEST_WAIT_SECONDS else asked + backoff

    async def _attempt(
        self,
        deployment: Deployment,
        state: DeploymentState,
        parsed: ParsedRequest,
        body: bytes,
        trace: Trace | None,
    ) -> Opened | _Failure:
        span = trace.begin_call(deployment) if trace is not None else None
        status: int | None = None
        problem: str | None = "cancelled"
        answer: ProviderAnswer | None = None
        opened: Opened | None = None
        try:
            headers = span.headers() if span is not None else None
            answer = await self._client.post(deployment, parsed.operation, body, headers, stream=parsed.stream)
            status = answer.status
            outcome = await self._judge(deployment, state, parsed, answer)
            if isinstance(outcome, Opened):
                opened, problem = outcome, None
            else:
                problem = outcome.error.error_code
            return outcome
        except CallError as error:
            _log.warning("provider_call_failed", deployment=deployment.name, detail=str(error))
            failure = _failed(deployment, error)
            problem = failure.error.error_code
            return failure
        except ConfigurationError as error:
            # Where a secret is kept is not for callers.
            _log.error("deployment_misconfigured", deployment=deployment.name, detail=error.message)
            problem = error.error_code
            message = f"deployment {deployment.name!r} is not configured right; Headway's log says how"
            return _Failure(ConfigurationError(message))
        finally:
            if answer is not None and opened is None:
                answer.close()
            if span is not None:
                span.finish(status, problem)

    async def _judge(
        self, deployment: Deployment, state: DeploymentState, parsed: ParsedRequest, answer: ProviderAnswer
    ) -> Opened | _Failure:
        status = answer.status
        if status in _RETRIED:
            wait = answer.retry_after_seconds(self._clock)
            message = f"deployment {deployment.name!r} answered {status}: {_message(await answer.read())}"
            if status == 429:
                limit = LimitError(message, code="provider_rate_limited", retry_after_seconds=wait or 1)
                return _Failure(limit, again=True, wait_seconds=wait)
            return _Failure(ProviderError(message, retry_after_seconds=wait), again=True, wait_seconds=wait)
        if status in _OPERATORS:
            message = f"deployment {deployment.name!r} answered {status}: its credentials or model name are wrong"
            return _Failure(ProviderError(message, code="provider_rejected"))
        if status >= 500 or 300 <= status < 400 or status < 200:
            return _Failure(ProviderError(f"deployment {deployment.name!r} answered {status}"))
        if status >= 400 or not parsed.stream:
            whole = await answer.read()
            try:
                content = check_answer(parsed.operation, whole) if status < 400 else None
            except JunkError as error:
                return _Failure(ProviderError(str(error), code="provider_junk"))
            return Opened(answer, whole, content, None, deployment, state)
        if not answer.is_stream:
            message = f"deployment {deployment.name!r} was asked for a stream and sent something else"
            return _Failure(ProviderError(message, code="provider_junk"))
        pieces = answer.pieces()
        async for first in pieces:
            return Opened(answer, first, None, pieces, deployment, state)
        return _Failure(ProviderError("the provider's stream was empty", code="provider_junk"))


def _failed(deployment: Deployment, error: CallError) -> _Failure:
    name = deployment.name
    if error.progress == "not_connected":
        # Without the reason: it names hosts that are not for callers.
        return _Failure(ProviderUnavailableError(f"deployment {name!r} cannot be reached"), again=True)
    if error.timed_out:
        # Not again: the caller has waited the whole time out already.
        return _Failure(ProviderTimeoutError(f"deployment {name!r} gave no answer in time"))
    return _Failure(
        ProviderError(f"deployment {name!r} broke off: {error}", code="provider_cut"),
        again=error.progress == "no_answer",
    )


class _ErrorDetail(msgspec.Struct):
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorDetail | str = ""


def _message(body: bytes) -> str:
    """The provider's own words, shortened."""
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return "no details"
    return (error if isinstance(error, str) else error.message)[:300] or "no details"
