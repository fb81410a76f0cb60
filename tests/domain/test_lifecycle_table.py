"""`decide_service` by the state table of product.md: reasons, phases, billing, due times."""

import re
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import combinations
from typing import Any, NamedTuple

import pytest

from farebox.api import BillingMode, ConditionType, Phase, ReservationState, ServiceType, StopReason
from farebox.domain.billing.money import Nano
from farebox.domain.facts import EXTERNAL, MISSING, UNKNOWN, Facts, Previous
from farebox.domain.lifecycle import decide_service
from farebox.domain.stop_reasons import CHECKS
from tests.domain.build import (
    ACCOUNT,
    EARLIER,
    EMPTY,
    GOOD_ACCOUNT,
    GOOD_MODEL,
    MODEL,
    NEVER,
    NOT_ENABLED,
    NOW,
    POOR_ACCOUNT,
    QUOTA,
    READY,
    RESERVED,
    RUNNING,
    TRIAL,
    condition,
    facts,
    is_true,
    remembered,
    said,
    stopped,
)

R = StopReason


class Reason(NamedTuple):
    """The facts that make a reason hold, the service that it needs, and words of its message."""

    because: dict[str, Any]
    kind: dict[str, Any]
    names: tuple[str, ...]


REASONS: dict[StopReason, Reason] = {
    R.POSTPAID_DISABLED: Reason({"postpaid": False}, {}, ("spec.postpaid",)),
    R.ACCOUNT_NOT_FOUND: Reason({"account": MISSING}, {}, (str(ACCOUNT), "spec.billingAccountRef", "create")),
    R.ACCOUNT_NOT_ALLOWED: Reason(
        {"account": replace(GOOD_ACCOUNT, allows=False)},
        {},
        (str(ACCOUNT), "team-a", "spec.allowedNamespaces"),
    ),
    R.MODEL_NOT_FOUND: Reason({"model": MISSING}, {}, (MODEL, "spec.modelRef")),
    R.MODEL_RETIRED: Reason({"model": replace(GOOD_MODEL, retired=True)}, {}, (MODEL, "another model")),
    R.CURRENCY_MISMATCH: Reason(
        {"account": replace(GOOD_ACCOUNT, currency="EUR")}, {}, (MODEL, str(ACCOUNT), "USD", "EUR")
    ),
    R.OVERDUE: Reason({"account": POOR_ACCOUNT}, {}, (str(ACCOUNT), "top up")),
    R.FREE_QUOTA_EXHAUSTED: Reason({"quota": replace(QUOTA, used=1000)}, TRIAL, ("1000", "spec.postpaid")),
    R.FREE_QUOTA_EXPIRED: Reason(
        {"quota": replace(QUOTA, expires_at=NOW)}, TRIAL, ("2026-03-01", "spec.postpaid")
    ),
    R.RESERVATION_UNPAID: Reason(
        {"reservation": ReservationState.UNPAID}, RESERVED, (str(ACCOUNT), "Top up", "spec.postpaid")
    ),
    R.RESERVATION_EXPIRED: Reason(
        {"reservation": ReservationState.EXPIRED}, RESERVED, ("spec.reservation.autoRenew", "spec.postpaid")
    ),
}

PAYMENT = {
    R.OVERDUE,
    R.FREE_QUOTA_EXHAUSTED,
    R.FREE_QUOTA_EXPIRED,
    R.RESERVATION_UNPAID,
    R.RESERVATION_EXPIRED,
}
NEVER_TOGETHER = {
    # One thing pays: nothing, postpaid, the trial's quota, or a reservation.
    *(frozenset({R.POSTPAID_DISABLED, reason}) for reason in PAYMENT),
    *(frozenset(pair) for pair in combinations(PAYMENT, 2)),
    # An account or model that does not exist has no balance, currency or rules.
    *(
        frozenset({R.ACCOUNT_NOT_FOUND, reason})
        for reason in (R.ACCOUNT_NOT_ALLOWED, R.CURRENCY_MISMATCH, R.OVERDUE)
    ),
    *(frozenset({R.MODEL_NOT_FOUND, reason}) for reason in (R.MODEL_RETIRED, R.CURRENCY_MISMATCH)),
}
PAIRS = [pair for pair in combinations(StopReason, 2) if frozenset(pair) not in NEVER_TOGETHER]


def with_reasons(*reasons: StopReason, previous: Previous = RUNNING) -> Facts:
    """Facts under which exactly these reasons hold."""
    given: dict[str, Any] = {}
    for reason in reasons:
        given |= REASONS[reason].kind
    for reason in reasons:
        for name, value in REASONS[reason].because.items():
            given[name] = (
                _both(given[name], value) if name in ("account", "model") and name in given else value
            )
    return facts(previous=previous, **given)


def _both(one: Any, other: Any) -> Any:
    """An account or a model with the changes of both."""
    good: Any = GOOD_ACCOUNT if one.__class__ is GOOD_ACCOUNT.__class__ else GOOD_MODEL
    names = [name for name in good.__slots__ if getattr(other, name) != getattr(good, name)]
    return replace(one, **{name: getattr(other, name) for name in names})


def test_every_reason_has_one_check_and_one_row_in_order() -> None:
    assert [reason for reason, _ in CHECKS] == list(StopReason)
    assert set(REASONS) == set(StopReason)
    assert (len(PAIRS), len(NEVER_TOGETHER)) == (35, 20)


@pytest.mark.parametrize("reason", StopReason)
def test_a_reason_stops_the_service_and_is_the_only_one_reported(reason: StopReason) -> None:
    verdict = decide_service(with_reasons(reason), NOW)
    assert (verdict.phase, verdict.stop_reasons, verdict.wanted) == (Phase.STOPPED, (reason,), False)
    assert said(verdict)["Serving"] == f"False {reason.value}"


@pytest.mark.parametrize("reason", StopReason)
def test_a_reason_clears_and_the_service_resumes(reason: StopReason) -> None:
    kind = REASONS[reason].kind
    verdict = decide_service(facts(previous=stopped(reason), backend=EMPTY, **kind), NOW)
    assert (verdict.phase, verdict.stop_reasons, verdict.wanted) == (Phase.STOPPED, (), True)
    assert said(verdict) == {
        "Ready": "False Resuming",
        "Reconciling": "True Resuming",
        "Stalled": "False NotStalled",
        "Serving": "False Resuming",
    }


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_both_of_two_reasons_are_reported(pair: tuple[StopReason, StopReason]) -> None:
    assert decide_service(with_reasons(*pair), NOW).stop_reasons == pair


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_clearing_one_of_two_reasons_leaves_the_other(pair: tuple[StopReason, StopReason]) -> None:
    both = remembered(decide_service(with_reasons(*pair), NOW))
    for left in pair:
        verdict = decide_service(with_reasons(left, previous=both), NOW)
        assert (verdict.stop_reasons, verdict.wanted) == ((left,), False)


@pytest.mark.parametrize("reason", StopReason)
def test_a_message_names_the_object_the_field_and_what_to_do(reason: StopReason) -> None:
    message = condition(decide_service(with_reasons(reason), NOW), ConditionType.SERVING).message
    assert [word for word in REASONS[reason].names if word not in message] == []


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_a_message_contains_every_reason(pair: tuple[StopReason, StopReason]) -> None:
    message = condition(decide_service(with_reasons(*pair), NOW), ConditionType.SERVING).message
    for reason in pair:
        assert condition(decide_service(with_reasons(reason), NOW), ConditionType.SERVING).message in message


def test_a_services_message_has_no_amount() -> None:
    """Otherwise each call on an overdue account would write the status of every service on it."""
    amounts = (0, -1, -7_000_000_000)
    verdicts = [decide_service(facts(account=replace(GOOD_ACCOUNT, available=Nano(n))), NOW) for n in amounts]
    assert verdicts[0].stop_reasons == (R.OVERDUE,)
    assert len({verdict.conditions for verdict in verdicts}) == 1
    assert not re.search(r"\d\.\d", " ".join(c.message for c in verdicts[0].conditions))


@pytest.mark.parametrize(("available", "overdue"), [(-1, True), (0, True), (1, False)])
def test_nothing_left_is_overdue(available: int, overdue: bool) -> None:
    verdict = decide_service(facts(account=replace(GOOD_ACCOUNT, available=Nano(available))), NOW)
    assert (R.OVERDUE in verdict.stop_reasons) is overdue


@pytest.mark.parametrize(
    ("service", "overdue"),
    [
        ({"postpaid": True}, True),
        ({"postpaid": True, "trial": True}, True),
        ({"postpaid": False, "trial": True}, False),
        ({"postpaid": False, "reserves": True}, False),
        ({"postpaid": True, "reserves": True, "reservation": ReservationState.ACTIVE}, False),
        ({"postpaid": True, "reserves": True, "reservation": ReservationState.EXPIRED}, True),
        ({"postpaid": True, "reserves": True, "reservation": ReservationState.UNPAID}, True),
        ({"postpaid": True, "reserves": True, "reservation": ReservationState.PENDING}, True),
    ],
)
def test_b3_overdue_stops_only_pay_as_you_go_services(service: dict[str, Any], overdue: bool) -> None:
    verdict = decide_service(facts(account=POOR_ACCOUNT, **service), NOW)
    assert verdict.stop_reasons == ((R.OVERDUE,) if overdue else ())
    assert verdict.wanted is not overdue


@pytest.mark.parametrize("quota", [replace(QUOTA, used=1000), replace(QUOTA, expires_at=EARLIER), UNKNOWN])
def test_b6_a_postpaid_service_continues_when_the_free_quota_is_used_up(quota: Any) -> None:
    verdict = decide_service(facts(trial=True, quota=quota), NOW)
    assert (verdict.phase, verdict.billing_mode) == (Phase.RUNNING, BillingMode.PAY_AS_YOU_GO)


@pytest.mark.parametrize("state", [ReservationState.UNPAID, ReservationState.EXPIRED])
def test_b9_a_postpaid_service_continues_when_the_reservation_ends(state: ReservationState) -> None:
    verdict = decide_service(facts(reserves=True, reservation=state), NOW)
    assert (verdict.phase, verdict.billing_mode) == (Phase.RUNNING, BillingMode.PAY_AS_YOU_GO)


def test_a_quota_used_up_and_past_its_date_is_expired() -> None:
    verdict = decide_service(facts(**TRIAL, quota=replace(QUOTA, used=1000, expires_at=EARLIER)), NOW)
    assert verdict.stop_reasons == (R.FREE_QUOTA_EXPIRED,)


ENDS = QUOTA.expires_at


@pytest.mark.parametrize(
    ("given", "due"),
    [
        (TRIAL, ENDS),
        (TRIAL | {"previous": NEVER, "backend": EMPTY}, ENDS),
        (TRIAL | {"account": UNKNOWN, "previous": NEVER}, ENDS),
        (TRIAL | {"account": MISSING}, ENDS),
        (TRIAL | {"reserves": True}, ENDS),
        # Exhausted until then, and Expired from then on.
        (TRIAL | {"quota": replace(QUOTA, used=1000)}, ENDS),
        (TRIAL | {"quota": replace(QUOTA, expires_at=NOW)}, None),
        (TRIAL | {"quota": replace(QUOTA, expires_at=EARLIER)}, None),
        (TRIAL | {"quota": UNKNOWN}, None),
        (TRIAL | {"quota": MISSING}, None),
        ({"trial": True}, None),
        ({}, None),
        ({"postpaid": False}, None),
        # The ledger reports the end of a reservation.
        (RESERVED, None),
    ],
)
def test_a_verdict_is_due_again_when_the_free_quota_that_pays_ends(
    given: dict[str, Any], due: datetime | None
) -> None:
    verdict = decide_service(facts(**given), NOW)
    assert verdict.due == due


@pytest.mark.parametrize("used", [10, 1000])
def test_b6_at_its_date_a_free_quota_is_expired_and_nothing_more_is_due(used: int) -> None:
    trial = facts(**TRIAL, quota=replace(QUOTA, used=used))
    before = decide_service(trial, ENDS - timedelta(microseconds=1))
    assert R.FREE_QUOTA_EXPIRED not in before.stop_reasons
    at = decide_service(replace(trial, previous=remembered(before)), ENDS)
    assert (at.stop_reasons, at.due) == ((R.FREE_QUOTA_EXPIRED,), None)


def test_a_reservation_that_is_not_bought_yet_neither_starts_nor_stops() -> None:
    fresh = decide_service(
        facts(**RESERVED, reservation=ReservationState.PENDING, previous=NEVER, backend=EMPTY), NOW
    )
    assert (fresh.phase, fresh.wanted, fresh.decided) == (None, False, False)
    running = decide_service(facts(**RESERVED, reservation=ReservationState.PENDING), NOW)
    assert (running.phase, running.wanted) == (Phase.RUNNING, True)


@pytest.mark.parametrize("reason", [reason for reason in StopReason if reason is not R.POSTPAID_DISABLED])
def test_a_stopped_service_is_stalled_with_its_reason(reason: StopReason) -> None:
    assert said(decide_service(with_reasons(reason), NOW)) == {
        "Ready": f"False {reason.value}",
        "Reconciling": "False NotReconciling",
        "Stalled": f"True {reason.value}",
        "Serving": f"False {reason.value}",
    }


@pytest.mark.parametrize("backend", [EMPTY, MISSING, EXTERNAL])
@pytest.mark.parametrize("previous", [NOT_ENABLED, RUNNING])
def test_a_disabled_service_is_ready(previous: Previous, backend: Any) -> None:
    verdict = decide_service(
        facts(type=ServiceType.DEFAULT, postpaid=False, previous=previous, backend=backend), NOW
    )
    assert said(verdict) == {
        "Ready": "True NotEnabled" if previous is NOT_ENABLED else "True Disabled",
        "Reconciling": "False NotReconciling",
        "Stalled": "False NotStalled",
        "Serving": "False PostpaidDisabled",
    }


def test_a_disabled_service_is_ready_whatever_other_reason_holds() -> None:
    verdict = decide_service(with_reasons(R.POSTPAID_DISABLED, R.MODEL_RETIRED), NOW)
    assert (
        said(decide_service(facts(postpaid=False, model=MISSING, backend=EMPTY), NOW))["Ready"]
        == "True Disabled"
    )
    assert verdict.stop_reasons == (R.POSTPAID_DISABLED, R.MODEL_RETIRED)


def test_a_disabled_service_is_not_ready_before_its_pods_are_gone() -> None:
    verdict = decide_service(facts(postpaid=False, backend=replace(READY, desired=0)), NOW)
    assert said(verdict)["Reconciling"] == "True Stopping"
    shared = decide_service(facts(postpaid=False, dedicated=False, backend=READY), NOW)
    assert said(shared)["Ready"] == "True Disabled"


@pytest.mark.parametrize("dimension", ["rpm", "tpm"])
@pytest.mark.parametrize("off", [False, True])
def test_b8_a_limit_above_the_ceiling_is_stalled_and_names_the_ceiling(dimension: str, off: bool) -> None:
    """The service keeps running with the ceiling as its limit."""
    ceiling: dict[str, Any] = {f"{dimension}_ceiling": 600}
    limit: dict[str, Any] = {f"{dimension}_limit": 601}
    over = facts(model=replace(GOOD_MODEL, **ceiling), postpaid=not off, **limit)
    verdict = decide_service(over, NOW)
    assert said(verdict)["Stalled"] == "True LimitAboveCeiling"
    message = condition(verdict, ConditionType.STALLED).message
    assert [word for word in (f"spec.limits.{dimension}", "601", "600", MODEL) if word not in message] == []
    assert is_true(verdict, ConditionType.SERVING) is not off


@pytest.mark.parametrize(("limit", "ceiling"), [(600, 600), (0, 600), (601, 0)])
def test_a_limit_up_to_the_ceiling_or_without_one_is_fine(limit: int, ceiling: int) -> None:
    model = replace(GOOD_MODEL, rpm_ceiling=ceiling)
    assert said(decide_service(facts(model=model, rpm_limit=limit), NOW))["Ready"] == "True Running"
