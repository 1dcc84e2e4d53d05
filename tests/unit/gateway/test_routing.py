"""Routing: who may call what, what the unit is, which release answers."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.assignment import is_candidate
from headway.domain.snapshot import ApplicationRoute
from headway.errors import InvalidRequestError, NotFoundError, PermissionDeniedError
from headway.gateway.routing import (
    Route,
    Unit,
    carry_over,
    choose_release,
    choose_unit,
    continue_from,
    find_application,
    outside,
)
from headway.ids import Arm, InteractionId, Kind, uuid7
from headway.storage.links import ResponseLink
from tests.routes import (
    NOW_MS,
    ask,
    make_application,
    make_deployment,
    make_key,
    make_release,
    make_rollout,
    make_snapshot,
)

KEY = make_key("invoke")
PIN = make_key("invoke", "pin")


def unit_of(
    application: ApplicationRoute, header: str = "", key: Any = KEY, operation: Any = "chat", **fields: Any
) -> Unit:
    return choose_unit(make_snapshot(application), application, key, ask(operation, **fields), header, "own")


def previous(**changes: Any) -> InteractionId:
    earlier = InteractionId(Kind.MANUAL, uuid7(NOW_MS), 1, 2, 5, 1, Arm.CANDIDATE, 0, b"12345678", 7)
    return earlier._replace(**changes)


class TestApplication:
    def test_it_is_found_by_its_name(self) -> None:
        assert find_application(make_snapshot(), KEY, "support").number == 1

    def test_an_unknown_one_is_told_what_is_known(self) -> None:
        snapshot = make_snapshot(make_application(), make_application(number=2, name="sales"))
        with pytest.raises(NotFoundError, match="known: sales, support") as caught:
            find_application(snapshot, KEY, "gpt-4o")
        assert (caught.value.param, caught.value.error_code) == ("model", "model_not_found")

    def test_a_key_is_told_only_of_its_own(self) -> None:
        snapshot = make_snapshot(make_application(), make_application(number=2, name="sales"))
        with pytest.raises(NotFoundError, match=r"\(known: sales\)"):
            find_application(snapshot, make_key(applications=("sales",)), "x" * 1000)
        with pytest.raises(PermissionDeniedError) as caught:
            find_application(snapshot, make_key(applications=("sales",)), "support")
        assert caught.value.error_code == "application_not_allowed"

    def test_an_empty_installation_says_what_to_do(self) -> None:
        with pytest.raises(NotFoundError, match="headway apply"):
            find_application(make_snapshot(applications={}), KEY, "support")


class TestConversations:
    APPLICATION = make_application(unit="conversation")

    def test_the_metadata_name_it(self) -> None:
        assert unit_of(self.APPLICATION, metadata={"conversation_id": "c1"}) == Unit("c1", "c1")

    def test_the_header_names_it_first(self) -> None:
        assert unit_of(self.APPLICATION, "h1", metadata={"conversation_id": "c1"}) == Unit("h1", "h1")

    def test_else_it_is_known_by_its_first_message_on_every_turn(self) -> None:
        first = [{"role": "user", "content": "hello"}]
        later = [*first, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "more"}]
        one, other = unit_of(self.APPLICATION, messages=first), unit_of(self.APPLICATION, messages=later)
        assert one == other
        assert one.name == one.conversation
        assert not one.own

    def test_keys_users_and_messages_tell_conversations_apart(self) -> None:
        names = {
            unit_of(self.APPLICATION).name,
            unit_of(self.APPLICATION, key=make_key(number=8)).name,
            unit_of(self.APPLICATION, user="ann").name,
            unit_of(self.APPLICATION, messages=[{"role": "user", "content": "bye"}]).name,
        }
        assert len(names) == 4

    @pytest.mark.parametrize("operation", ["chat", "responses"])
    def test_a_request_without_a_user_message_is_its_own_unit(self, operation: str) -> None:
        assert unit_of(self.APPLICATION, operation=operation, messages=[], input=None) == Unit("own", "own", own=True)

    def test_embeddings_are_no_conversation(self) -> None:
        assert unit_of(self.APPLICATION, operation="embeddings") == Unit("own", "own", own=True)
        assert unit_of(self.APPLICATION, "h1", operation="embeddings") == Unit("h1", "h1")


class TestUsersAndRequests:
    def test_a_user_is_the_unit(self) -> None:
        application = make_application(unit="user")
        unit = unit_of(application, user="ann")
        assert (unit.name, unit.own) == ("ann", False)
        assert unit.conversation.startswith("fp-")
        assert unit_of(application, user="ann", metadata={"conversation_id": "c1"}) == Unit("ann", "c1")
        assert unit_of(application, safety_identifier="ann").name == "ann"
        assert unit_of(application, operation="embeddings", user="ann") == Unit("ann", "own")

    def test_without_a_user_the_request_is_its_own_unit(self) -> None:
        assert unit_of(make_application(unit="user"), metadata={"conversation_id": "c1"}) == Unit("own", "c1", own=True)

    def test_a_request_is_its_own_unit(self) -> None:
        application = make_application(unit="request")
        assert unit_of(application, user="ann", metadata={"conversation_id": "c1"}) == Unit("own", "c1", own=True)
        assert unit_of(application).conversation.startswith("fp-")

    @pytest.mark.parametrize("unit", ["user", "request"])
    def test_the_header_names_any_unit(self, unit: str) -> None:
        named = unit_of(make_application(unit=unit), "h1", user="ann", metadata={"conversation_id": "c1"})
        assert named == Unit("h1", "c1")


@pytest.mark.parametrize("unit", ["conversation", "user", "request"])
@pytest.mark.parametrize(
    ("header", "fields", "param"),
    [
        ("x" * 513, {}, "x-headway-unit"),
        ("", {"metadata": {"conversation_id": "x" * 513}}, "metadata.conversation_id"),
        ("", {"user": "x" * 513}, "user"),
    ],
)
def test_names_have_an_end(unit: str, header: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError, match="512") as caught:
        unit_of(make_application(unit=unit), header, **fields)
    assert caught.value.param == param


class TestRelease:
    def test_without_a_rollout_it_is_the_stable_one(self) -> None:
        route = choose_release(make_snapshot(), make_application(), KEY, "u", None)
        assert (route.release.number, route.rollout, route.stage) == (1, 0, 0)
        assert (route.arm, route.kind) == (Arm.STABLE, Kind.RANDOMISED)

    @given(st.text(max_size=10), st.floats(0, 1))
    def test_in_a_rollout_it_is_the_one_of_the_units_arm(self, unit: str, share: float) -> None:
        rollout = make_rollout(share)
        route = choose_release(make_snapshot(), make_application(rollout=rollout), KEY, unit, None)
        candidate = is_candidate(rollout.salt, unit, share)
        assert (route.release.number, route.arm) == ((2, Arm.CANDIDATE) if candidate else (1, Arm.STABLE))
        assert (route.rollout, route.stage, route.kind) == (5, 3, Kind.MANUAL)

    def test_a_pin_needs_its_scope(self) -> None:
        with pytest.raises(PermissionDeniedError, match="'pin'"):
            choose_release(make_snapshot(), make_application(), KEY, "u", "release-2")
        with pytest.raises(PermissionDeniedError, match="'pin'"):  # and tells nothing without it
            choose_release(make_snapshot(), make_application(), KEY, "u", "release-9")

    def test_a_pin_is_nobodys_evidence(self) -> None:
        application = make_application(rollout=make_rollout(1.0))
        route = choose_release(make_snapshot(), application, PIN, "u", "release-1")
        assert (route.release.number, route.rollout, route.arm, route.kind) == (1, 0, Arm.STABLE, Kind.PINNED)

    def test_a_pinned_release_must_exist(self) -> None:
        with pytest.raises(NotFoundError, match="known: release-1, release-2") as caught:
            choose_release(make_snapshot(), make_application(), PIN, "u", "release-3")
        assert caught.value.error_code == "release_not_found"


class TestShadow:
    APPLICATION = make_application(rollout=make_rollout(0.0, stage=0, kind=int(Kind.RANDOMISED)))

    @given(st.text(max_size=10))
    def test_callers_are_served_by_stable_and_booked(self, unit: str) -> None:
        route = choose_release(make_snapshot(), self.APPLICATION, KEY, unit, None)
        assert (route.release.number, route.rollout, route.stage, route.arm) == (1, 5, 0, Arm.STABLE)
        assert route.kind == Kind.RANDOMISED
        assert route.is_shadowed

    def test_it_can_be_left_out_of_it(self) -> None:
        route = outside(choose_release(make_snapshot(), self.APPLICATION, KEY, "u", None))
        assert (route.release.number, route.rollout, route.stage, route.is_shadowed) == (1, 0, 0, False)

    def test_pins_and_later_stages_have_no_part_in_it(self) -> None:
        assert not choose_release(make_snapshot(), self.APPLICATION, PIN, "u", "release-1").is_shadowed
        ramp = make_application(rollout=make_rollout(0.5))
        assert not choose_release(make_snapshot(), ramp, KEY, "u", None).is_shadowed
        assert not choose_release(make_snapshot(), make_application(), KEY, "u", None).is_shadowed


class TestContinuation:
    def continued(self, earlier: InteractionId, **application: Any) -> Route:
        return continue_from(make_snapshot(), make_application(**application), earlier)

    def test_it_stays_on_its_release_at_any_share(self) -> None:
        """It is booked under the stage that assigned it: there, the arms have the share that they were given."""
        for share in (0.0, 0.5, 1.0):
            route = self.continued(previous(), rollout=make_rollout(share))
            assert (route.release.number, route.arm, route.kind) == (2, Arm.CANDIDATE, Kind.MANUAL)
            assert (route.rollout, route.stage) == (5, 1)
        stable = previous(release=1, arm=Arm.STABLE)
        route = self.continued(stable, rollout=make_rollout(1.0))
        assert (route.release.number, route.arm, route.stage) == (1, Arm.STABLE, 1)

    def test_it_keeps_how_it_was_assigned(self) -> None:
        ramped = previous(kind=Kind.RANDOMISED)
        assert self.continued(ramped, rollout=make_rollout(kind=int(Kind.HOLDBACK))).kind == Kind.RANDOMISED

    @pytest.mark.parametrize("rollout", [None, make_rollout(number=6), make_rollout(number=6, candidate=1)])
    def test_a_candidate_that_was_taken_back_answers_no_more(self, rollout: Any) -> None:
        for kind in (Kind.MANUAL, Kind.PINNED):  # pinned by an earlier turn, not by the caller
            route = self.continued(previous(kind=kind), rollout=rollout)
            assert (route.release.number, route.rollout, route.stage) == (1, 0, 0)
            assert (route.arm, route.kind) == (Arm.STABLE, Kind.RANDOMISED)

    def test_a_candidate_that_was_promoted_goes_on_as_nobodys_evidence(self) -> None:
        route = self.continued(previous(), stable=2)
        assert (route.release.number, route.rollout, route.stage) == (2, 0, 0)
        assert (route.arm, route.kind) == (Arm.STABLE, Kind.RANDOMISED)

    def test_a_release_that_was_stable_goes_on(self) -> None:
        for rollout in (None, make_rollout(number=6)):
            before = previous(release=1, arm=Arm.STABLE)
            assert self.continued(before, stable=2, rollout=rollout).release.number == 1

    def test_one_from_the_shadow_stage_was_never_assigned(self) -> None:
        shadowed = previous(kind=Kind.RANDOMISED, release=1, stage=0, arm=0)
        for stage in (0, 1):
            route = self.continued(shadowed, rollout=make_rollout(0.0, stage=stage))
            assert (route.release.number, route.rollout, route.kind) == (1, 0, Kind.RANDOMISED)

    @pytest.mark.parametrize("rollout", [None, make_rollout()])
    def test_a_pinned_conversation_stays_pinned(self, rollout: Any) -> None:
        route = self.continued(previous(kind=Kind.PINNED, rollout=0, stage=0, arm=0), rollout=rollout)
        assert (route.release.number, route.rollout, route.kind) == (2, 0, Kind.PINNED)

    def test_one_from_before_the_rollout_stays_out_of_it(self) -> None:
        before = previous(kind=Kind.RANDOMISED, release=1, rollout=0, stage=0, arm=0)
        route = self.continued(before, rollout=make_rollout(1.0))
        assert (route.release.number, route.rollout, route.kind) == (1, 0, Kind.RANDOMISED)

    @pytest.mark.parametrize("changes", [{"release": 99}, {"application": 2}])
    def test_a_release_that_is_no_longer_served_is_not_found(self, changes: dict[str, int]) -> None:
        with pytest.raises(NotFoundError) as caught:
            self.continued(previous(**changes))
        assert caught.value.error_code == "previous_response_not_found"


class TestCarryingOver:
    LINK = ResponseLink(b"i" * 16, "resp_1", "main", "c", "u")

    def test_another_release_at_the_same_provider_goes_on(self) -> None:
        origin = make_release(2, "r2", make_deployment("main", model="new"))
        here = make_deployment("backup", model="old")
        release = make_release(1, "r1", make_deployment("far", "http://far/v1"), here)
        assert carry_over(self.LINK, origin, release) == msgspec.structs.replace(self.LINK, deployment="backup")

    def test_a_provider_elsewhere_does_not_know_the_response(self) -> None:
        origin = make_release(2, "r2", make_deployment("main"))
        for release in (
            make_release(1, "r1", make_deployment("main", "http://far/v1")),
            make_release(1, "r1", make_deployment("main", provider="azure_openai")),
        ):
            with pytest.raises(NotFoundError, match="taken back") as caught:
                carry_over(self.LINK, origin, release)
            assert caught.value.error_code == "previous_response_not_found"

    def test_a_deployment_that_is_gone_is_nowhere(self) -> None:
        release = make_release(1, "r1", make_deployment("other"))
        with pytest.raises(NotFoundError):
            carry_over(self.LINK, release, release)
