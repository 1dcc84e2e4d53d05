"""The demo's simulated applications: what is true of their releases, which Headway has to find out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from headway.testing import Answer, Behaviour, Lognormal, Traffic, server_error
from headway.testing.traffic import QUESTIONS, Truth

RATING_RATIO = 0.5
RULE = (
    "Models and users of these are simulated, at accelerated truth: half of all answers are rated, effects are 10"
    " points and more, stages last seconds. The statistics, gateway, controller, documents and searches are real."
)

_CONTENT, _NOT = 0.9, 0.2
_QUICK, _SLOW = Lognormal(15, sigma=0.4), Lognormal(60, sigma=0.4)


class Story(NamedTuple):
    """An application, the truth about its second release, and how it must end.

    Attributes:
        application: Its name.
        truth: What is true, in words.
        ending: State in which the rollout ends.
        per_second: Conversations that begin per second.
        first, second: How the models of the two releases behave.
        questions: What is asked.
        judge: How good an answer is; by default as its model has it.
    """

    application: str
    truth: str
    ending: str
    per_second: float
    first: Behaviour
    second: Behaviour
    questions: Sequence[str] = QUESTIONS
    judge: Truth = None

    @property
    def behaviours(self) -> dict[str, Behaviour]:
        """The two models by name."""
        return {f"{self.application}-1": self.first, f"{self.application}-2": self.second}

    def traffic(self, seed: int) -> Traffic:
        """Users who ask one question each and rate what they get by its quality; they come until they are stopped."""
        return Traffic(
            application=self.application,
            truth=self.judge,
            questions=self.questions,
            users=60_000,
            conversations_per_user=1,
            turns=(1, 1),
            conversations_per_second=self.per_second,
            streamed_ratio=0.0,
            rating_ratio=RATING_RATIO,
            ratings_with_key=False,
            seed=seed,
        )


def _model(quality: float, latency: Lognormal, failing: float = 0.0) -> Behaviour:
    errors = (server_error(ratio=failing),) if failing else ()
    return Behaviour(quality=quality, headers_ms=latency, answer_tokens=Lognormal(8, sigma=0.3), errors=errors)


STORIES = (
    Story("tutor", "better: 👍 70 % → 80 %", "promoted", 45, _model(0.70, _QUICK), _model(0.80, _QUICK)),
    Story("shop", "worse: 👍 70 % → 60 %", "rolled_back", 75, _model(0.70, _QUICK), _model(0.60, _QUICK)),
    Story(
        "travel",
        "slow, and one call in three fails",
        "rolled_back",
        50,
        _model(0.70, _QUICK),
        _model(0.70, _SLOW, failing=0.33),
    ),
)


def tell_of_documents(questions: Mapping[str, str]) -> Story:
    """Tell of an application whose second release differs in its index version only, which lacks documents.

    Args:
        questions: What its users ask, with the document that answers it: who is given a passage of that is content.
    """

    def judge(answer: Answer) -> float:
        return _CONTENT if any(cited.document == questions[answer.question] for cited in answer.citations) else _NOT

    model = Behaviour(headers_ms=_QUICK, answer_text="As the manual says [1].")
    truth = "its index version lacks two documents"
    return Story("manual", truth, "rolled_back", 40, model, model, tuple(questions), judge)
