"""Traces, as a real OTLP receiver gets them over a real socket."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from headway.domain.interaction import Interaction
from headway.domain.release import Deployment, Endpoint
from headway.errors import ConfigurationError
from headway.gateway.tracing import Tracing
from headway.ids import Arm, Kind, uuid7

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
PRIMARY = Deployment("primary", Endpoint("openai", "https://api.example.com/v1", "gpt-4o-mini"))
FALLBACK = Deployment("azure", Endpoint("azure_openai", "http://127.0.0.1:9000", "gpt-5"))


def value(any_value: AnyValue) -> Any:
    kind = any_value.WhichOneof("value")
    if kind == "array_value":
        return [value(item) for item in any_value.array_value.values]
    return getattr(any_value, kind) if kind else None


def attributes(span: Span) -> dict[str, Any]:
    return {item.key: value(item.value) for item in span.attributes}


class Receiver:
    """An OTLP receiver: keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    receiver.services |= {
                        value(item.value) for item in resource.resource.attributes if item.key == "service.name"
                    }
                    for scope in resource.scope_spans:
                        receiver.spans += scope.spans
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def span(self, name: str) -> Span:
        [found] = [span for span in self.spans if span.name == name]
        return found


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield receiver
    receiver.server.shutdown()
    thread.join()
    receiver.server.server_close()


def open_tracing(receiver: Receiver) -> Tracing:
    tracing = Tracing.from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url + "/"})
    assert tracing is not None
    return tracing


def interaction(**changes: Any) -> Interaction:
    fields: dict[str, Any] = {
        "id": uuid7(1_790_000_000_000),
        "application": 1,
        "release": 2,
        "rollout": 0,
        "stage": 0,
        "arm": Arm.STABLE,
        "kind": Kind.RANDOMISED,
        "unit": b"12345678",
        "own_unit": False,
        "key": 1,
        "conversation": "fp-0123",
        "user": "ann@example.com",
        "operation": "chat",
        "stream": False,
        "status": 200,
        "request": b'{"messages": "secret question"}',
        "answer": b"secret answer",
    }
    return Interaction(**{**fields, **changes})


def trace_fallback(receiver: Receiver) -> dict[str, str]:
    """Trace an interaction whose first provider call fails; gives the headers that the second call sent on."""
    tracing = open_tracing(receiver)
    trace = tracing.begin({b"traceparent": CALLER.encode(), b"tracestate": b"a=b"}, "chat", "support")
    trace.begin_call(PRIMARY).finish(503, "provider_error")
    call = trace.begin_call(FALLBACK)
    sent = call.headers()
    call.finish(200, None)
    recorded = interaction(
        rollout=7,
        stage=3,
        arm=Arm.CANDIDATE,
        kind=Kind.MANUAL,
        stream=True,
        conversation="case-12",
        deployment="azure",
        attempts=2,
        fallback=True,
        provider_id="chatcmpl-1",
        provider_model="gpt-5-2026-01-01",
        provider_fingerprint="fp_9",
        finish_reason="stop",
        input_tokens=40,
        cached_tokens=10,
        output_tokens=0,
        cost_usd=0.001,
        first_token_ms=250.0,
        total_ms=400.0,
    )
    trace.finish(recorded, "support", "support-v2")
    tracing.close()
    return sent


def test_an_interaction_and_its_calls_make_one_trace_below_the_callers(receiver: Receiver) -> None:
    sent = trace_fallback(receiver)
    whole, failed = receiver.span("chat support"), receiver.span("chat gpt-4o-mini")
    answered = receiver.span("chat gpt-5")
    assert len(receiver.spans) == 3
    assert receiver.services == {"headway"}
    assert {span.trace_id.hex() for span in receiver.spans} == {"4bf92f3577b34da6a3ce929d0e0e4736"}
    assert whole.parent_span_id.hex() == "00f067aa0ba902b7"
    assert failed.parent_span_id == answered.parent_span_id == whole.span_id
    assert (whole.kind, failed.kind, answered.kind) == (Span.SPAN_KIND_SERVER, *[Span.SPAN_KIND_CLIENT] * 2)
    assert (whole.status.code, failed.status.code) == (Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR)
    assert sent == {
        "traceparent": f"00-{whole.trace_id.hex()}-{answered.span_id.hex()}-01",
        "tracestate": "a=b",
    }


def test_attributes_follow_the_conventions(receiver: Receiver) -> None:
    trace_fallback(receiver)
    assert attributes(receiver.span("chat gpt-4o-mini")) == {
        "gen_ai.operation.name": "chat",
        "openai.api.type": "chat_completions",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "server.address": "api.example.com",
        "server.port": 443,
        "headway.deployment": "primary",
        "http.response.status_code": 503,
        "error.type": "provider_error",
    }
    answered = attributes(receiver.span("chat gpt-5"))
    assert (answered["gen_ai.provider.name"], answered["server.port"]) == ("azure.ai.openai", 9000)
    told = attributes(receiver.span("chat support"))
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "support",
        "gen_ai.request.stream": True,
        "gen_ai.conversation.id": "case-12",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "gpt-5-2026-01-01",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 40,
        "gen_ai.usage.cache_read.input_tokens": 10,
        "gen_ai.usage.output_tokens": 0,
        "openai.response.system_fingerprint": "fp_9",
        "headway.release": "support-v2",
        "headway.rollout": 7,
        "headway.stage": 3,
        "headway.arm": "candidate",
        "headway.kind": "manual",
        "headway.fallback": True,
        "headway.cost_usd": 0.001,
    }
    assert {name: told.get(name) for name in expected} == expected


def test_a_search_is_a_span_of_its_own_that_tells_no_query_and_no_passage(receiver: Receiver) -> None:
    tracing = open_tracing(receiver)
    trace = tracing.begin({}, "chat", "support")
    trace.begin_retrieval("handbook@3").finish(None, "retrieval_timeout")
    trace.begin_retrieval("handbook@4").finish(None)
    found: dict[str, Any] = {
        "retrieval_ms": 4.5,
        "passages": 2,
        "context_tokens": 300,
        "cited": False,
        "retrieved": (7, 9),
    }
    trace.finish(interaction(**found), "support", "v1")
    tracing.close()
    whole, failed, fine = map(receiver.span, ("chat support", "retrieval handbook@3", "retrieval handbook@4"))
    assert failed.parent_span_id == fine.parent_span_id == whole.span_id
    assert (failed.status.code, fine.status.code) == (Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET)
    told = {"gen_ai.operation.name": "retrieval", "gen_ai.data_source.id": "handbook@3"}
    assert attributes(failed) == {**told, "error.type": "retrieval_timeout"}
    expected = {"retrieval_ms": 4.5, "passages": 2, "context_tokens": 300, "cited": False}
    assert {name: attributes(whole).get(f"headway.{name}") for name in expected} == expected


def test_a_search_by_itself_is_a_span_below_the_callers(receiver: Receiver) -> None:
    tracing = open_tracing(receiver)
    tracing.begin_search({b"traceparent": CALLER.encode()}, "handbook@3").finish(None)
    tracing.begin_search({}, "handbook@4").finish(None, "retrieval_failed")
    tracing.close()
    fine, failed = map(receiver.span, ("retrieval handbook@3", "retrieval handbook@4"))
    assert fine.trace_id.hex() == CALLER.split("-")[1]
    assert fine.parent_span_id.hex() == CALLER.split("-")[2]
    assert fine.kind == failed.kind == Span.SPAN_KIND_SERVER
    assert attributes(fine) == {"gen_ai.operation.name": "retrieval", "gen_ai.data_source.id": "handbook@3"}
    assert attributes(failed)["error.type"] == "retrieval_failed"
    assert (failed.status.code, fine.status.code) == (Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET)


def test_neither_content_nor_people_are_in_a_trace(receiver: Receiver) -> None:
    tracing = open_tracing(receiver)
    trace = tracing.begin({}, "responses", "support")
    trace.begin_call(PRIMARY).finish(200)
    trace.finish(interaction(operation="responses"), "support", "v1")
    tracing.close()
    sent = b"".join(span.SerializeToString() for span in receiver.spans)
    assert len(receiver.spans) == 2
    for secret in (b"secret", b"ann@example.com", b"fp-0123"):
        assert secret not in sent
    told = attributes(receiver.span("chat support"))
    assert told["openai.api.type"] == "responses"
    assert not {"headway.rollout", "headway.cost_usd", "gen_ai.usage.input_tokens", "error.type"} & told.keys()


def test_a_failed_interaction_is_an_error_and_a_refused_request_is_not(receiver: Receiver) -> None:
    tracing = open_tracing(receiver)
    tracing.begin({}, "embeddings", "a").finish(
        interaction(operation="embeddings", status=502, error="provider_error", release_error=True), "a", "v1"
    )
    tracing.begin({}, "chat", "b").finish(interaction(status=429, error="rate_limit_exceeded"), "b", "v1")
    tracing.close()
    assert receiver.span("embeddings a").status.code == Status.STATUS_CODE_ERROR
    assert receiver.span("chat b").status.code == Status.STATUS_CODE_UNSET
    assert attributes(receiver.span("chat b"))["error.type"] == "rate_limit_exceeded"


def test_what_the_caller_does_not_sample_is_passed_on_but_not_sent(receiver: Receiver) -> None:
    tracing = open_tracing(receiver)
    trace = tracing.begin({b"traceparent": UNSAMPLED.encode()}, "chat", "support")
    call = trace.begin_call(PRIMARY)
    headers = call.headers()
    call.finish(200)
    trace.finish(interaction(), "support", "v1")
    tracing.close()
    assert receiver.spans == []
    assert headers["traceparent"].startswith("00-4bf92f3577b34da6a3ce929d0e0e4736-")
    assert headers["traceparent"].endswith("-00")


@pytest.mark.parametrize("traceparent", [b"", b"junk", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"\xff\xfe"])
def test_a_broken_traceparent_starts_a_new_trace(receiver: Receiver, traceparent: bytes) -> None:
    tracing = open_tracing(receiver)
    tracing.begin({b"traceparent": traceparent}, "chat", "support").finish(interaction(), "support", "v1")
    tracing.close()
    assert receiver.span("chat support").parent_span_id == b""


def test_closing_does_not_wait_for_a_receiver_that_is_away() -> None:
    tracing = Tracing.from_environment({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"})
    assert tracing is not None
    tracing.begin({}, "chat", "support").finish(interaction(), "support", "v1")
    started = time.monotonic()
    tracing.close(seconds=0.2)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_traces_are_off_unless_an_endpoint_is_set(environment: dict[str, str]) -> None:
    assert Tracing.from_environment(environment) is None


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "4318"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "not an http"),
    ],
)
def test_what_cannot_be_sent_to_is_refused(environment: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Tracing.from_environment(environment)


def test_being_off_does_not_load_the_sdk() -> None:
    program = "import sys, headway.gateway.tracing as t; assert t.Tracing.from_environment({}) is None\n"
    program += "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
