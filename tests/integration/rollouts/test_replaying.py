"""Replay: every decision follows from what is stored, to the last bit; and where something was altered, it shows."""

import pytest
from msgspec.structs import replace

from headway.clock import ManualClock
from headway.domain.policy import ShadowRule
from headway.errors import ConflictError, NotFoundError
from headway.ids import Arm, Kind
from headway.rollouts.manual import set_share
from headway.rollouts.replaying import Replay, replay
from headway.storage.database import Database
from tests.trial import POLICY, Trial, begin_trial


async def replayed(trial: Trial) -> Replay:
    async with trial.database.connection() as connection:
        return await replay(connection, trial.number)


async def climb(trial: Trial, **rates: float) -> None:
    while (await trial.rollout()).ended_at is None:
        await trial.serve(150, **rates)
        await trial.tick()


@pytest.mark.parametrize("candidate", [0.0, 0.9])
async def test_a_rollout_is_replayed_exactly(candidate: float, trial: Trial) -> None:
    await climb(trial, candidate=candidate)
    decisions = await trial.decisions()
    assert await replayed(trial) == Replay(len(decisions), 0, ())
    assert {each.outcome for each in decisions} & {"promote", "roll_back"}


async def test_commands_and_a_shadow_stage_are_replayed(database: Database, clock: ManualClock) -> None:
    trial = await begin_trial(database, clock, replace(POLICY, shadow=ShadowRule(interactions=10)))
    for _ in range(3):
        await trial.serve(20)
        await trial.write(
            trial.interaction(f"mirror {number}", stage=0, arm=Arm.CANDIDATE, kind=Kind.SHADOW) for number in range(20)
        )
        await trial.tick()
    await trial.take("pause", "lunch")
    await trial.serve(100)
    await trial.tick()
    await trial.take("resume", "done")
    await trial.take("advance", "")
    await climb(trial)
    decisions = await trial.decisions()
    assert {each.command for each in decisions} == {None, "pause", "resume", "advance"}
    assert await replayed(trial) == Replay(len(decisions), 0, ())


async def test_what_rests_on_no_blocks_is_passed_over(database: Database, clock: ManualClock) -> None:
    trial = await begin_trial(database, clock, baseline=None)
    await trial.tick()
    route = await trial.route()
    await trial.write(
        trial.interaction(f"before {number}", rollout=0, stage=0, release=route.stable, release_error=number % 5 == 0)
        for number in range(1_000)
    )
    await trial.tick(60)
    await trial.write(trial.interaction("heavy") for _ in range(500))
    await trial.tick(60)
    outcomes = await trial.outcomes()
    assert outcomes[0] == ("hold", "baseline")
    assert outcomes[1] == ("advance", "baseline")
    assert ("hold", "heavy_unit") in outcomes
    assert await replayed(trial) == Replay(len(outcomes) - 2, 2, ())


@pytest.mark.parametrize(
    ("tampering", "decision", "what"),
    [
        ("UPDATE decision SET outcome = 'hold' WHERE rollout_id = %s AND number = 2", 2, {"outcome"}),
        ("UPDATE decision SET message = 'all is well' WHERE rollout_id = %s AND number = 2", 2, {"message"}),
        ("UPDATE decision SET at = at + interval '1 s' WHERE rollout_id = %s AND number = 2", 2, {"status"}),
        (
            "UPDATE decision SET assessment = assessment - 'stage_units' WHERE rollout_id = %s AND number = 2",
            2,
            {"assessment"},
        ),
    ],
)
async def test_what_was_altered_shows(tampering: str, decision: int, what: set[str], trial: Trial) -> None:
    await climb(trial)
    await trial.rows(tampering + " RETURNING 1", trial.number)
    found = await replayed(trial)
    assert {each.number for each in found.mismatches} == {decision}
    assert {each.what for each in found.mismatches} == what


async def test_a_block_that_is_missing_shows(trial: Trial) -> None:
    await climb(trial)
    await trial.rows("DELETE FROM block WHERE rollout_id = %s AND tick = 2 RETURNING 1", trial.number)
    found = await replayed(trial)
    assert {each.number for each in found.mismatches} >= {2}
    assert "assessment" in {each.what for each in found.mismatches}


async def test_there_is_nothing_to_replay_of_a_manual_rollout(trial: Trial) -> None:
    await trial.take("rollback")
    async with trial.database.connection() as connection:
        manual = (await set_share(connection, "support", "bold", 0.5, author="bob")).rollout
        with pytest.raises(ConflictError, match="is manual: people decided"):
            await replay(connection, manual.number)
        with pytest.raises(NotFoundError):
            await replay(connection, 999)
