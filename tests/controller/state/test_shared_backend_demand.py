"""Whose wish a shared backend runs for: that of the services that are on its model now."""

import pytest

from farebox.controller.state.shared_backend_demand import Demand
from farebox.domain.facts import UNKNOWN
from farebox.domain.keys import ObjectKey

CHAT, OTHER = ObjectKey("team-a", "chat"), ObjectKey("team-a", "other")


@pytest.fixture
def demand() -> Demand:
    """`chat` runs on model a."""
    made = Demand()
    assert made.decide("a", CHAT, wanted=True, decided=True) == ["a"]
    return made


def test_until_each_service_was_decided_once_nobody_is_known_not_to_want(demand: Demand) -> None:
    assert demand.wanted("a", frozenset({CHAT, OTHER})) is True
    demand.decide("a", CHAT, wanted=False, decided=True)
    assert demand.wanted("a", frozenset({CHAT, OTHER})) is UNKNOWN
    demand.decide("a", OTHER, wanted=False, decided=True)
    assert demand.wanted("a", frozenset({CHAT, OTHER})) is False


def test_only_the_first_and_the_last_who_want_it_move_a_backend(demand: Demand) -> None:
    assert demand.decide("a", OTHER, wanted=True, decided=True) == ["a"], "it was not decided before"
    assert demand.decide("a", OTHER, wanted=False, decided=True) == []
    assert demand.decide("a", CHAT, wanted=True, decided=True) == []
    assert demand.decide("a", CHAT, wanted=False, decided=True) == ["a"]


def test_b11_a_service_made_again_on_another_model_leaves_the_demand_of_the_first(demand: Demand) -> None:
    """No pass saw it gone: the backend of the first model would run for nobody, for ever."""
    assert demand.decide("b", CHAT, wanted=True, decided=True) == ["a", "b"]
    assert demand.wanted("a", frozenset()) is False
    assert demand.wanted("b", frozenset({CHAT})) is True


def test_b11_a_service_made_again_with_a_backend_of_its_own_leaves_the_shared_one(demand: Demand) -> None:
    assert demand.hold(CHAT, decided=True) == ["a"]
    assert demand.wanted("a", frozenset()) is False
    assert demand.hold(CHAT, decided=True) == []


def test_a_service_that_is_gone_wants_and_waits_for_nothing(demand: Demand) -> None:
    demand.hold(OTHER, decided=False)
    assert demand.held == {OTHER}
    assert (demand.forget(CHAT), demand.forget(OTHER), demand.forget(OTHER)) == (["a"], [], [])
    assert demand.held == set()
    assert demand.wanted("a", frozenset()) is False
