"""Fixtures: a real ledger on SQLite, and a small API server with a client of it."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from farebox.ledger.engine import Ledger
from tests.kube.conftest import client, server
from tests.ledger.databases import Database, SqliteDatabases
from tests.ledger.support import Clock, opened

__all__ = ["client", "server"]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> SqliteDatabases:
    """Where the ledgers of these tests live."""
    return SqliteDatabases(tmp_path_factory.mktemp("ledger"))


@pytest.fixture
def database(files: SqliteDatabases) -> Iterator[Database]:
    """An empty ledger."""
    with files.ledger() as made:
        yield made


@pytest_asyncio.fixture
async def ledger(database: Database) -> AsyncIterator[Ledger]:
    """A running ledger."""
    async with opened(database, Clock()) as running:
        yield running
