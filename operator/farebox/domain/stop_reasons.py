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
class Holds:
    """The reason holds; the message says on what and what to do."""

    message: str


@dataclass(frozen=True, slots=True)
class Unsure:
    """It cannot be told: `waiting_for` names the fact that is missing."""

    waiting_for: str


class Clear:
    """The reason does not hold."""


CLEAR: Final = Clear()
Finding = Holds | Unsure | Clear
Check = Callable[[Facts, datetime], Finding]


def postpaid_disabled(facts: Facts, now: datetime) -> Finding:
    """Nothing is switched on that could pay for calls (B4)."""
    service = facts.service
    if service.postpaid or service.trial or service.reserves:
        return CLEAR
    return Holds("spec.postpaid, spec.trial and spec.reservation are all off: set spec.postpaid to enable it")


def account_not_found(facts: Facts, now: datetime) -> Finding:
    """The account does not exist."""
    if facts.account is UNKNOWN:
        return Unsure(f"BillingAccount {facts.account_key}")
    if facts.account is MISSING:
        return Holds(f"BillingAccount {facts.account_key} (spec.billingAccountRef) does not exist: create it")
    return CLEAR


def account_not_allowed(facts: Facts, now: datetime) -> Finding:
    """The account does not take services of this namespace (B22)."""
    if facts.account is UNKNOWN:
        return Unsure(f"BillingAccount {facts.account_key}")
    if facts.account is MISSING or facts.account.allows is True:
        return CLEAR
    namespace = facts.service.key.namespace
    if facts.account.allows is UNKNOWN:
        return Unsure(f"the labels of Namespace {namespace}")
    return Holds(
        f"BillingAccount {facts.account_key} does not allow services in namespace {namespace}: "
        "ask its owner to extend spec.allowedNamespaces"
    )


def model_not_found(facts: Facts, now: datetime) -> Finding:
    """The model is not in the gallery."""
    if facts.model is UNKNOWN:
        return Unsure(f"Model {facts.model_name}")
    if facts.model is MISSING:
        return Holds(f"Model {facts.model_name} (spec.modelRef) does not exist: see kubectl get models")
    return CLEAR


def model_retired(facts: Facts, now: datetime) -> Finding:
    """The model was withdrawn from the gallery."""
    if facts.model is UNKNOWN:
        return Unsure(f"Model {facts.model_name}")
    if facts.model is MISSING or not facts.model.retired:
        return CLEAR
    return Holds(f"Model {facts.model_name} is retired: create a service on another model")


def currency_mismatch(facts: Facts, now: datetime) -> Finding:
    """The account cannot pay in the currency of the model's prices."""
    if facts.model is MISSING or facts.account is MISSING:
        return CLEAR
    if facts.model is UNKNOWN:
        return Unsure(f"Model {facts.model_name}")
    if facts.account is UNKNOWN:
        return Unsure(f"BillingAccount {facts.account_key}")
    if facts.model.currency == facts.account.currency:
        return CLEAR
    return Holds(
        f"Model {facts.model_name} is priced in {facts.model.currency}, but BillingAccount "
        f"{facts.account_key} is in {facts.account.currency}: use an account in {facts.model.currency}"
    )


def overdue(facts: Facts, now: datetime) -> Finding:
    """A pay-as-you-go service whose account has nothing left to spend (B3).

    A reservation in force is paid already and outlives this (B9).
    """
    if not facts.service.postpaid or facts.account is MISSING:
        return CLEAR
    if facts.service.reserves and reservation_state(facts) is ReservationState.ACTIVE:
        return CLEAR
    if facts.account is UNKNOWN:
        return Unsure(f"BillingAccount {facts.account_key}")
    available = facts.account.available
    if available is UNKNOWN:
        return Unsure(f"the balance of BillingAccount {facts.account_key}")
    if available > 0:
        return CLEAR
    if facts.service.reserves and facts.reservation is UNKNOWN:
        return Unsure("the state of its reservation")
    # No amounts: each change of the balance would be a write to every service on it. The account has them.
    return Holds(f"BillingAccount {facts.account_key} is overdue: top it up (its status says by how much)")


def free_quota_exhausted(facts: Facts, now: datetime) -> Finding:
    """A trial service whose free quota is used up (B6)."""
    if not _trial_alone(facts):
        return CLEAR
    if facts.quota is UNKNOWN:
        return Unsure(f"the free quota of BillingAccount {facts.account_key} for Model {facts.model_name}")
    if facts.quota is MISSING:
        return Holds(f"Model {facts.model_name} has no free quota: set spec.postpaid to pay for calls")
    if facts.quota.used < facts.quota.total or now >= facts.quota.expires_at:
        return CLEAR
    return Holds(f"all {facts.quota.total} free tokens are used: set spec.postpaid to pay for more")


def free_quota_expired(facts: Facts, now: datetime) -> Finding:
    """A trial service whose free quota is past its date (B6)."""
    if not _trial_alone(facts):
        return CLEAR
    if facts.quota is UNKNOWN:
        return Unsure(f"the free quota of BillingAccount {facts.account_key} for Model {facts.model_name}")
    if facts.quota is MISSING or now < facts.quota.expires_at:
        return CLEAR
    return Holds(
        f"the free quota ended on {facts.quota.expires_at:%Y-%m-%d}: set spec.postpaid to pay for more"
    )


def reservation_unpaid(facts: Facts, now: datetime) -> Finding:
    """The term could not be bought, and nothing else pays (B9)."""
    if not facts.service.reserves or facts.service.postpaid:
        return CLEAR
    if facts.reservation is UNKNOWN:
        return Unsure("the state of its reservation")
    state = facts.reservation.state
    if state is ReservationState.PENDING:
        # Neither bought nor refused: nothing pays for calls yet, so this is no reason to start.
        return Unsure("the purchase of its reservation")
    if state is ReservationState.UNPAID:
        return Holds(
            f"the reservation could not be bought from BillingAccount {facts.account_key}: "
            f"{facts.reservation.message}; or set spec.postpaid to pay by token"
        )
    return CLEAR


def reservation_expired(facts: Facts, now: datetime) -> Finding:
    """The term ended without renewal, and nothing else pays (B9)."""
    if not facts.service.reserves or facts.service.postpaid:
        return CLEAR
    if facts.reservation is UNKNOWN:
        return Unsure("the state of its reservation")
    if facts.reservation.state is ReservationState.EXPIRED:
        return Holds(
            "the reservation ended: set spec.reservation.autoRenew, or spec.postpaid to pay by token"
        )
    return CLEAR


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
class Findings:
    """The reasons that hold, with their messages, and those that cannot be told now."""

    holding: dict[StopReason, str]
    unsure: dict[StopReason, str]


def evaluate(facts: Facts, now: datetime) -> Findings:
    """Run every check; each reason is judged by itself."""
    findings = Findings({}, {})
    for reason, check in CHECKS:
        match check(facts, now):
            case Holds(message):
                findings.holding[reason] = message
            case Unsure(waiting_for):
                findings.unsure[reason] = waiting_for
            case _:
                pass
    return findings


def may_reserve(facts: Facts, now: datetime) -> bool | Unknown:
    """Whether the service may buy terms from its account now (B9, B22)."""
    findings = evaluate(facts, now)
    if SPENDING & findings.holding.keys():
        return False
    return UNKNOWN if SPENDING & findings.unsure.keys() else True
