"""The demo's visitors: what they ask the library's help desk, and how they rate what they are told."""

from __future__ import annotations

from typing import NamedTuple

LONGEST_ANSWER_WORDS = 30
RULE = (
    f"A visitor rates an answer 👍 when it names the fact that was asked for, in at most {LONGEST_ANSWER_WORDS} words,"
    " and 👎 otherwise."
)


class Question(NamedTuple):
    """What a visitor asks, and the words that an answer has to name."""

    text: str
    fact: str


class Visitor(NamedTuple):
    """A visitor and their conversations, each a few questions that build on one another."""

    name: str
    conversations: tuple[tuple[Question, ...], ...]


class Verdict(NamedTuple):
    """What a visitor thinks of an answer, and why."""

    good: bool
    reason: str


VISITORS = (
    Visitor(
        "Ann",
        (
            (Question("When are you open on Saturday?", "10:00"),),
            (Question("How many books may I borrow?", "10 books"),),
            (Question("Where do I find the Wi-Fi password?", "library card"),),
            (Question("What do I pay for printing?", "15 cents"),),
        ),
    ),
    Visitor(
        "Ben",
        (
            (Question("What does a late book cost?", "20 cents"),),
            (Question("What does printing cost?", "15 cents"), Question("And what does a late book cost?", "20 cents")),
            (Question("Until when are you open on Saturday?", "16:00"),),
            (Question("How can I renew my books?", "online"),),
        ),
    ),
    Visitor(
        "Chen",
        (
            (Question("On which day is story time?", "Wednesday"),),
            (Question("How many books can I take home?", "10 books"),),
            (Question("I am late with a book. What do I have to pay?", "20 cents"),),
            (Question("Where is the password for the Wi-Fi?", "library card"),),
        ),
    ),
    Visitor(
        "Dora",
        (
            (Question("What are your opening hours on Saturday?", "10:00"),),
            (Question("At what time is story time?", "15:00"),),
            (Question("How much is a printed page?", "15 cents"),),
            (Question("For how many weeks may I borrow a book?", "4 weeks"),),
        ),
    ),
)


def judge(question: Question, answer: str) -> Verdict:
    """Rate an answer by the rule; nothing but its text counts.

    Example:
        >>> judge(Question("What does printing cost?", "15 cents"), "Printing costs 15 cents a page.")
        Verdict(good=True, reason="names '15 cents' in 6 words")
    """
    words = len(answer.split())
    named = question.fact.lower() in " ".join(answer.lower().split())
    if not named:
        return Verdict(good=False, reason=f"does not name {question.fact!r}")
    if words > LONGEST_ANSWER_WORDS:
        return Verdict(good=False, reason=f"names {question.fact!r}, but takes {words} words")
    return Verdict(good=True, reason=f"names {question.fact!r} in {words} words")
