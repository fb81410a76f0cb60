"""Engines for the ledger's database: how connections are opened and how transactions begin.

A writer takes the write lock at the beginning of its transaction, so it never conflicts in the middle.
Readers see one snapshot and block no one. `_sqlite_engine` and `_postgresql_engine` have what is specific to
each.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from psycopg.errors import QueryCanceled
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from farebox.errors import ConfigurationError, LedgerRefused
from farebox.ledger.db.prepared import execute

_BUSY_TIMEOUT_MS: Final = 10_000
_STEPS_BETWEEN_CHECKS: Final = 10_000
"""Instructions of SQLite's virtual machine between two checks of the timeout: about a millisecond."""
_POSTGRESQL_ARGUMENTS: Final = {
    "connect_timeout": "5",
    # Detect a server that vanished in half a minute instead of two hours.
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
_WRITER_SESSION: Final = (
    # A writer that stops in the middle (a paused process, a lost node) must release the ledger's row, and a
    # writer that waits for the row must be able to report it.
    "SET idle_in_transaction_session_timeout = '20s'",
    "SET lock_timeout = '10s'",
    # A commit that returned is on disk, whatever the server's default is. Stricter settings stay.
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') = 'off'",
)
_SQLITE_SESSION: Final = (
    f"busy_timeout = {_BUSY_TIMEOUT_MS}",
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    # REPLACE must not bypass the triggers that forbid DELETE.
    "recursive_triggers = ON",
)
_SQLITE_WRITER: Final = (
    # 64 MB: the inner pages of the indexes stay in memory.
    "cache_size = -65536",
    # 16 MB of journal instead of 4: a page that many commits change is written back once.
    "wal_autocheckpoint = 4096",
)


def write_engine(url: str) -> Engine:
    """An engine with one connection, for the writer. A commit is on disk when it returns."""
    parsed = ledger_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(parsed, "BEGIN IMMEDIATE", 1, _SQLITE_WRITER)
    return _postgresql_engine(parsed, "READ COMMITTED", 1, _WRITER_SESSION)


def read_engine(url: str, connections: int) -> Engine:
    """An engine for readers. Each transaction sees one snapshot."""
    parsed = ledger_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(parsed, "BEGIN", connections, ())
    return _postgresql_engine(parsed, "REPEATABLE READ", connections, ())


@contextmanager
def limited(connection: Connection, seconds: float) -> Iterator[None]:
    """Limit the duration of each statement inside. Enter it first in a reader's transaction.

    Raises:
        LedgerRefused: ReportTooLong.
    """
    try:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {max(1, round(seconds * 1000))}")
            yield
        else:
            driver: Any = connection.connection.driver_connection
            ends = time.monotonic() + seconds
            driver.set_progress_handler(lambda: time.monotonic() > ends, _STEPS_BETWEEN_CHECKS)
            try:
                yield
            finally:
                driver.set_progress_handler(None, 0)
    except OperationalError as error:
        if not isinstance(error.orig, QueryCanceled) and str(error.orig) != "interrupted":
            raise
        raise LedgerRefused(
            "ReportTooLong",
            f"The report took more than {seconds:g} s: request a shorter period or fewer groups",
        ) from error


def ledger_url(url: str) -> URL:
    """Parse the URL of a ledger and add its driver.

    Raises:
        ConfigurationError: the URL is invalid, or the ledger does not run on this database.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(f"Invalid URL of the ledger: {error}") from error
    if parsed.drivername in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise ConfigurationError(
            f"The ledger does not run on {parsed.drivername}: use a URL that begins with sqlite:/// or "
            "postgresql+psycopg://"
        )
    return parsed


def _postgresql_engine(url: URL, isolation: str, pool_size: int, session: Sequence[str]) -> Engine:
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        isolation_level=isolation,
        connect_args=_POSTGRESQL_ARGUMENTS | dict(url.query),
        # Positional parameters, as on SQLite.
        paramstyle="format",
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        for statement in session:
            connection.execute(statement)
        connection.commit()

    return engine


def _sqlite_engine(parsed: URL, begin: str, pool_size: int, pragmas: Sequence[str]) -> Engine:
    if not parsed.database or parsed.database == ":memory:":
        raise ConfigurationError(
            "The ledger needs a database file: use a URL such as sqlite:////path/to/ledger.db"
        )
    engine = create_engine(
        parsed, pool_size=pool_size, max_overflow=0, connect_args={"check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        # Otherwise the driver begins transactions implicitly, too late for DDL and for readers.
        connection.isolation_level = None
        for pragma in (*_SQLITE_SESSION, *pragmas):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        execute(connection, begin, ())

    return engine


@contextmanager
def disposing(engine: Engine) -> Iterator[Engine]:
    """Close the engine's connections at the end."""
    try:
        yield engine
    finally:
        engine.dispose()
