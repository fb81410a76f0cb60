"""The writer's copy of the ledger: accounts, bindings, prices, quotas, leases and reservations.

It has committed data and the changes of the current transaction. When a transaction fails, the writer
discards the state and reads it again. Writes of other processes are read incrementally, by sequence number
and id. It decides nothing about money.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from sqlalchemy import Connection

from farebox.api import ReservationState
from farebox.domain.billing.money import Nano
from farebox.domain.billing.reservations import (
    Buying,
    ReservationOutcome,
    ReservationPlan,
    ReservationTerms,
    Term,
)
from farebox.domain.keys import ObjectKey
from farebox.ledger.db.sql import (
    ACCOUNTS,
    BINDINGS,
    BOOKS,
    LEASES,
    LOCK_LEDGER,
    PRICES,
    QUOTAS,
    RESERVATIONS,
    TERMS,
    TIERS,
    WRITTEN,
)
from farebox.meterapi.types import AccountBalance, FreeQuota, TokenPriceTier

T = TypeVar("T")
_FOREVER: Final = 2**63
"""Later than any time in microseconds."""


@dataclass(slots=True)
class AccountRow:
    """An account in the current transaction. Amounts are nano-units of `currency`."""

    id: int
    key: ObjectKey
    currency: str
    credit_limit: int
    balance: int
    sequence: int

    def public(self) -> AccountBalance:
        """The account as `meterapi` knows it."""
        return AccountBalance(
            self.key, self.currency, Nano(self.balance), Nano(self.credit_limit), self.sequence
        )


@dataclass(frozen=True, slots=True)
class KnownBinding:
    """A row of `bindings`."""

    id: int
    account: ObjectKey
    model: str
    trial: bool


@dataclass(frozen=True, slots=True)
class KnownPrice:
    """A row of `price_versions` with its tiers."""

    id: int
    currency: str
    tiers: tuple[TokenPriceTier, ...]
    offer: ReservationTerms | None = None
    free_quota: FreeQuota | None = None


@dataclass(slots=True)
class QuotaRow:
    """A row of `quotas` in the current transaction. Times are microseconds."""

    id: int
    account_id: int
    model: str
    tokens: int
    used: int
    expires_at: int
    sequence: int

    def left(self, occurred_at: int) -> int:
        """The tokens left for a call that ended then; none after the quota's expiry (B6)."""
        return self.tokens - self.used if occurred_at < self.expires_at else 0


@dataclass(slots=True)
class CreditLeaseRow:
    """A row of `budgets` in the current transaction."""

    source: str
    account_id: int
    granted: int
    spent: int
    expires_at: int


@dataclass(slots=True)
class KnownReservation:
    """A row of `reservations` with its newest change and its terms, in the current transaction."""

    id: int
    service: ObjectKey
    uid: str
    account: ObjectKey
    model: str
    plan: ReservationPlan
    outcome: ReservationOutcome
    sequence: int
    terms: list[Term] = field(default_factory=list)

    def term(self, moment: int) -> Term | None:
        """The term in force at a moment, if any."""
        return next((term for term in reversed(self.terms) if term.start <= moment < term.end), None)


class Timeline(Generic[T]):
    """Values with the times from which they are in force, in microseconds. The last added of equals wins."""

    __slots__ = ("_times", "_values")

    def __init__(self) -> None:
        self._times: list[int] = []
        self._values: list[T] = []

    def add(self, effective_at: int, value: T) -> None:
        """Add a value."""
        place = bisect_right(self._times, effective_at)
        self._times.insert(place, effective_at)
        self._values.insert(place, value)

    def at(self, moment: int) -> T:
        """The value in force. Before the first value it is the first (docs/decisions/101)."""
        return self.span(moment)[2]

    def span(self, moment: int) -> tuple[int, int, T]:
        """The value in force, with the beginning and the end of its validity."""
        place = max(bisect_right(self._times, moment) - 1, 0)
        begins = self._times[place] if place else -_FOREVER
        ends = self._times[place + 1] if place + 1 < len(self._times) else _FOREVER
        return begins, ends, self._values[place]

    def newest_item(self) -> tuple[int, T]:
        """The latest time and its value."""
        return self._times[-1], self._values[-1]


class ServiceBindings:
    """The bindings of one service: all of them, and those of each model."""

    __slots__ = ("all", "by_model")

    def __init__(self) -> None:
        self.all: Timeline[KnownBinding] = Timeline()
        self.by_model: dict[str, Timeline[KnownBinding]] = defaultdict(Timeline)

    def add(self, effective_at: int, binding: KnownBinding) -> None:
        """Add a binding."""
        self.all.add(effective_at, binding)
        self.by_model[binding.model].add(effective_at, binding)


class LedgerState:
    """Everything that charging an event needs, in memory."""

    def __init__(self) -> None:
        self.revision = -1
        self.head = 0
        self.written_at = 0
        self.accounts: dict[ObjectKey, AccountRow] = {}
        self.account_keys: dict[int, ObjectKey] = {}
        self.books: dict[tuple[int, str], int] = {}
        self.bindings: dict[ObjectKey, ServiceBindings] = defaultdict(ServiceBindings)
        self.prices: dict[str, Timeline[KnownPrice]] = defaultdict(Timeline)
        self.quotas: dict[tuple[int, str], QuotaRow] = {}
        self.first_bound: dict[ObjectKey, dict[str, int]] = defaultdict(dict)
        self.accounts_of_model: dict[str, set[ObjectKey]] = defaultdict(set)
        self.leases: dict[tuple[str, int], CreditLeaseRow] = {}
        self.leases_of: dict[int, list[CreditLeaseRow]] = {}
        self.reservations: dict[int, KnownReservation] = {}
        self.reservations_of: dict[ObjectKey, list[KnownReservation]] = {}
        self.last_account = self.last_book = self.last_binding = self.last_price = 0
        self.last_quota = self.last_reservation = 0

    def refresh(self, connection: Connection) -> None:
        """Lock the ledger for this transaction and read what other processes wrote since the last one."""
        ((head, revision),) = LOCK_LEDGER.rows(connection, ())
        if revision == self.revision:
            return
        for account_id, key, *state in ACCOUNTS.rows(connection, (self.head,)):
            self.add_account(AccountRow(account_id, ObjectKey.parse(key), *state))
        for book_id, account_id, name in BOOKS.rows(connection, (self.last_book,)):
            self.add_book(account_id, name, book_id)
        for binding_id, service, account, model, effective_at, trial in BINDINGS.rows(
            connection, (self.last_binding,)
        ):
            binding = KnownBinding(binding_id, ObjectKey.parse(account), model, bool(trial))
            self.add_binding(ObjectKey.parse(service), effective_at, binding)
        for model, effective_at, price in read_prices(connection, self.last_price):
            self.add_price(model, effective_at, price)
        for quota in QUOTAS.rows(connection, (self.head,)):
            self.add_quota(QuotaRow(*quota))
        for lease in LEASES.rows(connection, (self.revision,)):
            self.add_lease(CreditLeaseRow(*lease))
        for reservation in read_reservations(connection, self.head):
            self.add_reservation(reservation)
        for reservation_id, *term in TERMS.rows(connection, (self.head,)):
            self.reservations[reservation_id].terms.append(Term(*term))
        ((self.written_at,),) = WRITTEN.rows(connection, (head, head, head)) or [(0,)]
        self.head, self.revision = head, revision

    def add_account(self, account: AccountRow) -> None:
        """Add or replace an account."""
        self.accounts[account.key] = account
        self.account_keys[account.id] = account.key
        self.last_account = max(self.last_account, account.id)

    def add_book(self, account_id: int, name: str, book_id: int) -> None:
        """Add a ledger account."""
        self.books[account_id, name] = book_id
        self.last_book = max(self.last_book, book_id)

    def add_binding(self, service: ObjectKey, effective_at: int, binding: KnownBinding) -> None:
        """Add a binding."""
        self.bindings[service].add(effective_at, binding)
        of_account = self.first_bound[binding.account]
        of_account[binding.model] = min(effective_at, of_account.get(binding.model, effective_at))
        self.accounts_of_model[binding.model].add(binding.account)
        self.last_binding = max(self.last_binding, binding.id)

    def add_price(self, model: str, effective_at: int, price: KnownPrice) -> None:
        """Add a price version."""
        self.prices[model].add(effective_at, price)
        self.last_price = max(self.last_price, price.id)

    def add_quota(self, quota: QuotaRow) -> None:
        """Add or replace a quota."""
        self.quotas[quota.account_id, quota.model] = quota
        self.last_quota = max(self.last_quota, quota.id)

    def add_lease(self, lease: CreditLeaseRow) -> None:
        """Add or replace a lease."""
        known = self.leases.get((lease.source, lease.account_id))
        of_account = self.leases_of.setdefault(lease.account_id, [])
        if known is None:
            of_account.append(lease)
        else:
            of_account[of_account.index(known)] = lease
        self.leases[lease.source, lease.account_id] = lease

    def add_reservation(self, reservation: KnownReservation) -> None:
        """Add or replace a reservation. A known one keeps its terms."""
        known = self.reservations.get(reservation.id)
        if known is None:
            self.reservations_of.setdefault(reservation.service, []).append(reservation)
        else:
            siblings = self.reservations_of[reservation.service]
            siblings[siblings.index(known)] = reservation
            reservation.terms = known.terms
        self.reservations[reservation.id] = reservation
        self.last_reservation = max(self.last_reservation, reservation.id)


def read_prices(connection: Connection, after: int) -> Iterator[tuple[str, int, KnownPrice]]:
    """Read (model, effective_at, prices) of the versions with an id above `after`, in order."""
    versions = PRICES.rows(connection, (after,))
    tiers: dict[int, list[TokenPriceTier]] = defaultdict(list)
    for version_id, *tier in TIERS.rows(connection, (after,)) if versions else ():
        tiers[version_id].append(TokenPriceTier(*tier))
    for version_id, model, currency, effective_at, *offers in versions:
        offer, quota = _offer(*offers[:5]), _free_quota(*offers[5:])
        yield model, effective_at, KnownPrice(version_id, currency, tuple(tiers[version_id]), offer, quota)


def _offer(
    input_unit_tpm: int, input_price: int, output_unit_tpm: int, output_price: int, terms: str | None
) -> ReservationTerms | None:
    if terms is None:
        return None
    days = tuple(map(int, terms.split(",")))
    return ReservationTerms(input_unit_tpm, Nano(input_price), output_unit_tpm, Nano(output_price), days)


def _free_quota(tokens: int | None, valid_days: int | None) -> FreeQuota | None:
    return None if tokens is None or valid_days is None else FreeQuota(tokens, valid_days)


def read_reservations(connection: Connection, after: int) -> Iterator[KnownReservation]:
    """Read the reservations that changed after a sequence number, without their terms."""
    for row in RESERVATIONS.rows(connection, (after,)):
        known_id, service, uid, account, model, input_tpm, output_tpm, days, sequence, *change = row
        buying, state, current_term, reason, message = change
        yield KnownReservation(
            id=known_id,
            service=ObjectKey.parse(service),
            uid=uid,
            account=ObjectKey.parse(account),
            model=model,
            plan=ReservationPlan(input_tpm, output_tpm, days, Buying(buying)),
            outcome=ReservationOutcome(ReservationState(state), current_term, reason, message),
            sequence=sequence,
        )
