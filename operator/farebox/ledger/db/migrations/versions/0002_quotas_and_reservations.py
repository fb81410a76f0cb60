"""Free quotas, reservations, what covers a call; indexes for usage by service and for statements.

Also the guards of history on PostgreSQL, which the first schema had on SQLite only.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _int(name: str, *rest: Any, nullable: bool = False, **options: Any) -> "sa.Column[int]":
    return sa.Column(name, _INT, *rest, nullable=nullable, **options)


def _text(name: str, *, nullable: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.Text, nullable=nullable)


def _key(name: str, *rest: Any) -> "sa.Column[int]":
    return sa.Column(name, _INT, *rest, primary_key=True, autoincrement=False)


def _create(name: str, *items: Any) -> None:
    op.create_table(name, *items, sqlite_strict=True)


def upgrade() -> None:
    _extend()
    _create_quotas()
    _create_reservations()
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgresql()


def _extend() -> None:
    op.add_column("bindings", _int("trial", server_default=sa.text("0")))
    for name in (
        "input_unit_tpm",
        "input_unit_price_per_day",
        "output_unit_tpm",
        "output_unit_price_per_day",
    ):
        op.add_column("price_versions", _int(name, nullable=True))
    op.add_column("price_versions", _text("terms", nullable=True))
    for name in ("quota_tokens", "quota_valid_days"):
        op.add_column("price_versions", _int(name, nullable=True))
    for name in ("reservation_input", "reservation_output", "quota_tokens"):
        op.add_column("usage_events", _int(name, server_default=sa.text("0")))
    op.create_index("ix_usage_events_service", "usage_events", ["service", "occurred_at"])
    op.create_index("ix_transactions_account", "transactions", ["account_id", "recorded_at"])


def _create_quotas() -> None:
    _create(
        "quotas",
        _key("id"),
        _int("account_id", sa.ForeignKey("accounts.id")),
        _text("model"),
        _int("tokens"),
        _int("used"),
        _int("granted_at"),
        _int("expires_at"),
        _int("sequence"),
        sa.UniqueConstraint("account_id", "model"),
        sa.CheckConstraint("0 <= used AND used <= tokens", name="used"),
    )
    op.create_index("ix_quotas_sequence", "quotas", ["sequence"])


def _create_reservations() -> None:
    _create(
        "reservations",
        _key("id"),
        _text("service"),
        _text("uid"),
        _text("account"),
        _text("model"),
        _int("input_tpm"),
        _int("output_tpm"),
        _int("days"),
        _int("sequence"),
        sa.UniqueConstraint("service", "uid"),
    )
    op.create_index("ix_reservations_sequence", "reservations", ["sequence"], unique=True)
    _create(
        "reservation_changes",
        _key("sequence"),
        _int("reservation_id", sa.ForeignKey("reservations.id")),
        _text("buying"),
        _text("state"),
        _int("current_term"),
        _text("reason"),
        _text("message"),
        _int("recorded_at"),
    )
    op.create_index(
        "ix_reservation_changes_reservation", "reservation_changes", ["reservation_id", "sequence"]
    )
    _create(
        "reservation_terms",
        _key("reservation_id", sa.ForeignKey("reservations.id")),
        _key("number"),
        _int("start_at"),
        _int("end_at"),
        _int("price"),
        _int("price_version_id", sa.ForeignKey("price_versions.id")),
        _int("transaction_sequence", sa.ForeignKey("transactions.sequence")),
        sa.UniqueConstraint("transaction_sequence"),
        sa.CheckConstraint("start_at < end_at", name="period"),
    )
    _create(
        "reserved_minutes",
        sa.Column("service", sa.Text, primary_key=True),
        _key("minute"),
        _int("input_tokens"),
        _int("output_tokens"),
    )


_NEW_APPEND_ONLY = ("reservation_changes", "reservation_terms")
_NEW_KEPT = ("quotas", "reservations", "reserved_minutes")
_APPEND_ONLY = (
    "account_terms",
    "bindings",
    "price_versions",
    "price_tiers",
    "books",
    "transactions",
    "entries",
    "topups",
)
_KEPT = ("usage_events", "accounts", "ledger")

# What may not change, and why, of tables that may be updated: (condition, sentence).
_NEW_UPDATES = {
    "quotas": (
        ("id", "account_id", "model", "tokens", "granted_at", "expires_at"),
        "NEW.used < OLD.used OR NEW.sequence < OLD.sequence",
        "keeps what was granted, and what is used never falls",
    ),
    "reservations": (
        ("id", "service", "uid", "account", "model", "input_tpm", "output_tpm", "days"),
        "NEW.sequence < OLD.sequence",
        "keeps what was asked for",
    ),
    "reserved_minutes": (
        ("service", "minute"),
        "NEW.input_tokens < OLD.input_tokens OR NEW.output_tokens < OLD.output_tokens",
        "never falls",
    ),
}
_UPDATES = {
    "ledger": (
        ("ledger_id",),
        "NEW.head < OLD.head OR NEW.revision < OLD.revision",
        "never runs backwards",
    ),
    "accounts": (
        ("key", "currency"),
        "NEW.sequence < OLD.sequence",
        "keeps its keys and currencies, and a sequence never falls",
    ),
    "usage_events": (
        (
            *("id", "source", "event_id", "service", "model", "api_key", "request_id", "status"),
            *("occurred_at", "received_at", "input_tokens", "cached_input_tokens", "output_tokens"),
        ),
        "OLD.transaction_sequence IS NOT NULL",
        "lets pending events be charged once, and changes nothing else",
    ),
}


def _guard_sqlite() -> None:
    for table in _NEW_APPEND_ONLY:
        _refuse_sqlite(table, "UPDATE", "1", "is append-only")
    for table in (*_NEW_APPEND_ONLY, *_NEW_KEPT):
        _refuse_sqlite(table, "DELETE", "1", "is append-only")
    for table, (fixed, condition, why) in _NEW_UPDATES.items():
        changed = " OR ".join(f"NEW.{column} IS NOT OLD.{column}" for column in fixed)
        _refuse_sqlite(table, "UPDATE", f"{changed} OR {condition}", why)


def _refuse_sqlite(table: str, verb: str, condition: str, why: str) -> None:
    op.execute(
        f"CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table} WHEN {condition} "
        f"BEGIN SELECT RAISE(ABORT, '{table} {why}'); END"
    )


def _guard_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION refuse_rewriting() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION '% %', TG_TABLE_NAME, TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation';"
        " END $$"
    )
    append_only = (*_APPEND_ONLY, *_NEW_APPEND_ONLY)
    for table in append_only:
        _refuse_postgresql(table, "UPDATE", None, "is append-only")
    for table in (*append_only, *_KEPT, *_NEW_KEPT):
        _refuse_postgresql(table, "DELETE", None, "is append-only")
        op.execute(
            f"CREATE TRIGGER {table}_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT"
            f" EXECUTE FUNCTION refuse_rewriting('is append-only')"
        )
    for table, (fixed, condition, why) in (_UPDATES | _NEW_UPDATES).items():
        changed = " OR ".join(f"NEW.{column} IS DISTINCT FROM OLD.{column}" for column in fixed)
        _refuse_postgresql(table, "UPDATE", f"{changed} OR {condition}", why)


def _refuse_postgresql(table: str, verb: str, condition: str | None, why: str) -> None:
    when = "" if condition is None else f" WHEN ({condition})"
    op.execute(
        f"CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table} FOR EACH ROW{when}"
        f" EXECUTE FUNCTION refuse_rewriting('{why}')"
    )
