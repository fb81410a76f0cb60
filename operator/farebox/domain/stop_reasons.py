"""Why a service has to stop: one small check for each reason, read as a list.

Each check looks at the facts and says that its reason holds, does not, or cannot be told. The reasons form
a set and each clears only itself (product.md, States); nothing here knows of phases.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from farebox.api import ReservationState, StopReason
from farebox.domain.facts import MISSING, UNKNOWN, Facts, Unknown


@dataclass(frozen=True, slots=True)
class ReasonTrue:
    """The reason holds; the message says on what and what to do."""

    message: str


@dataclass(frozen=True, slots=True)
class ReasonUnknown:
    """It cannot be told: `waiting_for` names the fact that is missing."""

    waiting_for: str


class ReasonFalse:
    """The reason does not hold."""


FALSE: Final = ReasonFalse()
ReasonStatus = ReasonTrue | ReasonUnknown | ReasonFalse
Check = Callable[[Facts, datetime], ReasonStatus]


def postpaid_disabled(facts: Facts, now: datetime) -> ReasonStatus:
    """Nothing is switched on that could pay for calls (B4)."""
    service = facts.service
    if service.postpaid or service.trial or service.reserves:
        return FALSE
    return ReasonTrue(
        "spec.postpaid, spec.trial and spec.reservation are all off: set spec.postpaid to enable it"
    )


def account_not_found(facts: Facts, now: datetime) -> ReasonStatus:
    """The account does not exist."""
    if facts.account is UNKNOWN:
        return ReasonUnknown(f"BillingAccount {facts.account_key}")
    if facts.account is MISSING:
        return ReasonTrue(
            f"BillingAccount {facts.account_key} (spec.billingAccountRef) does not exist: create it"
        )
    return FALSE


def account_not_allowed(facts: Facts, now: datetime) -> ReasonStatus:
    """The account does not take services of this namespace (B22)."""
    if facts.account is UNKNOWN:
        return ReasonUnknown(f"BillingAccount {facts.account_key}")
    if facts.account is MISSING or facts.account.allows is True:
        return FALSE
    namespace = facts.service.key.namespace
    if facts.account.allows is UNKNOWN:
        return ReasonUnknown(f"the labels of Namespace {namespace}")
    return ReasonTrue(
        f"BillingAccount {facts.account_key} does not allow services in namespace {namespace}: "
        "ask its owner to extend spec.allowedNamespaces"
    )


def model_not_found(facts: Facts, now: datetime) -> ReasonStatus:
    """The model is not in the gallery."""
    if facts.model is UNKNOWN:
        return ReasonUnknown(f"Model {facts.model_name}")
    if facts.model is MISSING:
        return ReasonTrue(f"Model {facts.model_name} (spec.modelRef) does not exist: see kubectl get models")
    return FALSE


def model_retired(facts: Facts, now: datetime) -> ReasonStatus:
    """The model was withdrawn from the gallery."""
    if facts.model is UNKNOWN:
        return ReasonUnknown(f"Model {facts.model_name}")
    if facts.model is MISSING or not facts.model.retired:
        return FALSE
    return ReasonTrue(f"Model {facts.model_name} is retired: create a service on another model")


def currency_mismatch(facts: Facts, now: datetime) -> ReasonStatus:
    """The account cannot pay in the currency of the model's prices."""
    if facts.model is MISSING or facts.account is MISSING:
        return FALSE
    if facts.model is UNKNOWN:
        return ReasonUnknown(f"Model {facts.model_name}")
    if facts.account is UNKNOWN:
        return ReasonUnknown(f"BillingAccount {facts.account_key}")
    if facts.model.currency == facts.account.currency:
        return FALSE
    return ReasonTrue(
        f"Model {facts.model_name} is priced in {facts.model.currency}, but BillingAccount "
        f"{facts.account_key} is in {facts.account.currency}: use an account in {facts.model.currency}"
    )


def overdue(facts: Facts, now: datetime) -> ReasonStatus:
    """A pay-as-you-go service whose account has nothing left to spend (B3).

    A reservation in force is paid already and outlives this (B9).
    """
    if not facts.service.postpaid or facts.account is MISSING:
        return FALSE
    if facts.service.reserves and reservation_state(facts) is ReservationState.ACTIVE:
        return FALSE
    if facts.account is UNKNOWN:
        return ReasonUnknown(f"BillingAccount {facts.account_key}")
    available = facts.account.available
    if available is UNKNOWN:
        return ReasonUnknown(f"the balance of BillingAccount {facts.account_key}")
    if available > 0:
        return FALSE
    if facts.service.reserves and facts.reservation is UNKNOWN:
        return ReasonUnknown("the state of its reservation")
    # No amounts: each change of the balance would be a write to every service on it. The account has them.
    return ReasonTrue(
        f"BillingAccount {facts.account_key} is overdue: top it up (its status says by how much)"
    )


def free_quota_exhausted(facts: Facts, now: datetime) -> ReasonStatus:
    """A trial service whose free quota is used up (B6)."""
    if not _trial_alone(facts):
        return FALSE
    if facts.quota is UNKNOWN:
        return ReasonUnknown(
            f"the free quota of BillingAccount {facts.account_key} for Model {facts.model_name}"
        )
    if facts.quota is MISSING:
        return ReasonTrue(f"Model {facts.model_name} has no free quota: set spec.postpaid to pay for calls")
    if facts.quota.used < facts.quota.total or now >= facts.quota.expires_at:
        return FALSE
    return ReasonTrue(f"all {facts.quota.total} free tokens are used: set spec.postpaid to pay for more")


def free_quota_expired(facts: Facts, now: datetime) -> ReasonStatus:
    """A trial service whose free quota is past its date (B6)."""
    if not _trial_alone(facts):
        return FALSE
    if facts.quota is UNKNOWN:
        return ReasonUnknown(
            f"the free quota of BillingAccount {facts.account_key} for Model {facts.model_name}"
        )
    if facts.quota is MISSING or now < facts.quota.expires_at:
        return FALSE
    return ReasonTrue(
        f"the free quota ended on {facts.quota.expires_at:%Y-%m-%d}: set spec.postpaid to pay for more"
    )


def reservation_unpaid(facts: Facts, now: datetime) -> ReasonStatus:
    """The term could not be bought, and nothing else pays (B9)."""
    if not facts.service.reserves or facts.service.postpaid:
        return FALSE
    if facts.reservation is UNKNOWN:
        return ReasonUnknown("the state of its reservation")
    state = facts.reservation.state
    if state is ReservationState.PENDING:
        # Neither bought nor refused: nothing pays for calls yet, so this is no reason to start.
        return ReasonUnknown("the purchase of its reservation")
    if state is ReservationState.UNPAID:
        return ReasonTrue(
            f"the reservation could not be bought from BillingAccount {facts.account_key}: "
            f"{facts.reservation.message}; or set spec.postpaid to pay by token"
        )
    return FALSE


def reservation_expired(facts: Facts, now: datetime) -> ReasonStatus:
    """The term ended without renewal, and nothing else pays (B9)."""
    if not facts.service.reserves or facts.service.postpaid:
        return FALSE
    if facts.reservation is UNKNOWN:
        return ReasonUnknown("the state of its reservation")
    if facts.reservation.state is ReservationState.EXPIRED:
        return ReasonTrue(
            "the reservation ended: set spec.reservation.autoRenew, or spec.postpaid to pay by token"
        )
    return FALSE


def reservation_state(facts: Facts) -> ReservationState | None:
    """The state of the service's reservation; None while it is not known."""
    return None if facts.reservation is UNKNOWN else facts.reservation.state


def _trial_alone(facts: Facts) -> bool:
    service = facts.service
    return service.trial and not service.postpaid and not service.reserves


CHECKS: Final[tuple[tuple[StopReason, Check], ...]] = (
    (StopReason.POSTPAID_DISABLED, postpaid_disabled),
    (StopReason.ACCOUNT_NOT_FOUND, account_not_found),
    (StopReason.ACCOUNT_NOT_ALLOWED, account_not_allowed),
    (StopReason.MODEL_NOT_FOUND, model_not_found),
    (StopReason.MODEL_RETIRED, model_retired),
    (StopReason.CURRENCY_MISMATCH, currency_mismatch),
    (StopReason.OVERDUE, overdue),
    (StopReason.FREE_QUOTA_EXHAUSTED, free_quota_exhausted),
    (StopReason.FREE_QUOTA_EXPIRED, free_quota_expired),
    (StopReason.RESERVATION_UNPAID, reservation_unpaid),
    (StopReason.RESERVATION_EXPIRED, reservation_expired),
)
"""Every reason with its check, in the order in which reasons are shown."""


SPENDING: Final = frozenset(
    {
        StopReason.ACCOUNT_NOT_FOUND,
        StopReason.ACCOUNT_NOT_ALLOWED,
        StopReason.MODEL_NOT_FOUND,
        StopReason.MODEL_RETIRED,
        StopReason.CURRENCY_MISMATCH,
    }
)
"""Reasons that keep a service from spending its account's money on a reservation."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The reasons that hold, with their messages, and those that cannot be told now."""

    active: dict[StopReason, str]
    unknown: dict[StopReason, str]


def evaluate(facts: Facts, now: datetime) -> Evaluation:
    """Run every check; each reason is judged by itself."""
    findings = Evaluation({}, {})
    for reason, check in CHECKS:
        match check(facts, now):
            case ReasonTrue(message):
                findings.active[reason] = message
            case ReasonUnknown(waiting_for):
                findings.unknown[reason] = waiting_for
            case _:
                pass
    return findings


def may_reserve(facts: Facts, now: datetime) -> bool | Unknown:
    """Whether the service may buy terms from its account now (B9, B22)."""
    findings = evaluate(facts, now)
    if SPENDING & findings.active.keys():
        return False
    return UNKNOWN if SPENDING & findings.unknown.keys() else True
