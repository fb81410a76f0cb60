"""A fresh ledger for each test, on SQLite and on PostgreSQL; its books are verified at the end."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from farebox.ledger.engine import Ledger
from tests.ledger.databases import Database, Databases, PostgresDatabases, SqliteDatabases
from tests.ledger.support import Clock, opened


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Databases:
    """Where the ledgers of a test live."""
    if request.param == "sqlite":
        return SqliteDatabases(tmp_path_factory.mktemp("ledger"))
    return PostgresDatabases(request.getfixturevalue("postgres"))


@pytest.fixture
def database(databases: Databases) -> Iterator[Database]:
    """An empty ledger."""
    with databases.ledger() as made:
        yield made


@pytest.fixture
def clock() -> Clock:
    """The ledger's clock."""
    return Clock()


@pytest_asyncio.fixture
async def ledger(database: Database, clock: Clock) -> AsyncIterator[Ledger]:
    """A running ledger; its books are verified at the end."""
    async with opened(database, clock) as running:
        yield running
    database.check()
