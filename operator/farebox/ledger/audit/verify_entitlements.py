"""Recomputes free quotas, reservations and covered minutes from the postings: a part of `verify`."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, select

from farebox.domain.billing.reservations import (
    MICROS_PER_DAY,
    MICROS_PER_MINUTE,
    Buying,
    ReservationPlan,
    term_price,
)
from farebox.ledger.booking.charging import QUOTA
from farebox.ledger.booking.entitlements import GRANT, GRANTED, RESERVATIONS, TERM
from farebox.ledger.booking.journal import BALANCE
from farebox.ledger.booking.state import KnownPrice
from farebox.ledger.db import tables

_Row = Row[*tuple[Any, ...]]


class EntitlementsCheck:
    """Checks grants, reservation terms and coverage.

    `rows` streams the rows of a query; `differs` is called with each difference.

    `highest` is the highest sequence number of a reservation's change, `numbers` the count of such numbers.
    """

    def __init__(self, rows: Callable[[Any], Iterator[_Row]], differs: Callable[[str], None]) -> None:
        self._rows = rows
        self._differs = differs
        self.highest = 0
        self.numbers = 0
        self._prices: Mapping[int, tuple[str, KnownPrice]] = {}
        self._bindings: Mapping[int, _Row] = {}
        self._reservations: dict[int, _Row] = {}
        self._terms: dict[int, _Row] = {}
        self._periods: dict[str, list[tuple[int, int, _Row]]] = defaultdict(list)
        self._granted: dict[tuple[int, str], int] = {}
        self._used: dict[tuple[int, str], int] = defaultdict(int)
        self._minutes: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])

    def load(self, prices: Mapping[int, tuple[str, KnownPrice]], bindings: Mapping[int, _Row]) -> None:
        """Read the reservations and their terms, and compare them."""
        self._prices, self._bindings = prices, bindings
        self._reservations = {row.id: row for row in self._rows(select(tables.reservations))}
        newest: dict[int, int] = {}
        for row in self._rows(select(tables.reservation_changes).order_by(_changes.sequence)):
            newest[row.reservation_id] = row.sequence
            self.highest = max(self.highest, row.sequence)
            self.numbers += 1
        for reservation in self._reservations.values():
            if newest.get(reservation.id) != reservation.sequence:
                self._differs(f"reservation {reservation.id} has another sequence than its newest change")
        last: dict[int, _Row] = {}
        for term in self._rows(
            select(tables.reservation_terms).order_by(_terms.reservation_id, _terms.number)
        ):
            owner = self._reservations.get(term.reservation_id)
            if owner is None or term.price_version_id not in prices:
                self._differs(f"term {term.number} is of no reservation or of no price version")
                continue
            self._check_term(owner, term, last.get(term.reservation_id))
            last[term.reservation_id] = term
            self._terms[term.transaction_sequence] = term

    def _check_term(self, reservation: _Row, term: _Row, previous: _Row | None) -> None:
        name = f"term {term.number} of reservation {reservation.id}"
        expected = 1 if previous is None else previous.number + 1
        if term.number != expected or (previous is not None and term.start_at < previous.end_at):
            self._differs(f"{name} does not follow the one before it")
        if term.end_at - term.start_at != reservation.days * MICROS_PER_DAY:
            self._differs(f"{name} has not {reservation.days} days")
        model, price = self._prices[term.price_version_id]
        plan = ReservationPlan(reservation.input_tpm, reservation.output_tpm, reservation.days, Buying.ONCE)
        due = term_price(plan, price.offer)
        if model != reservation.model or due != term.price:
            self._differs(f"{name} cost {term.price}, but its price is {due}")
        self._periods[reservation.service].append((term.start_at, term.end_at, reservation))

    def check_transaction(self, entries: Sequence[_Row]) -> None:
        """Check a transaction that grants a quota or buys a term, and add up its entries of quotas."""
        head = entries[0]
        amounts = {entry.book: entry.amount for entry in entries}
        for entry in entries:
            if entry.book is not None and entry.book.startswith(QUOTA):
                key = (head.account_id, entry.book.removeprefix(QUOTA))
                if head.kind == GRANT:
                    self._granted[key] = self._granted.get(key, 0) + entry.amount
                    if amounts != {entry.book: entry.amount, GRANTED + key[1]: -entry.amount}:
                        self._differs(f"transaction {head.sequence} is a Grant with entries {amounts}")
                else:
                    self._used[key] -= entry.amount
        term = self._terms.pop(head.sequence, None)
        if (head.kind == TERM) != (term is not None):
            self._differs(f"transaction {head.sequence} is a {head.kind}, which does not fit its term")
        elif term is not None:
            model = self._reservations[term.reservation_id].model
            if amounts != {BALANCE: -term.price, RESERVATIONS + model: term.price}:
                self._differs(f"transaction {head.sequence} has entries {amounts}, but its term {term.price}")

    def note_event(self, row: _Row) -> None:
        """Add up what reservations covered of a charged usage event."""
        if row.reservation_input or row.reservation_output:
            minute = self._minutes[row.service, row.occurred_at // MICROS_PER_MINUTE]
            minute[0] += row.reservation_input
            minute[1] += row.reservation_output
            binding = self._bindings.get(row.binding_id)
            if binding is not None and not any(
                start <= row.occurred_at < end
                and (reservation.account, reservation.model) == (binding.account, binding.model)
                for start, end, reservation in self._periods[row.service]
            ):
                self._differs(f"usage event {row.source} {row.event_id} is covered outside of any term")

    def finish(self) -> None:
        """Compare the recomputed values with the stored ones."""
        for sequence in self._terms:
            self._differs(f"a term belongs to transaction {sequence}, which does not exist")
        for row in self._rows(select(tables.quotas)):
            granted = self._granted.pop((row.account_id, row.model), None)
            used = self._used.pop((row.account_id, row.model), 0)
            if (granted, used) != (row.tokens, row.used):
                self._differs(
                    f"the quota of account {row.account_id} on {row.model} has {row.used} of {row.tokens} "
                    f"used, its entries say {used} of {granted}"
                )
        for (account, model), _ in (*self._granted.items(), *self._used.items()):
            self._differs(f"account {account} has entries of a quota on {model} that does not exist")
        stored = {
            (row.service, row.minute): [row.input_tokens, row.output_tokens]
            for row in self._rows(select(tables.reserved_minutes))
        }
        if stored != dict(self._minutes):
            self._differs("the minutes that reservations covered are not what the usage events say")
        self._check_ceilings()

    def _check_ceilings(self) -> None:
        """Check that no minute covers more than was reserved."""
        for (service, minute), (of_input, output) in self._minutes.items():
            begin, end = minute * MICROS_PER_MINUTE, (minute + 1) * MICROS_PER_MINUTE
            reserved = {
                reservation.id: reservation
                for start_at, end_at, reservation in self._periods[service]
                if start_at < end and begin < end_at
            }.values()
            if of_input > sum(row.input_tpm for row in reserved) or output > sum(
                row.output_tpm for row in reserved
            ):
                self._differs(f"minute {minute} of {service} is covered beyond what was reserved")


_changes = tables.reservation_changes.c
_terms = tables.reservation_terms.c
