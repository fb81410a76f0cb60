"""Recomputes the ledger from its first entry and reports every difference. It only reads.

It reads one snapshot, so the meter can run meanwhile. It streams rows by sequence number, so memory grows
with accounts and prices, not with usage.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, func, select
from sqlalchemy.exc import SQLAlchemyError

from farebox.domain.billing.coverage import Coverage
from farebox.domain.billing.pricing import charge
from farebox.errors import ConfigurationError, InvalidAmount, LedgerUnavailable
from farebox.ledger.audit.verify_entitlements import EntitlementsCheck
from farebox.ledger.booking.charging import REVENUE, USAGE, quota_entries
from farebox.ledger.booking.journal import BALANCE, TOKENS
from farebox.ledger.booking.state import KnownPrice, read_prices
from farebox.ledger.booking.topups import BOOKS
from farebox.ledger.booking.usage import stored_tokens
from farebox.ledger.db import tables
from farebox.ledger.db.connections import disposing, read_engine
from farebox.ledger.db.migrate import is_current

_STREAM_ROWS: Final = 2_000
_Row = Row[*tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What was read, and each difference as a sentence. Without differences the ledger is correct."""

    accounts: int
    transactions: int
    usage_events: int
    pending_events: int
    differences: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no differences."""
        return not self.differences

    def __str__(self) -> str:
        verdict = f"{len(self.differences)} differences" if self.differences else "no differences"
        summary = (
            f"{self.accounts} accounts, {self.transactions} transactions, {self.usage_events} usage events "
            f"({self.pending_events} pending): {verdict}"
        )
        return "\n".join((*self.differences, summary))


def verify(url: str) -> VerificationReport:
    """Check the whole ledger. Blocks while it reads.

    Raises:
        ConfigurationError: the URL is not one of a ledger, or the schema has another version.
        LedgerUnavailable: the database cannot be read.
    """
    try:
        with disposing(read_engine(url, 1)) as engine, engine.connect() as connection, connection.begin():
            if not is_current(connection):
                raise ConfigurationError(
                    "The ledger's schema has another version: start the meter once to upgrade it"
                )
            return _Verification(connection).run()
    except SQLAlchemyError as error:
        raise LedgerUnavailable(f"Cannot read the ledger's database: {error}") from error


@dataclass(slots=True)
class _Account:
    """An account as recomputed from its history."""

    key: str
    currency: str
    balance: int = 0
    credit_limit: int = 0
    sequence: int = 0


@dataclass(slots=True)
class _Usage:
    """The sum of the usage events of one transaction."""

    events: int = 0
    charge: int = 0
    quota: int = 0
    models: set[str] = field(default_factory=set)
    accounts: set[str] = field(default_factory=set)


class _Verification:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._differences: list[str] = []
        self._prices: dict[int, tuple[str, KnownPrice]] = {}
        self._bindings: dict[int, _Row] = {}
        self._accounts: dict[int, _Account] = {}
        self._numbers = 0
        self._entitlements = EntitlementsCheck(self._rows, self._differs)

    def run(self) -> VerificationReport:
        self._prices = {
            price.id: (model, price) for model, _, price in read_prices(self._connection, after=0)
        }
        self._bindings = {row.id: row for row in self._rows(select(tables.bindings))}
        stored = list(self._rows(select(tables.accounts).order_by(tables.accounts.c.id)))
        self._accounts = {row.id: _Account(row.key, row.currency) for row in stored}
        self._check_credit_limits()
        self._entitlements.load(self._prices, self._bindings)
        transactions = self._check_transactions()
        self._entitlements.finish()
        self._check_accounts(stored)
        self._check_requests()
        self._check_numbers()
        pending = self._connection.execute(_count(_events.transaction_sequence.is_(None))).scalar_one()
        usage_events = self._connection.execute(_count()).scalar_one()
        return VerificationReport(len(stored), transactions, usage_events, pending, tuple(self._differences))

    def _rows(self, statement: Any) -> Iterator[_Row]:
        yield from self._connection.execution_options(yield_per=_STREAM_ROWS).execute(statement)

    def _differs(self, what: str) -> None:
        self._differences.append(what)

    def _check_credit_limits(self) -> None:
        for row in self._rows(select(tables.account_terms).order_by(tables.account_terms.c.sequence)):
            account = self._accounts.get(row.account_id)
            if account is None:
                self._differs(
                    f"credit limit {row.sequence} is of account {row.account_id}, which does not exist"
                )
                continue
            account.credit_limit = row.credit_limit
            account.sequence = row.sequence
            self._numbers += 1

    def _check_transactions(self) -> int:
        usage = _Merged(self._usage_by_transaction())
        topups = _Merged((row.transaction_sequence, row) for row in self._rows(_TOPUPS))
        count = 0
        for sequence, grouped in groupby(self._rows(_ENTRIES), key=lambda row: row.sequence):
            count += 1
            self._numbers += 1
            entries = list(grouped)
            self._check_entries(sequence, entries)
            self._check_usage(entries, usage.take(sequence))
            self._check_topup(entries, topups.take(sequence))
            self._entitlements.check_transaction(entries)
        for name, merged in (("usage events", usage), ("a top-up", topups)):
            for sequence in merged.left():
                self._differs(f"{name} belong to transaction {sequence}, which does not exist")
        return count

    def _check_entries(self, sequence: int, entries: list[_Row]) -> None:
        head = entries[0]
        if head.amount is None:
            self._differs(f"transaction {sequence} has no entries")
            return
        sums: dict[str, int] = defaultdict(int)
        for entry in entries:
            sums[entry.unit] += entry.amount
            if entry.book_account != head.account_id:
                self._differs(f"transaction {sequence} writes in a book of another account")
        for unit, total in sums.items():
            if total != 0:
                self._differs(f"transaction {sequence} sums to {total} nano-{unit}, not to zero")
        account = self._accounts.get(head.account_id)
        if account is None:
            self._differs(f"transaction {sequence} belongs to an account that does not exist")
            return
        account.balance += sum(entry.amount for entry in entries if entry.book == BALANCE)
        account.sequence = max(account.sequence, sequence)
        if any(entry.unit not in (account.currency, TOKENS) for entry in entries):
            self._differs(f"transaction {sequence} is in another unit than its account's")

    def _usage_by_transaction(self) -> Iterator[tuple[int, _Usage]]:
        for sequence, rows in groupby(self._rows(_USAGE), key=lambda row: row.transaction_sequence):
            usage = _Usage()
            for row in rows:
                usage.events += 1
                usage.charge += row.charge
                usage.quota += row.quota_tokens
                self._check_event(row, usage)
                self._entitlements.note_event(row)
            yield sequence, usage

    def _check_event(self, row: _Row, usage: _Usage) -> None:
        name = f"usage event {row.source} {row.event_id}"
        model, price = self._prices.get(row.price_version_id, ("", None))
        binding = self._bindings.get(row.binding_id)
        if price is None or binding is None:
            self._differs(f"{name} has no binding or no price version")
            return
        usage.models.add(binding.model)
        usage.accounts.add(binding.account)
        if binding.service != row.service or row.model not in (None, binding.model) or model != binding.model:
            self._differs(f"{name} was charged by a binding or a price of another service or model")
        try:
            coverage = Coverage(row.reservation_input, row.reservation_output, row.quota_tokens)
            due: int | None = charge(price.tiers, stored_tokens(row), coverage)
            due = 0 if binding.trial else due
        except (ValueError, InvalidAmount, AssertionError):
            due = None
        if due != row.charge:
            self._differs(f"{name} was charged {row.charge}, but its price is {due}")

    def _check_usage(self, entries: list[_Row], usage: _Usage | None) -> None:
        head = entries[0]
        if head.kind != USAGE:
            if usage is not None:
                self._differs(f"transaction {head.sequence} is a {head.kind}, but has usage events")
            return
        if usage is None:
            self._differs(f"transaction {head.sequence} charges usage, but has no events")
            return
        amounts = {entry.book: entry.amount for entry in entries}
        account = self._accounts.get(head.account_id)
        if usage.accounts != {account.key if account else None} or len(usage.models) != 1:
            self._differs(f"transaction {head.sequence} has events of other accounts or of several models")
            return
        model = next(iter(usage.models))
        expected = {BALANCE: -usage.charge, REVENUE + model: usage.charge}
        if amounts != expected | quota_entries(model, usage.quota):
            self._differs(
                f"transaction {head.sequence} has entries {amounts}, but its {usage.events} events "
                f"sum to {usage.charge}"
            )

    def _check_topup(self, entries: list[_Row], topup: _Row | None) -> None:
        head = entries[0]
        if (head.kind in BOOKS) != (topup is not None):
            self._differs(f"transaction {head.sequence} is a {head.kind}, which does not fit its top-up")
            return
        if topup is None:
            return
        amounts = {entry.book: entry.amount for entry in entries}
        book = BOOKS.get(topup.kind, "")
        if topup.kind != head.kind or amounts != {BALANCE: topup.amount, book: -topup.amount}:
            self._differs(
                f"transaction {head.sequence} has entries {amounts}, but its top-up {topup.reference} is "
                f"a {topup.kind} of {topup.amount}"
            )
        account = self._accounts.get(head.account_id)
        if topup.account_id != head.account_id or (account and account.balance != topup.balance_after):
            self._differs(
                f"top-up {topup.reference} says {topup.balance_after} was the balance after it, "
                f"the entries say {account.balance if account else None}"
            )

    def _check_requests(self) -> None:
        """Check that the index of request ids has every event of its segments, once."""
        found, indexed = self._connection.execute(_INDEXED).one()
        due = self._connection.execute(_count(_events.request_id.is_not(None), _UP_TO_SEGMENTS)).scalar_one()
        if not found == indexed == due:
            self._differs(
                f"the index of request ids has {indexed} rows, {found} of them right, but its segments have "
                f"{due} usage events with a request id"
            )

    def _check_accounts(self, stored: list[_Row]) -> None:
        for row in stored:
            due = self._accounts[row.id]
            for name in ("balance", "credit_limit", "sequence"):
                if getattr(row, name) != getattr(due, name):
                    self._differs(
                        f"account {row.key} has {name} {getattr(row, name)}, its history says "
                        f"{getattr(due, name)}"
                    )

    def _check_numbers(self) -> None:
        """Check that numbers have no gaps. They are unique in each table, so counting them is enough."""
        head = self._connection.execute(select(tables.ledger.c.head)).scalar_one()
        highest = max((account.sequence for account in self._accounts.values()), default=0)
        highest = max(highest, self._entitlements.highest)
        used = self._numbers + self._entitlements.numbers
        if not head == highest == used:
            self._differs(
                f"the ledger's head is {head}, the highest number in use is {highest}, and {used} are in use"
            )


class _Merged:
    """A stream of pairs ordered by number, merged into another ordered stream."""

    def __init__(self, pairs: Iterator[tuple[int, Any]]) -> None:
        self._pairs = pairs
        self._next = next(pairs, None)
        self._skipped: list[int] = []

    def take(self, number: int) -> Any:
        """The value for `number`, or None."""
        while self._next is not None and self._next[0] < number:
            self._skipped.append(self._next[0])
            self._next = next(self._pairs, None)
        if self._next is None or self._next[0] != number:
            return None
        _, value = self._next
        self._next = next(self._pairs, None)
        return value

    def left(self) -> list[int]:
        """The numbers that were not taken."""
        rest = [] if self._next is None else [self._next[0], *(number for number, _ in self._pairs)]
        return self._skipped + rest


def _count(*conditions: Any) -> Any:
    return select(func.count()).select_from(tables.usage_events).where(*conditions)


_events = tables.usage_events.c
_transactions = tables.transactions.c
_entries = tables.entries.c
_books = tables.books.c

_ENTRIES = (
    select(
        _transactions.sequence,
        _transactions.kind,
        _transactions.account_id,
        _entries.amount,
        _books.name.label("book"),
        _books.unit,
        _books.account_id.label("book_account"),
    )
    .select_from(
        tables.transactions.outerjoin(tables.entries).outerjoin(tables.books, _books.id == _entries.book_id)
    )
    .order_by(_transactions.sequence)
)
_USAGE = (
    select(tables.usage_events)
    .where(_events.transaction_sequence.is_not(None))
    .order_by(_events.transaction_sequence)
)
_requests = tables.requests.c
_INDEXED = select(func.count(_events.id), func.count()).select_from(
    tables.requests.outerjoin(
        tables.usage_events,
        and_(_events.id == _requests.event, _events.request_id == _requests.request_id),
    )
)
_UP_TO_SEGMENTS = _events.id <= select(func.max(tables.request_segments.c.last_event)).scalar_subquery()
_TOPUPS = select(tables.topups).order_by(tables.topups.c.transaction_sequence)
