"""Where the tests' ledgers live: SQLite files, and databases of a PostgreSQL server; all tests run on both.

A ledger is copied from a template that was migrated once.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from sqlalchemy import Connection, create_engine, make_url

from farebox.ledger.audit.verify import verify
from farebox.ledger.db.connections import disposing, write_engine
from farebox.ledger.db.migrate import upgrade
from tests.support.postgres import Postgres

_MEMORY = Path("/dev/shm")


def scratch() -> str | None:
    """Where files go that need not survive the machine: what a commit costs on a disk is no part of a test.

    None, the usual place, where there is no room in memory.
    """
    has_room = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 10**9
    return str(_MEMORY) if has_room else None


@dataclass(frozen=True)
class Database:
    """A database, usually with the ledger's schema."""

    url: str

    @property
    def name(self) -> str:
        """Its name on the server, or the path of an SQLite file."""
        name = make_url(self.url).database
        assert name is not None
        return name

    def check(self) -> None:
        """Fail with every difference that `verify` finds."""
        report = verify(self.url)
        assert report.ok, str(report)

    @contextmanager
    def raw(self) -> Iterator[Connection]:
        """A bare connection, in a transaction that is committed at the end."""
        with disposing(write_engine(self.url)) as engine, engine.begin() as connection:
            yield connection

    def tamper(self, statement: str) -> int:
        """Change rows that triggers protect; returns their number."""
        with disposing(create_engine(self.url)) as engine, engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                # An engine that nobody prepared lets foreign keys point anywhere.
                found = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'")
                for (name,) in found.all():
                    connection.exec_driver_sql(f"DROP TRIGGER {name}")
            else:
                connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            return connection.exec_driver_sql(statement).rowcount


class Databases(ABC):
    """Makes databases of one kind."""

    name: str

    @abstractmethod
    @contextmanager
    def empty(self) -> Iterator[Database]:
        """An empty database."""

    @abstractmethod
    @contextmanager
    def copy(self, original: Database) -> Iterator[Database]:
        """A copy of a database that is not open."""

    @abstractmethod
    def template(self) -> Database:
        """An empty ledger to copy from."""

    @contextmanager
    def ledger(self) -> Iterator[Database]:
        """A new, empty ledger."""
        with self.copy(self.template()) as database:
            yield database


class SqliteDatabases(Databases):
    """Files in a directory."""

    name = "sqlite"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = count(1)
        self._template: Database | None = None

    def _new(self) -> tuple[Path, Database]:
        path = self._directory / f"{next(self._numbers)}.db"
        return path, Database(f"sqlite:///{path}")

    @contextmanager
    def empty(self) -> Iterator[Database]:
        path, database = self._new()
        try:
            yield database
        finally:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)

    @contextmanager
    def copy(self, original: Database) -> Iterator[Database]:
        with self.empty() as database:
            shutil.copyfile(original.name, database.name)
            yield database

    def template(self) -> Database:
        if self._template is None:
            self._template = self._new()[1]
            upgrade(self._template.url)
        return self._template


_NAMES = count(1)


class PostgresDatabases(Databases):
    """Databases of a server, deleted when they are no longer used."""

    name = "postgresql"

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self._template: Database | None = None

    @contextmanager
    def empty(self) -> Iterator[Database]:
        with self._made("template0") as database:
            yield database

    @contextmanager
    def copy(self, original: Database) -> Iterator[Database]:
        with self._made(original.name) as database:
            yield database

    @contextmanager
    def _made(self, template: str) -> Iterator[Database]:
        name = f"ledger_{next(_NAMES)}"
        self.server.create(name, template)
        try:
            yield Database(self.server.url(name))
        finally:
            self.server.drop(name)

    def template(self) -> Database:
        if self._template is None:
            # Several of these may be of one server.
            name = f"ledger_template_{next(_NAMES)}"
            self.server.create(name)
            self._template = Database(self.server.url(name))
            upgrade(self._template.url)
        return self._template
