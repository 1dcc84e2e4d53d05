from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from headway.errors import ConfigurationError
from headway.lake.parsing.documents import parse
from headway.testing.faq import Faq, load_faq, pod_to_markdown

POD = """\
=head1 NAME

faq4 - Data

=head1 DESCRIPTION

See L<perlop/"Numbers"> and L<the site|https://perl.org>.

=head2 Why is C<< $a->{x} >> E<lt> 1? X<int>

It B<is
broken>:

    print 1;

    print 2;

=over 4

=item * one

=back
"""


@pytest.fixture(scope="module")
def faq() -> Faq:
    return load_faq()


def test_pod_becomes_markdown() -> None:
    assert pod_to_markdown(POD) == (
        "# faq4 - Data\n\n## DESCRIPTION\n\nSee perlop Numbers and the site.\n\n### Why is `$a->{x}` < 1? \n\n"
        "It is\nbroken:\n\n```\n    print 1;\n\n    print 2;\n```\n\n- one\n"
    )


def test_questions_of_all_three_packages_are_found(faq: Faq) -> None:
    counted = Counter(question.path.partition("/")[0] for question in faq.questions)
    assert counted["perl"] >= 300
    assert counted["python"] >= 170
    assert counted["debian"] >= 100
    assert len({question.path for question in faq.questions}) == len(faq.questions)
    assert all(question.answer for question in faq.questions)
    assert not any(question.text[0].isdigit() for question in faq.questions)


def test_a_question_is_asked_with_its_answer_and_place(faq: Faq) -> None:
    (question,) = (question for question in faq.questions if question.text == "Why is int() broken?")
    assert question.page == "perl/perlfaq4.md"
    assert question.heading == "perlfaq4 - Data Manipulation > Data: Numbers > Why is int() broken?"
    assert question.answer.startswith("Your `int()` is most probably working just fine.")
    assert "octal" not in question.answer


def test_pages_are_documents_whose_sections_have_the_questions(faq: Faq, tmp_path: Path) -> None:
    faq.write_pages(tmp_path)
    headings: set[tuple[str, str]] = set()
    for page in faq.pages:
        parsed = parse(page.path, (tmp_path / page.path).read_bytes())
        for section in parsed.sections:
            headings |= {
                (page.path, " > ".join(section.headings[:depth])) for depth in range(1, len(section.headings) + 1)
            }
    assert headings >= {(question.page, question.heading) for question in faq.questions}


def test_answers_are_documents_without_their_questions(faq: Faq, tmp_path: Path) -> None:
    left_out = {question.path for question in faq.questions[::5]}
    faq.write_answers(tmp_path, without=left_out)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md")}
    assert written == {question.path for question in faq.questions} - left_out
    question = faq.questions[1]
    parsed = parse(question.path, (tmp_path / question.path).read_bytes())
    assert parsed.title == question.title
    assert question.text not in " ".join((*parsed.sections[0].headings, parsed.sections[0].text))


def test_missing_packages_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(ConfigurationError, match="make test"):
        load_faq()
