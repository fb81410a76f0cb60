"""What a transaction of the ledger says: facts, double entries and account states, as rows (`writing.py`).

Balances and used quotas are moved by the caller, who checked that they fit; here they become rows, together
with the entries that explain them. It does not know what a transaction is for.
"""

from collections.abc import Mapping
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
"""The book of what an account has: positive is the customer's."""
TOKENS: Final = "tokens"
"""The unit of the books of free quotas."""


def fits(amount: int) -> bool:
    """Whether an amount, or a balance, may be stored: 64 bits, the same range above and below zero."""
    return -MAX_NANO <= amount <= MAX_NANO


class Journal(UnitOfWork):
    """What one database transaction books. Made and finished by the writer."""

    def account(self, key: ObjectKey) -> AccountRow | None:
        """The account, or None if it was never recorded."""
        return self.state.accounts.get(key)

    def open_account(self, terms: AccountRecord) -> AccountRow:
        """A new account with nothing on it."""
        sequence = self.next_sequence()
        account = AccountRow(
            self.state.last_account + 1, terms.account, terms.currency, terms.credit_limit, 0, sequence
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
        self._add_terms(account)
        return account

    def change_terms(self, account: AccountRow, credit_limit: int) -> None:
        """Give an account another credit limit, under a number of its own."""
        account.credit_limit = credit_limit
        account.sequence = self.next_sequence()
        self._touched[account.id] = account
        self._add_terms(account)

    def _add_terms(self, account: AccountRow) -> None:
        self._add(
            tables.account_terms,
            sequence=account.sequence,
            account_id=account.id,
            credit_limit=account.credit_limit,
            recorded_at=self.recorded_at,
        )

    def add_binding(self, record: Binding) -> None:
        """Bind a service from a time on."""
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
        """Give a model other prices from a time on."""
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
                up_to_input_tokens=tier.up_to_input_tokens,
                input=tier.input,
                cached_input=tier.cached_input,
                output=tier.output,
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
        """Book one transaction: `amount` onto the account's balance and its negative `against`.

        `account.balance` must have been moved by the caller already, who checked that it `fits`. `tokens` are
        further entries by book, in tokens; they sum to zero.
        """
        assert fits(amount), "an amount is checked before it is booked"
        assert fits(account.balance), "a balance is checked before it is moved"
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
        """Book one transaction in tokens alone: entries by book, which sum to zero."""
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
        assert sum(tokens.values()) == 0, "tokens come from somewhere and go somewhere"
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
        """Keep what an account was granted on a model; the caller books it."""
        quota_id = self.state.last_quota + 1
        self.state.add_quota(QuotaRow(quota_id, account.id, model, tokens, 0, expires_at, sequence))
        self._add(
            tables.quotas,
            id=quota_id,
            account_id=account.id,
            model=model,
            tokens=tokens,
            used=0,
            granted_at=granted_at,
            expires_at=expires_at,
            sequence=sequence,
        )

    def use_quota(self, quota: QuotaRow, sequence: int) -> None:
        """Write a quota whose `used` the caller moved, under the number of his transaction."""
        quota.sequence = max(quota.sequence, sequence)
        self._used[quota.id] = quota

    def set_lease(self, lease: CreditLeaseRow, *, new: bool) -> None:
        """Write what a gateway may spend; the caller set it."""
        if not new:
            self._leases[lease.source, lease.account_id] = lease
            return
        self.state.add_lease(lease)
        self._add(
            tables.budgets,
            source=lease.source,
            account_id=lease.account_id,
            granted=lease.granted,
            spent=lease.spent,
            expires_at=lease.expires_at,
            revision=self.state.revision + 1,
        )

    def add_reservation(self, reservation: KnownReservation) -> None:
        """A new reservation, with the first of its changes. Its sequence is given here."""
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
        """Another state of a reservation, under a number of its own."""
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
        """Keep a term that was bought; the caller books its price."""
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
        """Keep the receipt of a top-up; values by the columns of `topups`."""
        self._add(tables.topups, **values)
