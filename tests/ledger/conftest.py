"""A new ledger for each test, on SQLite and PostgreSQL, which is verified at the end."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from farebox.ledger.engine import Ledger
from tests.ledger.databases import Database, Databases, PostgresDatabases, SqliteDatabases, scratch
from tests.ledger.support import Clock, opened


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest) -> Iterator[Databases]:
    """Creates the databases of a test's ledgers."""
    if request.param == "postgresql":
        yield PostgresDatabases(request.getfixturevalue("postgres"))
        return
    with tempfile.TemporaryDirectory(prefix="farebox-ledger-", dir=scratch()) as directory:
        yield SqliteDatabases(Path(directory))


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
    """A running ledger, which is verified at the end."""
    async with opened(database, clock) as running:
        yield running
    database.check()
