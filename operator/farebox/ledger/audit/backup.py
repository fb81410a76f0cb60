"""Copies an SQLite ledger while a meter writes to it, and verifies the copy. The original is only read.

PostgreSQL has tools of its own for that: docs/ledger.md.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from farebox.errors import ConfigurationError, LedgerUnavailable
from farebox.ledger.audit.verify import VerificationReport, verify
from farebox.ledger.db.engine import ledger_url

_PARTIAL: Final = ".partial"


def backup(url: str, destination: Path) -> VerificationReport:
    """Write a copy of the ledger to a new file, and return what `verify` finds in it.

    The file has its name only once it is complete and on the disk; one with differences is there too, to be
    looked at.

    Raises:
        ConfigurationError: not an SQLite ledger, no such ledger, or `destination` exists.
        LedgerUnavailable: it cannot be read, or not be written.
    """
    parsed = ledger_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        raise ConfigurationError(
            "only an SQLite ledger is backed up like this: use pg_dump for PostgreSQL (docs/ledger.md)"
        )
    if destination.exists():
        raise ConfigurationError(f"{destination} exists already: name a new file")
    if not Path(parsed.database).is_file():
        raise ConfigurationError(f"there is no ledger at {parsed.database}: set --url")
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
        raise LedgerUnavailable(f"the ledger cannot be copied to {destination}: {error}") from error
    return report


def _copy(source: str, target: Path) -> None:
    """All pages of one snapshot: in one step, so that a writer never makes it begin again."""
    with closing(sqlite3.connect(source)) as original, closing(sqlite3.connect(target)) as copy:
        os.chmod(target, 0o600)
        original.backup(copy)


def _close_journal(path: Path) -> None:
    """One file, without a write-ahead log beside it, as it is to be carried away."""
    with closing(sqlite3.connect(path)) as copy:
        copy.execute("PRAGMA journal_mode = DELETE")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
