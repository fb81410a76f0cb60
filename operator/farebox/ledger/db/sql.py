"""The statements of the ledger's unit of work, prepared once: what it reads, then what it writes."""

from typing import Final

from sqlalchemy import ClauseElement, bindparam, func, literal_column, select, union_all, update

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


def _after(statement: ClauseElement) -> Prepared:
    return Prepared(statement, ("after",))


_accounts = tables.accounts.c
ACCOUNTS: Final = _after(
    select(
        _accounts.id,
        _accounts.key,
        _accounts.currency,
        _accounts.credit_limit,
        _accounts.balance,
        _accounts.sequence,
    ).where(_accounts.sequence > _AFTER)
)
_books = tables.books.c
BOOKS: Final = _after(select(_books.account_id, _books.name, _books.id).where(_books.id > _AFTER))
_bindings = tables.bindings.c
BINDINGS: Final = _after(
    select(
        _bindings.id,
        _bindings.service,
        _bindings.account,
        _bindings.model,
        _bindings.effective_at,
        _bindings.trial,
    )
    .where(_bindings.id > _AFTER)
    .order_by(_bindings.id)
)
_prices = tables.price_versions.c
PRICES: Final = _after(
    select(
        _prices.id,
        _prices.model,
        _prices.currency,
        _prices.effective_at,
        _prices.input_unit_tpm,
        _prices.input_unit_price_per_day,
        _prices.output_unit_tpm,
        _prices.output_unit_price_per_day,
        _prices.terms,
        _prices.quota_tokens,
        _prices.quota_valid_days,
    )
    .where(_prices.id > _AFTER)
    .order_by(_prices.id)
)
_tiers = tables.price_tiers.c
TIERS: Final = _after(
    select(
        _tiers.price_version_id,
        _tiers.up_to_input_tokens,
        _tiers.input,
        _tiers.cached_input,
        _tiers.output,
    )
    .where(_tiers.price_version_id > _AFTER)
    .order_by(_tiers.price_version_id, _tiers.position)
)
_quotas = tables.quotas.c
QUOTAS: Final = _after(
    select(
        _quotas.id,
        _quotas.account_id,
        _quotas.model,
        _quotas.tokens,
        _quotas.used,
        _quotas.expires_at,
        _quotas.sequence,
    ).where(_quotas.sequence > _AFTER)
)
_leases = tables.budgets.c
LEASES: Final = _after(
    select(_leases.source, _leases.account_id, _leases.granted, _leases.spent, _leases.expires_at).where(
        _leases.revision > _AFTER
    )
)
_reservations = tables.reservations.c
_changes = tables.reservation_changes.c
RESERVATIONS: Final = _after(
    select(
        _reservations.id,
        _reservations.service,
        _reservations.uid,
        _reservations.account,
        _reservations.model,
        _reservations.input_tpm,
        _reservations.output_tpm,
        _reservations.days,
        _reservations.sequence,
        _changes.buying,
        _changes.state,
        _changes.current_term,
        _changes.reason,
        _changes.message,
    )
    .join_from(tables.reservations, tables.reservation_changes, _changes.sequence == _reservations.sequence)
    .where(_reservations.sequence > _AFTER)
    .order_by(_reservations.id)
)
_terms = tables.reservation_terms.c
TERMS: Final = _after(
    select(_terms.reservation_id, _terms.number, _terms.start_at, _terms.end_at)
    .where(_terms.transaction_sequence > _AFTER)
    .order_by(_terms.transaction_sequence)
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
UPDATE_LEASE: Final = Prepared(
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
