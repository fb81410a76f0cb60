"""The feed of changes after a sequence number, and the notification of readers that wait for the next one.

It reads committed state only. Readers subscribe before they read, so they miss no change.
"""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, bindparam, select, union_all

from farebox.api import ReservationState
from farebox.clock import from_micros
from farebox.domain.billing.money import Nano
from farebox.domain.billing.reservations import Buying
from farebox.domain.keys import ObjectKey
from farebox.ledger.db import tables
from farebox.meterapi.types import AccountBalance, ChangePage, QuotaBalance, ReservationBalance

POLL_SECONDS: Final = 1.0
"""The interval at which readers look for lost notifications of other processes."""


def read_changes(connection: Connection, after: int, limit: int) -> ChangePage:
    """Read one page of the feed, from the connection's snapshot.

    Accounts, quotas and reservations are each read up to `limit`. The page ends before the first change that
    any of them cut off, so it covers a whole range of numbers.
    """
    ledger_id, head, *changed = connection.execute(_LEDGER, {"after": after}).one()
    found = [
        connection.execute(statement, {"after": after, "at_most": limit + 1}).all() if has_changed else ()
        for statement, has_changed in zip(_CHANGED, changed, strict=True)
    ]
    cut = min((rows[limit].sequence - 1 for rows in found if len(rows) > limit), default=head)
    accounts, quotas, reservations = ([row for row in rows if row.sequence <= cut] for rows in found)
    written = written_at(connection, [after, cut])
    return ChangePage(
        ledger_id,
        head,
        tuple(_balance(*row) for row in accounts),
        complete=cut == head,
        next=cut,
        quotas=tuple(_quota(row) for row in quotas),
        reservations=tuple(_reservation(row) for row in reservations),
        after_written_at=written.get(after),
        next_written_at=written.get(cut),
    )


def written_at(connection: Connection, sequences: Sequence[int]) -> Mapping[int, datetime]:
    """When the ledger wrote these numbers. Unassigned numbers are left out."""
    rows = connection.execute(_WRITTEN, {"sequences": sequences})
    return {sequence: from_micros(recorded_at) for sequence, recorded_at in rows}


def read_account(connection: Connection, key: ObjectKey) -> AccountBalance | None:
    """Read an account; None if it is not recorded."""
    row = connection.execute(_ONE, {"of": str(key)}).one_or_none()
    return None if row is None else _balance(*row)


def _balance(key: str, currency: str, balance: int, credit_limit: int, sequence: int) -> AccountBalance:
    return AccountBalance(ObjectKey.parse(key), currency, Nano(balance), Nano(credit_limit), sequence)


def _quota(row: Row[*tuple[Any, ...]]) -> QuotaBalance:
    return QuotaBalance(
        account=ObjectKey.parse(row.key),
        model=row.model,
        total=row.tokens,
        used=row.used,
        expires_at=from_micros(row.expires_at),
        sequence=row.sequence,
    )


def _reservation(row: Row[*tuple[Any, ...]]) -> ReservationBalance:
    return ReservationBalance(
        service=ObjectKey.parse(row.service),
        uid=row.uid,
        account=ObjectKey.parse(row.account),
        model=row.model,
        input_tpm=row.input_tpm,
        output_tpm=row.output_tpm,
        days=row.days,
        buying=Buying(row.buying),
        state=ReservationState(row.state),
        reason=row.reason,
        message=row.message,
        period_start=None if row.start_at is None else from_micros(row.start_at),
        period_end=None if row.end_at is None else from_micros(row.end_at),
        sequence=row.sequence,
    )


class Notifier:
    """Wakes waiting readers from any thread, each in its event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[asyncio.Future[None]] = set()

    def subscribe(self) -> "asyncio.Future[None]":
        """A future that is done at the next `notify`. Pass it to `unsubscribe` in the end."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.add(future)
        return future

    def unsubscribe(self, future: "asyncio.Future[None]") -> None:
        """End the wait."""
        with self._lock:
            self._waiting.discard(future)

    def notify(self) -> None:
        """Wake all readers."""
        with self._lock:
            waiting, self._waiting = self._waiting, set()
        for future in waiting:
            loop = future.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_wake, future)


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


_LEDGER = select(
    tables.ledger.c.ledger_id,
    tables.ledger.c.head,
    *(
        select(table.c.sequence).where(table.c.sequence > bindparam("after")).exists()
        for table in (tables.accounts, tables.quotas, tables.reservations)
    ),
)
"""The head, and which tables have changes: usually one, and each query costs a round trip to the server."""
_WRITTEN = union_all(
    *(
        select(table.c.sequence, table.c.recorded_at).where(
            table.c.sequence.in_(bindparam("sequences", expanding=True))
        )
        for table in (tables.transactions, tables.account_terms, tables.reservation_changes)
    )
)
"""One of these tables has each number."""
_accounts = tables.accounts.c
_ACCOUNT = select(
    _accounts.key, _accounts.currency, _accounts.balance, _accounts.credit_limit, _accounts.sequence
)
_ONE = _ACCOUNT.where(_accounts.key == bindparam("of"))
_CHANGED_ACCOUNTS = (
    _ACCOUNT.where(_accounts.sequence > bindparam("after"))
    .order_by(_accounts.sequence)
    .limit(bindparam("at_most"))
)
_quotas = tables.quotas.c
_CHANGED_QUOTAS = (
    select(_accounts.key, _quotas.model, _quotas.tokens, _quotas.used, _quotas.expires_at, _quotas.sequence)
    .join_from(tables.quotas, tables.accounts)
    .where(_quotas.sequence > bindparam("after"))
    .order_by(_quotas.sequence)
    .limit(bindparam("at_most"))
)
_reservations = tables.reservations.c
_changes = tables.reservation_changes.c
_terms = tables.reservation_terms.c
_CHANGED_RESERVATIONS = (
    select(
        _reservations.service,
        _reservations.uid,
        _reservations.account,
        _reservations.model,
        _reservations.input_tpm,
        _reservations.output_tpm,
        _reservations.days,
        _changes.buying,
        _changes.state,
        _changes.reason,
        _changes.message,
        _terms.start_at,
        _terms.end_at,
        _reservations.sequence,
    )
    .join_from(tables.reservations, tables.reservation_changes, _changes.sequence == _reservations.sequence)
    .outerjoin(
        tables.reservation_terms,
        and_(_terms.reservation_id == _reservations.id, _terms.number == _changes.current_term),
    )
    .where(_reservations.sequence > bindparam("after"))
    .order_by(_reservations.sequence)
    .limit(bindparam("at_most"))
)
_CHANGED = (_CHANGED_ACCOUNTS, _CHANGED_QUOTAS, _CHANGED_RESERVATIONS)
