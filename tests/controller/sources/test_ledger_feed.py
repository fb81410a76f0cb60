"""The operator's feed reader on a real ledger: it catches up, reports changes and finds restored ledgers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from farebox.controller.sources.ledger_feed import ledger_feed
from farebox.controller.state.balances import Balances
from farebox.controller.state.entitlements import Entitlements
from farebox.domain.facts import UNKNOWN
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerUnavailable
from farebox.ledger.db.migrate import upgrade
from farebox.ledger.engine import Ledger
from farebox.meterapi.types import Bookmark, ChangePage, FreeQuota, Record, TopUpOrder, TopUpReceipt
from tests.ledger.databases import Database, SqliteDatabases
from tests.ledger.support import ACME, FACTS, START, Clock, binding, opened, price, terms, topup, usage

SECONDS = 60.0


@dataclass
class ReplaceableLedger:
    """A connection to a ledger that can be replaced or be unreachable."""

    ledger: Ledger | None
    requests: list[tuple[int, float]] = field(default_factory=list)

    async def changes(self, after: int, wait_seconds: float, limit: int = 1000) -> ChangePage:
        self.requests.append((after, wait_seconds))
        if self.ledger is None:
            raise LedgerUnavailable("unreachable")
        return await self.ledger.changes(after, wait_seconds, limit)

    async def record(self, records: Any) -> Any:
        raise AssertionError("the reader writes nothing")

    async def post_topup(self, order: TopUpOrder) -> TopUpReceipt:
        raise AssertionError("the reader writes nothing")


class Reader:
    """A feed reader, and what it reported."""

    def __init__(self, ledger: Ledger | None, wait_seconds: float = 0.05) -> None:
        self.source = ReplaceableLedger(ledger)
        self.reports: list[Any] = []
        self.balances = Balances(45)
        self.terms = Entitlements()
        self.feed = ledger_feed(
            self.source,
            self.balances,
            self.terms,
            on_changed=lambda account: self.reports.append(account),
            on_quota=lambda quota, turned: self.reports.append((quota.used, turned)),
            on_reservation=lambda service: self.reports.append(service),
            on_known=lambda: self.reports.append("known"),
            on_reset=lambda: self.reports.append("reset"),
            on_back=lambda: self.reports.append("back"),
            wait_seconds=wait_seconds,
        )

    async def until(self, what: Any) -> None:
        """Wait for a report, then clear all reports."""
        async with asyncio.timeout(SECONDS):
            while what not in self.reports:  # noqa: ASYNC110 - a test may poll
                await asyncio.sleep(0.001)
        self.reports.clear()

    async def known(self) -> None:
        """Wait until balances are known."""
        async with asyncio.timeout(SECONDS):
            while not self.balances.known:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def balance_after_switch(self, ledger: Ledger) -> int:
        """Switch to another ledger; returns the account's balance after the reset."""
        self.source.ledger = ledger
        await self.until("reset")
        await self.known()
        found = self.balances.of(ACME, 0)
        assert found is not UNKNOWN
        return found.balance


@asynccontextmanager
async def reading(
    ledger: Ledger | None, wait_seconds: float = 0.05, before: Bookmark | None = None
) -> AsyncIterator[Reader]:
    """Run a reader whose predecessor had read up to `before`."""
    reader = Reader(ledger, wait_seconds)
    reader.feed.before = before or Bookmark()
    task = asyncio.create_task(reader.feed.run())
    try:
        yield reader
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_empty_ledger_is_known_without_waiting(ledger: Ledger) -> None:
    async with reading(ledger, wait_seconds=600) as reader:
        async with asyncio.timeout(SECONDS):
            await reader.feed.current.wait()
        assert reader.balances.known
        assert reader.balances.of(ACME, 0) is UNKNOWN
        await ledger.record(FACTS)
        await reader.until(ACME)
        assert [wait for _, wait in reader.source.requests][:2] == [0.0, 600]


async def test_existing_accounts_are_reported_first_and_then_each_change(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    async with reading(ledger) as reader:
        async with asyncio.timeout(SECONDS):
            await reader.feed.current.wait()
        assert reader.reports == [ACME, "known"]
        for change in (ledger.post_topup(topup()), ledger.ingest([usage()])):
            reader.reports.clear()
            await change
            await reader.until(ACME)
        found = reader.balances.of(ACME, 0)
        assert found is not UNKNOWN
        assert found.balance == 10_000_000_000 - 80_000


async def test_balances_are_known_after_the_last_page(ledger: Ledger) -> None:
    accounts = [ObjectKey("billing", f"a{number}") for number in range(1500)]
    await ledger.record([terms(account) for account in accounts])
    async with reading(ledger) as reader:
        async with asyncio.timeout(SECONDS):
            await reader.feed.current.wait()
        assert reader.reports == [*accounts, "known"]
        assert [after for after, _ in reader.source.requests][:2] == [0, 1000]


async def test_the_feed_reports_quotas(ledger: Ledger) -> None:
    facts: list[Record] = [terms(), replace(price(), free_quota=FreeQuota(1000, 30)), binding()]
    await ledger.record(facts)
    async with reading(ledger) as reader:
        await reader.until("known")
        assert reader.terms.quota(ACME, "qwen3-8b") is not None
        await ledger.ingest([usage()])
        await reader.until((120, False))


async def test_the_reader_catches_up_after_a_failure(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    async with reading(ledger) as reader:
        await reader.until("known")
        reader.source.ledger = None
        requests = len(reader.source.requests)
        await ledger.post_topup(topup())
        async with asyncio.timeout(SECONDS):
            while len(reader.source.requests) < requests + 3:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert "back" not in reader.reports
        reader.source.ledger = ledger
        await reader.until("back")
        await reader.known()
        assert reader.balances.of(ACME, 0) is not UNKNOWN


async def test_a_recovery_is_reported_without_a_change(ledger: Ledger) -> None:
    """Subscribers do not wait for the next change."""
    async with reading(ledger, wait_seconds=3600) as reader:
        await reader.until("known")
        reader.source.ledger = None
        await ledger.record(FACTS)
        await reader.until(ACME)
        async with asyncio.timeout(SECONDS):
            while not reader.feed.failing:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        reader.source.ledger = ledger
        await reader.until("back")


@asynccontextmanager
async def parted(
    database: Database, files: SqliteDatabases, later: timedelta
) -> AsyncIterator[tuple[Ledger, Ledger]]:
    """A ledger that continues, and one restored from an older copy, with a later clock."""
    async with opened(database) as ledger:
        await ledger.record(FACTS)
    with files.copy(database) as backup:
        async with opened(database) as used, opened(backup, Clock(START + later)) as restored:
            yield used, restored


async def test_a_ledger_from_an_older_backup_resets_the_reader(
    database: Database, files: SqliteDatabases
) -> None:
    async with parted(database, files, timedelta(0)) as (used, restored):
        await used.post_topup(topup())
        async with reading(used) as reader:
            await reader.until("known")
            assert await reader.balance_after_switch(restored) == 0


async def test_a_restored_ledger_with_newer_numbers_resets_the_reader(
    database: Database, files: SqliteDatabases
) -> None:
    async with parted(database, files, timedelta(microseconds=1)) as (used, restored):
        await used.post_topup(topup("lost"))
        async with reading(used) as reader:
            await reader.until("known")
            for number in range(5):
                await restored.post_topup(topup(f"new_{number}", "1"))
            assert await restored.head() > await used.head()
            assert await reader.balance_after_switch(restored) == 5_000_000_000


async def test_an_earlier_bookmark_is_compared_before_the_first_page(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    read = (await ledger.changes(0, 0)).bookmark
    assert Bookmark.parse(str(read)) == read
    lost = replace(read, written_at=START - timedelta(seconds=1))
    for before, reports in ((read, [ACME, "known"]), (lost, ["reset", ACME, "known"])):
        async with reading(None, before=before) as reader:
            # Until it can be compared, nothing is known.
            async with asyncio.timeout(SECONDS):
                while len(reader.source.requests) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            reader.source.ledger = ledger
            await reader.known()
            assert [each for each in reader.reports if each != "back"] == reports


@pytest.mark.parametrize("text", ["", "x", "id 7 yesterday", "id seven 2026-03-01T12:00:00+00:00", "a b c d"])
def test_a_malformed_bookmark_is_the_beginning(text: str) -> None:
    assert Bookmark.parse(text) == Bookmark()


async def test_another_ledger_resets_the_reader(ledger: Ledger, files: SqliteDatabases) -> None:
    await ledger.record(FACTS)
    with files.empty() as empty:
        upgrade(empty.url)
        async with opened(empty) as other, reading(ledger) as reader:
            # It has come further, so its numbers alone would not tell.
            await other.record([*FACTS, terms(ObjectKey("billing", "second"))])
            await other.post_topup(topup())
            await reader.until("known")
            assert await reader.balance_after_switch(other) == 10_000_000_000
