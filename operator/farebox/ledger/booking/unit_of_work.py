"""One database transaction of the ledger: its lock, its time, its numbers and its rows.

Rows are collected, and `flush` writes them in the order that foreign keys require. The ledger's row is locked
from the beginning to the commit, so sequence numbers follow the order of commits: a reader that has seen
number n has seen everything up to n. `journal.py` decides what the rows contain.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Table

from farebox.clock import from_micros, to_micros
from farebox.ledger.booking.state import AccountRow, CreditLeaseRow, KnownReservation, LedgerState, QuotaRow
from farebox.ledger.db.prepared import COPY_ROWS, Prepared, one_trip
from farebox.ledger.db.sql import (
    INSERTS,
    UPDATE_ACCOUNT,
    UPDATE_LEASE,
    UPDATE_LEDGER,
    UPDATE_LEDGER_AND_NOTIFY,
    UPDATE_QUOTA,
    UPDATE_RESERVATION,
)

MAX_CLOCK_SKEW: Final = timedelta(minutes=5)
"""Clocks that differ by more are wrong."""


def _not_before(now: datetime, written_at: int) -> datetime:
    """The time, or the time of the last transaction if that is slightly later.

    A clock may be set back a little, or another meter's clock may be ahead. Statements of the past must not
    change. A larger difference means that a wrong clock was corrected.
    """
    last = from_micros(written_at)
    return last if now < last <= now + MAX_CLOCK_SKEW else now


class UnitOfWork:
    """Collects rows and writes them."""

    def __init__(
        self,
        connection: Connection,
        state: LedgerState,
        clock: Callable[[], datetime],
    ) -> None:
        self.connection = connection
        self.state = state
        state.refresh(connection)
        # Read after the ledger is locked, so that times rise with the numbers.
        self.now = _not_before(clock(), state.written_at)
        self.recorded_at = to_micros(self.now)
        self._rows: dict[Table, list[Mapping[str, Any]]] = defaultdict(list)
        self._touched: dict[int, AccountRow] = {}
        self._used: dict[int, QuotaRow] = {}
        self._changed: dict[int, KnownReservation] = {}
        self._leases: dict[tuple[str, int], CreditLeaseRow] = {}
        self.charged_leases: set[tuple[str, int]] = set()
        self._last: list[tuple[Prepared, Sequence[tuple[Any, ...]]]] = []
        self._wrote = False

    def next_sequence(self) -> int:
        """Assign the next number. The caller must use it: numbers have no gaps."""
        self.state.head += 1
        return self.state.head

    def _add(self, table: Table, **values: Any) -> None:
        self._rows[table].append(values)

    def flush(self) -> None:
        """Write the collected rows, so that later statements of this transaction see them."""
        for table, insert in INSERTS.items():
            if rows := self._rows.pop(table, None):
                columns = table.columns.keys()
                self.run_many(insert, [tuple(row[column] for column in columns) for row in rows])
        assert not self._rows, "INSERTS has every table"
        if self._touched:
            self.run_many(
                UPDATE_ACCOUNT,
                [
                    (account.credit_limit, account.balance, account.sequence, account.id)
                    for account in self._touched.values()
                ],
            )
            self._touched.clear()
        if self._used:
            self.run_many(
                UPDATE_QUOTA, [(quota.used, quota.sequence, quota.id) for quota in self._used.values()]
            )
            self._used.clear()
        if self._changed:
            self.run_many(UPDATE_RESERVATION, [(r.sequence, r.id) for r in self._changed.values()])
            self._changed.clear()
        if self._leases:
            revision = self.state.revision + 1
            self.run_many(
                UPDATE_LEASE,
                [(b.granted, b.spent, b.expires_at, revision, *key) for key, b in self._leases.items()],
            )
            self._leases.clear()

    def run_many(self, statement: Prepared, rows: Sequence[tuple[Any, ...]]) -> None:
        """Execute a statement for each of `rows` at once, before `flush`."""
        statement.run_many(self.connection, rows)
        self._wrote = True

    def write_last(self, statement: Prepared, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write after everything else. Nothing reads these rows before the commit."""
        self._last.append((statement, rows))

    def write(self) -> None:
        """Write now what is too large for the pipeline of `finish`."""
        if any(len(rows) >= COPY_ROWS for _, rows in self._last):
            with one_trip(self.connection):
                self.flush()
            self._write_last()

    def _write_last(self) -> None:
        for statement, rows in self._last:
            self.run_many(statement, rows)
        self._last.clear()

    def finish(self) -> None:
        """Write the rest and the ledger's row, just before the commit."""
        self.flush()
        self._write_last()
        if not self._wrote:
            return
        self.state.revision += 1
        self.state.written_at = self.recorded_at
        is_shared = self.connection.dialect.name == "postgresql"
        update_ledger = UPDATE_LEDGER_AND_NOTIFY if is_shared else UPDATE_LEDGER
        update_ledger.run(self.connection, (self.state.head, self.state.revision))
