"""Records: what the operator tells of accounts, bindings, prices, reservations. Known facts change nothing.

What a record makes possible is done in the same database transaction: pending usage is charged (B12), a free
quota granted (B6), a reservation bought (B9).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeVar

from farebox.clock import to_micros
from farebox.domain.billing.money import MAX_NANO
from farebox.domain.billing.pricing import tiers_error
from farebox.domain.keys import ObjectKey
from farebox.ledger.booking.entitlements import grant_quotas, process_due_renewals, record_reservation
from farebox.ledger.booking.journal import Journal
from farebox.ledger.booking.state import Timeline
from farebox.ledger.booking.unit_of_work import MAX_CLOCK_SKEW
from farebox.ledger.booking.usage import charge_pending
from farebox.meterapi.types import (
    AccountRecord,
    Binding,
    PriceVersion,
    Record,
    RecordRefusal,
    ReservationRecord,
)

_MAX_NAME: Final = 253
_MAX_DAYS: Final = 36_500
_MICROSECOND: Final = timedelta(microseconds=1)
T = TypeVar("T")


class _Refused(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(slots=True)
class _News:
    """What the records of one call changed."""

    services: set[ObjectKey] = field(default_factory=set)
    accounts: set[ObjectKey] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    reservations: set[ObjectKey] = field(default_factory=set)


def record(journal: Journal, records: Sequence[Record]) -> list[RecordRefusal]:
    """Take the records one by one, then do what became possible. Bad ones are refused by themselves.

    In this order: free quotas are granted, usage that waited is charged, reservations are bought.
    """
    refused: list[RecordRefusal] = []
    news = _News()
    for index, item in enumerate(records):
        try:
            _take(journal, item, news)
        except _Refused as refusal:
            refused.append(RecordRefusal(index, refusal.reason, refusal.message))
    journal.flush()
    if news.services or news.accounts or news.models:
        grant_quotas(journal, news.accounts, news.models)
        journal.flush()
        waited_for = sorted({*map(str, news.accounts), *news.models})
        charge_pending(journal, sorted(news.services), waited_for)
    if news.reservations or news.accounts:
        process_due_renewals(journal, news.reservations | news.accounts)
    return refused


def _take(journal: Journal, item: Record, news: _News) -> None:
    match item:
        case AccountRecord():
            if _record_account(journal, item):
                news.accounts.add(item.account)
        case Binding():
            if _record_binding(journal, item):
                news.services.add(item.service)
                news.models.add(item.model)
        case PriceVersion():
            if _record_price(journal, item):
                news.models.add(item.model)
                news.reservations.update(_reserving(journal, item.model))
        case ReservationRecord():
            if _record_reservation(journal, item):
                news.reservations.add(item.account)


def _reserving(journal: Journal, model: str) -> set[ObjectKey]:
    """The accounts of reservations on a model."""
    return {known.account for known in journal.state.reservations.values() if known.model == model}


def _record_account(journal: Journal, terms: AccountRecord) -> bool:
    """Whether it was news."""
    if not 0 <= terms.credit_limit <= MAX_NANO:
        raise _Refused("AmountOutOfRange", f"the credit limit of {terms.account} is negative or too large")
    known = journal.account(terms.account)
    if known is None:
        _check_name(terms.currency, f"the currency of {terms.account}")
        journal.open_account(terms)
        return True
    if known.currency != terms.currency:
        raise _Refused(
            "CurrencyMismatch",
            f"account {terms.account} is kept in {known.currency} since it was first created and cannot "
            f"change to {terms.currency}: use an account of another name",
        )
    if known.credit_limit == terms.credit_limit:
        return False
    journal.change_terms(known, terms.credit_limit)
    return True


def _record_binding(journal: Journal, binding: Binding) -> bool:
    """Whether it was news."""
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
    """Whether it was news."""
    _check_name(version.model, "the model")
    _check_name(version.currency, f"the currency of {version.model}")
    if (fault := tiers_error(version.tiers)) is not None:
        raise _Refused("InvalidPrice", f"the prices of {version.model} cannot be used: {fault}")
    known = journal.state.prices.get(version.model)
    if known is not None:
        wanted = (version.currency, version.tiers, version.reservation, version.free_quota)
        for other in _known(journal, known, version.effective_at):
            if (other.currency, other.tiers, other.offer, other.free_quota) == wanted:
                return False
    journal.add_price(version)
    return True


def _known(journal: Journal, told: Timeline[T], effective_at: datetime) -> tuple[T, T]:
    """What makes a record no news if it says the same: the newest, and the one in force at its time.

    One that a clock far ahead has told, or that is announced for later, is not the newest yet.
    """
    moment = to_micros(effective_at)
    latest = max(moment, journal.recorded_at + MAX_CLOCK_SKEW // _MICROSECOND)
    return told.at(latest), told.at(moment)


def _record_reservation(journal: Journal, wanted: ReservationRecord) -> bool:
    """Whether it was news."""
    _check_name(wanted.model, f"the model of {wanted.service}")
    _check_name(wanted.uid, f"the uid of {wanted.service}")
    if not (0 <= wanted.input_tpm <= MAX_NANO and 0 <= wanted.output_tpm <= MAX_NANO):
        raise _Refused("AmountOutOfRange", f"the reservation of {wanted.service} is negative or too large")
    if not 0 < wanted.days <= _MAX_DAYS:
        raise _Refused("InvalidReservation", f"a term of {wanted.service} must have 1 to {_MAX_DAYS} days")
    return record_reservation(journal, wanted)


def _check_name(text: str, what: str) -> None:
    if not 0 < len(text) <= _MAX_NAME:
        raise _Refused("InvalidName", f"{what} must have 1 to {_MAX_NAME} characters")
