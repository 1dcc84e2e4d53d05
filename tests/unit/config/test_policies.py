"""Policies of headway.yaml: what they become, and every message about what is wrong with them."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from headway.cli.starter import STARTER_FILES
from headway.config.changes import Change, compare
from headway.config.load import InvalidFileError, load
from headway.config.spec import Specification, WebhookSpec, decode_specification
from headway.domain.policy import (
    DEFAULT_STAGES,
    DeclaredBaseline,
    HoldbackRule,
    KillSwitch,
    MetricRule,
    Policy,
    ShadowRule,
    StageRule,
)

HEAD = """\
deployments:
  d: {provider: openai, base_url: http://h/v1, model: m%s}
applications:
  a: {policy: p%s, release: {deployment: d}}
metrics: {tone: {kind: label, labels: [a]}, effort: {kind: bounded, minimum: 1, maximum: 7, direction: lower}, \
worth: {kind: positive}}
policies:
  p:
"""
PRICED = ", usd_per_million_tokens: {input: 1, output: 2}"
GOAL = "goal: {metric: thumbs_up, margin: 5pp}"


def specify(tmp_path: Path, keys: str, *, deployment: str = PRICED, application: str = "") -> Specification:
    """Load a file with a policy ``p`` that has these keys, from line 8 on."""
    (tmp_path / "headway.yaml").write_text(HEAD % (deployment, application) + f"    {keys}\n")
    return load(tmp_path / "headway.yaml").specification


def problems(tmp_path: Path, keys: str, *, deployment: str = PRICED, application: str = "") -> list[str]:
    with pytest.raises(InvalidFileError) as caught:
        specify(tmp_path, keys, deployment=deployment, application=application)
    return [str(problem).replace(f"{tmp_path}/headway.yaml:", "") for problem in caught.value.problems]


def golden() -> dict[str, list[str]]:
    """The cases of policies.txt: keys of a policy (a goal is put before them if there is none), and what is said."""
    cases = {}
    for case in (Path(__file__).parent / "policies.txt").read_text().split("==== ")[1:]:
        keys, _, expected = case.partition("\n----\n")
        cases[keys] = expected.strip().splitlines()
    return cases


GOLDEN = golden()


@pytest.mark.parametrize("keys", GOLDEN)
def test_messages(keys: str, tmp_path: Path) -> None:
    text = keys if keys.startswith("goal") else f"{GOAL}\n    {keys}"
    found = problems(tmp_path, text, deployment="")
    assert [message.replace("policies.p.", "").replace("policies.p:", "p:") for message in found] == GOLDEN[keys]


def test_a_bare_policy_has_defaults_and_the_default_guardrails(tmp_path: Path) -> None:
    third: Any = pytest.approx(1 / 3)
    assert specify(tmp_path, GOAL).policies == {
        "p": Policy(
            name="p",
            stages=DEFAULT_STAGES,
            rules=(
                MetricRule("thumbs_up", "goal", "two_sample", "points", "higher", 0.05, 0.025, third, floor=0.0),
                MetricRule("attempt_error_rate", "guardrail", "event_ratio", "ratio", "lower", 1.5, 1.25, third),
                MetricRule("fallback_rate", "guardrail", "event_ratio", "ratio", "lower", 1.5, 1.25, third),
            ),
        )
    }


FULL = """stages: [{shadow: 5%, budget_usd: 3, interactions: 20}, 10%, {share: 100%, approve: true}]
    goal: {metric: stars, margin: 0.2, harm: 0, require: superior, weight: 0.4}
    guardrails:
      - {metric: fallback_rate, ratio: 3, harm: 1, floor: 1%}
      - {metric: attempt_error_rate, ratio: 2, floor: 0}
      - {metric: latency_p95, ratio: 1.2}
      - {metric: cost, ratio: 1.1}
      - {metric: worth, ratio: 0.8}
      - {metric: effort, margin: 0.6}
    alpha: 0.1
    beta: 0.01
    min_units: 7
    dwell: 90s
    feedback_window: 10m
    settle: 0s
    max_duration: 2d
    on_inconclusive: keep
    on_lost_control: stable
    holdback: {share: 5%, duration: 2h, alpha: 0.02}
    kill_switch: {safety_events: 3, failures: 4, of_first: 9}
    baselines:
      stars: {level: 4.1}
      fallback_rate: {level: 0.5%}
      latency_p95: {level: 1.5s}
      cost: {level: 0.01, limit: 1}"""


def test_every_key_of_a_policy_is_read(tmp_path: Path) -> None:
    rest: Any = pytest.approx(0.1)
    harm: Any = pytest.approx(1.05)
    assert specify(tmp_path, FULL).policies["p"] == Policy(
        name="p",
        stages=(StageRule(0.1), StageRule(1.0, approve=True)),
        rules=(
            MetricRule("stars", "goal", "betting", "points", "higher", 0.2, 0.0, 0.4, "superior", floor=0.0),
            MetricRule("fallback_rate", "guardrail", "event_ratio", "ratio", "lower", 3.0, 1.0, rest, floor=0.01),
            MetricRule("attempt_error_rate", "guardrail", "event_ratio", "ratio", "lower", 2.0, 1.5, rest, floor=0.0),
            MetricRule("latency_p95", "guardrail", "slow_calls", "ratio", "lower", 1.2, 1.1, rest, floor=0.0),
            MetricRule("cost", "guardrail", "normal_mixture", "ratio", "lower", 1.1, harm, rest, floor=0.0),
            MetricRule("worth", "guardrail", "normal_mixture", "ratio", "higher", 0.8, 0.9, rest, floor=0.0),
            MetricRule("effort", "guardrail", "betting", "points", "lower", 0.6, 0.3, rest, floor=0.0),
        ),
        shadow=ShadowRule(0.05, 3.0, 20),
        alpha=0.1,
        beta=0.01,
        min_units=7,
        dwell_seconds=90.0,
        feedback_window_seconds=600.0,
        settle_seconds=0.0,
        max_duration_seconds=2 * 86_400.0,
        on_inconclusive="keep",
        on_lost_control="stable",
        holdback=HoldbackRule(0.05, 7200.0, 0.02),
        kill_switch=KillSwitch(3, 4, 9),
        baselines={
            "stars": DeclaredBaseline(4.1),
            "fallback_rate": DeclaredBaseline(0.005),
            "latency_p95": DeclaredBaseline(1500.0),
            "cost": DeclaredBaseline(0.01, 1.0),
        },
    )


def test_weights_add_up_to_one_whoever_gives_them(tmp_path: Path) -> None:
    for keys in (GOAL, FULL, f"{GOAL}\n    guardrails: [{{metric: error_rate, ratio: 2, weight: 0.7}}]"):
        assert sum(rule.weight for rule in specify(tmp_path, keys).policies["p"].rules) == pytest.approx(1.0)
    given = """goal: {metric: stars, margin: 0.2, weight: 0.5}
    guardrails: [{metric: attempt_error_rate, ratio: 2, weight: 0.3}, {metric: fallback_rate, ratio: 2, weight: 0.2}]"""
    assert [rule.weight for rule in specify(tmp_path, given).policies["p"].rules] == [0.5, 0.3, 0.2]


def test_holdback_and_shadow_in_short(tmp_path: Path) -> None:
    policy = specify(tmp_path, f"{GOAL}\n    holdback: off\n    stages: [shadow, 1%, 99.5%, 100%]").policies["p"]
    assert (policy.holdback, policy.shadow, policy.stages[-2].share) == (None, ShadowRule(), 0.995)


def test_the_margin_must_fit_where_a_metric_is_declared_again(tmp_path: Path) -> None:
    """A metric that is itself wrong is told of once, and the policy not blamed for it."""
    text = HEAD.replace("minimum: 1", "minimum: 9") % ("", "") + "    goal: {metric: effort, margin: 0.5}\n"
    (tmp_path / "headway.yaml").write_text(text)
    with pytest.raises(InvalidFileError) as caught:
        load(tmp_path / "headway.yaml")
    assert [problem.place for problem in caught.value.problems] == ["metrics.effort"]


def test_what_an_application_cannot_deliver(tmp_path: Path) -> None:
    cost = f"{GOAL}\n    guardrails: [{{metric: cost, ratio: 1.1}}, {{metric: feedback_rate, ratio: 0.8}}]"
    assert problems(tmp_path, cost, deployment="") == [
        "4: applications.a.policy: p needs costs (cost), but deployment d has no prices: give it usd_per_million_tokens"
    ]
    budget = f"{GOAL}\n    stages: [{{shadow: 10%, budget_usd: 5}}, 1%, 100%]"
    assert problems(tmp_path, budget, deployment="") == [
        (
            "4: applications.a.policy: p needs costs (the budget of its shadow stage), but deployment d has no prices:"
            " give it usd_per_million_tokens"
        )
    ]
    assert problems(tmp_path, cost, application=", metrics: [stars]") == [
        "4: applications.a.policy: p decides on thumbs_up, which is not among this application's metrics"
    ]
    assert problems(tmp_path, cost, application=", metrics: []") == [
        "4: applications.a.policy: p decides on feedback_rate, but no feedback is taken",
        "4: applications.a.policy: p decides on thumbs_up, which is not among this application's metrics",
    ]
    assert specify(tmp_path, cost, application=", metrics: [thumbs_up]").applications["a"].policy == "p"


def test_a_fallback_without_prices_hides_costs_too(tmp_path: Path) -> None:
    text = f"""\
deployments:
  d: {{provider: openai, base_url: http://h/v1, model: m{PRICED}}}
  e: {{provider: openai, base_url: http://h/v1, model: n}}
applications:
  a: {{policy: p, release: {{deployment: d, fallbacks: [e]}}}}
policies:
  p: {{goal: {{metric: cost, ratio: 1.2}}}}
"""
    (tmp_path / "headway.yaml").write_text(text)
    with pytest.raises(InvalidFileError, match="deployment e has no prices"):
        load(tmp_path / "headway.yaml")


# --- webhooks ---

WEBHOOKS = """webhooks:
  - {url: https://hooks.example.com/a, secret: env:HOOK, events: [rollout.promoted, rollout.rolled_back]}
  - {url: https://hooks.example.com/b}
"""


def test_webhooks_are_read(tmp_path: Path) -> None:
    assert specify(tmp_path, f"{GOAL}\n{WEBHOOKS}").webhooks == (
        WebhookSpec("https://hooks.example.com/a", "env:HOOK", ("rollout.promoted", "rollout.rolled_back")),
        WebhookSpec("https://hooks.example.com/b"),
    )


def test_messages_about_webhooks(tmp_path: Path) -> None:
    wrong = """webhooks:
  - {url: https://h/a, secret: hunter2}
  - {url: https://h/a, events: [rollout.promotd]}
  - {secret: env:X}
  - {url: ftp://h}
"""
    found = problems(tmp_path, f"{GOAL}\n{wrong}")
    assert found == [
        (
            "10: webhooks.0.secret: a secret is never written into this file, which is kept and shown: name where it is"
            " instead, as env:NAME or file:/path"
        ),
        (
            "11: webhooks.1.events.0: expected rollout.started, rollout.advanced, rollout.approval_needed,"
            " rollout.paused,"
            " rollout.resumed, rollout.promoted, rollout.rolled_back, rollout.inconclusive or rollout.alert,"
            " not 'rollout.promotd'; did you mean 'rollout.promoted'?"
        ),
        "11: webhooks.1.url: this URL has a webhook already; list its events there",
        "12: webhooks.2: missing key: url",
        "13: webhooks.3.url: expected a URL such as https://example.com/v1",
    ]


# --- stored, and compared ---


def test_a_specification_with_policies_survives_being_stored(tmp_path: Path) -> None:
    specification = specify(tmp_path, f"{FULL}\n{WEBHOOKS}")
    assert decode_specification(yaml.safe_load(specification.encode())) == specification


def test_what_was_stored_before_there_were_policies_is_still_read_and_keeps_its_hash(tmp_path: Path) -> None:
    (tmp_path / "headway.yaml").write_text(HEAD.partition("policies:")[0].replace("policy: p%s, ", "") % "")
    specification = load(tmp_path / "headway.yaml").specification
    stored = msgspec.json.decode(specification.encode())
    assert set(stored) == {"deployments", "metrics", "applications"}
    assert decode_specification(stored) == specification


def test_differences_are_told_in_the_words_of_the_file(tmp_path: Path) -> None:
    before = specify(tmp_path, f"{FULL}\n{WEBHOOKS}")
    changed = FULL.replace("margin: 0.2, harm: 0", "margin: 0.3").replace("dwell: 90s", "dwell: 1h")
    changed = changed.replace("10%, {share: 100%, approve: true}", "10%, 100%").replace("alpha: 0.02", "alpha: 0.03")
    changed = changed.replace("      - {metric: worth, ratio: 0.8}\n", "").replace("of_first: 9", "of_first: 8")
    changed = changed.replace("cost: {level: 0.01, limit: 1}", "cost: {level: 0.02, limit: 1}")
    after = specify(tmp_path, f"{changed}\n{WEBHOOKS.replace(', rollout.rolled_back', '')}")
    policy, webhook = compare(before, after)
    assert (policy.action, policy.subject) == ("changed", "policy p")
    assert [detail for detail in policy.details if "weight" not in detail] == [
        "stages: 10%, 100% when approved -> 10%, 100%",
        "dwell: 90s -> 1h",
        "holdback.alpha: 0.02 -> 0.03",
        "kill_switch.of_first: 9 -> 8",
        "baselines.cost.level: 0.01 -> 0.02",
    ]
    assert (
        "goal stars: margin 0.2, harm 0, weight 0.4, superior -> margin 0.3, harm 0.15, weight 0.4, superior"
        in policy.details
    )
    assert "guardrail worth: ratio 0.8, harm 0.9, weight 0.1 -> none" in policy.details
    assert webhook == Change(
        "changed",
        "webhook https://hooks.example.com/a",
        ("events: rollout.promoted, rollout.rolled_back -> rollout.promoted",),
    )
    assert [change.subject for change in compare(None, before)][-3:] == [
        "policy p",
        "webhook https://hooks.example.com/a",
        "webhook https://hooks.example.com/b",
    ]


def test_the_policy_that_init_writes_is_sound_for_its_application(tmp_path: Path) -> None:
    for name, text in STARTER_FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(
            text.replace("policy: manual", "policy: careful").replace("# baselines", "baselines")
        )
    specification = load(tmp_path / "headway.yaml").specification
    assert specification.applications["support"].policy == "careful"
    assert set(specification.policies["careful"].baselines) == {"thumbs_up", "latency_p95"}
