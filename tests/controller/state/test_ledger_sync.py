"""Each record reaches a real ledger once, and again after a failure; refusals are reported."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from farebox.controller.queue import Key, account_key, model_key, service_key
from farebox.controller.state.ledger_sync import LedgerSync
from farebox.domain.billing.reservations import Buying
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerUnavailable
from farebox.ledger.engine import Ledger
from farebox.meterapi.types import (
    ChangePage,
    Record,
    RecordRefusal,
    ReservationRecord,
    TopUpOrder,
    TopUpReceipt,
)
from tests.ledger.support import ACME, CHAT, START, balance, binding, flat, price, terms, usage

SECONDS = 60.0
ACCOUNT, SERVICE, MODEL = account_key(ACME), service_key(CHAT), model_key("qwen3-8b")


@dataclass
class Line:
    """The connection to a ledger: it can be cut, and remembers what was sent over it."""

    ledger: Ledger
    cut: bool = False
    sent: list[Record] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    failures: int = 0

    async def record(self, records: Sequence[Record]) -> Sequence[RecordRefusal]:
        if self.cut:
            self.failures += 1
            raise LedgerUnavailable("cut")
        self.sent += records
        self.batches.append(len(records))
        return await self.ledger.record(records)

    async def post_topup(self, order: TopUpOrder) -> TopUpReceipt:
        return await self.ledger.post_topup(order)

    async def changes(self, after: int, wait_seconds: float, limit: int = 1000) -> ChangePage:
        return await self.ledger.changes(after, wait_seconds, limit)


@dataclass
class Sync:
    """A running LedgerSync, its connection, and the keys for which it reported an answer."""

    ledger_sync: LedgerSync
    line: Line
    answered: list[Key]

    async def settled(self) -> None:
        """Wait until nothing waits to be sent."""
        async with asyncio.timeout(SECONDS):
            while self.ledger_sync.pending:  # noqa: ASYNC110 - a test may look as often as it likes
                await asyncio.sleep(0.001)


@asynccontextmanager
async def syncing(ledger: Ledger) -> AsyncIterator[Sync]:
    line, answered = Line(ledger), list[Key]()
    records = LedgerSync(line, answered.append, retry_seconds=0.001)
    task = asyncio.create_task(records.run())
    try:
        yield Sync(records, line, answered)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_fact_is_said_once_however_often_it_is_offered(ledger: Ledger) -> None:
    async with syncing(ledger) as sync:
        for _ in range(3):
            sync.ledger_sync.upsert(ACCOUNT, terms())
        await sync.settled()
        sync.ledger_sync.upsert(ACCOUNT, terms())
        await sync.settled()
        assert sync.line.sent == [terms()]
        assert sync.answered == [ACCOUNT], "the first answer queues the key, as the balance may be known now"
        sync.ledger_sync.upsert(ACCOUNT, terms(limit="5"))
        await sync.settled()
        assert sync.line.sent == [terms(), terms(limit="5")]
        assert sync.answered == [ACCOUNT]


async def test_a_later_look_at_the_same_prices_or_binding_is_not_another_fact(ledger: Ledger) -> None:
    later = START + timedelta(hours=1)
    async with syncing(ledger) as sync:
        sync.ledger_sync.upsert(MODEL, price())
        sync.ledger_sync.upsert(SERVICE, binding())
        await sync.settled()
        sync.ledger_sync.upsert(MODEL, price(at=later))
        sync.ledger_sync.upsert(SERVICE, binding(at=later))
        await sync.settled()
        assert len(sync.line.sent) == 2
        sync.ledger_sync.upsert(SERVICE, replace(binding(at=later), trial=True))
        await sync.settled()
        assert sync.line.sent[2:] == [replace(binding(at=later), trial=True)]


async def test_the_newest_word_counts_when_the_ledger_comes_back(ledger: Ledger) -> None:
    async with syncing(ledger) as sync:
        sync.line.cut = True
        sync.ledger_sync.upsert(ACCOUNT, terms())
        async with asyncio.timeout(SECONDS):
            while sync.line.failures < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        sync.ledger_sync.upsert(ACCOUNT, terms(limit="7"))
        sync.line.cut = False
        await sync.settled()
        assert sync.line.sent == [terms(limit="7")]
    found = await ledger.account(ACME)
    assert found is not None
    assert found.credit_limit == 7_000_000_000


async def test_accounts_and_prices_go_before_what_needs_them(ledger: Ledger) -> None:
    reservation = ReservationRecord(CHAT, "uid", ACME, "qwen3-8b", 10, 10, 30, Buying.NOTHING)
    records = LedgerSync(Line(ledger), lambda key: None)
    for key, fact in ((SERVICE, reservation), (SERVICE, binding()), (MODEL, price()), (ACCOUNT, terms())):
        records.upsert(key, fact)
    task = asyncio.create_task(records.run())
    sync = Sync(records, records.ledger, [])  # type: ignore[arg-type]
    await sync.settled()
    task.cancel()
    assert [type(record).__name__ for record in sync.line.sent] == [
        "PriceVersion",
        "AccountRecord",
        "Binding",
        "ReservationRecord",
    ]


async def test_many_facts_go_in_batches(ledger: Ledger) -> None:
    async with syncing(ledger) as sync:
        for number in range(1100):
            name = ObjectKey("team-a", f"s{number}")
            sync.ledger_sync.upsert(service_key(name), binding(name))
        await sync.settled()
        assert sync.line.batches == [500, 500, 100]
        assert len(sync.answered) == 1100


async def test_a_refusal_is_kept_reported_and_not_repeated(ledger: Ledger) -> None:
    async with syncing(ledger) as sync:
        sync.ledger_sync.upsert(ACCOUNT, terms())
        assert not sync.ledger_sync.acknowledged(ACCOUNT, terms())
        await sync.settled()
        assert sync.ledger_sync.acknowledged(ACCOUNT, terms())
        sync.answered.clear()
        euros = terms(currency="EUR")
        sync.ledger_sync.upsert(ACCOUNT, euros)
        assert not sync.ledger_sync.acknowledged(ACCOUNT, euros)
        await sync.settled()
        assert sync.ledger_sync.acknowledged(ACCOUNT, euros)
        refusal = sync.ledger_sync.refusal(ACCOUNT)
        assert refusal is not None
        assert "USD" in refusal.message
        assert sync.answered == [ACCOUNT]
        sync.ledger_sync.upsert(ACCOUNT, euros)
        assert not sync.ledger_sync.pending


@pytest.mark.parametrize("next_one", [terms(), terms(limit="1")])
async def test_a_refusal_ends_when_the_record_is_reverted_or_corrected(
    ledger: Ledger, next_one: Record
) -> None:
    async with syncing(ledger) as sync:
        for fact in (terms(), terms(currency="EUR")):
            sync.ledger_sync.upsert(ACCOUNT, fact)
            await sync.settled()
        assert sync.ledger_sync.refusal(ACCOUNT) is not None
        sync.answered.clear()
        sync.ledger_sync.upsert(ACCOUNT, next_one)
        await sync.settled()
        assert sync.ledger_sync.refusal(ACCOUNT) is None
        assert sync.answered == [ACCOUNT]


async def test_services_of_one_name_have_a_reservation_for_each_uid(ledger: Ledger) -> None:
    old = ReservationRecord(CHAT, "old", ACME, "qwen3-8b", 10, 10, 30, Buying.NOTHING)
    async with syncing(ledger) as sync:
        for fact in (terms(), old, replace(old, uid="new")):
            sync.ledger_sync.upsert(SERVICE, fact)
        await sync.settled()
        sync.ledger_sync.upsert(SERVICE, old)
        assert not sync.ledger_sync.pending
        assert len(sync.line.sent) == 3


async def test_a_restored_ledger_gets_all_records_again(ledger: Ledger) -> None:
    async with syncing(ledger) as sync:
        sync.ledger_sync.upsert(ACCOUNT, terms())
        sync.ledger_sync.upsert(SERVICE, binding())
        await sync.settled()
        sync.line.sent.clear()
        sync.ledger_sync.forget_all()
        await sync.settled()
        assert sync.line.sent == [terms(), binding()]


@pytest.mark.parametrize("again", [terms(), terms(limit="3")])
async def test_the_records_of_a_recreated_object_are_sent_again(ledger: Ledger, again: Record) -> None:
    async with syncing(ledger) as sync:
        sync.ledger_sync.upsert(ACCOUNT, terms())
        await sync.settled()
        sync.ledger_sync.forget(ACCOUNT)
        sync.ledger_sync.upsert(ACCOUNT, again)
        await sync.settled()
        assert sync.line.sent == [terms(), again]


@pytest.mark.parametrize("seconds", [0.0, 0.7, 30.0], ids=["at-once", "within-a-second", "clocks-differ"])
async def test_b12_the_later_record_wins_whatever_the_clocks_say(ledger: Ledger, seconds: float) -> None:
    """A model is edited, deleted and made again: its creation is known to the second, by another clock."""
    edited = price(tiers=flat(7), at=START + timedelta(seconds=seconds))
    moved = binding(account=ACME._replace(name="other"), at=edited.effective_at)
    async with syncing(ledger) as sync:
        for key, fact in (
            *((ACCOUNT, terms()), (account_key(moved.account), terms(moved.account))),
            *((MODEL, price()), (SERVICE, binding())),
        ):
            sync.ledger_sync.upsert(key, fact)
        await sync.settled()
        sync.ledger_sync.upsert(MODEL, edited)
        sync.ledger_sync.upsert(SERVICE, moved)
        await sync.settled()
        sync.ledger_sync.forget(MODEL)
        sync.ledger_sync.forget(SERVICE)
        sync.ledger_sync.upsert(MODEL, price(tiers=flat(9), at=START))
        sync.ledger_sync.upsert(SERVICE, binding(at=START))
        await sync.settled()
    result = await ledger.ingest([usage(time=START + timedelta(minutes=1))])
    assert result.pending == 0
    assert await balance(ledger) == -120 * 9
    assert await balance(ledger, moved.account) == 0
