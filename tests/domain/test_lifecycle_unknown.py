"""`decide_service` with unknown facts: they stop nothing, start nothing, and keep the billing mode."""

from dataclasses import replace
from typing import Any

import pytest

from farebox.api import BillingMode, ConditionType, Phase, ReservationState, ServiceType, StopReason
from farebox.domain.facts import MISSING, UNKNOWN, Previous
from farebox.domain.lifecycle import decide_service
from tests.domain.build import (
    CREATING,
    EMPTY,
    GOOD_ACCOUNT,
    NEVER,
    NOT_ENABLED,
    NOW,
    POOR_ACCOUNT,
    QUOTA,
    READY,
    RESERVED,
    RESUMING,
    RUNNING,
    STARTING,
    TRIAL,
    condition,
    facts,
    remembered,
    said,
    stopped,
)

R = StopReason


NO_BALANCE = replace(GOOD_ACCOUNT, available=UNKNOWN)
UNKNOWNS: dict[str, dict[str, Any]] = {
    "account": {"account": UNKNOWN},
    "balance": {"account": NO_BALANCE},
    "namespace": {"account": replace(GOOD_ACCOUNT, allows=UNKNOWN)},
    "model": {"model": UNKNOWN},
    "quota": {**TRIAL, "quota": UNKNOWN},
    "reservation": {**RESERVED, "reservation": UNKNOWN},
}


@pytest.mark.parametrize("unknown", UNKNOWNS)
@pytest.mark.parametrize("previous", [CREATING, RUNNING, RESUMING], ids=["Creating", "Running", "Resuming"])
def test_an_unknown_fact_stops_nothing(unknown: str, previous: Previous) -> None:
    backend = READY if previous is RUNNING else STARTING
    verdict = decide_service(facts(previous=previous, backend=backend, **UNKNOWNS[unknown]), NOW)
    assert (verdict.phase, verdict.stop_reasons, verdict.wanted) == (previous.phase, (), True)


@pytest.mark.parametrize("unknown", UNKNOWNS)
def test_an_unknown_fact_starts_nothing_new(unknown: str) -> None:
    verdict = decide_service(facts(previous=NEVER, backend=MISSING, **UNKNOWNS[unknown]), NOW)
    assert (verdict.phase, verdict.stop_reasons) == (None, ())
    assert (verdict.wanted, verdict.decided) == (False, False)
    assert said(verdict)["Ready"] == "Unknown FactsUnknown"
    assert "Waiting for" in condition(verdict, ConditionType.READY).message


@pytest.mark.parametrize("unknown", UNKNOWNS)
@pytest.mark.parametrize("reason", StopReason)
def test_an_unknown_fact_starts_nothing_that_was_stopped(unknown: str, reason: StopReason) -> None:
    """For every stop reason, whether it has cleared, still holds, or is unknown."""
    previous = stopped(reason)
    verdict = decide_service(facts(previous=previous, backend=EMPTY, **UNKNOWNS[unknown]), NOW)
    assert (verdict.phase, verdict.stop_reasons) == (Phase.STOPPED, (reason,))
    assert verdict.wanted is False


@pytest.mark.parametrize(
    ("unknown", "reason"),
    [
        ("account", R.ACCOUNT_NOT_FOUND),
        ("account", R.OVERDUE),
        ("balance", R.OVERDUE),
        ("namespace", R.ACCOUNT_NOT_ALLOWED),
        ("model", R.MODEL_NOT_FOUND),
        ("model", R.MODEL_RETIRED),
        ("quota", R.FREE_QUOTA_EXHAUSTED),
        ("quota", R.FREE_QUOTA_EXPIRED),
        ("reservation", R.RESERVATION_UNPAID),
        ("reservation", R.RESERVATION_EXPIRED),
    ],
)
def test_an_unknown_reason_is_kept_and_says_what_it_waits_for(unknown: str, reason: StopReason) -> None:
    verdict = decide_service(facts(previous=stopped(reason), backend=EMPTY, **UNKNOWNS[unknown]), NOW)
    assert (verdict.decided, said(verdict)["Stalled"]) == (True, f"True {reason.value}")
    assert f"Still {reason.value}: waiting for" in condition(verdict, ConditionType.SERVING).message


def test_a_known_reason_stops_though_other_facts_are_unknown() -> None:
    verdict = decide_service(facts(account=NO_BALANCE, model=MISSING), NOW)
    assert (verdict.phase, verdict.stop_reasons) == (Phase.STOPPED, (R.MODEL_NOT_FOUND,))


def test_disabling_acts_while_everything_else_is_unknown() -> None:
    verdict = decide_service(facts(account=UNKNOWN, model=UNKNOWN, backend=READY, postpaid=False), NOW)
    assert (verdict.phase, verdict.stop_reasons) == (Phase.STOPPED, (R.POSTPAID_DISABLED,))


def test_enabling_while_the_balance_is_unknown_changes_nothing_until_it_is_known() -> None:
    held = decide_service(facts(type=ServiceType.DEFAULT, account=NO_BALANCE, previous=NOT_ENABLED), NOW)
    assert (held.phase, held.wanted, held.decided) == (Phase.NOT_ENABLED, False, False)
    known = decide_service(facts(type=ServiceType.DEFAULT, previous=remembered(held), backend=EMPTY), NOW)
    assert (known.phase, known.wanted) == (Phase.CREATING, True)


def test_an_unknown_backend_changes_no_phase() -> None:
    for previous in (CREATING, RUNNING, RESUMING):
        assert decide_service(facts(previous=previous, backend=UNKNOWN), NOW).phase is previous.phase


ACTIVE = ReservationState.ACTIVE


@pytest.mark.parametrize(
    ("service", "mode"),
    [
        ({"postpaid": False}, BillingMode.NONE),
        ({"postpaid": True}, BillingMode.PAY_AS_YOU_GO),
        ({"postpaid": True, "trial": True}, BillingMode.PAY_AS_YOU_GO),
        ({"account": POOR_ACCOUNT}, BillingMode.PAY_AS_YOU_GO),
        ({**TRIAL}, BillingMode.FREE_QUOTA),
        ({**TRIAL, "quota": replace(QUOTA, used=1000)}, BillingMode.NONE),
        ({**TRIAL, "quota": replace(QUOTA, expires_at=NOW)}, BillingMode.NONE),
        ({**RESERVED, "reservation": ACTIVE}, BillingMode.TPM_RESERVATION),
        ({"reserves": True, "reservation": ACTIVE}, BillingMode.TPM_RESERVATION),
        ({"reserves": True, "reservation": ReservationState.EXPIRED}, BillingMode.PAY_AS_YOU_GO),
        ({**RESERVED, "reservation": ReservationState.EXPIRED}, BillingMode.NONE),
        ({**RESERVED, "reservation": ReservationState.UNPAID}, BillingMode.NONE),
    ],
)
def test_billing_mode(service: dict[str, Any], mode: BillingMode) -> None:
    assert decide_service(facts(**service), NOW).billing_mode is mode


@pytest.mark.parametrize("mode", [BillingMode.TPM_RESERVATION, BillingMode.PAY_AS_YOU_GO])
def test_an_unknown_reservation_changes_no_billing_mode(mode: BillingMode) -> None:
    previous = replace(RUNNING, billing_mode=mode)
    assert (
        decide_service(facts(reserves=True, reservation=UNKNOWN, previous=previous), NOW).billing_mode is mode
    )


@pytest.mark.parametrize("mode", [BillingMode.FREE_QUOTA, BillingMode.NONE])
def test_an_unknown_quota_changes_no_billing_mode(mode: BillingMode) -> None:
    previous = replace(RUNNING, billing_mode=mode)
    assert decide_service(facts(**TRIAL, quota=UNKNOWN, previous=previous), NOW).billing_mode is mode


@pytest.mark.parametrize("mode", BillingMode)
def test_a_disabled_service_has_no_billing_mode(mode: BillingMode) -> None:
    previous = replace(RUNNING, billing_mode=mode)
    assert decide_service(facts(postpaid=False, previous=previous), NOW).billing_mode is BillingMode.NONE
