"""Upgrades the ledger's schema to the version of this code. The scripts are part of the package.

An upgrade is one database transaction. Processes that start at the same time take turns.
"""

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, func, select

from farebox.errors import ConfigurationError
from farebox.ledger.db.connections import disposing, write_engine

_SCRIPTS = Path(__file__).parent / "migrations"
_UPGRADE_LOCK = 0x6661726562  # "fareb": the key of an advisory lock is a number


def upgrade(url: str) -> None:
    """Create or upgrade the schema, if it is not current.

    Raises:
        ConfigurationError: the URL is not one of a ledger, or its schema is newer than this code.
        sqlalchemy.exc.SQLAlchemyError: the database refuses or is unreachable.
    """
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    with disposing(write_engine(url)) as engine, engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            # On SQLite the transaction itself is the lock.
            connection.execute(select(func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
        if is_current(connection):
            return
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise ConfigurationError(
                f"A newer version of Farebox upgraded the ledger's database: run that version ({error})"
            ) from error


def is_current(connection: Connection) -> bool:
    """Whether the schema has the version of this code."""
    return set(MigrationContext.configure(connection).get_current_heads()) == _heads()


@cache
def _heads() -> set[str]:
    """The schema version of this code. The scripts do not change while it runs."""
    return set(ScriptDirectory(str(_SCRIPTS)).get_heads())
