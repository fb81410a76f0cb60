"""Grants free quotas and buys reservation terms (B6, B9).

`domain.billing.reservations` decides. This module carries the decision out in the transaction that caused it:
a record, a top-up, or `process_due_renewals`.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from farebox.api import ReservationState
from farebox.domain.billing.money import Nano, available
from farebox.domain.billing.reservations import (
    Purchase,
    ReservationOutcome,
    ReservationPlan,
    decide_reservation,
)
from farebox.domain.keys import ObjectKey
from farebox.ledger.booking.charging import QUOTA
from farebox.ledger.booking.credit_leases import outstanding
from farebox.ledger.booking.journal import Journal, fits
from farebox.ledger.booking.state import AccountRow, KnownPrice, KnownReservation
from farebox.meterapi.types import ReservationRecord

GRANT: Final = "Grant"
"""The kind of a transaction that grants a free quota."""
GRANTED: Final = "granted:"
"""Prefix of the counter accounts of granted quotas; the model follows."""
TERM: Final = "ReservationTerm"
"""The kind of a transaction that buys a term."""
RESERVATIONS: Final = "reservations:"
"""Prefix of the revenue accounts of reservation terms; the model follows."""

_MICROSECOND: Final = timedelta(microseconds=1)


def grant_quotas(journal: Journal, accounts: Iterable[ObjectKey], models: Iterable[str]) -> None:
    """Grant the free quotas that records of these accounts and models made due (B6).

    An account gets a model's quota only once, when it has a service on the model. The quota begins with the
    service's binding, or with the price version that offers it, whichever is later.
    """
    state = journal.state
    pairs = {(account, model) for account in accounts for model in state.first_bound.get(account, ())}
    pairs |= {(account, model) for model in models for account in state.accounts_of_model.get(model, ())}
    for key, model in sorted(pairs):
        account, versions = state.accounts.get(key), state.prices.get(model)
        if account is None or versions is None or (account.id, model) in state.quotas:
            continue
        offered_at, price = versions.newest_item()
        if price.free_quota is not None and price.currency == account.currency:
            _grant(journal, account, model, price, max(offered_at, state.first_bound[key][model]))


def _grant(journal: Journal, account: AccountRow, model: str, price: KnownPrice, granted_at: int) -> None:
    assert price.free_quota is not None, "the price version offers a quota"
    tokens, days = price.free_quota.tokens, price.free_quota.valid_days
    sequence = journal.next_sequence()
    journal.post_tokens(
        sequence,
        account,
        kind=GRANT,
        idempotency_key=f"grant:{account.id}:{model}",
        occurred_at=granted_at,
        tokens={QUOTA + model: tokens, GRANTED + model: -tokens},
    )
    expires_at = granted_at + timedelta(days=days) // _MICROSECOND
    journal.add_quota(account, model, tokens, granted_at, expires_at, sequence)


def record_reservation(journal: Journal, record: ReservationRecord) -> bool:
    """Record a reservation, or a change of `buying`. Returns whether it changed anything."""
    state = journal.state
    plan = ReservationPlan(record.input_tpm, record.output_tpm, record.days, record.buying)
    known = next(
        (found for found in state.reservations_of.get(record.service, ()) if found.uid == record.uid), None
    )
    if known is None:
        journal.add_reservation(
            KnownReservation(
                id=state.last_reservation + 1,
                service=record.service,
                uid=record.uid,
                account=record.account,
                model=record.model,
                plan=plan,
                outcome=ReservationOutcome(ReservationState.PENDING, 0),
                sequence=0,
            )
        )
        return True
    if known.plan.buying is plan.buying:
        # The first record fixes everything but `buying`.
        return False
    known.plan = ReservationPlan(known.plan.input_tpm, known.plan.output_tpm, known.plan.days, plan.buying)
    journal.change_reservation(known, known.outcome)
    return True


def process_due_renewals(journal: Journal, accounts: Iterable[ObjectKey] | None = None) -> None:
    """Buy, renew and end reservations that are due (B9), of these accounts or of all.

    Every term is bought once: its number is part of the transaction's key, and the ledger is locked.
    """
    wanted = None if accounts is None else set(accounts)
    for reservation in list(journal.state.reservations.values()):
        if wanted is None or reservation.account in wanted:
            _process(journal, reservation)


def _process(journal: Journal, reservation: KnownReservation) -> None:
    account = journal.state.accounts.get(reservation.account)
    versions = journal.state.prices.get(reservation.model)
    price = versions.at(journal.recorded_at) if versions is not None else None
    if price is not None and account is not None and price.currency != account.currency:
        price = None
    left = None if account is None else _left(journal, account)
    offer = price.offer if price is not None else None
    step = decide_reservation(reservation.plan, reservation.terms, offer, left, journal.recorded_at)
    while isinstance(step, Purchase):
        assert account is not None, "a purchase has an account"
        assert price is not None, "a purchase has a price"
        _buy(journal, reservation, account, price, step)
        left = _left(journal, account)
        step = decide_reservation(reservation.plan, reservation.terms, offer, left, journal.recorded_at)
    if _differs(reservation.outcome, step):
        journal.change_reservation(reservation, step)


def _left(journal: Journal, account: AccountRow) -> Nano:
    """What an account can spend on terms, without the money that is leased to gateways (B17)."""
    return Nano(available(account.balance, account.credit_limit) - outstanding(journal, account))


def _differs(before: ReservationOutcome, after: ReservationOutcome) -> bool:
    """Whether the feed must report a change. `due` is not part of it."""
    return (before.state, before.current, before.reason, before.message) != (
        after.state,
        after.current,
        after.reason,
        after.message,
    )


def _buy(
    journal: Journal,
    reservation: KnownReservation,
    account: AccountRow,
    price: KnownPrice,
    purchase: Purchase,
) -> None:
    assert fits(account.balance - purchase.price), "an affordable price fits"
    sequence = journal.next_sequence()
    account.balance -= purchase.price
    journal.post(
        sequence,
        account,
        kind=TERM,
        idempotency_key=f"term:{reservation.id}:{purchase.term.number}",
        occurred_at=journal.recorded_at,
        amount=-purchase.price,
        against=RESERVATIONS + reservation.model,
    )
    journal.add_term(reservation, purchase.term, purchase.price, price.id, sequence)
