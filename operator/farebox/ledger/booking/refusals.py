"""Stores counts of refused calls (B32).

They are no part of the books: they take no sequence number, and no reader of the feed is notified.
"""

from typing import Final

from sqlalchemy import text

from farebox.clock import to_micros
from farebox.errors import LedgerRefused
from farebox.ledger.booking.journal import Journal
from farebox.ledger.booking.unit_of_work import MAX_CLOCK_SKEW
from farebox.ledger.db import tables
from farebox.ledger.db.prepared import Prepared
from farebox.meterapi.refusals import RETENTION, RefusalCounts

MICROS_PER_MINUTE: Final = 60_000_000


def count_refusals(journal: Journal, counts: RefusalCounts) -> int:
    """Store the counts, and delete those before RETENTION. Returns how many are stored.

    Raises:
        LedgerRefused: MinuteInFuture.
    """
    oldest = to_micros(journal.now - RETENTION) // MICROS_PER_MINUTE
    latest = to_micros(journal.now + MAX_CLOCK_SKEW) // MICROS_PER_MINUTE
    rows = []
    for item in counts.refusals:
        minute = to_micros(item.minute) // MICROS_PER_MINUTE
        if minute > latest:
            skew = MAX_CLOCK_SKEW.seconds // 60
            message = f"minute {item.minute.isoformat()} is more than {skew} minutes in the future"
            raise LedgerRefused("MinuteInFuture", f"{message}: set the sender's clock")
        if minute >= oldest:
            labels = (item.namespace, item.service or "", item.api_key or "", item.code, item.status)
            rows.append((minute, *labels, counts.source, item.count))
    # The key begins with the minute, so this reads one page of the index while nothing is old.
    _PRUNE.run(journal.connection, (oldest,))
    if rows:
        _COUNT.run_many(journal.connection, rows)
    return len(rows)


_COLUMNS: Final = tuple(tables.refusals.columns.keys())
_KEY: Final = ", ".join(tables.refusals.primary_key.columns.keys())
_PRUNE = Prepared(text("DELETE FROM refusals WHERE minute < :oldest"), ("oldest",))
_COUNT = Prepared(
    text(
        f"INSERT INTO refusals ({', '.join(_COLUMNS)}) VALUES ({', '.join(f':{name}' for name in _COLUMNS)})"
        f" ON CONFLICT ({_KEY}) DO UPDATE SET count = excluded.count WHERE excluded.count > refusals.count"
    ),
    _COLUMNS,
)
