"""Loading headway.yaml: what it becomes, and every message about what is wrong with it."""

from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headway.config.indexes import LATEST, ChunkSpec, EmbedderSpec, IndexSpec, LakeSpec, parse_reference
from headway.config.load import InvalidFileError, load
from headway.config.spec import ReleaseSpec, Specification, decode_specification
from headway.domain.metric import BUILT_IN_FEEDBACK, FeedbackMetric
from headway.domain.release import Bundle, Deployment, Endpoint, Operation, Prices, Retrieval
from headway.errors import ConfigurationError

SOUND = """\
deployments:
  gpt-4o-mini:
    provider: openai
    model: gpt-4o-mini
    api_key: env:OPENAI_API_KEY
    headers: {X-Team: support, X-Token: "file:/run/secrets/token"}
    usd_per_million_tokens: {input: 0.15, output: 0.60, cached_input: 0.075}
    timeouts: {connect: 2s, first_token: 500ms, total: 2m}
    attempts: 3
    max_concurrency: 20
    queue: {size: 7, wait: 3s}
    circuit: {failures: 4, open: 1m}
  azure-gpt5: {provider: azure_openai, endpoint: https://contoso.openai.azure.com/, model: gpt-5-mini, auth: entra,
               api_version: 2024-10-21}
  local: {provider: openai, base_url: http://127.0.0.1:8081/v1, model: smollm2-135m}
metrics:
  tone: {kind: label, labels: [kind, rude], end_users: false}
  effort: {kind: bounded, direction: lower, minimum: 1, maximum: 7}
applications:
  support:
    unit: user
    policy: manual
    record: metadata
    retention: 7d
    metrics: [thumbs_up, tone]
    release:
      name: summer
      deployment: gpt-4o-mini
      fallbacks: [azure-gpt5]
      prompt: prompts/support.j2
      parameters: {temperature: 0.2, stop: [END], response_format: {type: json_object}}
      client_may_override: [temperature, system]
  bare:
    policy: careful
    release: {deployment: local}
  grounded:
    release:
      deployment: local
      index: handbook@3
      top_k: 8
      retrieval: {hybrid_weight: 0.7, minimum_score: 0.1, max_context_tokens: 900, nothing_found: refuse,
                  on_failure: answer, filter: {language: en, tags: [a, b]}, turns: 2}
  latest:
    release: {deployment: local, index: wiki}
policies:
  careful:
    stages: [{shadow: 5%, interactions: 20}, 1%, {share: 100%, approve: true}]
    goal: {metric: stars, margin: 0.2, require: superior}
    guardrails:
      - {metric: error_rate, ratio: 1.5, harm: 1.2, weight: 0.1, floor: 0.5%}
      - {metric: effort, margin: 0.6}
    max_duration: 3d
    holdback: {share: 5%, duration: 2h}
    kill_switch: {failures: 5}
    baselines: {stars: {level: 4.1}, error_rate: {level: 0.5%}}
webhooks:
  - {url: https://hooks.example.com/a, secret: env:HOOK, events: [rollout.promoted]}
indexes:
  handbook: {lake: file:./docs}
  wiki:
    lake: {url: "s3://wiki/pages", options: {endpoint_url: "http://s3:9000"}, secrets: {secret: env:S3}}
    include: ["**/*.md", "**/*.html"]
    exclude: [drafts/**]
    prefix: en/
    modified_since: 2026-01-31T12:00:00+01:00
    embedder: {deployment: local, dimensions: 512, batch: 16}
    chunk: {tokens: 128, overlap: 0}
    labels: {"**": [staff, admin], "en/hr/**": [hr]}
    keep: 2
    language: simple
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "support.j2").write_text("Help {{ user }}. Today is {{ today }}. {{ metadata.plan }}\n")
    return tmp_path


def specify(folder: Path, text: str) -> Specification:
    (folder / "headway.yaml").write_text(dedent(text))
    return load(folder / "headway.yaml").specification


def problems(folder: Path, text: str) -> list[str]:
    """The messages about a file, without the folder's name."""
    with pytest.raises(InvalidFileError) as caught:
        specify(folder, text)
    return [str(problem).replace(f"{folder}/", "") for problem in caught.value.problems]


def test_a_sound_file_becomes_a_specification(folder: Path) -> None:
    specification = specify(folder, SOUND)
    openai = Endpoint("openai", "https://api.openai.com/v1", "gpt-4o-mini")
    azure = Endpoint("azure_openai", "https://contoso.openai.azure.com", "gpt-5-mini", "2024-10-21")
    assert specification.deployments == {
        "gpt-4o-mini": Deployment(
            "gpt-4o-mini",
            openai,
            Operation(
                auth="api_key",
                api_key="env:OPENAI_API_KEY",
                headers=(("X-Team", "support"), ("X-Token", "file:/run/secrets/token")),
                usd_per_million_tokens=Prices(0.15, 0.6, 0.075),
                connect_seconds=2,
                first_token_seconds=0.5,
                total_seconds=120,
                attempts=3,
                max_concurrency=20,
                queue_size=7,
                queue_seconds=3,
                breaker_failures=4,
                breaker_seconds=60,
            ),
        ),
        "azure-gpt5": Deployment("azure-gpt5", azure, Operation(auth="entra")),
        "local": Deployment(
            "local", Endpoint("openai", "http://127.0.0.1:8081/v1", "smollm2-135m"), Operation(auth="none")
        ),
    }
    tone = FeedbackMetric(kind="label", labels=("kind", "rude"), end_users=False)
    effort = FeedbackMetric(kind="bounded", direction="lower", minimum=1, maximum=7)
    assert specification.metrics == {"tone": tone, "effort": effort}
    support, bare = specification.applications["support"], specification.applications["bare"]
    assert (support.unit, support.policy, support.record_content, support.retention_days) == (
        "user",
        "manual",
        False,
        7,
    )
    assert support.metrics == {"thumbs_up": BUILT_IN_FEEDBACK["thumbs_up"], "tone": tone}
    assert support.release.name == "summer"
    assert support.release.bundle == Bundle(
        deployments=(("gpt-4o-mini", openai), ("azure-gpt5", azure)),
        prompt="Help {{ user }}. Today is {{ today }}. {{ metadata.plan }}\n",
        parameters={"temperature": 0.2, "stop": ["END"], "response_format": {"type": "json_object"}},
        client_may_override=("system", "temperature"),
    )
    assert (bare.unit, bare.policy, bare.record_content, bare.retention_days) == ("conversation", "careful", True, 30)
    assert [rule.metric for rule in specification.policies["careful"].rules][:3] == ["stars", "error_rate", "effort"]
    assert [webhook.url for webhook in specification.webhooks] == ["https://hooks.example.com/a"]
    assert bare.metrics == {**BUILT_IN_FEEDBACK, "tone": tone, "effort": effort}
    assert bare.release.name == f"r-{bare.release.bundle.content_hash()[:8]}"


def test_indexes_and_what_releases_say_of_them(folder: Path) -> None:
    specification = specify(folder, SOUND)
    assert specification.indexes == {
        "handbook": IndexSpec(LakeSpec(f"file:{folder}/docs")),
        "wiki": IndexSpec(
            lake=LakeSpec(
                url="s3://wiki/pages",
                include=("**/*.md", "**/*.html"),
                exclude=("drafts/**",),
                prefix="en/",
                modified_since="2026-01-31T11:00:00+00:00",
                options={"endpoint_url": "http://s3:9000"},
                secrets={"secret": "env:S3"},
            ),
            embedder=EmbedderSpec("local", 512, 16),
            chunk=ChunkSpec(128, 0),
            labels=(("**", ("admin", "staff")), ("en/hr/**", ("hr",))),
            keep=2,
            language="simple",
        ),
    }
    grounded, latest = (specification.applications[name].release.bundle for name in ("grounded", "latest"))
    assert grounded.retrieval == Retrieval(
        "handbook", 3, 8, 0.7, 0.1, 900, "refuse", "answer", {"language": "en", "tags": ["a", "b"]}, 2
    )
    assert latest.retrieval == Retrieval("wiki", LATEST)


def test_a_date_without_a_zone_is_utc(folder: Path) -> None:
    text = SOUND.replace("2026-01-31T12:00:00+01:00", "2026-01-31")
    assert specify(folder, text).indexes["wiki"].lake.modified_since == "2026-01-31T00:00:00+00:00"


@given(st.text(max_size=20) | st.from_regex(r"[a-z]{1,3}(@\d{1,3})?", fullmatch=True))
def test_a_reference_is_written_as_it_is_read(text: str) -> None:
    with suppress(ValueError):
        assert parse_reference(str(parse_reference(text))) == parse_reference(text)


def test_a_name_made_from_the_content_follows_it(folder: Path) -> None:
    latest = specify(folder, SOUND).applications["latest"].release
    bundle = msgspec.structs.replace(latest.bundle, retrieval=Retrieval("wiki", 4))
    assert latest.holding(bundle) == ReleaseSpec(f"r-{bundle.content_hash()[:8]}", bundle)
    assert msgspec.structs.replace(latest, name="mine").holding(bundle) == ReleaseSpec("mine", bundle)


def test_a_specification_survives_being_stored(folder: Path) -> None:
    specification = specify(folder, SOUND)
    again = decode_specification(yaml.safe_load(specification.encode()))
    assert again == specification
    assert again.content_hash() == specification.content_hash()


def test_the_release_follows_what_can_change_an_answer_and_nothing_else(folder: Path) -> None:
    release = "applications:\n  a:\n    release: {deployment: d, parameters: {%s}%s}\n"
    deployment = "deployments:\n  d: {provider: openai, base_url: http://h/v1, model: %s%s}\n"

    def name(
        model: str = "m", operation: str = "", parameters: str = "temperature: 1, top_p: 0", more: str = ""
    ) -> str:
        text = deployment % (model, operation) + release % (parameters, more)
        return specify(folder, text).applications["a"].release.name

    same = name()
    assert same == name(operation=", attempts: 5, api_key: env:KEY, usd_per_million_tokens: {input: 1, output: 2}")
    assert same == name(parameters="top_p: 0, temperature: 1")
    different = [name(model="n"), name(parameters="temperature: 2"), name(more=", prompt: {text: hi}")]
    different.append(name(more=", client_may_override: [top_p]"))
    assert len({same, *different}) == 5


def test_a_prompt_in_place_and_one_in_a_file_are_the_same_release(folder: Path) -> None:
    (folder / "hello.j2").write_text("Hello\n")
    text = "deployments:\n  d: {provider: openai, base_url: http://h, model: m}\napplications:\n  a:\n    release: "
    in_place = specify(folder, text + '{deployment: d, prompt: {text: "Hello\\n"}}')
    in_file = specify(folder, text + "{deployment: d, prompt: hello.j2}")
    assert in_place == in_file


HEAD = "deployments:\n  d: {provider: openai, base_url: http://h/v1, model: m}\n"
APPLICATION = HEAD + "applications:\n  a:\n    release: {deployment: d}\n"  # lines 1 to 5


def release(keys: str) -> str:
    return HEAD + "applications:\n  a:\n    release: {deployment: d, %s}\n" % keys  # noqa: UP031 (braces)


def golden() -> dict[str, tuple[str, str]]:
    """The cases of messages.txt: what the file holds and what is said about it."""
    cases = {}
    for case in (Path(__file__).parent / "messages.txt").read_text().split("==== ")[1:]:
        name, _, rest = case.partition("\n")
        text, _, expected = rest.partition("\n----\n")
        cases[name] = (text + "\n", expected.strip())
    return cases


GOLDEN = golden() | {
    "empty": ("", "1: the file is empty"),
    "control character": ("a: b\nc: \x01\n", "2: the file holds a character that YAML does not allow"),
    "far too deep": ("[" * 5000 + "]" * 5000, "1: the file is nested too deeply"),
    "too large": (APPLICATION + "#" * 1_000_001, "1: the file is larger than 1 MB"),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_messages(case: str, folder: Path) -> None:
    text, expected = GOLDEN[case]
    found = problems(folder, text)
    assert [message.removeprefix("headway.yaml:") for message in found] == expected.splitlines()
    assert "hunter2" not in "".join(found)
    assert "sk-" not in "".join(found)


def test_all_problems_are_told_at_once_in_the_order_of_their_lines(folder: Path) -> None:
    (folder / "prompts" / "broken.j2").write_text("fine\n{% if user %}\n")
    text = """\
    deployments:
      main: {provider: openai, model: m, api_key: literal, attempts: 0}
      spare: {provider: openai, base_url: nowhere, model: m}
    applications:
      support:
        unit: nobody
        release: {deployment: mian, fallbacks: [spare, spair], prompt: prompts/broken.j2}
    metrics:
      mood: {kind: label}
    """
    found = problems(folder, text)
    assert [line.split(": ")[0:2] for line in found] == [
        ["headway.yaml:2", "deployments.main.api_key"],
        ["headway.yaml:2", "deployments.main.attempts"],
        ["headway.yaml:3", "deployments.spare.base_url"],
        ["headway.yaml:6", "applications.support.unit"],
        ["headway.yaml:7", "applications.support.release.deployment"],
        ["headway.yaml:7", "applications.support.release.fallbacks.1"],
        ["headway.yaml:9", "metrics.mood"],
        ["prompts/broken.j2:2", "applications.support.release.prompt"],
    ]


def test_a_prompt_that_is_not_text_is_named(folder: Path) -> None:
    (folder / "prompts" / "support.j2").write_bytes(b"caf\xe9")
    assert problems(folder, release("prompt: prompts/support.j2")) == [
        "headway.yaml:5: applications.a.release.prompt: prompts/support.j2 is not UTF-8 text (byte 3)"
    ]
    (folder / "prompts" / "support.j2").write_bytes(b"a\nb\x00")
    assert problems(folder, release("prompt: prompts/support.j2")) == [
        "prompts/support.j2:2: applications.a.release.prompt: the template holds a NUL character"
    ]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing\.yaml does not exist"):
        load(tmp_path / "nothing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigurationError, match=r"latin\.yaml is not UTF-8 text \(byte 5\)"):
        load(tmp_path / "latin.yaml")


def test_a_byte_order_mark_and_windows_lines_are_fine(folder: Path) -> None:
    (folder / "headway.yaml").write_bytes(b"\xef\xbb\xbf" + APPLICATION.replace("\n", "\r\n").encode())
    assert set(load(folder / "headway.yaml").specification.applications) == {"a"}


def test_aliases_may_be_used(folder: Path) -> None:
    text = APPLICATION + "  b:\n    release: &r {deployment: d, parameters: {x: 1}}\n  c:\n    release: *r\n"
    applications = specify(folder, text).applications
    assert applications["b"].release == applications["c"].release


# --- whatever the file holds, loading ends in a specification or in its problems ---

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=12)
    | st.sampled_from(["openai", "manual", "5s", "10%", "d", "env:X", "text", "conversation", "prompts/support.j2"])
    | st.sampled_from(["5pp", "off", "shadow", "careful", "error_rate", "comment", "100%", "800ms", 0, 1, 1.5, 0.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [above]
    if isinstance(value, dict):
        found += [place for key, item in value.items() for place in places(item, (*above, key))]
    if isinstance(value, list):
        found += [place for index, item in enumerate(value) for place in places(item, (*above, index))]
    return found


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
def test_no_change_to_a_sound_file_breaks_the_loader(folder: Path, data: st.DataObject) -> None:
    tree = yaml.safe_load(SOUND)
    place = data.draw(st.sampled_from(places(tree)[1:]))
    within = tree
    for key in place[:-1]:
        within = within[key]
    if data.draw(st.booleans()):
        within[place[-1]] = data.draw(VALUES)
    elif isinstance(within, dict):
        within[data.draw(st.text(max_size=8))] = within.pop(place[-1])
    with suppress(InvalidFileError):
        specify(folder, yaml.safe_dump(tree, allow_unicode=True))


@given(st.text(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_text_breaks_the_loader(folder: Path, text: str) -> None:
    (folder / "headway.yaml").write_bytes(text.encode("utf-8", "replace"))
    with pytest.raises(ConfigurationError):
        load(folder / "headway.yaml")
