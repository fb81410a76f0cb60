"""Reads the statement of an account: opening balance, lines and closing balance, by the time of posting.

Each top-up and reservation term has its line; usage is summed by day and model. The opening balance and the
lines add up to the closing balance to the last nano-unit (B19), because both come from the same entries. The
balances are computed back from the account's current one, which `verify` recomputes from the first entry.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, func, select

from farebox.clock import from_micros, to_micros
from farebox.domain.billing.money import Nano
from farebox.domain.billing.reservations import MICROS_PER_DAY
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerRefused
from farebox.ledger.booking.charging import REVENUE, USAGE
from farebox.ledger.booking.journal import BALANCE
from farebox.ledger.db import tables
from farebox.ledger.reports.sums import exact_sum, joined
from farebox.meterapi.reports import Statement, StatementLine

MAX_LINES: Final = 100_000


def read_statement(
    connection: Connection, account: ObjectKey, start: datetime, end: datetime, max_lines: int = MAX_LINES
) -> Statement | None:
    """Read a statement from the connection's snapshot; None if the ledger has no such account.

    Raises:
        LedgerRefused: StatementTooLong, above `max_lines` lines.
    """
    found = connection.execute(select(tables.accounts).where(_accounts.key == str(account))).one_or_none()
    if found is None:
        return None
    since, until = to_micros(start), to_micros(end)
    later = joined(*connection.execute(_change_since(found.id, until)).one())
    singles = connection.execute(_singles(found.id, since, until).limit(max_lines + 1)).all()
    usage = connection.execute(_usage(found.id, since, until).limit(max_lines + 1)).all()
    estimated = {(row.day, row.model): row for row in connection.execute(_estimated(found.id, since, until))}
    if len(singles) + len(usage) > max_lines:
        raise LedgerRefused(
            "StatementTooLong",
            f"The statement has more than {max_lines} lines: request a shorter period with from and to",
        )
    lines = [(row.recorded_at // MICROS_PER_DAY, 0, row.sequence, "", _single(row)) for row in singles]
    lines += [(row.day // MICROS_PER_DAY, 1, 0, row.book, _usage_line(row, estimated)) for row in usage]
    lines.sort(key=lambda line: line[:4])
    closing = Nano(found.balance - later)
    return Statement(
        account=account,
        currency=found.currency,
        start=start,
        end=end,
        as_of=connection.execute(select(tables.ledger.c.head)).scalar_one(),
        opening_balance=Nano(closing - sum(line[-1].amount for line in lines)),
        closing_balance=closing,
        lines=tuple(line[-1] for line in lines),
    )


def _single(row: Row[*tuple[Any, ...]]) -> StatementLine:
    return StatementLine(
        kind=row.kind,
        time=from_micros(row.recorded_at),
        amount=Nano(row.amount),
        reference=row.reference,
        source=row.source,
        service=row.service,
        model=row.model,
        term=row.number,
        period_start=None if row.start_at is None else from_micros(row.start_at),
        period_end=None if row.end_at is None else from_micros(row.end_at),
    )


def _usage_line(
    row: Row[*tuple[Any, ...]], estimated: Mapping[tuple[int, str], Row[*tuple[Any, ...]]]
) -> StatementLine:
    """A line of usage: the balance lost what the revenue account received."""
    model = row.book.removeprefix(REVENUE)
    line = StatementLine(
        kind=USAGE,
        time=from_micros(row.day),
        amount=Nano(-joined(row.amount_units, row.amount_nano)),
        model=model,
    )
    part = estimated.get((row.day, model))
    if part is None:
        return line
    return replace(
        line,
        estimated_calls=part.calls,
        estimated_tokens=int(part.tokens),
        estimated_amount=Nano(-joined(part.charge_units, part.charge_nano)),
    )


def _change_since(account_id: int, moment: int) -> Select[*tuple[Any, ...]]:
    """The change of the balance from a moment on."""
    return (
        select(*exact_sum(_entries.amount, "amount"))
        .join_from(tables.transactions, tables.entries)
        .join(tables.books, _books.id == _entries.book_id)
        .where(
            _transactions.account_id == account_id,
            _transactions.recorded_at >= moment,
            _books.name == BALANCE,
        )
    )


def _singles(account_id: int, since: int, until: int) -> Select[*tuple[Any, ...]]:
    """All transactions except usage, whatever their kind, so that none is missing."""
    return (
        select(
            _transactions.sequence,
            _transactions.kind,
            _transactions.recorded_at,
            _entries.amount,
            _topups.reference,
            _topups.source,
            _reservations.service,
            _reservations.model,
            _terms.number,
            _terms.start_at,
            _terms.end_at,
        )
        .join_from(tables.transactions, tables.entries)
        .join(tables.books, _books.id == _entries.book_id)
        .outerjoin(tables.topups, _topups.transaction_sequence == _transactions.sequence)
        .outerjoin(tables.reservation_terms, _terms.transaction_sequence == _transactions.sequence)
        .outerjoin(tables.reservations, _reservations.id == _terms.reservation_id)
        .where(*_in_period(account_id, since, until), _transactions.kind != USAGE, _books.name == BALANCE)
        .order_by(_transactions.sequence)
    )


def _usage(account_id: int, since: int, until: int) -> Select[*tuple[Any, ...]]:
    posted = (
        select(_DAY, _books.name.label("book"), _entries.amount)
        .join_from(tables.transactions, tables.entries)
        .join(tables.books, _books.id == _entries.book_id)
        .where(
            *_in_period(account_id, since, until),
            _transactions.kind == USAGE,
            func.substr(_books.name, 1, len(REVENUE)) == REVENUE,
        )
        .subquery()
    )
    return (
        select(posted.c.day, posted.c.book, *exact_sum(posted.c.amount, "amount"))
        .group_by(posted.c.day, posted.c.book)
        .order_by(posted.c.day, posted.c.book)
    )


def _estimated(account_id: int, since: int, until: int) -> Select[*tuple[Any, ...]]:
    """The estimated part of usage by day and model (B26), along the index of estimated events alone."""
    calls = (
        select(
            _DAY,
            _bindings.model,
            _events.charge,
            (_events.input_tokens + _events.output_tokens).label("tokens"),
        )
        .join_from(tables.transactions, tables.usage_events)
        .join(tables.bindings, _bindings.id == _events.binding_id)
        .where(*_in_period(account_id, since, until), tables.IS_ESTIMATED)
        .subquery()
    )
    return select(
        calls.c.day,
        calls.c.model,
        func.count().label("calls"),
        func.sum(calls.c.tokens).label("tokens"),
        *exact_sum(calls.c.charge, "charge"),
    ).group_by(calls.c.day, calls.c.model)


def _in_period(account_id: int, since: int, until: int) -> tuple[Any, ...]:
    return (
        _transactions.account_id == account_id,
        _transactions.recorded_at >= since,
        _transactions.recorded_at < until,
    )


_accounts = tables.accounts.c
_transactions = tables.transactions.c
_events = tables.usage_events.c
_bindings = tables.bindings.c
_DAY: Final = (_transactions.recorded_at - _transactions.recorded_at % MICROS_PER_DAY).label("day")
_entries = tables.entries.c
_books = tables.books.c
_topups = tables.topups.c
_terms = tables.reservation_terms.c
_reservations = tables.reservations.c
