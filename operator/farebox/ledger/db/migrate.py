"""Brings the ledger's schema to the version that this code needs. The scripts are part of the package.

An upgrade is one database transaction: it happens as a whole or not at all, and two processes that start
at the same time take turns.
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
from farebox.ledger.db.engine import disposing, write_engine

_SCRIPTS = Path(__file__).parent / "migrations"
_UPGRADE_LOCK = 0x6661726562  # "fareb": advisory locks go by numbers


def upgrade(url: str) -> None:
    """Create the schema, or bring it up to date; nothing to do is fine.

    Raises:
        ConfigurationError: the URL cannot be a ledger's, or its schema is newer than this code.
        sqlalchemy.exc.SQLAlchemyError: the database refuses or cannot be reached.
    """
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    with disposing(write_engine(url)) as engine, engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            # SQLite's transaction has its lock already.
            connection.execute(select(func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
        if is_current(connection):
            return
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise ConfigurationError(
                f"the ledger's database was upgraded by a newer version of Farebox: run that one ({error})"
            ) from error


def is_current(connection: Connection) -> bool:
    """Whether the schema is the one that this code was written for."""
    return set(MigrationContext.configure(connection).get_current_heads()) == _heads()


@cache
def _heads() -> set[str]:
    """The version of this code's schema. The scripts do not change while it runs."""
    return set(ScriptDirectory(str(_SCRIPTS)).get_heads())
