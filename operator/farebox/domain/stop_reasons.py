"""Stop reasons of a service: one small check for each reason, in one list.

Each check returns True, False or Unknown for its reason, as a condition does. The reasons form a set, and
each reason clears only itself (product.md, States). This module knows no phases.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from farebox.api import ReservationState, StopReason
from farebox.domain.facts import MISSING, UNKNOWN, Facts, Unknown


@dataclass(frozen=True, slots=True)
class ReasonTrue:
    """The reason holds. `message` names the object and says what to do."""

    message: str


@dataclass(frozen=True, slots=True)
class ReasonUnknown:
    """It is unknown whether the reason holds. `waiting_for` names the missing fact."""

    waiting_for: str


class ReasonFalse:
    """The reason does not hold."""


FALSE: Final = ReasonFalse()
ReasonStatus = ReasonTrue | ReasonUnknown | ReasonFalse
Check = Callable[[Facts, datetime], ReasonStatus]


def postpaid_disabled(facts: Facts, now: datetime) -> ReasonStatus:
    """PostpaidDisabled: the owner enabled nothing that pays for calls (B4)."""
    service = facts.service
    if service.postpaid or service.trial or service.reserves:
        return FALSE
    return ReasonTrue(
        "Nothing pays for calls: spec.postpaid, spec.trial and spec.reservation are all off. "
        "Set spec.postpaid to true to enable the service"
    )


def account_not_found(facts: Facts, now: datetime) -> ReasonStatus:
    """AccountNotFound: the account does not exist."""
    if facts.account is UNKNOWN:
        return ReasonUnknown(f"BillingAccount {facts.account_key}")
    if facts.account is MISSING:
        return ReasonTrue(
            f"BillingAccount {facts.account_key} (spec.billingAccountRef) does not exist. Ask the billing "
            "admin to create it, or create another service with the correct spec.billingAccountRef"
        )
    return FALSE


def account_not_allowed(facts: Facts, now: datetime) -> ReasonStatus:
    """AccountNotAllowed: the account does not accept services of this namespace (B22)."""
    if facts.account is UNKNOWN:
        return ReasonUnknown(f"BillingAccount {facts.account_key}")
    if facts.account is MISSING or facts.account.allows is True:
        return FALSE
    namespace = facts.service.key.namespace
    if facts.account.allows is UNKNOWN:
        return ReasonUnknown(f"the labels of Namespace {namespace}")
    return ReasonTrue(
        f"BillingAccount {facts.account_key} does not allow services in namespace {namespace}. "
        "Ask its owner to extend spec.allowedNamespaces"
    )


def model_not_found(facts: Facts, now: datetime) -> ReasonStatus:
    """ModelNotFound: the model does not exist."""
    if facts.model is UNKNOWN:
        return ReasonUnknown(f"Model {facts.model_name}")
    if facts.model is MISSING:
        return ReasonTrue(
            f"Model {facts.model_name} (spec.modelRef) does not exist. "
            "List the models with kubectl get models"
        )
    return FALSE


def model_retired(facts: Facts, now: datetime) -> ReasonStatus:
    """ModelRetired: the cluster admin retired the model."""
    if facts.model is UNKNOWN:
        return ReasonUnknown(f"Model {facts.model_name}")
    if facts.model is MISSING or not facts.model.retired:
        return FALSE
    return ReasonTrue(f"Model {facts.model_name} is retired. Create a service on another model")


def currency_mismatch(facts: Facts, now: datetime) -> ReasonStatus:
    """CurrencyMismatch: the account and the model's prices have different currencies."""
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
        f"{facts.account_key} is in {facts.account.currency}. Use an account in {facts.model.currency}"
    )


def overdue(facts: Facts, now: datetime) -> ReasonStatus:
    """Overdue: the service is pay-as-you-go and its account has nothing left to spend (B3).

    An active reservation is already paid, so it does not stop (B9).
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
    # The message has no amount, or each change of the balance would write every service on the account.
    return ReasonTrue(f"BillingAccount {facts.account_key} is overdue. Its status says how much to top up")


def free_quota_exhausted(facts: Facts, now: datetime) -> ReasonStatus:
    """FreeQuotaExhausted: a trial service has used up its free quota (B6)."""
    if not _trial_alone(facts):
        return FALSE
    if facts.quota is UNKNOWN:
        return ReasonUnknown(
            f"the free quota of BillingAccount {facts.account_key} for Model {facts.model_name}"
        )
    if facts.quota is MISSING:
        return ReasonTrue(f"Model {facts.model_name} has no free quota. Set spec.postpaid to pay for calls")
    if facts.quota.used < facts.quota.total or now >= facts.quota.expires_at:
        return FALSE
    return ReasonTrue(f"All {facts.quota.total} free tokens are used. Set spec.postpaid to pay for calls")


def free_quota_expired(facts: Facts, now: datetime) -> ReasonStatus:
    """FreeQuotaExpired: a trial service's free quota is past its date (B6)."""
    if not _trial_alone(facts):
        return FALSE
    if facts.quota is UNKNOWN:
        return ReasonUnknown(
            f"the free quota of BillingAccount {facts.account_key} for Model {facts.model_name}"
        )
    if facts.quota is MISSING or now < facts.quota.expires_at:
        return FALSE
    return ReasonTrue(
        f"The free quota ended on {facts.quota.expires_at:%Y-%m-%d}. Set spec.postpaid to pay for calls"
    )


def reservation_unpaid(facts: Facts, now: datetime) -> ReasonStatus:
    """ReservationUnpaid: the term could not be bought, and nothing else pays (B9)."""
    if not facts.service.reserves or facts.service.postpaid:
        return FALSE
    if facts.reservation is UNKNOWN:
        return ReasonUnknown("the state of its reservation")
    state = facts.reservation.state
    if state is ReservationState.PENDING:
        # The term is neither bought nor refused. Nothing pays for calls yet, so the service does not start.
        return ReasonUnknown("the purchase of the reservation")
    if state is ReservationState.UNPAID:
        return ReasonTrue(
            f"The reservation could not be bought from BillingAccount {facts.account_key}: "
            f"{facts.reservation.message}. Or set spec.postpaid to pay for each token"
        )
    return FALSE


def reservation_expired(facts: Facts, now: datetime) -> ReasonStatus:
    """ReservationExpired: the term ended without renewal, and nothing else pays (B9)."""
    if not facts.service.reserves or facts.service.postpaid:
        return FALSE
    if facts.reservation is UNKNOWN:
        return ReasonUnknown("the state of its reservation")
    if facts.reservation.state is ReservationState.EXPIRED:
        return ReasonTrue(
            "The reservation has ended. Set spec.reservation.autoRenew to buy the next term, or "
            "spec.postpaid to pay for each token"
        )
    return FALSE


def reservation_state(facts: Facts) -> ReservationState | None:
    """The state of the service's reservation, or None while it is unknown."""
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
"""Reasons that keep a service from buying a reservation with its account's money."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The reasons that hold, with their messages, and the unknown ones, with what they wait for."""

    active: dict[StopReason, str]
    unknown: dict[StopReason, str]


def evaluate(facts: Facts, now: datetime) -> Evaluation:
    """Run every check. No check depends on the result of another."""
    evaluation = Evaluation({}, {})
    for reason, check in CHECKS:
        match check(facts, now):
            case ReasonTrue(message):
                evaluation.active[reason] = message
            case ReasonUnknown(waiting_for):
                evaluation.unknown[reason] = waiting_for
            case _:
                pass
    return evaluation


def may_reserve(facts: Facts, now: datetime) -> bool | Unknown:
    """Whether the service may buy reservation terms from its account now (B9, B22)."""
    evaluation = evaluate(facts, now)
    if SPENDING & evaluation.active.keys():
        return False
    return UNKNOWN if SPENDING & evaluation.unknown.keys() else True
