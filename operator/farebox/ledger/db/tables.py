"""The ledger's tables, the same on SQLite and PostgreSQL. Only definitions: no connection, no statement.

Money is in nano-units, times are microseconds since 1970 UTC, both 64-bit integers: SQLite has no other
exact type for them. The writer assigns ids (`journal.py`), except those of usage events. SQLite tables are
STRICT, so that an overflow never becomes a float silently.
"""

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = MetaData(naming_convention=NAMING)

Int64 = BigInteger().with_variant(Integer(), "sqlite")
"""A signed 64-bit integer. On SQLite the name must be INTEGER, for STRICT and for the row id."""


def _id(*rest: Any) -> Column[int]:
    return Column("id", Int64, *rest, primary_key=True, autoincrement=False)


def _table(name: str, *items: Any) -> Table:
    return Table(name, metadata, *items, sqlite_strict=True)


ledger = _table(
    "ledger",
    _id(CheckConstraint("id = 1", name="single")),
    Column("ledger_id", Text, nullable=False),
    Column("head", Int64, nullable=False),
    Column("revision", Int64, nullable=False),
    Column("created_at", Int64, nullable=False),
)
"""One row. `head` is the last assigned sequence number. `revision` counts all committed writes: by it a
writer finds out whether its state is current. Every writer locks the row for its transaction."""

accounts = _table(
    "accounts",
    _id(),
    Column("key", Text, nullable=False, unique=True),
    Column("currency", Text, nullable=False),
    Column("credit_limit", Int64, nullable=False),
    Column("balance", Int64, nullable=False),
    Column("sequence", Int64, nullable=False),
    Column("recorded_at", Int64, nullable=False),
    CheckConstraint("credit_limit >= 0", name="credit_limit"),
    Index("ix_accounts_sequence", "sequence", unique=True),
)
"""Accounts by "namespace/name". balance, credit_limit and sequence are derived (entries, account_terms)."""

account_terms = _table(
    "account_terms",
    Column("sequence", Int64, primary_key=True, autoincrement=False),
    Column("account_id", Int64, ForeignKey("accounts.id"), nullable=False),
    Column("credit_limit", Int64, nullable=False),
    Column("recorded_at", Int64, nullable=False),
)
"""Every credit limit of an account. A change takes a sequence number, as a transaction does."""

bindings = _table(
    "bindings",
    _id(),
    Column("service", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("effective_at", Int64, nullable=False),
    Column("recorded_at", Int64, nullable=False),
    Column("trial", Int64, nullable=False, server_default=text("0")),
)
"""Which account pays for a service and which model serves it, from a time on. The account may be unrecorded.
`trial` is 1 for a service that is never charged."""

price_versions = _table(
    "price_versions",
    _id(),
    Column("model", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("effective_at", Int64, nullable=False),
    Column("recorded_at", Int64, nullable=False),
    Column("input_unit_tpm", Int64),
    Column("input_unit_price_per_day", Int64),
    Column("output_unit_tpm", Int64),
    Column("output_unit_price_per_day", Int64),
    Column("terms", Text),
    Column("quota_tokens", Int64),
    Column("quota_valid_days", Int64),
)
"""What a model costs and offers from a time on. The unit columns and `terms` ("1,30,90") describe what can be
reserved, all or none of them; the quota columns describe the free quota, both or neither."""

price_tiers = _table(
    "price_tiers",
    Column("price_version_id", Int64, ForeignKey("price_versions.id"), primary_key=True),
    Column("position", Int64, primary_key=True),
    Column("up_to_input_tokens", Int64),
    Column("input", Int64, nullable=False),
    Column("cached_input", Int64, nullable=False),
    Column("output", Int64, nullable=False),
    Column("cache_write", Int64, CheckConstraint("cache_write >= 0", name="cache_write")),
    CheckConstraint("input >= 0 AND cached_input >= 0 AND output >= 0", name="prices"),
)
"""`cache_write` is NULL where tokens that write a cache cost the price of input."""

books = _table(
    "books",
    _id(),
    Column("account_id", Int64, ForeignKey("accounts.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("unit", Text, nullable=False),
    UniqueConstraint("account_id", "name"),
)
"""The ledger accounts that entries are posted to: balance, payments, adjustments, revenue:<model> and
reservations:<model> in the account's currency; quota:<model>, granted:<model> and used:<model> in tokens. A
transaction sums to zero in each unit."""

transactions = _table(
    "transactions",
    Column("sequence", Int64, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("idempotency_key", Text, nullable=False, unique=True),
    Column("account_id", Int64, ForeignKey("accounts.id"), nullable=False),
    Column("occurred_at", Int64, nullable=False),
    Column("recorded_at", Int64, nullable=False),
    Index("ix_transactions_account", "account_id", "recorded_at"),
)

entries = _table(
    "entries",
    Column("transaction_sequence", Int64, ForeignKey("transactions.sequence"), primary_key=True),
    Column("book_id", Int64, ForeignKey("books.id"), primary_key=True),
    Column("amount", Int64, nullable=False),
)

topups = _table(
    "topups",
    Column("transaction_sequence", Int64, ForeignKey("transactions.sequence"), primary_key=True),
    Column("account_id", Int64, ForeignKey("accounts.id"), nullable=False),
    Column("reference", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("amount", Int64, nullable=False),
    Column("source", Text, nullable=False),
    Column("balance_after", Int64, nullable=False),
    Column("posted_at", Int64, nullable=False),
    UniqueConstraint("account_id", "reference"),
)

quotas = _table(
    "quotas",
    _id(),
    Column("account_id", Int64, ForeignKey("accounts.id"), nullable=False),
    Column("model", Text, nullable=False),
    Column("tokens", Int64, nullable=False),
    Column("used", Int64, nullable=False),
    Column("granted_at", Int64, nullable=False),
    Column("expires_at", Int64, nullable=False),
    Column("sequence", Int64, nullable=False),
    UniqueConstraint("account_id", "model"),
    CheckConstraint("0 <= used AND used <= tokens", name="used"),
    Index("ix_quotas_sequence", "sequence"),
)
"""The free quota of an account on a model, granted only once (B6). used and sequence are derived."""

reservations = _table(
    "reservations",
    _id(),
    Column("service", Text, nullable=False),
    Column("uid", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("input_tpm", Int64, nullable=False),
    Column("output_tpm", Int64, nullable=False),
    Column("days", Int64, nullable=False),
    Column("sequence", Int64, nullable=False),
    UniqueConstraint("service", "uid"),
    Index("ix_reservations_sequence", "sequence", unique=True),
)
"""What a service reserves (B9). `sequence` is derived from its newest row in reservation_changes."""

reservation_changes = _table(
    "reservation_changes",
    Column("sequence", Int64, primary_key=True, autoincrement=False),
    Column("reservation_id", Int64, ForeignKey("reservations.id"), nullable=False),
    Column("buying", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("current_term", Int64, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("recorded_at", Int64, nullable=False),
    Index("ix_reservation_changes_reservation", "reservation_id", "sequence"),
)
"""Every state of a reservation. A change takes a sequence number, as a transaction does."""

reservation_terms = _table(
    "reservation_terms",
    Column("reservation_id", Int64, ForeignKey("reservations.id"), primary_key=True),
    Column("number", Int64, primary_key=True, autoincrement=False),
    Column("start_at", Int64, nullable=False),
    Column("end_at", Int64, nullable=False),
    Column("price", Int64, nullable=False),
    Column("price_version_id", Int64, ForeignKey("price_versions.id"), nullable=False),
    Column("transaction_sequence", Int64, ForeignKey("transactions.sequence"), nullable=False, unique=True),
    CheckConstraint("start_at < end_at", name="period"),
)
"""The purchased terms, each once by (reservation, number)."""

reserved_minutes = _table(
    "reserved_minutes",
    Column("service", Text, primary_key=True),
    Column("minute", Int64, primary_key=True, autoincrement=False),
    Column("input_tokens", Int64, nullable=False),
    Column("output_tokens", Int64, nullable=False),
)
"""Tokens that a reservation covered in a calendar minute (UTC) of calls' ends: minutes since 1970. Derived
(usage_events)."""

budgets = _table(
    "budgets",
    Column("source", Text, primary_key=True),
    Column("account_id", Int64, ForeignKey("accounts.id"), primary_key=True, autoincrement=False),
    Column("granted", Int64, nullable=False),
    Column("spent", Int64, nullable=False),
    Column("expires_at", Int64, nullable=False),
    Column("revision", Int64, nullable=False),
    CheckConstraint("granted >= 0 AND spent >= 0", name="amounts"),
    Index("ix_budgets_revision", "revision"),
)
"""Credit leases: what a gateway can spend of an account, and has spent since its first lease (B17). They are
not history. `revision` is the ledger's at the time of the write."""

_PENDING = text("transaction_sequence IS NULL")
IS_ESTIMATED: Final = text("estimated = 1")
"""SQL text, because both databases use the index of estimated events only for this very condition."""


usage_events = _table(
    "usage_events",
    Column("id", Int64, primary_key=True, autoincrement=True),
    Column("source", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("service", Text, nullable=False),
    Column("model", Text),
    Column("api_key", Text),
    Column("request_id", Text),
    Column("status", Int64),
    Column("occurred_at", Int64, nullable=False),
    Column("received_at", Int64, nullable=False),
    Column("input_tokens", Int64, nullable=False),
    Column("cached_input_tokens", Int64, nullable=False),
    Column("output_tokens", Int64, nullable=False),
    Column("transaction_sequence", Int64, ForeignKey("transactions.sequence")),
    Column("binding_id", Int64, ForeignKey("bindings.id")),
    Column("price_version_id", Int64, ForeignKey("price_versions.id")),
    Column("charge", Int64),
    Column("pending_reason", Text),
    Column("waiting_for", Text),
    Column("reservation_input", Int64, nullable=False, server_default=text("0")),
    Column("reservation_output", Int64, nullable=False, server_default=text("0")),
    Column("quota_tokens", Int64, nullable=False, server_default=text("0")),
    Column("cache_write_input_tokens", Int64, nullable=False, server_default=text("0")),
    Column("estimated", Int64, nullable=False, server_default=text("0")),
    Column("duration_ms", Int64),
    Column("first_byte_ms", Int64),
    UniqueConstraint("source", "event_id"),
    CheckConstraint(
        "0 <= cache_write_input_tokens AND cached_input_tokens + cache_write_input_tokens <= input_tokens",
        name="cache_write",
    ),
    CheckConstraint("estimated IN (0, 1)", name="estimated"),
    CheckConstraint(
        "0 <= cached_input_tokens AND cached_input_tokens <= input_tokens AND 0 <= output_tokens",
        name="tokens",
    ),
    CheckConstraint(
        "(transaction_sequence IS NULL) = (binding_id IS NULL)"
        " AND (transaction_sequence IS NULL) = (price_version_id IS NULL)"
        " AND (transaction_sequence IS NULL) = (charge IS NULL)"
        " AND (transaction_sequence IS NULL) = (pending_reason IS NOT NULL)",
        name="charged_or_pending",
    ),
    Index("ix_usage_events_pending_service", "service", sqlite_where=_PENDING, postgresql_where=_PENDING),
    Index("ix_usage_events_pending_for", "waiting_for", sqlite_where=_PENDING, postgresql_where=_PENDING),
    Index("ix_usage_events_service", "service", "occurred_at"),
    Index(
        "ix_usage_events_estimated",
        "transaction_sequence",
        sqlite_where=IS_ESTIMATED,
        postgresql_where=IS_ESTIMATED,
    ),
)
"""Every usage event once by (source, event_id) (B12): charged, with its share of a transaction, or pending,
with what it waits for. `model` is the one in the event, if any; the charged one is the binding's. The columns
reservation_input, reservation_output and quota_tokens are the tokens that cost no money, by what covers them
(domain/billing/coverage.py). `estimated` is 1 if a count was not reported by the upstream (B26)."""

request_segments = _table(
    "request_segments", Column("last_event", Int64, primary_key=True, autoincrement=False)
)
"""The segments of `requests`, each by its last usage event; it begins after the segment before it."""

requests = Table(
    "requests",
    metadata,
    Column("segment", Int64, primary_key=True, autoincrement=False),
    Column("request_id", Text, primary_key=True),
    Column("event", Int64, primary_key=True, autoincrement=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
"""Usage events by request id, written a segment at a time (docs/decisions/531). Derived (usage_events), and
without foreign keys: they would cost more than the rest of a segment, and `verify` compares the tables."""

refusals = _table(
    "refusals",
    Column("minute", Int64, primary_key=True, autoincrement=False),
    Column("namespace", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    Column("api_key", Text, primary_key=True),
    Column("code", Text, primary_key=True),
    Column("status", Int64, primary_key=True, autoincrement=False),
    Column("source", Text, primary_key=True),
    Column("count", Int64, nullable=False),
    CheckConstraint("count > 0", name="count"),
)
"""Calls that a gateway, the `source`, refused in a minute (B32): minutes since 1970 UTC. A namespace, service
or key that is unknown is "". It is not history: old minutes are deleted."""
