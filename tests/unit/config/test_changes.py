"""What differs between two specifications, in the file's own words."""

from pathlib import Path

from headway.config.changes import Change, compare, diff_texts, prompts
from headway.config.load import load
from headway.config.spec import Specification

BEFORE = """\
deployments:
  d:
    provider: openai
    base_url: http://h/v1
    model: m
    headers: {X-A: one}
    usd_per_million_tokens: {input: 1, output: 2}
    timeouts: {connect: 5s}
metrics:
  tone: {kind: label, labels: [kind, rude]}
applications:
  a:
    release: {deployment: d, prompt: {text: "Be brief.\\nBe kind."}, parameters: {temperature: 1}}
"""


def specification(tmp_path: Path, text: str) -> Specification:
    (tmp_path / "headway.yaml").write_text(text)
    return load(tmp_path / "headway.yaml").specification


def changes(tmp_path: Path, *replacements: tuple[str, str]) -> tuple[Change, ...]:
    after = BEFORE
    for old, new in replacements:
        assert old in after
        after = after.replace(old, new)
    return compare(specification(tmp_path, BEFORE), specification(tmp_path, after))


def test_everything_is_new_at_first(tmp_path: Path) -> None:
    assert compare(None, specification(tmp_path, BEFORE)) == (
        Change("created", "deployment d"),
        Change("created", "metric tone"),
        Change("created", "application a"),
    )


def test_equal_content_has_no_changes(tmp_path: Path) -> None:
    assert changes(tmp_path, ("{kind: label, labels: [kind, rude]}", "{labels: [kind, rude], kind: label}")) == ()


def test_how_a_deployment_is_run_changes_it_alone(tmp_path: Path) -> None:
    assert changes(tmp_path, ("connect: 5s", "connect: 2s"), ("X-A: one", "X-B: two"), ("input: 1", "input: 1.5")) == (
        Change(
            "changed",
            "deployment d",
            (
                "headers.X-B: none -> two",
                "usd_per_million_tokens.input: 1.0 -> 1.5",
                "timeouts.connect (seconds): 5.0 -> 2.0",
                "headers.X-A: one -> none",
            ),
        ),
    )


def test_another_model_changes_the_release_too(tmp_path: Path) -> None:
    deployment, application = changes(tmp_path, ("model: m", "model: n"))
    assert deployment == Change("changed", "deployment d", ("model: m -> n",))
    assert application.subject == "application a"
    assert [detail.partition(":")[0] for detail in application.details] == ["release.name", "release.endpoints"]


def test_prompts_are_counted_in_lines(tmp_path: Path) -> None:
    (change,) = changes(tmp_path, ("Be kind.", "Be honest.\\nBe quick."), ("temperature: 1", "temperature: 1.0"))
    assert change.details[1:] == (
        "release.prompt: 2 lines added, 1 removed",
        "release.parameters.temperature: 1 -> 1.0",
    )


def test_what_is_gone_is_told(tmp_path: Path) -> None:
    found = changes(tmp_path, ("metrics:\n  tone: {kind: label, labels: [kind, rude]}\n", ""))
    assert found[0] == Change("changed", "application a", (found[0].details[0],))
    assert found[0].details[0].endswith("comment, correction, stars, thumbs_up")
    assert found[1] == Change("removed", "metric tone")


def test_indexes_are_told_key_by_key(tmp_path: Path) -> None:
    added = ("applications:", "indexes:\n  h: {lake: file:/docs, labels: {hr/**: [hr]}}\napplications:")
    assert changes(tmp_path, added) == (Change("created", "index h"),)
    before = specification(tmp_path, BEFORE.replace(*added))
    (tmp_path / "headway.yaml").write_text(
        BEFORE.replace(
            "applications:",
            "indexes:\n  h: {lake: file:/docs, include: ['*.md'], embedder: {deployment: d}, keep: 2}\napplications:",
        )
    )
    after = load(tmp_path / "headway.yaml").specification
    assert compare(before, after) == (
        Change(
            "changed",
            "index h",
            (
                "keep: 5 -> 2",
                "embedder: local-static -> d",
                "embedder.batch: none -> 64",
                "include: ** -> *.md",
                "labels.hr/**: hr -> none",
            ),
        ),
    )


def test_a_release_on_another_index_version_is_told(tmp_path: Path) -> None:
    indexes = "indexes: {h: {lake: file:/docs}}\napplications:"
    one = BEFORE.replace("applications:", indexes).replace("deployment: d,", "deployment: d, index: h@1, top_k: 3,")
    two = one.replace("h@1, top_k: 3", "h, retrieval: {turns: 2}")
    (change,) = compare(specification(tmp_path, one), specification(tmp_path, two))
    assert change.details[1:] == ("release.index: h@1 -> h", "release.top_k: 3 -> 5", "release.retrieval.turns: 1 -> 2")


def test_texts_are_compared_line_by_line(tmp_path: Path) -> None:
    assert prompts(specification(tmp_path, BEFORE)) == {"a": "Be brief.\nBe kind."}
    assert diff_texts("a\nb\n", "a\nc\n", ("one", "two")) == "--- one\n+++ two\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"
    assert diff_texts("a\n", "a\n", ("one", "two")) == ""
