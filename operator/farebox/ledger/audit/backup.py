"""Copies an SQLite ledger while a meter writes to it, and verifies the copy.

PostgreSQL has its own tools for backups: docs/ledger.md.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from farebox.errors import ConfigurationError, LedgerUnavailable
from farebox.ledger.audit.verify import VerificationReport, verify
from farebox.ledger.db.connections import ledger_url

_PARTIAL: Final = ".partial"


def backup(url: str, destination: Path) -> VerificationReport:
    """Write a copy of the ledger to a new file, and return the report of `verify`.

    The file gets its name when it is complete and on disk. A copy with differences is kept for inspection.

    Raises:
        ConfigurationError: the ledger is not on SQLite or does not exist, or `destination` exists.
        LedgerUnavailable: the ledger cannot be read, or the copy cannot be written.
    """
    parsed = ledger_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        raise ConfigurationError(
            "This command backs up SQLite ledgers only: use pg_dump for PostgreSQL (docs/ledger.md)"
        )
    if destination.exists():
        raise ConfigurationError(f"{destination} exists already: name a new file")
    if not Path(parsed.database).is_file():
        raise ConfigurationError(f"No ledger at {parsed.database}: set --url")
    partial = destination.with_name(destination.name + _PARTIAL)
    try:
        partial.unlink(missing_ok=True)
        _copy(parsed.database, partial)
        report = verify(f"sqlite:///{partial}")
        _close_journal(partial)
        _flush(partial)
        partial.rename(destination)
        _flush(destination.parent)
    except (sqlite3.Error, OSError) as error:
        raise LedgerUnavailable(f"Cannot copy the ledger to {destination}: {error}") from error
    return report


def _copy(source: str, target: Path) -> None:
    """Copy one snapshot in a single step, so that a writer never restarts the copy."""
    with closing(sqlite3.connect(source)) as original, closing(sqlite3.connect(target)) as copy:
        os.chmod(target, 0o600)
        original.backup(copy)


def _close_journal(path: Path) -> None:
    """Merge the write-ahead log into the file, so that the backup is a single file."""
    with closing(sqlite3.connect(path)) as copy:
        copy.execute("PRAGMA journal_mode = DELETE")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
