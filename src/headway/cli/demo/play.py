"""The demo, step by step: database, model, two releases, traffic, what was recorded."""

from __future__ import annotations

import importlib.util
import shlex
import signal
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from rich.text import Text

from headway.cli.demo.asking import Traffic, hold
from headway.cli.demo.contest import describe_outcomes, hold_contest
from headway.cli.demo.documents import APPLICATION as GUIDE
from headway.cli.demo.documents import INDEX, LEFT_OUT, find_questions, lay_out, write_questions
from headway.cli.demo.reading import read
from headway.cli.demo.screen import Screen
from headway.cli.demo.site import APPLICATION, FIRST_RELEASE, SECOND_RELEASE, Site, open_site
from headway.cli.demo.stories import RULE as CONTEST_RULE
from headway.cli.demo.stories import STORIES, tell_of_documents
from headway.cli.demo.visitors import RULE
from headway.cli.terminal import console, run_async
from headway.clock import SystemClock, utc
from headway.errors import ConfigurationError
from headway.runtime import database_url, open_database
from headway.storage import applications, records
from headway.testing.smollm import locate_model, serve_smollm

_RECORDED_SECONDS = 20.0
_POLL_SECONDS = 0.1
_NO_DATA = "no data"


def play(home: Path, *, once: bool) -> None:
    """Play the demo in a folder; unless ``once``, leave Headway running until Ctrl-C.

    Raises:
        ConfigurationError: A package of the demo is missing, or the folder cannot be used.
        CommandError: A step failed.
        KeyboardInterrupt: It was interrupted before its end.
    """
    locate_model()
    if importlib.util.find_spec("openai") is None:
        raise ConfigurationError("the demo asks with OpenAI's client, which is not installed: run `make demo` once")
    signal.signal(signal.SIGTERM, _interrupt)
    _run(open_site(home), once=once)


def _run(site: Site, *, once: bool) -> None:
    clock = SystemClock()
    screen = Screen(console, clock)
    screen.title()
    with ExitStack() as stack:
        with screen.step("PostgreSQL, embedded") as notes:
            stack.enter_context(database_url(site.settings()))
            notes.append(f"data in {_near(site.home)}")
        with screen.step("SmolLM2-135M, a real language model, served by llama.cpp") as notes:
            model_url = stack.enter_context(serve_smollm(port=site.ports.model))
            notes.append(model_url)
        _configure(site, screen)
        key = _make_key(site)
        with screen.command("headway run"):
            stack.enter_context(site.serve())
        screen.say(f"  Headway answers on {site.base_url}")
        began = clock.unix_ms()
        screen.heading("Four visitors ask the library's help desk, all at once; each answer is streamed and rated.")
        screen.say(f"{RULE} Nothing else is looked at.")
        screen.say("The model is tiny: what it makes up, it makes up with confidence.\n")
        traffic = hold(site.base_url, key, screen)
        rows = run_async(_recorded(site, traffic, utc(began)))
        _show_results(screen, traffic, rows)
        _read_manual(site, key, model_url, screen)
        _hold_contest(site, key, screen, clock)
        _show_next_steps(screen, site, traffic, running=not once)
        _show_addresses(site, key)
        if not once:
            _wait()


def _configure(site: Site, screen: Screen) -> None:
    """Bring the two releases in, as an operator would."""
    known = _releases(site, APPLICATION)
    written = site.config.read_text("utf-8") if site.config.exists() else None
    ours = [site.configuration(*wanted) for wanted in ((FIRST_RELEASE, 1), (SECOND_RELEASE, 1), (SECOND_RELEASE, 2))]
    if written in (None, ours[0]):
        if FIRST_RELEASE not in known:
            site.write_configuration(FIRST_RELEASE, 1)
            screen.say(f"{_near(site.documents)}: Headway's own manual, {lay_out(site.documents)} documents")
            _build(site, screen, 1)
            _command(site, screen, "apply", "--yes")
        site.write_configuration(SECOND_RELEASE, 1)
        screen.say(f"{_near(site.config)}: release {FIRST_RELEASE} -> {SECOND_RELEASE}: its prompt now tells the facts")
    elif written == ours[2]:
        _build(site, screen, 2)
    elif written not in ours:
        screen.say(f"{_near(site.config)} was changed: it is applied as it is")
    # Accepted as it is: without traffic nobody can say how long a rollout takes.
    _command(site, screen, "apply", "--yes", "--accept")


def _build(site: Site, screen: Screen, version: int) -> None:
    """Build a version of the demo's index, unless an earlier run has done so."""
    if f"{INDEX}@{version}" not in {built["label"] for built in _read(site, "index", "list")}:
        _command(site, screen, "index", "build", INDEX, shown=("is published",))


def _command(site: Site, screen: Screen, *arguments: str, shown: tuple[str, ...] = ("",)) -> None:
    """Run a command, and show those lines of what it prints that have one of these texts in them."""
    with screen.command(f"headway {shlex.join(arguments)}"):
        printed = site.run(*arguments)
    for line in printed.splitlines():
        if any(text in line for text in shown) and not line.startswith("Next,"):
            screen.say(f"  {line.rstrip()}")


def _read(site: Site, *arguments: str) -> Any:
    return msgspec.json.decode(site.run(*arguments, "--json"))


def _make_key(site: Site) -> str:
    """Take the key of an earlier run while it is good, or make one."""
    old = site.read_key()
    active = (key["hint"] for key in _read(site, "keys", "list") if key["state"] == "active")
    if old is not None and any(old.startswith(hint) for hint in active):
        key = old
    else:
        scopes = ("invoke", "pin", "feedback", "view", "admin")
        key = site.run("keys", "create", "demo", *(part for scope in scopes for part in ("--scope", scope))).strip()
    site.write_variables(key)
    return key


async def _recorded(site: Site, traffic: Traffic, since: datetime) -> list[dict[str, Any]]:
    """Read what each release did, once everything that was asked is written."""
    clock = SystemClock()
    deadline = clock.monotonic_seconds() + _RECORDED_SECONDS
    async with open_database(site.settings()) as database:
        while True:
            async with database.connection() as connection:
                application = await applications.find_application(connection, APPLICATION)
                until = utc(clock.unix_ms() + 1000)
                rows = await records.summarise(connection, application.number, since, until)
            missing = traffic.asked - sum(row["interactions"] for row in rows)
            if missing <= 0 or clock.monotonic_seconds() > deadline:
                return rows
            await clock.sleep(_POLL_SECONDS)


def _read_manual(site: Site, key: str, model_url: str, screen: Screen) -> None:
    """Let a reader ask the manual, unless the configuration knows no such application any more."""
    if not _releases(site, GUIDE):
        return
    screen.heading("A reader asks Headway's own manual: answers come from an index version, and cite it.")
    screen.say("The same tiny model, alone and with the passages that a search found. OpenAI's client gets them, too.")
    for problem in read(site.base_url, key, model_url, screen):
        screen.say(f"This went wrong: {problem}")


def _releases(site: Site, application: str) -> set[str]:
    return {release["name"] for release in _read(site, "releases", "list") if release["application"] == application}


def _hold_contest(site: Site, key: str, screen: Screen, clock: SystemClock) -> None:
    """Roll the second releases of the simulated applications out, unless an earlier run of the demo has done so."""
    if site.config.read_text("utf-8") != site.configuration(SECOND_RELEASE, 1):
        return
    screen.heading("Four more applications get a new release each. Nobody tells Headway which of them is good.")
    screen.say(CONTEST_RULE)
    screen.say(f"Watch them in a browser too: {site.control_url}\n")

    def begin() -> None:
        site.write_configuration(SECOND_RELEASE, 2)
        screen.say(f"{_near(site.config)}: the second releases; the index leaves out {' and '.join(LEFT_OUT)}")
        _build(site, screen, 2)
        _command(site, screen, "index", "diff", f"{INDEX}@1", f"{INDEX}@2")
        _command(site, screen, "apply", "--yes", "--accept", shown=("is rolled out", "max_duration", "has begun"))

    questions = find_questions(site.documents)
    write_questions(site.questions, questions)
    stories = (*STORIES, tell_of_documents(questions))
    outcomes = run_async(hold_contest(site, key, screen, clock, stories, begin))
    screen.console.print()
    screen.console.print(describe_outcomes(outcomes))
    for outcome in outcomes:
        if outcome.lost:
            screen.say(f"{outcome.rollout.application}: {outcome.lost}")


def _show_results(screen: Screen, traffic: Traffic, rows: list[dict[str, Any]]) -> None:
    figures = {str(row["release"]): _figures(row) for row in rows}
    screen.compare("What Headway recorded in this run", figures)
    screen.say("Cost is as if the model were hosted.")
    if len(rows) == 1:
        screen.say(
            f"All traffic goes to {rows[0]['release']} by now. For two releases again, delete the demo's folder."
        )
    if traffic.problems:
        screen.say(f"{len(traffic.problems)} of {traffic.asked} questions went wrong; the first: {traffic.problems[0]}")
    if traffic.report:
        screen.say(f"One issue was reported, with the ids of bad answers: {traffic.report}")


def _figures(row: dict[str, Any]) -> dict[str, str]:
    thumbs = next((item for item in row.get("feedback", ()) if item["metric"] == "thumbs_up"), None)
    return {
        "requests": str(row["interactions"]),
        "conversations": _shown(row.get("units"), "{}"),
        "errors": _shown(row.get("errors"), "{}"),
        "first token, median": _shown(row.get("first_token_p50_ms"), "{:.0f} ms"),
        "whole answer, median": _shown(row.get("latency_p50_ms"), "{:.0f} ms"),
        "whole answer, 95 % within": _shown(row.get("latency_p95_ms"), "{:.0f} ms"),
        "of it Headway's own, median": _shown(row.get("overhead_p50_ms"), "{:.1f} ms"),
        "input tokens": _shown(row.get("input_tokens"), "{:,}"),
        "output tokens": _shown(row.get("output_tokens"), "{:,}"),
        "cost": _shown(row.get("cost_usd"), "${:.6f}"),
        "👍": _NO_DATA if thumbs is None else _share_of(thumbs["mean"], thumbs["values"]),
    }


def _share_of(mean: float, values: int) -> str:
    return f"{mean:.0%} ({mean * values:.0f} of {values})"


def _shown(value: Any, form: str) -> str:
    return _NO_DATA if value is None else form.format(value)


def _show_next_steps(screen: Screen, site: Site, traffic: Traffic, *, running: bool) -> None:
    rated = next((ids[-1] for ids in traffic.bad.values()), None)
    if running:
        screen.heading("Now it is your turn. In another terminal:")
    else:
        screen.heading("That was the demo. Without --once Headway keeps running; then, in another terminal:")
    screen.shell(f"source {shlex.quote(str(_near(site.variables)))}", "this demo's URLs and key")
    ask = '{"model": "support", "messages": [{"role": "user", "content": "What does printing cost?"}]}'
    key, json = '-H "Authorization: Bearer $OPENAI_API_KEY"', '-H "Content-Type: application/json"'
    screen.shell(f"curl -s $OPENAI_BASE_URL/chat/completions {key} {json} -d '{ask}'")
    if rated:
        rating = msgspec.json.encode({"interaction_id": rated, "metric": "thumbs_up", "value": False}).decode()
        screen.shell(f"curl -s $OPENAI_BASE_URL/feedback {json} -d '{rating}'", "an answer's id is enough to rate it")
    screen.shell(f"headway index show {INDEX}@1", "what the guide answers from; its documents are yours to change")
    screen.shell("headway releases list", "who gets which share")
    screen.shell(f"headway rollout show {APPLICATION}", "the rollout on the real model: still collecting")
    screen.shell("headway rollout show manual", "why it went back, and which documents were lost")
    questions = shlex.quote(str(_near(site.questions)))
    screen.shell(f"headway index compare {INDEX}@1 {INDEX}@2 --queries {questions}", "what tells before any traffic")
    screen.shell("headway rollout replay shop", "every decision, recomputed from the stored evidence")
    screen.shell("headway feedback list")
    screen.shell("headway reports list")
    screen.shell("headway diff 1 2", "what the two releases differ in")


def _show_addresses(site: Site, key: str) -> None:
    console.print()
    for name, value in (
        ("data plane", f"{site.base_url} (an OpenAI base URL)"),
        ("control plane", site.control_url),
        ("API key", key),
        ("configuration", str(_near(site.config))),
        ("log", str(_near(site.log))),
    ):
        console.print(Text.assemble((f"  {name:<15}", "dim"), value), soft_wrap=True)
    console.print()


def _wait() -> None:
    console.print(Text("Headway runs until you press Ctrl-C.", "bold"))
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        console.print(Text("\nHeadway stops.", "dim"))


def _near(path: Path) -> Path:
    """Write a path the short way, if it is below the current folder."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
