"""Tokens that write a cache, estimates, durations, look-ups of calls (B26, B32), and refused calls.

Every new column has a constant default, so no row of a large table is rewritten. A price tier without
`cache_write` charges the price of input for cache writes, as all tiers did before.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_FIXED = (
    *("id", "source", "event_id", "service", "model", "api_key", "request_id", "status"),
    *("occurred_at", "received_at", "input_tokens", "cached_input_tokens", "output_tokens"),
    *("cache_write_input_tokens", "estimated", "duration_ms", "first_byte_ms"),
)
"""What no update of a usage event may change."""


def upgrade() -> None:
    _extend()
    _index_calls()
    _guard_usage()
    _create_refusals()


def _extend() -> None:
    # As text: Alembic adds the check of a new column as a table constraint, which SQLite cannot add later.
    sqlite = op.get_bind().dialect.name == "sqlite"
    number = "INTEGER" if sqlite else "BIGINT"
    for table, column in (
        (
            "price_tiers",
            f"cache_write {number} CONSTRAINT ck_price_tiers_cache_write CHECK (cache_write >= 0)",
        ),
        (
            "usage_events",
            f"cache_write_input_tokens {number} NOT NULL DEFAULT 0 CONSTRAINT ck_usage_events_cache_write"
            " CHECK (0 <= cache_write_input_tokens"
            " AND cached_input_tokens + cache_write_input_tokens <= input_tokens)",
        ),
        (
            "usage_events",
            f"estimated {number} NOT NULL DEFAULT 0"
            " CONSTRAINT ck_usage_events_estimated CHECK (estimated IN (0, 1))",
        ),
        ("usage_events", f"duration_ms {number}"),
        ("usage_events", f"first_byte_ms {number}"),
    ):
        op.execute(f"ALTER TABLE {table} ADD COLUMN {column}")


def _index_calls() -> None:
    estimated = sa.text("estimated = 1")
    op.create_index(
        "ix_usage_events_estimated",
        "usage_events",
        ["transaction_sequence"],
        sqlite_where=estimated,
        postgresql_where=estimated,
    )
    op.create_table(
        "request_segments",
        sa.Column("last_event", _INT, primary_key=True, autoincrement=False),
        sqlite_strict=True,
    )
    op.create_table(
        "requests",
        sa.Column("segment", _INT, primary_key=True, autoincrement=False),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("event", _INT, primary_key=True, autoincrement=False),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )


def _guard_usage() -> None:
    """Replace the trigger that forbids changes, so that it covers the new columns."""
    message = "lets pending events be charged once, and changes nothing else"
    if op.get_bind().dialect.name == "sqlite":
        changed = " OR ".join(f"NEW.{column} IS NOT OLD.{column}" for column in _FIXED)
        op.execute("DROP TRIGGER usage_events_update")
        op.execute(
            "CREATE TRIGGER usage_events_update BEFORE UPDATE ON usage_events"
            f" WHEN {changed} OR OLD.transaction_sequence IS NOT NULL"
            f" BEGIN SELECT RAISE(ABORT, 'usage_events {message}'); END"
        )
    else:
        changed = " OR ".join(f"NEW.{column} IS DISTINCT FROM OLD.{column}" for column in _FIXED)
        op.execute("DROP TRIGGER usage_events_update ON usage_events")
        op.execute(
            "CREATE TRIGGER usage_events_update BEFORE UPDATE ON usage_events FOR EACH ROW"
            f" WHEN ({changed} OR OLD.transaction_sequence IS NOT NULL)"
            f" EXECUTE FUNCTION refuse_rewriting('{message}')"
        )


def _create_refusals() -> None:
    op.create_table(
        "refusals",
        sa.Column("minute", _INT, primary_key=True, autoincrement=False),
        sa.Column("namespace", sa.Text, primary_key=True),
        sa.Column("service", sa.Text, primary_key=True),
        sa.Column("api_key", sa.Text, primary_key=True),
        sa.Column("code", sa.Text, primary_key=True),
        sa.Column("status", _INT, primary_key=True, autoincrement=False),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("count", _INT, nullable=False),
        sa.CheckConstraint("count > 0", name="count"),
        sqlite_strict=True,
    )
