"""Sends to the ledger what services reserve; the ledger buys it (B9). Decides nothing about money."""

from farebox.api import InferenceService, ReservationState
from farebox.controller.queue import Key
from farebox.controller.reconcile.context import Context
from farebox.controller.state.cache import account_of
from farebox.domain.billing.reservations import Buying
from farebox.domain.facts import UNKNOWN, Facts
from farebox.domain.stop_reasons import may_reserve
from farebox.meterapi.types import ReservationBalance, ReservationRecord


def reserve(context: Context, key: Key, service: InferenceService, facts: Facts) -> None:
    """Send the ledger what a service reserves, and whether it may buy further terms.

    Unknown facts change nothing: the ledger keeps its last record.
    """
    release(context, key, service.metadata.uid)
    wanted = service.spec.reservation
    if wanted is None:
        return
    allowed = may_reserve(facts, context.now())
    if allowed is UNKNOWN:
        return
    buying = Buying.RENEWING if wanted.auto_renew else Buying.ONCE
    context.ledger_sync.upsert(
        key,
        ReservationRecord(
            service=key.object,
            uid=service.metadata.uid,
            account=account_of(service),
            model=service.model_name,
            input_tpm=wanted.input_tpm,
            output_tpm=wanted.output_tpm,
            days=wanted.days,
            buying=buying if allowed else Buying.NOTHING,
        ),
    )


def release(context: Context, key: Key, uid: str = "") -> bool:
    """End the reservations under a service's name, except those of this uid; returns whether there were any.

    A service that was deleted or recreated must not renew any more.
    """
    found = context.entitlements.orphans(key.object, uid)
    for reservation in found:
        context.ledger_sync.upsert(key, _ended(reservation))
    return bool(found)


def _ended(reservation: ReservationBalance) -> ReservationRecord:
    return ReservationRecord(
        service=reservation.service,
        uid=reservation.uid,
        account=reservation.account,
        model=reservation.model,
        input_tpm=reservation.input_tpm,
        output_tpm=reservation.output_tpm,
        days=reservation.days,
        buying=Buying.NOTHING,
    )


def record_renewal_failure(context: Context, service: InferenceService, facts: Facts) -> None:
    """Record an Event when the next term cannot be bought before the current one ends: a user can act."""
    if facts.reservation is UNKNOWN or service.spec.reservation is None:
        return
    before = service.status.reservation
    message = facts.reservation.message
    if facts.reservation.state is not ReservationState.ACTIVE or not message:
        return
    if before is None or before.message != message:
        text = f"The next reservation term could not be bought: {message}. Top up the account to retry"
        context.recorder.event(service, "Warning", "RenewalFailed", "Renew", text)
