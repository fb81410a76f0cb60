"""A backup under load is consistent. After a restore, top-ups are posted once and readers are reset."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from farebox.cli import cli
from farebox.errors import ConfigurationError
from farebox.ledger.audit.backup import backup
from farebox.ledger.engine import Ledger
from tests.ledger.databases import Database, Databases, PostgresDatabases
from tests.ledger.support import CALL_CHARGE, FACTS, balance, opened, topup, usage

BATCH = 20
TEN = 10_000_000_000


@pytest.fixture
def restored(databases: Databases, tmp_path: Path) -> Iterator[tuple[Callable[[Database], None], Database]]:
    """A way to back up a database, and the destination."""
    if isinstance(databases, PostgresDatabases):
        server = databases.server
        with databases.empty() as empty:

            def dump_and_restore(database: Database) -> None:
                dump = tmp_path / "ledger.dump"
                dump.parent.chmod(0o755)
                server.tool("pg_dump", database.name, "--format=custom", f"--file={dump}")
                server.tool("pg_restore", empty.name, "--exit-on-error", "--single-transaction", dump)

            yield dump_and_restore, empty
        return
    copy = tmp_path / "copy.db"

    def run(database: Database) -> None:
        assert backup(database.url, copy).ok
        assert [path.name for path in tmp_path.glob("copy*")] == ["copy.db"], "one file, nothing beside it"

    yield run, Database(f"sqlite:///{copy}")


@asynccontextmanager
async def load(ledger: Ledger) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Write usage and top-ups in the background; yields a function that waits for a few more."""
    done, stopping = asyncio.Condition(), False
    count = 0

    async def work() -> None:
        nonlocal count
        while not stopping:
            await ledger.ingest([usage(f"{count}-{number}") for number in range(BATCH)])
            await ledger.post_topup(topup(f"pay_{count}"))
            count += 1
            async with done:
                done.notify_all()

    async def some_more() -> None:
        target = count + 3
        async with done:
            await done.wait_for(lambda: count >= target)

    working = asyncio.create_task(work())
    try:
        yield some_more
    finally:
        stopping = True
        await working


async def test_a_backup_under_load_is_consistent_and_topups_are_posted_once_after_it(
    database: Database, restored: tuple[Callable[[Database], None], Database]
) -> None:
    back_up, copy = restored
    async with opened(database) as ledger:
        await ledger.record(FACTS)
        async with load(ledger) as some_more:
            await some_more()
            await asyncio.to_thread(back_up, database)
            await some_more()
        lost = await ledger.changes(0, 0)
    database.check()
    copy.check()
    async with opened(copy) as ledger:
        page = await asyncio.wait_for(ledger.changes(lost.head, 3600), 60)
        assert page.ledger_id == lost.ledger_id
        assert page.head < lost.head, "who reads on from there sees that it went back"
        kept = (await balance(ledger), (await ledger.changes(0, 0)).head)
        # The operator posts all TopUps that it finds.
        receipts = [await ledger.post_topup(topup(f"pay_{number}")) for number in range(200)]
        again = sum(not receipt.duplicate for receipt in receipts)
        assert 0 < again < 200
        assert await balance(ledger) == kept[0] + again * TEN
        known = 200 - again
        assert kept[0] in (known * TEN - (known + late) * BATCH * CALL_CHARGE for late in (0, 1))
    copy.check()


def test_the_command_reports_the_copy_and_overwrites_nothing(tmp_path: Path, databases: Databases) -> None:
    with databases.ledger() as database:
        arguments = ["ledger", "backup", str(tmp_path / "copy.db"), "--url", database.url]
        first = CliRunner().invoke(cli, arguments)
        if databases.name == "postgresql":
            assert isinstance(first.exception, ConfigurationError)
            assert "pg_dump" in str(first.exception)
            return
        assert (first.exit_code, "no differences" in first.output) == (0, True)
        second = CliRunner().invoke(cli, arguments)
        assert isinstance(second.exception, ConfigurationError)
        assert "exists already" in str(second.exception)


def test_a_copy_with_differences_is_reported(databases: Databases, tmp_path: Path) -> None:
    with databases.ledger() as database:
        if databases.name == "postgresql":
            return
        database.tamper("UPDATE ledger SET head = 7")
        arguments = ["ledger", "backup", str(tmp_path / "copy.db"), "--url", database.url]
        result = CliRunner().invoke(cli, arguments)
        assert (result.exit_code, "head is 7" in result.output) == (1, True)


def test_a_backup_does_not_create_a_missing_ledger(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No ledger"):
        backup(f"sqlite:///{tmp_path / 'none.db'}", tmp_path / "copy.db")
    assert list(tmp_path.iterdir()) == []
