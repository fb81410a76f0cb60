"""A shared backend runs for the services that are on its model now, and for no others."""

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


def test_the_demand_is_unknown_until_each_service_was_decided_once(
    shared_backend_demand: SharedBackendDemand,
) -> None:
    assert shared_backend_demand.wanted("a", frozenset({CHAT, OTHER})) is True
    shared_backend_demand.record_shared("a", CHAT, wanted=False, decided=True)
    assert shared_backend_demand.wanted("a", frozenset({CHAT, OTHER})) is UNKNOWN
    shared_backend_demand.record_shared("a", OTHER, wanted=False, decided=True)
    assert shared_backend_demand.wanted("a", frozenset({CHAT, OTHER})) is False


def test_only_the_first_and_the_last_wanting_service_change_a_backend(
    shared_backend_demand: SharedBackendDemand,
) -> None:
    assert shared_backend_demand.record_shared("a", OTHER, wanted=True, decided=True) == []
    assert shared_backend_demand.record_shared("a", OTHER, wanted=False, decided=True) == []
    assert shared_backend_demand.record_shared("a", CHAT, wanted=True, decided=True) == []
    assert shared_backend_demand.record_shared("a", CHAT, wanted=False, decided=True) == ["a"]


def test_a_first_verdict_makes_an_unknown_demand_known() -> None:
    demand = SharedBackendDemand()
    for service in (CHAT, OTHER):
        assert demand.record_shared("a", service, wanted=False, decided=True) == ["a"]
        assert demand.record_shared("a", service, wanted=False, decided=True) == []


def test_b11_a_service_recreated_on_another_model_leaves_the_demand_of_the_first(
    shared_backend_demand: SharedBackendDemand,
) -> None:
    """Its deletion was never reported: the backend of the first model would run on without a service."""
    assert shared_backend_demand.record_shared("b", CHAT, wanted=True, decided=True) == ["a", "b"]
    assert shared_backend_demand.wanted("a", frozenset()) is False
    assert shared_backend_demand.wanted("b", frozenset({CHAT})) is True


def test_b11_a_service_recreated_as_dedicated_leaves_the_shared_backend(
    shared_backend_demand: SharedBackendDemand,
) -> None:
    assert shared_backend_demand.record_dedicated(CHAT, decided=True) == ["a"]
    assert shared_backend_demand.wanted("a", frozenset()) is False
    assert shared_backend_demand.record_dedicated(CHAT, decided=True) == []


def test_a_deleted_service_wants_nothing_and_waits_for_nothing(
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
