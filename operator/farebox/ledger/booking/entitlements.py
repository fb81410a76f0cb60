"""Free quotas and reservations in the ledger: what is granted, what is bought, and when (B6, B9).

The decisions are `domain.reservation`'s; here they are carried out, each in the transaction that brought the
news: a record, a top-up, or the time alone (`advance`).
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
"""The book from which quotas come."""
TERM: Final = "ReservationTerm"
"""The kind of a transaction that buys a term."""
RESERVATIONS: Final = "reservations:"
"""What the names of the books of bought terms begin with; the model follows."""

_MICROSECOND: Final = timedelta(microseconds=1)


def grant_quotas(journal: Journal, accounts: Iterable[ObjectKey], models: Iterable[str]) -> None:
    """Grant the free quotas that became due by records of these accounts and models (B6).

    An account gets a model's quota once for ever, when it has a service on the model, from that service's
    beginning or, if the quota came later, from the model's version that brought it.
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
    assert price.free_quota is not None, "there is something to grant"
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
    """Keep what a service reserves, or whether it goes on buying; whether that was news."""
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
        # The rest cannot be changed: what was recorded first is what was reserved.
        return False
    known.plan = ReservationPlan(known.plan.input_tpm, known.plan.output_tpm, known.plan.days, plan.buying)
    journal.change_reservation(known, known.outcome)
    return True


def process_due_renewals(journal: Journal, accounts: Iterable[ObjectKey] | None = None) -> None:
    """Buy, renew and end reservations as far as time and money go (B9); of these accounts, or of all.

    Every term is bought once: its number is part of the transaction's key, and the ledger is locked.
    """
    concerned = None if accounts is None else set(accounts)
    for reservation in list(journal.state.reservations.values()):
        if concerned is None or reservation.account in concerned:
            _advance(journal, reservation)


def _advance(journal: Journal, reservation: KnownReservation) -> None:
    account = journal.state.accounts.get(reservation.account)
    versions = journal.state.prices.get(reservation.model)
    price = versions.at(journal.recorded_at) if versions is not None else None
    if price is not None and account is not None and price.currency != account.currency:
        price = None
    left = None if account is None else _left(journal, account)
    offer = price.offer if price is not None else None
    step = decide_reservation(reservation.plan, reservation.terms, offer, left, journal.recorded_at)
    while isinstance(step, Purchase):
        assert account is not None, "money comes from an account"
        assert price is not None, "what is bought has a price"
        _buy(journal, reservation, account, price, step)
        left = _left(journal, account)
        step = decide_reservation(reservation.plan, reservation.terms, offer, left, journal.recorded_at)
    if _differs(reservation.outcome, step):
        journal.change_reservation(reservation, step)


def _left(journal: Journal, account: AccountRow) -> Nano:
    """What an account can spend on terms: what gateways may spend on calls is not to be spent twice (B17)."""
    return Nano(available(account.balance, account.credit_limit) - outstanding(journal, account))


def _differs(before: ReservationOutcome, after: ReservationOutcome) -> bool:
    """Whether there is something to tell; `due` is nobody's business but the clock's."""
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
    assert fits(account.balance - purchase.price), "what is affordable fits"
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
