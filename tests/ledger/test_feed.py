"""The feed: every change is reported at once, and a late reader catches up."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from farebox.domain.billing.reservations import Buying
from farebox.domain.keys import ObjectKey
from farebox.ledger.engine import Ledger
from farebox.meterapi.types import ReservationRecord
from tests.ledger.databases import Database, Databases
from tests.ledger.support import ACME, CHAT, FACTS, MODEL, Clock, opened, terms, topup, usage

FOREVER = 3600.0


async def test_a_new_account_and_each_change_are_reported(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    seen = [await ledger.changes(0, 0)]
    for change in (ledger.ingest([usage()]), ledger.post_topup(topup()), ledger.record([terms(limit="1")])):
        await change
        seen.append(await ledger.changes(seen[-1].head, 0))
    assert [len(page.accounts) for page in seen] == [1, 1, 1, 1]
    assert all(page.complete for page in seen)
    assert all(page.accounts[0].sequence == page.head for page in seen)


async def test_an_account_is_reported_once_with_its_current_state(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    for number in range(5):
        await ledger.post_topup(topup(f"pay_{number}"))
    page = await ledger.changes(0, 0)
    assert [account.balance for account in page.accounts] == [50_000_000_000]


async def test_pages_are_ordered_and_the_last_one_is_complete(ledger: Ledger) -> None:
    accounts = [ObjectKey("billing", f"a{number}") for number in range(7)]
    await ledger.record([terms(account) for account in accounts])
    seen: list[ObjectKey] = []
    after, complete = 0, False
    while not complete:
        page = await ledger.changes(after, 0, limit=3)
        seen += [account.account for account in page.accounts]
        after, complete = page.accounts[-1].sequence, page.complete
    assert seen == accounts
    assert after == page.head


async def test_a_wait_without_changes_returns_an_empty_page(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    head = await ledger.head()
    page = await ledger.changes(head, 0.05)
    assert (page.head, page.accounts, page.complete) == (head, (), True)


async def test_a_reader_ahead_of_the_ledger_does_not_wait(ledger: Ledger) -> None:
    page = await asyncio.wait_for(ledger.changes(99, FOREVER), 60)
    assert page.head == 0


def _post(ledger: Ledger) -> Any:
    return ledger.post_topup(topup())


def _charge(ledger: Ledger) -> Any:
    return ledger.ingest([usage()])


def _limit(ledger: Ledger) -> Any:
    return ledger.record([terms(limit="9")])


@pytest.mark.parametrize("change", [_post, _charge, _limit])
async def test_a_commit_wakes_waiting_readers_without_a_poll(
    ledger: Ledger, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farebox.ledger.engine.POLL_SECONDS", FOREVER)
    await ledger.record(FACTS)
    head = await ledger.head()
    waiting = [asyncio.create_task(ledger.changes(head, FOREVER)) for _ in range(3)]
    # By the time that another reader has its empty page, the three wait.
    await ledger.changes(head, 0.05)
    await change(ledger)
    pages = await asyncio.wait_for(asyncio.gather(*waiting), 60)
    assert {page.head for page in pages} == {head + 1}


async def test_writes_of_another_process_are_found(database: Database, ledger: Ledger) -> None:
    async with opened(database) as other:
        waiting = asyncio.create_task(ledger.changes(0, FOREVER))
        await other.record([terms()])
        page = await asyncio.wait_for(waiting, 60)
    assert page.accounts[0].account == ACME


async def test_pending_usage_wakes_no_reader(ledger: Ledger) -> None:
    await ledger.record([terms()])
    head = await ledger.head()
    waiting = asyncio.create_task(ledger.changes(head, 0.2))
    await ledger.ingest([usage()])
    assert (await waiting).accounts == ()


async def test_end_waits_returns_waiting_readers(ledger: Ledger) -> None:
    waiting = asyncio.create_task(ledger.changes(0, FOREVER))
    await ledger.changes(0, 0.01)
    ledger.end_waits()
    assert (await asyncio.wait_for(waiting, 60)).accounts == ()


async def test_a_copy_that_went_on_by_itself_is_another_history(
    database: Database, databases: Databases
) -> None:
    clock = Clock()
    async with opened(database, clock) as ledger:
        await ledger.record(FACTS)
    with databases.copy(database) as copy:
        async with opened(database, clock) as used:
            clock.advance(microseconds=1)
            await used.post_topup(topup())
            read = (await used.changes(0, 0)).bookmark
            assert (await used.changes(read.sequence, 0)).follows(read)
        async with opened(copy, clock) as restored:
            before = (await restored.changes(0, 0)).bookmark
            assert not (await restored.changes(read.sequence, 0)).follows(read), "it is behind"
            clock.advance(microseconds=1)
            await restored.ingest([usage()])
            assert await restored.head() == read.sequence
            assert not (await restored.changes(read.sequence, 0)).follows(read), "it is as far"
            # What was booked again is not what was booked before.
            await restored.post_topup(topup())
            assert not (await restored.changes(read.sequence, 0)).follows(read), "it is further"
            assert (await restored.changes(before.sequence, 0)).follows(before)


async def test_every_number_has_its_time_of_writing(ledger: Ledger, clock: Clock) -> None:
    changes: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: ledger.record(FACTS),
        lambda: ledger.record([terms(limit="5")]),
        lambda: ledger.record([ReservationRecord(CHAT, "uid", ACME, MODEL, 1_000, 1_000, 1, Buying.ONCE)]),
        lambda: ledger.post_topup(topup()),
        lambda: ledger.ingest([usage()]),
    )
    read = (await ledger.changes(0, 0)).bookmark
    assert (read.sequence, read.written_at) == (0, None)
    for change in changes:
        clock.advance(seconds=1)
        await change()
        page = await ledger.changes(read.sequence, 0)
        assert page.follows(read)
        assert page.next > read.sequence
        read = page.bookmark
        assert read.written_at == clock()


async def test_a_ledger_keeps_its_id_and_another_has_another(
    database: Database, ledger: Ledger, databases: Databases
) -> None:
    first = (await ledger.changes(0, 0)).ledger_id
    async with opened(database) as again:
        assert (await again.changes(0, 0)).ledger_id == first
    with databases.empty() as empty:
        async with opened(empty) as other:
            assert (await other.changes(0, 0)).ledger_id != first
