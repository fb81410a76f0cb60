"""Turns facts, double entries and account states into rows of a unit of work.

The caller updates balances and used quotas, and checks that they fit. The journal writes them together with
the entries that explain them. It does not know what a transaction is for.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from farebox.clock import to_micros
from farebox.domain.billing.money import MAX_NANO
from farebox.domain.billing.reservations import ReservationOutcome, Term
from farebox.domain.keys import ObjectKey
from farebox.ledger.booking.state import (
    AccountRow,
    CreditLeaseRow,
    KnownBinding,
    KnownPrice,
    KnownReservation,
    QuotaRow,
)
from farebox.ledger.booking.unit_of_work import UnitOfWork
from farebox.ledger.db import tables
from farebox.meterapi.types import AccountRecord, Binding, PriceVersion

BALANCE: Final = "balance"
"""The ledger account of the customer's money; a positive balance belongs to the customer."""
TOKENS: Final = "tokens"
"""The unit of the ledger accounts of free quotas."""


def fits(amount: int) -> bool:
    """Whether an amount or a balance can be stored: 64 bits, with the same range above and below zero."""
    return -MAX_NANO <= amount <= MAX_NANO


class Journal(UnitOfWork):
    """The postings of one database transaction. The writer creates and finishes it."""

    def account(self, key: ObjectKey) -> AccountRow | None:
        """The account, or None if it is not recorded."""
        return self.state.accounts.get(key)

    def open_account(self, record: AccountRecord) -> AccountRow:
        """Add an account with a balance of zero."""
        sequence = self.next_sequence()
        account = AccountRow(
            self.state.last_account + 1, record.account, record.currency, record.credit_limit, 0, sequence
        )
        self.state.add_account(account)
        self._add(
            tables.accounts,
            id=account.id,
            key=str(account.key),
            currency=account.currency,
            credit_limit=account.credit_limit,
            balance=0,
            sequence=sequence,
            recorded_at=self.recorded_at,
        )
        self._add_credit_limit(account)
        return account

    def change_credit_limit(self, account: AccountRow, credit_limit: int) -> None:
        """Change the credit limit of an account. The change takes a sequence number."""
        account.credit_limit = credit_limit
        account.sequence = self.next_sequence()
        self._touched[account.id] = account
        self._add_credit_limit(account)

    def _add_credit_limit(self, account: AccountRow) -> None:
        self._add(
            tables.account_terms,
            sequence=account.sequence,
            account_id=account.id,
            credit_limit=account.credit_limit,
            recorded_at=self.recorded_at,
        )

    def add_binding(self, record: Binding) -> None:
        """Add a binding of a service."""
        effective_at = to_micros(record.effective_at)
        binding = KnownBinding(self.state.last_binding + 1, record.account, record.model, record.trial)
        self.state.add_binding(record.service, effective_at, binding)
        self._add(
            tables.bindings,
            id=binding.id,
            service=str(record.service),
            account=str(record.account),
            model=record.model,
            effective_at=effective_at,
            recorded_at=self.recorded_at,
            trial=int(record.trial),
        )

    def add_price(self, record: PriceVersion) -> None:
        """Add a price version of a model."""
        effective_at = to_micros(record.effective_at)
        offer, quota = record.reservation, record.free_quota
        price = KnownPrice(self.state.last_price + 1, record.currency, record.tiers, offer, quota)
        self.state.add_price(record.model, effective_at, price)
        self._add(
            tables.price_versions,
            id=price.id,
            model=record.model,
            currency=record.currency,
            effective_at=effective_at,
            recorded_at=self.recorded_at,
            input_unit_tpm=offer.input_unit_tpm if offer else None,
            input_unit_price_per_day=offer.input_unit_price_per_day if offer else None,
            output_unit_tpm=offer.output_unit_tpm if offer else None,
            output_unit_price_per_day=offer.output_unit_price_per_day if offer else None,
            terms=",".join(map(str, offer.terms)) if offer else None,
            quota_tokens=quota.tokens if quota else None,
            quota_valid_days=quota.valid_days if quota else None,
        )
        for position, tier in enumerate(record.tiers):
            self._add(
                tables.price_tiers,
                price_version_id=price.id,
                position=position,
                **asdict(tier),
            )

    def post(
        self,
        sequence: int,
        account: AccountRow,
        *,
        kind: str,
        idempotency_key: str,
        occurred_at: int,
        amount: int,
        against: str,
        tokens: Mapping[str, int] | None = None,
    ) -> None:
        """Post one transaction: `amount` to the account's balance, and its negative to `against`.

        The caller has already updated `account.balance` and checked that it `fits`. `tokens` are further
        entries in tokens, by ledger account; they sum to zero.
        """
        assert fits(amount), "the caller checks an amount before it is posted"
        assert fits(account.balance), "the caller checks a balance before it is updated"
        entries = [(BALANCE, account.currency, amount), (against, account.currency, -amount)]
        self._post(sequence, account, kind, idempotency_key, occurred_at, entries, tokens or {})

    def post_tokens(
        self,
        sequence: int,
        account: AccountRow,
        *,
        kind: str,
        idempotency_key: str,
        occurred_at: int,
        tokens: Mapping[str, int],
    ) -> None:
        """Post one transaction in tokens alone. The entries by ledger account sum to zero."""
        self._post(sequence, account, kind, idempotency_key, occurred_at, [], tokens)

    def _post(
        self,
        sequence: int,
        account: AccountRow,
        kind: str,
        idempotency_key: str,
        occurred_at: int,
        money: list[tuple[str, str, int]],
        tokens: Mapping[str, int],
    ) -> None:
        assert sum(tokens.values()) == 0, "entries in tokens sum to zero"
        self._add(
            tables.transactions,
            sequence=sequence,
            kind=kind,
            idempotency_key=idempotency_key,
            account_id=account.id,
            occurred_at=occurred_at,
            recorded_at=self.recorded_at,
        )
        for book, unit, amount in (*money, *((name, TOKENS, count) for name, count in tokens.items())):
            self._add(
                tables.entries,
                transaction_sequence=sequence,
                book_id=self._book(account, book, unit),
                amount=amount,
            )
        account.sequence = max(account.sequence, sequence)
        self._touched[account.id] = account

    def _book(self, account: AccountRow, name: str, unit: str) -> int:
        known = self.state.books.get((account.id, name))
        if known is not None:
            return known
        book_id = self.state.last_book + 1
        self.state.add_book(account.id, name, book_id)
        self._add(tables.books, id=book_id, account_id=account.id, name=name, unit=unit)
        return book_id

    def add_quota(
        self, account: AccountRow, model: str, tokens: int, granted_at: int, expires_at: int, sequence: int
    ) -> None:
        """Add a quota of an account on a model. The caller posts the grant."""
        quota = QuotaRow(self.state.last_quota + 1, account.id, model, tokens, 0, expires_at, sequence)
        self.state.add_quota(quota)
        self._add(tables.quotas, **asdict(quota), granted_at=granted_at)

    def use_quota(self, quota: QuotaRow, sequence: int) -> None:
        """Write a quota whose `used` the caller updated, with the number of the transaction."""
        quota.sequence = max(quota.sequence, sequence)
        self._used[quota.id] = quota

    def set_lease(self, lease: CreditLeaseRow, *, new: bool) -> None:
        """Write a lease that the caller updated, or add a new one."""
        if not new:
            self._leases[lease.source, lease.account_id] = lease
            return
        self.state.add_lease(lease)
        self._add(tables.budgets, **asdict(lease), revision=self.state.revision + 1)

    def add_reservation(self, reservation: KnownReservation) -> None:
        """Add a reservation with its first change, and assign its sequence number."""
        reservation.sequence = self.next_sequence()
        self.state.add_reservation(reservation)
        self._add(
            tables.reservations,
            id=reservation.id,
            service=str(reservation.service),
            uid=reservation.uid,
            account=str(reservation.account),
            model=reservation.model,
            input_tpm=reservation.plan.input_tpm,
            output_tpm=reservation.plan.output_tpm,
            days=reservation.plan.days,
            sequence=reservation.sequence,
        )
        self._add_change(reservation)

    def change_reservation(self, reservation: KnownReservation, outcome: ReservationOutcome) -> None:
        """Change the state of a reservation. The change takes a sequence number."""
        reservation.outcome = outcome
        reservation.sequence = self.next_sequence()
        self._changed[reservation.id] = reservation
        self._add_change(reservation)

    def _add_change(self, reservation: KnownReservation) -> None:
        outcome = reservation.outcome
        self._add(
            tables.reservation_changes,
            sequence=reservation.sequence,
            reservation_id=reservation.id,
            buying=reservation.plan.buying.value,
            state=outcome.state.value,
            current_term=outcome.current,
            reason=outcome.reason,
            message=outcome.message,
            recorded_at=self.recorded_at,
        )

    def add_term(
        self, reservation: KnownReservation, term: Term, price: int, price_version_id: int, sequence: int
    ) -> None:
        """Add a purchased term. The caller posts its price."""
        reservation.terms.append(term)
        self._add(
            tables.reservation_terms,
            reservation_id=reservation.id,
            number=term.number,
            start_at=term.start,
            end_at=term.end,
            price=price,
            price_version_id=price_version_id,
            transaction_sequence=sequence,
        )

    def add_topup(self, **values: Any) -> None:
        """Add the receipt of a top-up. Values are by the columns of `topups`."""
        self._add(tables.topups, **values)
