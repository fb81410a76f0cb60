"""The schema: migrations agree with the code, and triggers protect the history."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import DBAPIError, IntegrityError

from farebox.domain.billing.money import Nano
from farebox.errors import ConfigurationError
from farebox.ledger.audit.verify import verify
from farebox.ledger.db.connections import disposing, read_engine
from farebox.ledger.db.migrate import is_current, upgrade
from farebox.ledger.db.tables import metadata
from farebox.ledger.engine import Ledger
from tests.ledger.databases import Database, Databases
from tests.ledger.support import (
    FACTS,
    OFFER,
    QUOTA,
    TERM_PRICE,
    balance,
    binding,
    model,
    opened,
    reserved,
    terms,
    topup,
    usage,
)


def test_migrations_create_exactly_the_tables_of_the_code(database: Database) -> None:
    with disposing(read_engine(database.url, 1)) as engine, engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert is_current(connection)


def test_processes_that_upgrade_at_the_same_time_take_turns(databases: Databases) -> None:
    errors: list[BaseException] = []

    def run(url: str) -> None:
        try:
            upgrade(url)
        except BaseException as error:
            errors.append(error)

    with databases.empty() as database:
        threads = [threading.Thread(target=run, args=[database.url]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        database.check()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "no url at all"])
def test_an_invalid_ledger_url_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"ledger"):
        upgrade(url)


def test_a_database_without_the_schema_is_not_verified(databases: Databases) -> None:
    with databases.empty() as database, pytest.raises(ConfigurationError, match="start the meter"):
        verify(database.url)


@pytest.fixture(scope="module")
def guarded(databases: Databases) -> Iterator[Database]:
    """A ledger with rows in every table, protected by triggers."""

    async def fill(database: Database) -> None:
        async with opened(database) as ledger:
            await ledger.record([terms(), binding(), model(reservation=OFFER, free_quota=QUOTA), reserved()])
            await ledger.post_topup(topup(amount=Nano(TERM_PRICE)))
            await ledger.ingest([usage(), usage("waits", model="unknown")])

    with databases.ledger() as database:
        asyncio.run(fill(database))
        yield database


GUARDED = [
    "UPDATE transactions SET occurred_at = 0",
    "DELETE FROM transactions",
    "UPDATE entries SET amount = amount + 1",
    "DELETE FROM entries",
    "UPDATE topups SET amount = 1",
    "DELETE FROM topups",
    "UPDATE account_terms SET credit_limit = 1",
    "DELETE FROM account_terms",
    "UPDATE bindings SET account = 'x/y'",
    "DELETE FROM bindings",
    "UPDATE price_tiers SET input = 0",
    "DELETE FROM price_versions",
    "DELETE FROM accounts",
    "UPDATE accounts SET currency = 'EUR'",
    "UPDATE accounts SET sequence = sequence - 1",
    "UPDATE ledger SET head = head - 1",
    "UPDATE ledger SET ledger_id = 'x'",
    "DELETE FROM ledger",
    "DELETE FROM usage_events",
    "UPDATE usage_events SET charge = 0 WHERE transaction_sequence IS NOT NULL",
    "UPDATE usage_events SET transaction_sequence = NULL, charge = NULL WHERE event_id = '1'",
    "UPDATE usage_events SET output_tokens = 1 WHERE event_id = 'waits'",
    "UPDATE usage_events SET event_id = 'x' WHERE event_id = 'waits'",
    "UPDATE usage_events SET cache_write_input_tokens = 1 WHERE event_id = 'waits'",
    "UPDATE usage_events SET estimated = 1 WHERE event_id = 'waits'",
    "UPDATE usage_events SET duration_ms = 1 WHERE event_id = 'waits'",
    "UPDATE usage_events SET first_byte_ms = 1 WHERE event_id = 'waits'",
    "UPDATE price_tiers SET cache_write = 0",
    "UPDATE usage_events SET charge = 1 WHERE event_id = 'waits'",
    "UPDATE quotas SET tokens = 1",
    "UPDATE quotas SET expires_at = 1",
    "UPDATE quotas SET used = used - 1",
    "DELETE FROM quotas",
    "UPDATE reservations SET days = 1",
    "UPDATE reservations SET sequence = sequence - 1",
    "DELETE FROM reservations",
    "UPDATE reservation_changes SET reason = 'x'",
    "DELETE FROM reservation_changes",
    "UPDATE reservation_terms SET price = 1",
    "DELETE FROM reservation_terms",
    "UPDATE reserved_minutes SET input_tokens = input_tokens - 1",
    "DELETE FROM reserved_minutes",
]
REPLACING = {
    "sqlite": "INSERT OR REPLACE INTO entries SELECT transaction_sequence, book_id, 0 FROM entries",
    "postgresql": "INSERT INTO entries SELECT * FROM entries"
    " ON CONFLICT (transaction_sequence, book_id) DO UPDATE SET amount = 0",
}


@pytest.mark.parametrize("statement", GUARDED)
def test_history_cannot_be_rewritten(guarded: Database, statement: str) -> None:
    with guarded.raw() as connection, pytest.raises(IntegrityError):
        connection.exec_driver_sql(statement)


def test_history_cannot_be_replaced(guarded: Database) -> None:
    with guarded.raw() as connection, pytest.raises(IntegrityError, match="append-only"):
        connection.exec_driver_sql(REPLACING[connection.dialect.name])


def test_postgresql_refuses_truncate(guarded: Database) -> None:
    with guarded.raw() as connection:
        if connection.dialect.name == "sqlite":
            return  # has no TRUNCATE
    for table in metadata.tables.keys() - {"budgets", "refusals", "request_segments", "requests"}:
        with guarded.raw() as connection, pytest.raises(IntegrityError, match="append-only"):
            connection.exec_driver_sql(f"TRUNCATE {table} CASCADE")


def test_permitted_changes_are_accepted(guarded: Database) -> None:
    with guarded.raw() as connection:
        for statement in (
            "UPDATE accounts SET balance = balance, credit_limit = credit_limit, sequence = sequence",
            "UPDATE ledger SET head = head, revision = revision",
            "UPDATE quotas SET used = used, sequence = sequence",
            "UPDATE reservations SET sequence = sequence",
            "UPDATE reserved_minutes SET input_tokens = input_tokens",
            "UPDATE usage_events SET waiting_for = waiting_for WHERE transaction_sequence IS NULL",
        ):
            assert connection.exec_driver_sql(statement).rowcount == 1


def test_an_overflow_is_refused_and_not_stored_as_a_float(guarded: Database) -> None:
    with guarded.raw() as connection, pytest.raises(DBAPIError, match=r"REAL|out of range"):
        connection.exec_driver_sql("UPDATE accounts SET balance = 9223372036854775807 + 1")


async def test_commits_are_durable_and_block_no_reader(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    connection = ledger._writer._connection
    assert connection is not None
    with connection.begin():
        if connection.dialect.name == "sqlite":
            pragmas = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            }
            assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
        else:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
            connection.exec_driver_sql("SELECT 1 FROM ledger FOR UPDATE")
        # The write lock is held here, and still everybody can read.
        assert await balance(ledger) == 0
