"""Top-ups that a restored ledger may lack: which the operator posts again, and the balance after that."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from farebox.controller.operator import Operator
from farebox.controller.queue import Priority, topup_key
from farebox.controller.state.balances import Balances
from farebox.controller.state.cache import Cache
from farebox.controller.state.restore import mark_unread_unverified
from farebox.domain.facts import UNKNOWN
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerUnavailable
from farebox.ledger.engine import Ledger
from farebox.meterapi.client import MeterClient
from farebox.meterapi.types import Bookmark
from farebox.settings import OperatorSettings
from tests.controller import objects
from tests.kube.server import JSONObject, Server, client_of, serving
from tests.ledger.support import START, terms

ACME = ObjectKey(objects.TEAM, "acme")
READ = Bookmark("ledger", 7, START + timedelta(milliseconds=700))
"""The place that a leader noted last."""


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


def receipt(name: str, at: datetime, phase: str = "Posted") -> JSONObject:
    """A TopUp that a leader has dealt with."""
    return objects.topup(name, status={"phase": phase, "postedAt": at.strftime("%Y-%m-%dT%H:%M:%SZ")})


def filled() -> Cache:
    """Top-ups from long before the place, from about it, and from after it."""
    cache = Cache()
    for name, seconds in (("old", -3600), ("before", -61), ("skewed", -59), ("same", 0), ("after", 2)):
        cache.topups.put(receipt(name, START + timedelta(seconds=seconds)))
    cache.topups.put(receipt("refused", START + timedelta(seconds=2), "Rejected"))
    cache.topups.put(objects.topup("new", status={}))
    return cache


@pytest.mark.parametrize(
    ("read", "asked"),
    [
        (READ, {"skewed", "same", "after"}),
        (Bookmark("ledger", 9, START + timedelta(hours=1)), set()),
        # Without a bookmark each receipt may be all that is left.
        (Bookmark(), {"old", "before", "skewed", "same", "after"}),
    ],
)
def test_top_ups_after_the_bookmark_of_the_last_leader_are_unverified(
    read: Bookmark, asked: set[str]
) -> None:
    cache, balances = filled(), Balances(45)
    topups = mark_unread_unverified(cache, balances, read)
    assert set(topups) == {ObjectKey(objects.TEAM, name) for name in asked}
    assert all(balances.is_unverified(ACME, topup) for topup in topups)
    assert balances.any_unverified is bool(asked)


async def test_b10_a_lost_top_up_is_posted_again_before_any_decision(server: Server, ledger: Ledger) -> None:
    """B10: the ledger was restored from before the booking, and has come further than the leader had read."""
    await ledger.record([terms(ACME)])
    async with client_of(server) as client:
        operator = Operator(OperatorSettings(), client, ledger)
        operator.cache.accounts.put(objects.account())
        operator.cache.topups.put(receipt("after", START + timedelta(seconds=2)))
        operator.elector.inherited_bookmark = str(READ)
        page = await ledger.changes(0, 0)
        operator.feed.bookmark = page.bookmark
        operator.balances.update(page.accounts, page.complete)
        assert operator.elector.bookmark() is None, "the stored bookmark stays until then"
        await operator._confirm_receipts()
        found = operator.balances.of(ACME, 0)
        assert found is not UNKNOWN
        assert found.balance == 100_000_000_000
        assert operator.elector.bookmark() == str(page.bookmark)
        # A receipt counts once, even if it is confirmed several times.
        head = await ledger.head()
        await operator._confirm_receipts()
        assert await ledger.head() == head


async def test_an_unreachable_ledger_leaves_the_balance_unknown_and_the_bookmark(
    server: Server,
) -> None:
    async with client_of(server) as client, MeterClient("http://127.0.0.1:9") as away:
        operator = Operator(OperatorSettings(), client, away)
        operator.cache.accounts.put(objects.account())
        operator.cache.topups.put(receipt("after", START + timedelta(seconds=2)))
        operator.elector.inherited_bookmark = str(READ)
        operator.feed.bookmark = READ
        await operator._confirm_receipts()
        assert operator.balances.is_unverified(ACME, ObjectKey(objects.TEAM, "after"))
        assert operator.elector.bookmark() is None
        assert await operator.queue.get() == (topup_key(ObjectKey(objects.TEAM, "after")), 1)


class Away:
    """A ledger that is unreachable until `there` is true."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.there = False

    def __getattr__(self, name: str) -> Any:
        async def ask(*arguments: Any) -> Any:
            if not self.there:
                raise LedgerUnavailable("away")
            return await getattr(self.ledger, name)(*arguments)

        return ask


async def test_a_top_up_is_posted_as_soon_as_the_ledger_is_reachable_again(
    server: Server, ledger: Ledger
) -> None:
    """However often it was tried in vain, and however long its next backoff would be."""
    way, key = Away(ledger), topup_key(ObjectKey(objects.TEAM, "new"))
    async with client_of(server) as client:
        operator = Operator(OperatorSettings(), client, way)  # type: ignore[arg-type]
        operator.queue._failures[key] = 30
        operator.queue._max_delay = 3600.0
        operator.cache.accounts.put(objects.account())
        operator.cache.topups.put(objects.topup("new", status={}))
        tasks = [
            asyncio.create_task(operator.workers.work(Priority.LOW)),
            asyncio.create_task(operator.ledger_sync.run()),
        ]
        try:
            async with asyncio.timeout(60):
                operator.queue.add(key)
                while key not in operator.workers.waiting_for_ledger:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                tasks.append(asyncio.create_task(operator.feed.run()))
                while not operator.feed.failing:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                way.there = True
                while not await booked(ledger):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def booked(ledger: Ledger) -> bool:
    """Whether the account has any money."""
    return any(account.balance for account in (await ledger.changes(0, 0)).accounts)
