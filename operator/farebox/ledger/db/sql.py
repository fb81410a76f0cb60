"""The statements that a journal writes with, prepared once."""

from typing import Final

from sqlalchemy import bindparam, func, literal_column, update

from farebox.ledger.db import tables
from farebox.ledger.db.notify import CHANNEL
from farebox.ledger.db.prepared import Prepared

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
"""In the order that foreign keys need."""

UPDATE_ACCOUNT: Final = Prepared(
    update(tables.accounts)
    .values(
        credit_limit=bindparam("new_credit_limit"),
        balance=bindparam("new_balance"),
        sequence=bindparam("new_sequence"),
    )
    .where(tables.accounts.c.id == bindparam("of")),
    ("new_credit_limit", "new_balance", "new_sequence", "of"),
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
UPDATE_QUOTA: Final = Prepared(
    update(tables.quotas)
    .values(used=bindparam("new_used"), sequence=bindparam("new_sequence"))
    .where(tables.quotas.c.id == bindparam("of")),
    ("new_used", "new_sequence", "of"),
)
UPDATE_RESERVATION: Final = Prepared(
    update(tables.reservations)
    .values(sequence=bindparam("new_sequence"))
    .where(tables.reservations.c.id == bindparam("of")),
    ("new_sequence", "of"),
)
UPDATE_BUDGET: Final = Prepared(
    update(tables.budgets)
    .values(
        granted=bindparam("new_granted"),
        spent=bindparam("new_spent"),
        expires_at=bindparam("new_expires_at"),
        revision=bindparam("new_revision"),
    )
    .where(tables.budgets.c.source == bindparam("by"), tables.budgets.c.account_id == bindparam("of")),
    ("new_granted", "new_spent", "new_expires_at", "new_revision", "by", "of"),
)
