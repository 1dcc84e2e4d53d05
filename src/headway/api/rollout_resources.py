"""What the control plane shows of rollouts, and takes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from headway.api.queries import PageQuery, Time, Word
from headway.api.resources import Resource, Wish
from headway.api.structures import Mirrored
from headway.domain import assessment, recording, rollout
from headway.domain.difference import Part
from headway.domain.rollout import Command, Outcome, Phase
from headway.rollouts import forecasting
from headway.storage.losses import LossState

Status = Annotated[rollout.Status, Mirrored()]
Terms = Annotated[recording.Terms, Mirrored()]
Assessment = Annotated[assessment.Assessment, Mirrored()]
Forecast = Annotated[forecasting.Forecast, Mirrored()]
RolloutState = Literal[
    "running", "baseline", "shadow", "ramp", "paused", "holdback", "rolled_back", "promoted", "inconclusive"
]
_SERIES = 500
_LONGEST_SERIES = 2000
_LOST = 100
_MOST_LOST = 1000
_REASON = r"^[^\x00]*$"
_NEEDED_REASON = r"^[^\x00]*[^\x00\s][^\x00]*$"


class Rollout(Resource):
    """One move of an application from its stable release to a candidate."""

    number: int = Field(description="Its number.")
    application: str = Field(description="Name of the application.")
    stable: str = Field(description="Name of the release that it leads away from.")
    candidate: str = Field(description="Name of the release that it leads to.")
    differs: list[Part] = Field(
        description="Parts in which the two releases differ: only these can explain what the evidence shows."
    )
    stable_index: str | None = Field(description="The stable release's index version; null without one.")
    candidate_index: str | None = Field(description="The candidate's index version; null without one.")
    policy: str = Field(description="Name of its policy; `manual`: an operator sets the share.")
    state: RolloutState = Field(description="Where it stands; `running` under the policy `manual`.")
    stage: int = Field(description="Number of the stage that interactions are booked under.")
    share: float = Field(description="The candidate's share of units, 0 to 1.")
    restarts: int = Field(description="Earlier rollouts of this candidate that were rolled back.")
    shadow_usd: float = Field(description="What mirrored answers have cost, in US dollars.")
    started_at: datetime = Field(description="When it was started.")
    started_by: str = Field(description="Who started it.")
    ended_at: datetime | None = Field(description="When it ended; null while it runs.")


class Stage(Resource):
    """One stage of a rollout."""

    stage: int = Field(description="Its number.")
    phase: Phase = Field(description="Which processes take its evidence.")
    share: float = Field(description="The candidate's share from then on, 0 to 1.")
    since: datetime = Field(description="When it began.")
    author: str = Field(description="Who began it: `controller`, or a person.")
    reason: str = Field(description="Why.")
    ratio_epoch: int = Field(description="Grows with every new start of the sample-ratio check.")


class Figures(Resource):
    """What a rollout looked like at one tick."""

    tick: int = Field(description="The controller's tick.")
    at: datetime = Field(description="When.")
    status: Status = Field(description="Where the rollout stood.")
    assessment: Assessment = Field(description="What the evidence said.")


class FigureSeries(Resource):
    """Figures over time, oldest first."""

    object: Literal["list"] = "list"
    items: list[Figures]


class LostDocument(Resource):
    """A document that answers came from."""

    path: str = Field(description="Its path in the stable release's index version.")
    title: str = Field(description="Its title there.")
    state: LossState = Field(
        description="`removed`: the candidate's version has neither its path nor its content. `changed`: it has other"
        " content there, or shows it to other groups."
    )
    interactions: int = Field(description="How many interactions had a passage of it.")


class Losses(Resource):
    """What the stable release's answers came from, and the candidate's index version has no longer or not as it was."""

    before: str = Field(description="The stable release's index version.")
    after: str = Field(description="The candidate's.")
    interactions: int = Field(description="How many were looked at: the latest that had passages of `before`.")
    affected: int = Field(description="How many of these had a passage of a document that was removed.")
    removed: int = Field(description="How many such documents there are.")
    changed: int = Field(description="How many documents have changed, of those that answers came from.")
    documents: list[LostDocument] = Field(description="Those with the most interactions; removed ones first.")


class LossesAnswer(Resource):
    """Documents that are lost with a candidate."""

    rollout: int = Field(description="Number of the rollout.")
    losses: Losses | None = Field(
        description="Null where nothing can be said: the releases do not differ in their index version, one of the"
        " versions was dropped, or it took too long."
    )


class RolloutDetail(Rollout):
    """A rollout with all that it is decided by and on."""

    stages: list[Stage] = Field(description="First to last.")
    terms: Terms | None = Field(description="What it is decided by, frozen at its start; null under `manual`.")
    status: Status | None = Field(description="Where it stands; null under `manual`.")
    figures: Figures | None = Field(description="Its newest figures; null before the first.")
    commands: list[Command] = Field(description="What can be asked of it now.")


class Decision(Resource):
    """A decision as it was taken; `replay` takes it again from the stored evidence."""

    rollout: int = Field(description="Number of the rollout.")
    number: int = Field(description="Counts the rollout's decisions, from 1.")
    tick: int = Field(description="The controller's tick: the decision saw the evidence up to there.")
    at: datetime = Field(description="When.")
    author: str = Field(description="`controller`, or who asked.")
    outcome: Outcome = Field(description="What happened.")
    reason: str = Field(description="Stable code of why.")
    message: str = Field(description="The same in a sentence, with figures.")
    metric: str | None = Field(description="The metric that decided, if one did.")
    command: Command | None = Field(description="What was asked; null where the controller decided.")
    words: str = Field(description="Why, in the words of the person who asked.")
    before: Status = Field(description="Where the rollout stood.")
    after: Status = Field(description="Where it stood then.")
    assessment: Assessment | None = Field(description="What it was decided on; null where nothing was assessed.")


class CommandAnswer(Resource):
    """What a command did."""

    rollout: Rollout = Field(description="As it is now.")
    decision: Decision = Field(description="As it is in the log.")
    snapshot: int = Field(description="Number of the routing snapshot that carries it; 0 where traffic stays as it is.")


class StartAnswer(Resource):
    """A rollout that was started."""

    rollout: Rollout = Field(description="As it is now.")
    forecast: Forecast = Field(description="How long it should take, and what it can detect.")
    snapshot: int = Field(description="Number of the routing snapshot that carries it.")


class Mismatch(Resource):
    """A decision that does not follow from what is stored."""

    number: int = Field(description="Number of the decision.")
    what: str = Field(description="What differs.")
    stored: str = Field(description="As it was taken, as JSON.")
    replayed: str = Field(description="As it comes out now, as JSON.")


class ReplayAnswer(Resource):
    """What came of taking every decision again."""

    rollout: int = Field(description="Number of the rollout.")
    checked: int = Field(description="Decisions that were taken again.")
    passed_over: int = Field(description="Decisions that rest on no evidence.")
    mismatches: list[Mismatch] = Field(description="Where the two differ; empty when all agree.")


class ShareWish(Wish):
    """The share of an application's units that a release should have."""

    release: str = Field(max_length=200, pattern=_REASON, description="Name of the release.")
    share: float = Field(ge=0, le=1, allow_inf_nan=False, description="0 to 1; 1 promotes it, 0 takes it back.")
    reason: str = Field(default="", max_length=2000, pattern=_REASON, description="Why; kept in the audit log.")


class ShareAnswer(Resource):
    """What setting a share did."""

    rollout: Rollout = Field(description="As it is now.")
    before: float = Field(description="The candidate's share before, 0 to 1.")
    opened: bool = Field(description="Whether a rollout began.")
    changed: bool = Field(description="False when the candidate had this share already.")
    snapshot: int = Field(description="Number of the routing snapshot that carries it; 0 when nothing changed.")


class CommandWish(Wish):
    """What goes with a command."""

    reason: str = Field(
        default="", max_length=2000, pattern=_REASON, description="Why; kept with the decision and in the audit log."
    )


class ReasonedWish(Wish):
    """What goes with a command that overrules the evidence."""

    reason: str = Field(
        min_length=1,
        max_length=2000,
        pattern=_NEEDED_REASON,
        description="Why; kept with the decision and in the audit log.",
    )


class StartWish(Wish):
    """Which release to roll out."""

    release: str = Field(max_length=200, pattern=_REASON, description="Name of the candidate.")
    accept: bool = Field(default=False, description="Start it even if it cannot finish at the present traffic.")
    retry: bool = Field(default=False, description="Start it even if the release was rolled back before.")
    reason: str = Field(default="", max_length=2000, pattern=_REASON, description="Why; kept in the audit log.")


class RolloutQuery(PageQuery):
    """Which rollouts; ``active`` for those that run, or for those that have ended."""

    application: Word = None
    state: RolloutState | None = None
    active: bool | None = None


class LossesQuery(BaseModel):
    """How many lost documents to name."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=_LOST, ge=1, le=_MOST_LOST, description="At most.")


class SeriesQuery(BaseModel):
    """Which figures of a rollout."""

    model_config = ConfigDict(extra="forbid")

    since: Time = None
    limit: int = Field(default=_SERIES, ge=1, le=_LONGEST_SERIES, description="At most; thinned out evenly.")


def plain(value: Any) -> Any:
    """Turn a structure into plain JSON values; what is infinite or not a number becomes None."""
    return msgspec.json.decode(msgspec.json.encode(value))
