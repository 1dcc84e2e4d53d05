"""The rule by which the demo's visitors rate."""

import jinja2
import pytest

from headway.cli.demo.site import FIRST_RELEASE, SECOND_RELEASE, Ports, Site
from headway.cli.demo.visitors import LONGEST_ANSWER_WORDS, RULE, VISITORS, Question, judge
from headway.config.load import load

QUESTION = Question("What does printing cost?", "15 cents")


@pytest.mark.parametrize(
    ("answer", "good", "reason"),
    [
        ("Printing costs 15 cents a page.", True, "names '15 cents' in 6 words"),
        ("It is 15\ncents.", True, "names '15 cents' in 4 words"),
        ("Printing is a process.", False, "does not name '15 cents'"),
        ("", False, "does not name '15 cents'"),
        ("15 cents " + "and so on " * 10, False, "names '15 cents', but takes 32 words"),
        ("15 cents " + "word " * (LONGEST_ANSWER_WORDS - 2), True, "names '15 cents' in 30 words"),
    ],
)
def test_the_rule(answer: str, good: bool, reason: str) -> None:
    verdict = judge(QUESTION, answer)
    assert (verdict.good, verdict.reason) == (good, reason)
    assert str(LONGEST_ANSWER_WORDS) in RULE


def test_the_facts_prompt_holds_every_fact_and_the_plain_one_none(tmp_path_factory: pytest.TempPathFactory) -> None:
    site = Site(tmp_path_factory.mktemp("demo"), Ports(1, 2, 3, 4))
    prompts = {}
    for release in (FIRST_RELEASE, SECOND_RELEASE):
        site.write_configuration(release, 1)
        bundle = load(site.config).specification.applications["support"].release.bundle
        assert bundle.prompt is not None
        prompts[release] = jinja2.Template(bundle.prompt).render()
    facts = {question.fact for visitor in VISITORS for talk in visitor.conversations for question in talk}
    assert [fact for fact in facts if fact.lower() not in prompts[SECOND_RELEASE].lower()] == []
    assert [fact for fact in facts if fact.lower() in prompts[FIRST_RELEASE].lower()] == []
