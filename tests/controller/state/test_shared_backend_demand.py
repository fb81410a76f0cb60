"""Whose wish a shared backend runs for: that of the services that are on its model now."""

import pytest

from farebox.controller.state.shared_backend_demand import SharedBackendDemand
from farebox.domain.facts import UNKNOWN
from farebox.domain.keys import ObjectKey

CHAT, OTHER = ObjectKey("team-a", "chat"), ObjectKey("team-a", "other")


@pytest.fixture
def shared_backend_demand() -> SharedBackendDemand:
    """`chat` runs on model a."""
    made = SharedBackendDemand()
    assert made.record_shared("a", CHAT, wanted=True, decided=True) == ["a"]
    return made


def test_until_each_service_was_decided_once_nobody_is_known_not_to_want(
    shared_backend_demand: SharedBackendDemand,
) -> None:
    assert shared_backend_demand.wanted("a", frozenset({CHAT, OTHER})) is True
    shared_backend_demand.record_shared("a", CHAT, wanted=False, decided=True)
    assert shared_backend_demand.wanted("a", frozenset({CHAT, OTHER})) is UNKNOWN
    shared_backend_demand.record_shared("a", OTHER, wanted=False, decided=True)
    assert shared_backend_demand.wanted("a", frozenset({CHAT, OTHER})) is False


def test_only_the_first_and_the_last_who_want_it_move_a_backend(
    shared_backend_demand: SharedBackendDemand,
) -> None:
    assert shared_backend_demand.record_shared("a", OTHER, wanted=True, decided=True) == ["a"], (
        "it was not decided before"
    )
    assert shared_backend_demand.record_shared("a", OTHER, wanted=False, decided=True) == []
    assert shared_backend_demand.record_shared("a", CHAT, wanted=True, decided=True) == []
    assert shared_backend_demand.record_shared("a", CHAT, wanted=False, decided=True) == ["a"]


def test_b11_a_service_made_again_on_another_model_leaves_the_demand_of_the_first(
    shared_backend_demand: SharedBackendDemand,
) -> None:
    """No pass saw it gone: the backend of the first model would run for nobody, for ever."""
    assert shared_backend_demand.record_shared("b", CHAT, wanted=True, decided=True) == ["a", "b"]
    assert shared_backend_demand.wanted("a", frozenset()) is False
    assert shared_backend_demand.wanted("b", frozenset({CHAT})) is True


def test_b11_a_service_made_again_with_a_backend_of_its_own_leaves_the_shared_one(
    shared_backend_demand: SharedBackendDemand,
) -> None:
    assert shared_backend_demand.record_dedicated(CHAT, decided=True) == ["a"]
    assert shared_backend_demand.wanted("a", frozenset()) is False
    assert shared_backend_demand.record_dedicated(CHAT, decided=True) == []


def test_a_service_that_is_gone_wants_and_waits_for_nothing(
    shared_backend_demand: SharedBackendDemand,
) -> None:
    shared_backend_demand.record_dedicated(OTHER, decided=False)
    assert shared_backend_demand.undecided == {OTHER}
    assert (
        shared_backend_demand.forget(CHAT),
        shared_backend_demand.forget(OTHER),
        shared_backend_demand.forget(OTHER),
    ) == (["a"], [], [])
    assert shared_backend_demand.undecided == set()
    assert shared_backend_demand.wanted("a", frozenset()) is False
