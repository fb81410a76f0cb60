"""Records the operator's accounts, bindings, prices and reservations. Known facts change nothing.

The same database transaction does what a record makes possible: it grants free quotas (B6), charges pending
usage (B12) and buys reservation terms (B9).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeVar

from farebox.clock import to_micros
from farebox.domain.billing.money import MAX_NANO
from farebox.domain.billing.pricing import tiers_error
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerRefused
from farebox.ledger.booking.entitlements import grant_quotas, process_due_renewals, record_reservation
from farebox.ledger.booking.journal import Journal
from farebox.ledger.booking.state import Timeline
from farebox.ledger.booking.unit_of_work import MAX_CLOCK_SKEW
from farebox.ledger.booking.usage import charge_pending
from farebox.meterapi.scalars import MAX_DAYS
from farebox.meterapi.types import (
    AccountRecord,
    Binding,
    PriceVersion,
    Record,
    RecordRefusal,
    ReservationRecord,
)

_MAX_NAME: Final = 253
_MICROSECOND: Final = timedelta(microseconds=1)
T = TypeVar("T")


@dataclass(slots=True)
class _Changes:
    """What the records of one call changed. `reservations` has the accounts whose reservations changed."""

    services: set[ObjectKey] = field(default_factory=set)
    accounts: set[ObjectKey] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    reservations: set[ObjectKey] = field(default_factory=set)


def record(journal: Journal, records: Sequence[Record]) -> list[RecordRefusal]:
    """Apply the records one by one, then do what became possible. Invalid ones are refused one by one.

    The order is: grant free quotas, charge pending usage, buy reservation wanted.
    """
    refused: list[RecordRefusal] = []
    changes = _Changes()
    for index, item in enumerate(records):
        try:
            _apply(journal, item, changes)
        except LedgerRefused as refusal:
            refused.append(RecordRefusal(index, refusal.reason, refusal.message))
    journal.flush()
    if changes.services or changes.accounts or changes.models:
        grant_quotas(journal, changes.accounts, changes.models)
        journal.flush()
        waited_for = sorted({*map(str, changes.accounts), *changes.models})
        charge_pending(journal, sorted(changes.services), waited_for)
    if changes.reservations or changes.accounts:
        process_due_renewals(journal, changes.reservations | changes.accounts)
    return refused


def _apply(journal: Journal, item: Record, changes: _Changes) -> None:
    match item:
        case AccountRecord():
            if _record_account(journal, item):
                changes.accounts.add(item.account)
        case Binding():
            if _record_binding(journal, item):
                changes.services.add(item.service)
                changes.models.add(item.model)
        case PriceVersion():
            if _record_price(journal, item):
                changes.models.add(item.model)
                changes.reservations.update(_reserving(journal, item.model))
        case ReservationRecord():
            if _record_reservation(journal, item):
                changes.reservations.add(item.account)


def _reserving(journal: Journal, model: str) -> set[ObjectKey]:
    """The accounts with reservations on a model."""
    return {known.account for known in journal.state.reservations.values() if known.model == model}


def _record_account(journal: Journal, wanted: AccountRecord) -> bool:
    """Returns whether it changed anything."""
    if not 0 <= wanted.credit_limit <= MAX_NANO:
        raise LedgerRefused(
            "AmountOutOfRange", f"The credit limit of {wanted.account} is negative or too large"
        )
    known = journal.account(wanted.account)
    if known is None:
        _check_name(wanted.currency, f"the currency of {wanted.account}")
        journal.open_account(wanted)
        return True
    if known.currency != wanted.currency:
        raise LedgerRefused(
            "CurrencyMismatch",
            f"The currency of account {wanted.account} is {known.currency} since its creation and cannot "
            f"change to {wanted.currency}: use an account with another name",
        )
    if known.credit_limit == wanted.credit_limit:
        return False
    journal.change_credit_limit(known, wanted.credit_limit)
    return True


def _record_binding(journal: Journal, binding: Binding) -> bool:
    """Returns whether it changed anything."""
    _check_name(binding.model, f"the model of {binding.service}")
    known = journal.state.bindings.get(binding.service)
    if known is not None:
        wanted = (binding.account, binding.model, binding.trial)
        for other in _known(journal, known.all, binding.effective_at):
            if (other.account, other.model, other.trial) == wanted:
                return False
    journal.add_binding(binding)
    return True


def _record_price(journal: Journal, version: PriceVersion) -> bool:
    """Returns whether it changed anything."""
    _check_name(version.model, "the model")
    _check_name(version.currency, f"the currency of {version.model}")
    if (fault := tiers_error(version.tiers)) is not None:
        raise LedgerRefused("InvalidPrice", f"Invalid prices of {version.model}: {fault}")
    known = journal.state.prices.get(version.model)
    if known is not None:
        wanted = (version.currency, version.tiers, version.reservation, version.free_quota)
        for other in _known(journal, known, version.effective_at):
            if (other.currency, other.tiers, other.offer, other.free_quota) == wanted:
                return False
    journal.add_price(version)
    return True


def _known(journal: Journal, timeline: Timeline[T], effective_at: datetime) -> tuple[T, T]:
    """The values that make an equal record redundant: the newest, and the one in force at its time.

    A value with a time in the future, from a fast clock or announced in advance, is not the newest yet.
    """
    moment = to_micros(effective_at)
    latest = max(moment, journal.recorded_at + MAX_CLOCK_SKEW // _MICROSECOND)
    return timeline.at(latest), timeline.at(moment)


def _record_reservation(journal: Journal, wanted: ReservationRecord) -> bool:
    """Returns whether it changed anything."""
    _check_name(wanted.model, f"the model of {wanted.service}")
    _check_name(wanted.uid, f"the uid of {wanted.service}")
    if not (0 <= wanted.input_tpm <= MAX_NANO and 0 <= wanted.output_tpm <= MAX_NANO):
        raise LedgerRefused(
            "AmountOutOfRange", f"The reservation of {wanted.service} is negative or too large"
        )
    if not 0 < wanted.days <= MAX_DAYS:
        raise LedgerRefused(
            "InvalidReservation", f"A term of {wanted.service} must have 1 to {MAX_DAYS} days"
        )
    return record_reservation(journal, wanted)


def _check_name(text: str, what: str) -> None:
    if not 0 < len(text) <= _MAX_NAME:
        raise LedgerRefused("InvalidName", f"{what} must have 1 to {_MAX_NAME} characters")
