"""A running meter for each test."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from farebox.ledger.db.migrate import upgrade
from tests.ledger.databases import Database, Databases, PostgresDatabases, SqliteDatabases
from tests.ledger.support import Clock
from tests.meter.support import Api, Running, running
from tests.support.postgres import Postgres


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Databases:
    """Creates the databases of the ledgers."""
    return SqliteDatabases(tmp_path_factory.mktemp("meter"))


@pytest.fixture
def on_postgresql(postgres: Postgres) -> Iterator[Database]:
    """An empty ledger on PostgreSQL."""
    with PostgresDatabases(postgres).empty() as made:
        upgrade(made.url)
        yield made


@pytest.fixture
def database(databases: Databases) -> Iterator[Database]:
    """An empty ledger."""
    with databases.ledger() as made:
        yield made


@pytest_asyncio.fixture
async def meter(database: Database) -> AsyncIterator[Running]:
    """A meter on a real port with a real ledger, which is verified at the end."""
    async with running(database, Clock()) as started:
        yield started
    database.check()


@pytest.fixture
def api(meter: Running) -> Api:
    """A caller of the meter."""
    return meter.api
