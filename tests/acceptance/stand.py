"""The stand: one running Headway in front of one simulated provider, shared by the tests that break neither."""

from __future__ import annotations

import http.client
import json
import secrets
import socketserver
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from anyio.from_thread import BlockingPortal, start_blocking_portal

from headway.testing import Behaviour, Counts, Lognormal, ProviderProcess, Received, read_quality, refusing_port
from tests.acceptance.harness import Headway, application, openai_deployment, running, wait_for

KIND, BLUNT = "kind", "blunt"
PROMPTS = {KIND: "You are kind, {{ user or 'stranger' }}.", BLUNT: "You are blunt."}
QUALITIES = {0.9: KIND, 0.3: BLUNT}
"""What the simulated provider writes into its text under either prompt: the text says which release it is from."""

CHATTY = Behaviour(
    quality_by_prompt={"You are kind": 0.9, "You are blunt": 0.3},
    answer_tokens=Lognormal(8, sigma=0.3),
    cached_ratio=0.5,
)


class Provider:
    """A ``ProviderProcess`` for tests that block."""

    def __init__(self, portal: BlockingPortal, process: ProviderProcess) -> None:
        self._portal = portal
        self._process = process
        self.base_url = process.base_url
        self.azure_endpoint = process.azure_endpoint

    def set(self, model: str, behaviour: Behaviour) -> None:
        """Treat requests for a model in this way from now on."""
        self._portal.call(self._process.set_behaviour, model, behaviour)

    def play(self, model: str, *behaviours: Behaviour) -> None:
        """Treat the next requests for a model in these ways."""
        self._portal.call(self._process.play, model, *behaviours)

    def counts(self) -> Counts:
        """The totals since the start."""
        return self._portal.call(self._process.counts)

    def received(self, needle: str = "") -> list[Received]:
        """The requests so far whose body contains a text, oldest first."""
        found: Sequence[Received] = self._portal.call(self._process.received)
        return [each for each in found if needle in json.dumps(each.body, ensure_ascii=False)]

    def ended(self, needle: str) -> Received:
        """The one request whose body contains a text, once it has ended."""

        def look() -> list[Received]:
            return [each for each in self.received(needle) if each.ended_seconds is not None]

        (found,) = wait_for(f"the end of the request with {needle!r}", look)
        return found


@contextmanager
def simulated_provider(behaviours: Mapping[str, Behaviour] | None = None) -> Iterator[Provider]:
    """Run a provider simulator in a process of its own."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(ProviderProcess(behaviours)) as process,
    ):
        yield Provider(portal, process)


class _Lingering(socketserver.StreamRequestHandler):
    """Streams a short answer to its last event and then keeps the connection open."""

    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        chunk = {"id": "chatcmpl-lingering", "object": "chat.completion.chunk", "model": "lingering"}
        said = {**chunk, "choices": [{"index": 0, "delta": {"content": "Stay."}, "finish_reason": "stop"}]}
        used = {**chunk, "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
        body = "".join(f"data: {data}\n\n" for data in (json.dumps(said), json.dumps(used), "[DONE]")).encode()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
        with suppress(OSError):
            self.rfile.read()


@contextmanager
def lingering_provider() -> Iterator[int]:
    """A provider that does not end its streams behind their last event; gives its port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Lingering) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Reply:
    """An HTTP answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error code, from OpenAI's error JSON or from problem JSON."""
        found = self.json
        return str(found["error"]["code"] if "error" in found else found["code"])


def call(
    url: str,
    body: Any = None,
    *,
    key: str | None = None,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float = 30.0,
) -> Reply:
    """Send one request over a connection of its own; bytes as they are, anything else as JSON."""
    parts = urlsplit(url)
    sent = {**({"authorization": f"Bearer {key}"} if key else {})}
    data: bytes | None = None
    if body is not None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent["content-type"] = "application/json"
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_seconds)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method or ("GET" if data is None else "POST"), target, data, {**sent, **(headers or {})})
        answer = connection.getresponse()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


@dataclass
class Stand:
    """What the tests share.

    Attributes:
        headway: Runs with the configuration of ``stand_configuration`` and two workers.
        provider: Behind all its deployments.
        key: An API key that may do everything a caller can: invoke, pin, feedback.
        provider_secret: The provider's API key; nobody but the provider may ever see it.
    """

    headway: Headway
    provider: Provider
    key: str
    provider_secret: str

    def chat(self, application_name: str, question: str, **more: Any) -> Reply:
        """Ask one question over a connection of its own."""
        key = more.pop("key", self.key)
        headers = more.pop("headers", None)
        seconds = more.pop("timeout_seconds", 30.0)
        body = {"model": application_name, "messages": [{"role": "user", "content": question}], **more}
        url = f"{self.headway.base_url}/chat/completions"
        return call(url, body, key=key, headers=headers, timeout_seconds=seconds)

    def rate(self, answer_id: str, *, metric: str = "thumbs_up", value: Any = True, **more: Any) -> Reply:
        """Post feedback with nothing but the id of an answer."""
        body = {"interaction_id": answer_id, "metric": metric, "value": value, **more}
        return call(f"{self.headway.base_url}/feedback", body)

    def check_attribution(self, answer_id: str, *, text: str | None = None, release: str | None = None) -> str:
        """Rate an answer by the id that its client returned and see that the release that gave it gets the rating.

        Args:
            answer_id: As the client returned it.
            text: The answer, which says by its quality which release it is from.
            release: The release, where the text does not say it.

        Returns:
            The name of the release.
        """
        posted = self.rate(answer_id)
        assert posted.status == 201, posted
        expected = QUALITIES[read_quality(text) or 0.0] if text is not None else release
        record = self.headway.interaction(answer_id)
        (feedback,) = self.headway.feedback(answer_id)
        assert (feedback["metric"], feedback["number"], feedback["source"]) == ("thumbs_up", 1.0, "end_user")
        assert feedback["release_name"] == record["release_name"] == expected
        for name in ("application", "release", "rollout", "stage", "arm", "kind", "unit"):
            assert feedback[name] == record[name], name
        assert feedback["exposed_at"] == record["at"]
        return str(record["release_name"])


def unique(text: str) -> str:
    """A question that nobody has asked before: the beginning of a conversation of its own."""
    return f"{text} [{secrets.token_hex(6)}]"


def stand_configuration(provider: Provider, refusing: int, lingering: int, *, second: bool) -> dict[str, Any]:
    """The shared headway.yaml, with the first releases or with the second."""
    secret = {"api_key": "env:STAND_PROVIDER_KEY"}
    base = provider.base_url
    quick = {"connect": "1s", "first_token": "400ms", "total": "800ms"}
    prices = {"input": 1000, "cached_input": 500, "output": 2000}
    name = BLUNT if second else KIND
    two = {"prompt": {"text": PROMPTS[name]}, "parameters": {"temperature": 0.1 if second else 0.7}}
    azure = {"provider": "azure_openai", "endpoint": provider.azure_endpoint, "model": "azure-model", **secret}
    return {
        "deployments": {
            "main": openai_deployment(base, "chatty", usd_per_million_tokens=prices, **secret),
            "azure": {**azure, "api_version": "2024-10-21"},
            "azure-v1": azure,
            "fragile": openai_deployment(
                base, "fragile", timeouts=quick, attempts=1, circuit={"failures": 0, "open": "1s"}, **secret
            ),
            "slow": openai_deployment(base, "slow", **secret),
            "closed": openai_deployment(f"http://127.0.0.1:{refusing}/v1", "closed", attempts=1, **secret),
            "lingering": openai_deployment(f"http://127.0.0.1:{lingering}/v1", "lingering", timeouts=quick),
            "narrow": openai_deployment(base, "narrow", max_concurrency=2, queue={"size": 1, "wait": "10s"}, **secret),
        },
        "metrics": {
            "mood": {"kind": "label", "labels": ["happy", "sad"]},
            "minutes_saved": {"kind": "positive"},
            "grounded": {"kind": "binary", "end_users": False},
        },
        "applications": {
            "support": application("main", name, **two),
            "shifting": application("main", name, **two),
            "growing": application("main", name, **two),
            "continuing": application("main", name, **two),
            "overriding": application(
                "main", name, **two | {"client_may_override": ["system", "temperature"]}, record="metadata"
            ),
            "azure": application("azure"),
            "azure-v1": application("azure-v1"),
            "fragile": application("fragile"),
            "sturdy": application("fragile", fallbacks=["main"]),
            "closed": application("closed", record="metadata"),
            "covered": application("closed", fallbacks=["fragile", "main"]),
            "slow": application("slow"),
            "endless": application("slow", record="metadata"),
            "lingering": application("lingering"),
            "narrow": application("narrow"),
        },
    }


@contextmanager
def open_stand(folder: Path, database_url: str) -> Iterator[Stand]:
    """Start the stand: two releases of `support`, each with half of the conversations."""
    secret = "sk-provider-" + secrets.token_hex(16)
    environment = {"STAND_PROVIDER_KEY": secret, "HEADWAY_BODY_SECONDS": "1"}
    with (
        simulated_provider({"chatty": CHATTY}) as provider,
        refusing_port() as refusing,
        lingering_provider() as lingering,
    ):
        headway = Headway(folder, database_url=database_url, environment=environment)
        with running(headway, stand_configuration(provider, refusing, lingering, second=False)):
            headway.write(stand_configuration(provider, refusing, lingering, second=True))
            headway.run("apply", "--yes")
            headway.run("share", "support", BLUNT, "50%")
            key = headway.create_key("stand", "--scope", "invoke", "--scope", "pin", "--scope", "feedback")
            yield Stand(headway, provider, key, secret)
