"""The statements of the ledger's unit of work, prepared once: what it reads, then what it writes."""

from collections.abc import Collection
from typing import Final

from sqlalchemy import Table, bindparam, func, literal_column, select, union_all, update

from farebox.ledger.db import tables
from farebox.ledger.db.notify import CHANNEL
from farebox.ledger.db.prepared import Prepared

LOCK_LEDGER: Final = Prepared(select(tables.ledger.c.head, tables.ledger.c.revision).with_for_update(), ())
WRITTEN: Final = Prepared(
    union_all(
        *(
            select(table.c.recorded_at).where(table.c.sequence == bindparam("number"))
            for table in (tables.transactions, tables.account_terms, tables.reservation_changes)
        )
    ),
    ("number", "number", "number"),
)
"""When a number was written: one of these tables has it."""
_AFTER = bindparam("after", type_=tables.Int64)


def _newer(table: Table, by: str, *, without: Collection[str]) -> Prepared:
    """The rows whose `by` is above `after`, by primary key: all columns but some, in the table's order."""
    columns = [column for column in table.columns if column.name not in without]
    return Prepared(select(*columns).where(table.c[by] > _AFTER).order_by(*table.primary_key), ("after",))


ACCOUNTS: Final = _newer(tables.accounts, "sequence", without=["recorded_at"])
BOOKS: Final = _newer(tables.books, "id", without=["unit"])
BINDINGS: Final = _newer(tables.bindings, "id", without=["recorded_at"])
PRICES: Final = _newer(tables.price_versions, "id", without=["recorded_at"])
TIERS: Final = _newer(tables.price_tiers, "price_version_id", without=["position"])
QUOTAS: Final = _newer(tables.quotas, "sequence", without=["granted_at"])
LEASES: Final = _newer(tables.budgets, "revision", without=["revision"])
TERMS: Final = _newer(
    tables.reservation_terms,
    "transaction_sequence",
    without=["price", "price_version_id", "transaction_sequence"],
)
_reservations = tables.reservations.c
_changes = tables.reservation_changes.c
RESERVATIONS: Final = Prepared(
    select(
        *_reservations,
        _changes.buying,
        _changes.state,
        _changes.current_term,
        _changes.reason,
        _changes.message,
    )
    .join_from(tables.reservations, tables.reservation_changes, _changes.sequence == _reservations.sequence)
    .where(_reservations.sequence > _AFTER)
    .order_by(_reservations.id),
    ("after",),
)

INSERTS: Final = {
    table: Prepared.insert(table)
    for table in (
        tables.accounts,
        tables.account_terms,
        tables.bindings,
        tables.price_versions,
        tables.price_tiers,
        tables.books,
        tables.transactions,
        tables.entries,
        tables.topups,
        tables.quotas,
        tables.reservations,
        tables.reservation_changes,
        tables.reservation_terms,
        tables.budgets,
    )
}
"""In the order that the foreign keys require."""

UPDATE_ACCOUNT: Final = Prepared.update(tables.accounts, ("credit_limit", "balance", "sequence"), ("id",))
UPDATE_QUOTA: Final = Prepared.update(tables.quotas, ("used", "sequence"), ("id",))
UPDATE_RESERVATION: Final = Prepared.update(tables.reservations, ("sequence",), ("id",))
UPDATE_LEASE: Final = Prepared.update(
    tables.budgets, ("granted", "spent", "expires_at", "revision"), ("source", "account_id")
)
_NEW_LEDGER: Final = update(tables.ledger).values(
    head=bindparam("new_head"), revision=bindparam("new_revision")
)
UPDATE_LEDGER: Final = Prepared(_NEW_LEDGER, ("new_head", "new_revision"))
UPDATE_LEDGER_AND_NOTIFY: Final = Prepared(
    _NEW_LEDGER.returning(func.pg_notify(literal_column(f"'{CHANNEL}'"), literal_column("''"))),
    ("new_head", "new_revision"),
)
"""UPDATE_LEDGER on PostgreSQL. The notification is sent at the commit."""
