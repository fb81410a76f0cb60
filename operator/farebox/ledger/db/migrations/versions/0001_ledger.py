"""The first schema: accounts, terms, bindings, prices, books, transactions, entries, top-ups, usage.

A migration is frozen: it does not import `tables.py`, which moves on. There is no way back, because a
ledger's history is not given up; restore a backup instead.
"""

import secrets
import time
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_PENDING = sa.text("transaction_sequence IS NULL")


def _int(name: str, *rest: Any, nullable: bool = False) -> "sa.Column[int]":
    return sa.Column(name, _INT, *rest, nullable=nullable)


def _text(name: str, *, nullable: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.Text, nullable=nullable)


def _key(name: str, *rest: Any) -> "sa.Column[int]":
    return sa.Column(name, _INT, *rest, primary_key=True, autoincrement=False)


def _create(name: str, *items: Any) -> None:
    op.create_table(name, *items, sqlite_strict=True)


def upgrade() -> None:
    _create_facts()
    _create_money()
    _create_usage()
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    op.get_bind().execute(
        sa.text(
            "INSERT INTO ledger (id, ledger_id, head, revision, created_at)"
            " VALUES (1, :ledger_id, 0, 0, :now)"
        ),
        {"ledger_id": secrets.token_hex(16), "now": time.time_ns() // 1000},
    )


def _create_facts() -> None:
    _create(
        "ledger",
        _key("id", sa.CheckConstraint("id = 1", name="single")),
        _text("ledger_id"),
        _int("head"),
        _int("revision"),
        _int("created_at"),
    )
    _create(
        "accounts",
        _key("id"),
        _text("key"),
        _text("currency"),
        _int("credit_limit"),
        _int("balance"),
        _int("sequence"),
        _int("recorded_at"),
        sa.UniqueConstraint("key"),
        sa.CheckConstraint("credit_limit >= 0", name="credit_limit"),
    )
    op.create_index("ix_accounts_sequence", "accounts", ["sequence"], unique=True)
    _create(
        "account_terms",
        _key("sequence"),
        _int("account_id", sa.ForeignKey("accounts.id")),
        _int("credit_limit"),
        _int("recorded_at"),
    )
    _create(
        "bindings",
        _key("id"),
        _text("service"),
        _text("account"),
        _text("model"),
        _int("effective_at"),
        _int("recorded_at"),
    )
    _create(
        "price_versions",
        _key("id"),
        _text("model"),
        _text("currency"),
        _int("effective_at"),
        _int("recorded_at"),
    )
    _create(
        "price_tiers",
        _key("price_version_id", sa.ForeignKey("price_versions.id")),
        _key("position"),
        _int("up_to_input_tokens", nullable=True),
        _int("input"),
        _int("cached_input"),
        _int("output"),
        sa.CheckConstraint("input >= 0 AND cached_input >= 0 AND output >= 0", name="prices"),
    )


def _create_money() -> None:
    _create(
        "books",
        _key("id"),
        _int("account_id", sa.ForeignKey("accounts.id")),
        _text("name"),
        _text("unit"),
        sa.UniqueConstraint("account_id", "name"),
    )
    _create(
        "transactions",
        _key("sequence"),
        _text("kind"),
        _text("idempotency_key"),
        _int("account_id", sa.ForeignKey("accounts.id")),
        _int("occurred_at"),
        _int("recorded_at"),
        sa.UniqueConstraint("idempotency_key"),
    )
    _create(
        "entries",
        _key("transaction_sequence", sa.ForeignKey("transactions.sequence")),
        _key("book_id", sa.ForeignKey("books.id")),
        _int("amount"),
    )
    _create(
        "topups",
        _key("transaction_sequence", sa.ForeignKey("transactions.sequence")),
        _int("account_id", sa.ForeignKey("accounts.id")),
        _text("reference"),
        _text("kind"),
        _int("amount"),
        _text("source"),
        _int("balance_after"),
        _int("posted_at"),
        sa.UniqueConstraint("account_id", "reference"),
    )


def _create_usage() -> None:
    _create(
        "usage_events",
        sa.Column("id", _INT, primary_key=True, autoincrement=True),
        _text("source"),
        _text("event_id"),
        _text("service"),
        _text("model", nullable=True),
        _text("api_key", nullable=True),
        _text("request_id", nullable=True),
        _int("status", nullable=True),
        _int("occurred_at"),
        _int("received_at"),
        _int("input_tokens"),
        _int("cached_input_tokens"),
        _int("output_tokens"),
        _int("transaction_sequence", sa.ForeignKey("transactions.sequence"), nullable=True),
        _int("binding_id", sa.ForeignKey("bindings.id"), nullable=True),
        _int("price_version_id", sa.ForeignKey("price_versions.id"), nullable=True),
        _int("charge", nullable=True),
        _text("pending_reason", nullable=True),
        _text("waiting_for", nullable=True),
        sa.UniqueConstraint("source", "event_id"),
        sa.CheckConstraint(
            "0 <= cached_input_tokens AND cached_input_tokens <= input_tokens AND 0 <= output_tokens",
            name="tokens",
        ),
        sa.CheckConstraint(
            "(transaction_sequence IS NULL) = (binding_id IS NULL)"
            " AND (transaction_sequence IS NULL) = (price_version_id IS NULL)"
            " AND (transaction_sequence IS NULL) = (charge IS NULL)"
            " AND (transaction_sequence IS NULL) = (pending_reason IS NOT NULL)",
            name="charged_or_pending",
        ),
    )
    for name, column in (
        ("ix_usage_events_pending_service", "service"),
        ("ix_usage_events_pending_for", "waiting_for"),
    ):
        op.create_index(name, "usage_events", [column], sqlite_where=_PENDING, postgresql_where=_PENDING)


def _guard_sqlite() -> None:
    """Let the database itself refuse to rewrite history, whoever asks."""
    append_only = (
        "account_terms",
        "bindings",
        "price_versions",
        "price_tiers",
        "books",
        "transactions",
        "entries",
        "topups",
    )
    for table in append_only:
        _refuse(table, "UPDATE", "1", "is append-only")
    for table in (*append_only, "usage_events", "accounts", "ledger"):
        _refuse(table, "DELETE", "1", "is append-only")
    _refuse(
        "ledger",
        "UPDATE",
        "NEW.ledger_id IS NOT OLD.ledger_id OR NEW.head < OLD.head OR NEW.revision < OLD.revision",
        "never runs backwards",
    )
    _refuse(
        "accounts",
        "UPDATE",
        "NEW.key IS NOT OLD.key OR NEW.currency IS NOT OLD.currency OR NEW.sequence < OLD.sequence",
        "keeps its keys and currencies, and a sequence never falls",
    )
    facts = (
        "id source event_id service model api_key request_id status occurred_at received_at"
        " input_tokens cached_input_tokens output_tokens"
    )
    changed = " OR ".join(f"NEW.{column} IS NOT OLD.{column}" for column in facts.split())
    _refuse(
        "usage_events",
        "UPDATE",
        f"OLD.transaction_sequence IS NOT NULL OR {changed}",
        "lets pending events be charged once, and changes nothing else",
    )


def _refuse(table: str, verb: str, condition: str, why: str) -> None:
    op.execute(
        f"CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table} WHEN {condition} "
        f"BEGIN SELECT RAISE(ABORT, '{table} {why}'); END"
    )
