"""Status patches: only what differs, states at once, figures when there is time."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from farebox.api import (
    BillingAccountStatus,
    Condition,
    ConditionStatus,
    ConditionType,
    InferenceServiceStatus,
    Phase,
    ReservationState,
    ServiceCounts,
)
from farebox.controller.reconcile.status import Urgency, conditions, service_status, status_change
from farebox.domain.conditions import false, kstatus, true
from farebox.domain.facts import MISSING, UNKNOWN, ReservationFacts
from farebox.domain.lifecycle import decide_service
from tests.domain.build import EARLIER, NOW, QUOTA, READY, RUNNING, facts

LATER = NOW + timedelta(minutes=1)


def reported(now: Any = NOW, **changes: Any) -> InferenceServiceStatus:
    """The status of a running service; changes replace arguments of service_status."""
    given: dict[str, Any] = {
        "previous": InferenceServiceStatus(),
        "verdict": decide_service(facts(), now),
        "backend": READY,
        "quota": MISSING,
        "reservation": MISSING,
    }
    given |= changes
    positional = [given.pop(name) for name in ("previous", "verdict", "backend", "quota", "reservation")]
    given = {"endpoint": "http://x/v1", "backend_url": "http://b"} | given
    return service_status(*positional, generation=3, selector="a=b", now=now, **given)


def changed(status: InferenceServiceStatus, **fields: Any) -> Any:
    return status_change(status, status.model_copy(update=fields))


# -- what is written ----------------------------------------------------------------------------------


def test_the_same_status_is_no_change() -> None:
    first = reported()
    assert status_change(first, reported(LATER, previous=first)) is None


def test_the_first_status_has_its_zeros() -> None:
    """Columns and autoscalers read them."""
    change = status_change(InferenceServiceStatus(), reported(backend=None))
    assert change is not None
    assert (change.patch["replicas"], change.patch["readyReplicas"]) == (0, 0)
    assert change.patch["stopReasons"] == []
    assert change.urgency is Urgency.NOW


def test_the_patch_has_only_what_differs_and_null_removes_a_field() -> None:
    status = reported()
    change = changed(status, replicas=5, endpoint=None)
    assert change.patch == {"replicas": 5, "endpoint": None}


# -- when ---------------------------------------------------------------------------------------------


def worded(found: InferenceServiceStatus, fields: dict[str, Any]) -> tuple[Condition, ...]:
    """The conditions with the first one changed."""
    return (found.conditions[0].model_copy(update=fields), *found.conditions[1:])


@pytest.mark.parametrize(
    ("fields", "urgency"),
    [
        ({"phase": Phase.STOPPED}, Urgency.NOW),
        ({"endpoint": "http://y"}, Urgency.NOW),
        ({"backend": "http://y"}, Urgency.NOW),
        ({"replicas": 5}, Urgency.SOON),
        ({"ready_replicas": 1, "replicas": 5}, Urgency.SOON),
        ({"replicas": 5, "phase": Phase.STOPPED}, Urgency.NOW),
    ],
)
def test_states_are_urgent_and_counts_can_wait(fields: dict[str, Any], urgency: Urgency) -> None:
    assert changed(reported(), **fields).urgency is urgency


@pytest.mark.parametrize(
    ("fields", "urgency"),
    [
        ({"message": "other words"}, Urgency.LATER),
        ({"reason": "Other"}, Urgency.NOW),
        ({"status": ConditionStatus.FALSE}, Urgency.NOW),
        ({"observed_generation": 4}, Urgency.NOW),
    ],
)
def test_a_new_message_of_a_condition_can_wait_a_new_status_or_reason_cannot(
    fields: dict[str, Any], urgency: Urgency
) -> None:
    status = reported()
    assert changed(status, conditions=worded(status, fields)).urgency is urgency


@pytest.mark.parametrize(
    ("fields", "urgency"),
    [
        ({"balance": "1.00", "available": "1.00", "ledger_sequence": 9}, Urgency.LATER),
        ({"services": ServiceCounts(running=1)}, Urgency.SOON),
        ({"balance": "1.00", "services": ServiceCounts(running=1)}, Urgency.SOON),
        ({"balance": "0.00", "overdue_since": NOW}, Urgency.NOW),
    ],
)
def test_figures_of_an_account_wait_unless_its_state_goes_with_them(
    fields: dict[str, Any], urgency: Urgency
) -> None:
    status = BillingAccountStatus(observed_generation=1, balance="2.00")
    change = status_change(status, status.model_copy(update=fields))
    assert change is not None
    assert change.urgency is urgency


# -- times --------------------------------------------------------------------------------------------


def test_a_conditions_time_moves_with_its_status_alone() -> None:
    ready = kstatus(true(ConditionType.READY, "Running", "1 of 1"))
    status = InferenceServiceStatus(conditions=conditions(InferenceServiceStatus(), ready, 1, EARLIER))
    reworded = conditions(status, kstatus(true(ConditionType.READY, "Other", "2 of 2")), 2, NOW)
    assert {c.last_transition_time for c in reworded} == {EARLIER}
    assert {c.observed_generation for c in reworded} == {2}
    turned = conditions(status, kstatus(false(ConditionType.READY, "No", "no"), stalled="No"), 2, NOW)
    assert [c.last_transition_time for c in turned] == [NOW, EARLIER, NOW]


def test_the_services_own_time_moves_with_phase_and_reasons() -> None:
    first = reported()
    assert first.last_transition_time == NOW
    assert reported(LATER, previous=first, backend=replace(READY, ready=1)).last_transition_time == NOW
    off = decide_service(facts(postpaid=False), LATER)
    assert reported(LATER, previous=first, verdict=off).last_transition_time == LATER


# -- what is unknown stays ----------------------------------------------------------------------------


def test_an_unknown_quota_or_reservation_leaves_what_was_reported() -> None:
    active = ReservationFacts(ReservationState.ACTIVE, "", EARLIER, LATER)
    first = reported(quota=QUOTA, reservation=active)
    assert first.free_quota is not None
    assert first.free_quota.used == QUOTA.used
    assert first.reservation is not None
    assert (first.reservation.period_start, first.reservation.message) == (EARLIER, None)
    kept = reported(LATER, previous=first, quota=UNKNOWN, reservation=UNKNOWN)
    assert status_change(first, kept) is None
    gone = reported(LATER, previous=first)
    change = status_change(first, gone)
    assert change is not None
    assert change.patch == {"freeQuota": None, "reservation": None}
    assert RUNNING.phase is gone.phase
