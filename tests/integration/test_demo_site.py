"""The demo's folder: its ports, its files, its configuration."""

from __future__ import annotations

import io
import socket
import stat
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from rich.console import Console

from headway.cli.demo import play
from headway.cli.demo.screen import Screen
from headway.cli.demo.site import CommandError, Site, open_site
from headway.cli.demo.visitors import Question, Verdict
from headway.clock import ManualClock
from headway.errors import ConfigurationError
from headway.runtime import database_url


def screen() -> tuple[Screen, io.StringIO]:
    written = io.StringIO()
    return Screen(Console(file=written, width=400), ManualClock()), written


def listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def test_ports_are_kept_and_only_those_that_may_change_do(tmp_path: Path) -> None:
    first = open_site(tmp_path / "demo")
    assert stat.S_IMODE(first.home.stat().st_mode) == 0o700
    assert open_site(tmp_path / "demo").ports == first.ports
    with listen(first.ports.data):
        again = open_site(tmp_path / "demo")
    assert again.ports.data != first.ports.data
    assert (again.ports.model, again.ports.control) == (first.ports.model, first.ports.control)
    with listen(first.ports.model), pytest.raises(ConfigurationError, match=str(first.ports.model)):
        open_site(tmp_path / "demo")


def test_usual_ports_that_are_taken_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        taken = probe.getsockname()[1]
        monkeypatch.setattr("headway.cli.demo.site.Settings", lambda: Usual(taken, taken))
        ports = open_site(tmp_path / "demo").ports
    assert len({taken, ports.model, ports.data, ports.control}) == 4


class Usual:
    def __init__(self, port: int, admin_port: int) -> None:
        self.port = port
        self.admin_port = admin_port


def test_the_shell_file_points_clients_here_and_is_private(tmp_path: Path) -> None:
    site = open_site(tmp_path / "it's a demo")
    assert site.read_key() is None
    site.write_variables("hw-secret")
    assert site.read_key() == "hw-secret"
    assert stat.S_IMODE(site.variables.stat().st_mode) == 0o600
    script = '. "$1"; echo "$HEADWAY_HOME|$OPENAI_BASE_URL|$OPENAI_API_KEY"; command -v headway'
    told = subprocess.run(
        ["sh", "-c", script, "sh", str(site.variables)], env={}, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert told[0] == f"{site.home}|http://127.0.0.1:{site.ports.data}/v1|hw-secret"
    assert told[1].endswith("/headway")


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"headway\.yaml"):
        open_site(tmp_path / "demo").run("check")


def test_a_headway_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = open_site(tmp_path / "demo")
    monkeypatch.setattr(Site, "environment", lambda self: {"HEADWAY_PORT": "no number"})
    with pytest.raises(CommandError, match="HEADWAY"), site.serve():
        pass


class Ready(BaseHTTPRequestHandler):
    """Answers as a Headway that runs."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_another_headway_on_its_ports_is_not_taken_for_its_own(tmp_path: Path) -> None:
    site = open_site(tmp_path / "demo")
    others = [ThreadingHTTPServer(("127.0.0.1", port), Ready) for port in (site.ports.data, site.ports.control)]
    for other in others:
        Thread(target=other.serve_forever, args=(0.05,)).start()
    try:
        with pytest.raises(CommandError, match="cannot be used"), site.serve():
            pass
    finally:
        for other in others:
            other.shutdown()
            other.server_close()


def test_two_releases_are_brought_in_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time, a second time, and with a file of the visitor's own."""
    monkeypatch.setenv("HEADWAY_DATABASE_URL", "postgresql://not-this-one/x")  # yours is left alone
    site = open_site(tmp_path / "demo")
    shown, written = screen()
    with database_url(site.settings()):
        play._configure(site, shown)
        key = play._make_key(site)
        assert "Rollout 1 of support has begun." in written.getvalue()
        releases = {item["name"]: item for item in play._read(site, "releases", "list", "support")}
        assert {name: (item["role"], item["share"]) for name, item in releases.items()} == {
            "plain": ("stable", 0.5),
            "facts": ("candidate", 0.5),
        }

        shown, written = screen()
        play._configure(site, shown)
        assert "has begun" not in written.getvalue()
        assert play._make_key(site) == key
        again = {item["name"]: item for item in play._read(site, "releases", "list", "support")}
        assert (again["facts"]["role"], again["facts"]["share"]) == ("candidate", 0.5)
        assert len(again) == 2

        own = site.config.read_text().replace("0.2, max_tokens: 48", "0.2, max_tokens: 50")
        own = own.replace("name: facts", "name: mine")
        site.config.write_text(own)
        site.run("rollout", "promote", "support", "--reason", "better")
        site.run("keys", "revoke", str(play._read(site, "keys", "list")[0]["number"]))
        shown, written = screen()
        play._configure(site, shown)
        assert "was changed: it is applied as it is" in written.getvalue()
        assert site.config.read_text() == own
        assert play._make_key(site) != key


def test_figures_without_data_say_so() -> None:
    figures = play._figures({"release": "plain", "interactions": 0})
    assert figures["👍"] == "no data"
    assert figures["cost"] == "no data"
    assert "0%" not in figures.values()


def test_what_is_said_is_shown_into_a_pipe_too() -> None:
    shown, written = screen()
    with shown.talks():
        shown.ask("Ann", Question("When?", "now"))
        shown.hear("Ann", "plain", "It is")
        shown.hear("Ann", "plain", "It is\nnow.")
        shown.rate("Ann", Verdict(good=True, reason="names 'now' in 3 words"), "fine")
        shown.ask("Ben", Question("Why?", "because"))
        shown.fail("Ben", "the provider is away")
    shown.compare("Recorded", {"plain": {"requests": "2"}})
    text = written.getvalue()
    for part in (
        "Ann    plain    When?",
        "It is now.",
        "👍 names 'now'",
        "“fine”",
        "✗ the provider is away",
        "requests",
    ):
        assert part in text
