"""Secrets by reference and Entra tokens."""

import asyncio
from pathlib import Path
from typing import Any, Self

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError

from headway.clock import ManualClock
from headway.domain.release import Deployment
from headway.errors import ConfigurationError
from headway.providers.credentials import Credentials, is_reference, resolve_secret
from tests.routes import NOW_MS, make_deployment

NOW_SECONDS = NOW_MS / 1000
SECRET = "sk-very-secret"


class _Entra:
    """A credential of ``azure.core``'s asynchronous kind, whose tokens live for an hour."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.asked: list[tuple[str, ...]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.problem: Exception | None = None
        self.closed = False

    async def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        **kwargs: Any,
    ) -> AccessToken:
        self.asked.append(scopes)
        await self.open.wait()
        if self.problem is not None:
            raise self.problem
        return AccessToken(f"token-{len(self.asked)}", int(self._clock.unix_ms() / 1000) + 3600)

    async def close(self) -> None:
        self.closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def deployment(**operation: Any) -> Deployment:
    return make_deployment(**{"auth": "api_key", **operation})


async def bearer(credentials: Credentials, deployment: Deployment) -> str:
    return (await credentials.headers(deployment))["Authorization"]


class TestReferences:
    def test_a_variable(self) -> None:
        assert resolve_secret("env:KEY", {"KEY": f" {SECRET}\n"}) == SECRET

    def test_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        path.write_text(f"{SECRET}\n")
        assert resolve_secret(f"file:{path}") == SECRET

    @pytest.mark.parametrize("text", ["env:KEY", "file:/run/secrets/key", "file:key"])
    def test_references_are_told_from_values(self, text: str) -> None:
        assert is_reference(text)

    @pytest.mark.parametrize("text", ["", "env:", "file:", "KEY", SECRET, "Env:KEY", "http://x", "a:b"])
    def test_values_are_told_from_references(self, text: str) -> None:
        assert not is_reference(text)

    @pytest.mark.parametrize("environment", [{}, {"KEY": ""}, {"KEY": " \n"}])
    def test_a_missing_variable_is_named(self, environment: dict[str, str]) -> None:
        with pytest.raises(ConfigurationError, match="secret env:KEY: the environment variable is not set"):
            resolve_secret("env:KEY", environment)

    @pytest.mark.parametrize(
        "content",
        [None, b"", b" \n", SECRET.encode() + b"\nline", b"\xff\xfe" + SECRET.encode(), b"a\0" + SECRET.encode()],
    )
    def test_a_file_that_does_not_do_is_named_and_not_quoted(self, tmp_path: Path, content: bytes | None) -> None:
        path = tmp_path / "key"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=f"secret file:{path}") as caught:
            resolve_secret(f"file:{path}")
        error: BaseException | None = caught.value
        while error is not None:
            assert SECRET not in str(error)
            error = error.__cause__

    @pytest.mark.parametrize("text", [SECRET, "", f"literal:{SECRET}"])
    def test_what_is_no_reference_is_not_quoted(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match="env:NAME or file:/path") as caught:
            resolve_secret(text)
        assert SECRET not in caught.value.message

    def test_a_folder_is_no_secret(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="cannot be read"):
            resolve_secret(f"file:{tmp_path}")


class TestKeys:
    async def test_each_provider_has_its_header(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KEY", SECRET)
        credentials = Credentials(ManualClock())
        headers = await credentials.headers(deployment(api_key="env:KEY"))
        assert headers["Authorization"] == f"Bearer {SECRET}"
        headers = await credentials.headers(deployment(api_key="env:KEY", provider="azure_openai"))
        assert (headers["api-key"], "Authorization" in headers) == (SECRET, False)

    @pytest.mark.parametrize("operation", [{"auth": "none", "api_key": "env:KEY"}, {"api_key": None}])
    async def test_none_is_sent_where_none_is_wanted(
        self, operation: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KEY", SECRET)
        assert SECRET not in str(await Credentials(ManualClock()).headers(deployment(**operation)))

    async def test_more_headers_are_texts_or_references(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KEY", SECRET)
        more = (("x-team", "blue"), ("x-key", "env:KEY"))
        headers = await Credentials(ManualClock()).headers(deployment(headers=more))
        assert (headers["x-team"], headers["x-key"]) == ("blue", SECRET)
        assert headers["Content-Type"] == "application/json"

    async def test_a_missing_secret_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KEY", raising=False)
        for operation in ({"api_key": "env:KEY"}, {"headers": (("x-key", "env:KEY"),)}):
            with pytest.raises(ConfigurationError, match="env:KEY"):
                await Credentials(ManualClock()).headers(deployment(**operation))

    async def test_a_rotated_secret_is_picked_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, path = ManualClock(), tmp_path / "key"
        credentials, from_file = Credentials(clock), deployment(api_key=f"file:{path}")
        path.write_text("one")
        assert await bearer(credentials, from_file) == "Bearer one"
        path.write_text("two")
        assert await bearer(credentials, from_file) == "Bearer one"
        clock.advance(5)
        assert await bearer(credentials, from_file) == "Bearer two"
        path.unlink()
        clock.advance(5)
        with pytest.raises(ConfigurationError):
            await bearer(credentials, from_file)
        path.write_text("three")
        assert await bearer(credentials, from_file) == "Bearer three"

    async def test_deployments_do_not_share_headers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("A", "secret-a")
        monkeypatch.setenv("B", "secret-b")
        credentials = Credentials(ManualClock())
        for _ in range(2):
            assert await bearer(credentials, deployment(api_key="env:A")) == "Bearer secret-a"
            assert await bearer(credentials, deployment(api_key="env:B")) == "Bearer secret-b"


class TestEntra:
    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock(NOW_MS)

    @pytest.fixture
    async def entra(self, clock: ManualClock) -> _Entra:
        return _Entra(clock)

    @pytest.fixture
    def credentials(self, clock: ManualClock, entra: _Entra) -> Credentials:
        return Credentials(clock, entra)

    AZURE = deployment(auth="entra", provider="azure_openai", api_key="env:UNUSED")

    async def test_a_token_is_sent(self, credentials: Credentials, entra: _Entra) -> None:
        headers = await credentials.headers(self.AZURE)
        assert (headers["Authorization"], "api-key" in headers) == ("Bearer token-1", False)
        assert entra.asked == [("https://cognitiveservices.azure.com/.default",)]

    async def test_it_is_renewed_five_minutes_before_its_end(
        self, clock: ManualClock, credentials: Credentials, entra: _Entra
    ) -> None:
        for seconds, token in ((0, 1), (3290, 1), (10, 2), (3290, 2), (10, 3)):
            clock.advance(seconds)
            assert await bearer(credentials, self.AZURE) == f"Bearer token-{token}"
        assert len(entra.asked) == 3

    async def test_one_request_at_a_time(self, credentials: Credentials, entra: _Entra) -> None:
        entra.open.clear()
        others = [deployment(auth="entra", model=f"m{number}") for number in range(20)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(bearer(credentials, each)) for each in others]
            await asyncio.sleep(0)
            entra.open.set()
        assert {task.result() for task in tasks} == {"Bearer token-1"}
        assert len(entra.asked) == 1

    async def test_nobody_waits_for_the_renewal_but_one(
        self, clock: ManualClock, credentials: Credentials, entra: _Entra
    ) -> None:
        await bearer(credentials, self.AZURE)
        clock.advance(3400)
        entra.open.clear()
        first = asyncio.create_task(bearer(credentials, self.AZURE))
        await asyncio.sleep(0)
        assert await bearer(credentials, self.AZURE) == "Bearer token-1"
        entra.open.set()
        assert await first == "Bearer token-2"

    async def test_while_it_cannot_be_renewed_the_old_one_serves_to_its_end(
        self, clock: ManualClock, credentials: Credentials, entra: _Entra
    ) -> None:
        await bearer(credentials, self.AZURE)
        entra.problem = ClientAuthenticationError(f"no: {SECRET}")
        clock.advance(3590)
        assert await bearer(credentials, self.AZURE) == "Bearer token-1"
        clock.advance(10)
        with pytest.raises(ConfigurationError, match="ClientAuthenticationError") as caught:
            await bearer(credentials, self.AZURE)
        assert SECRET not in caught.value.message
        entra.problem = None
        assert (await bearer(credentials, self.AZURE)).startswith("Bearer token-")

    async def test_a_request_that_is_given_up_leaves_the_way_free(
        self, credentials: Credentials, entra: _Entra
    ) -> None:
        entra.open.clear()
        task = asyncio.create_task(bearer(credentials, self.AZURE))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        entra.open.set()
        assert await bearer(credentials, self.AZURE) == "Bearer token-2"

    async def test_a_source_that_was_handed_over_is_not_closed(self, credentials: Credentials, entra: _Entra) -> None:
        await bearer(credentials, self.AZURE)
        await credentials.close()
        assert not entra.closed

    async def test_the_usual_source_is_azures(self) -> None:
        from azure.identity.aio import DefaultAzureCredential

        from headway.providers import credentials as module

        source = module._default_entra()
        assert isinstance(source, DefaultAzureCredential)
        await source.close()
