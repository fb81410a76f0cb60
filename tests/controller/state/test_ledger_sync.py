"""What the ledger is told: each fact once, again after a failure; refusals are answered. On a real ledger."""

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
    """The way to a ledger: it can be cut, and remembers what was said on it."""

    ledger: Ledger
    cut: bool = False
    said: list[Record] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    failures: int = 0

    async def record(self, records: Sequence[Record]) -> Sequence[RecordRefusal]:
        if self.cut:
            self.failures += 1
            raise LedgerUnavailable("cut")
        self.said += records
        self.batches.append(len(records))
        return await self.ledger.record(records)

    async def post_topup(self, order: TopUpOrder) -> TopUpReceipt:
        return await self.ledger.post_topup(order)

    async def changes(self, after: int, wait_seconds: float, limit: int = 1000) -> ChangePage:
        return await self.ledger.changes(after, wait_seconds, limit)


@dataclass
class Told:
    """Records that are being sent, what was said, and whose facts were answered."""

    ledger_sync: LedgerSync
    line: Line
    answered: list[Key]

    async def settled(self) -> None:
        """Wait until nothing waits to be sent."""
        async with asyncio.timeout(SECONDS):
            while self.ledger_sync.pending:  # noqa: ASYNC110 - a test may look as often as it likes
                await asyncio.sleep(0.001)


@asynccontextmanager
async def telling(ledger: Ledger) -> AsyncIterator[Told]:
    line, answered = Line(ledger), list[Key]()
    records = LedgerSync(line, answered.append, retry_seconds=0.001)
    task = asyncio.create_task(records.run())
    try:
        yield Told(records, line, answered)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_fact_is_said_once_however_often_it_is_offered(ledger: Ledger) -> None:
    async with telling(ledger) as told:
        for _ in range(3):
            told.ledger_sync.upsert(ACCOUNT, terms())
        await told.settled()
        told.ledger_sync.upsert(ACCOUNT, terms())
        await told.settled()
        assert told.line.said == [terms()]
        assert told.answered == [ACCOUNT], "the first answer brings a pass, as the balance may now be known"
        told.ledger_sync.upsert(ACCOUNT, terms(limit="5"))
        await told.settled()
        assert told.line.said == [terms(), terms(limit="5")]
        assert told.answered == [ACCOUNT]


async def test_a_later_look_at_the_same_prices_or_binding_is_not_another_fact(ledger: Ledger) -> None:
    later = START + timedelta(hours=1)
    async with telling(ledger) as told:
        told.ledger_sync.upsert(MODEL, price())
        told.ledger_sync.upsert(SERVICE, binding())
        await told.settled()
        told.ledger_sync.upsert(MODEL, price(at=later))
        told.ledger_sync.upsert(SERVICE, binding(at=later))
        await told.settled()
        assert len(told.line.said) == 2
        told.ledger_sync.upsert(SERVICE, replace(binding(at=later), trial=True))
        await told.settled()
        assert told.line.said[2:] == [replace(binding(at=later), trial=True)]


async def test_the_newest_word_counts_when_the_ledger_comes_back(ledger: Ledger) -> None:
    async with telling(ledger) as told:
        told.line.cut = True
        told.ledger_sync.upsert(ACCOUNT, terms())
        async with asyncio.timeout(SECONDS):
            while told.line.failures < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        told.ledger_sync.upsert(ACCOUNT, terms(limit="7"))
        told.line.cut = False
        await told.settled()
        assert told.line.said == [terms(limit="7")]
    found = await ledger.account(ACME)
    assert found is not None
    assert found.credit_limit == 7_000_000_000


async def test_accounts_and_prices_go_before_what_needs_them(ledger: Ledger) -> None:
    reservation = ReservationRecord(CHAT, "uid", ACME, "qwen3-8b", 10, 10, 30, Buying.NOTHING)
    records = LedgerSync(Line(ledger), lambda key: None)
    for key, fact in ((SERVICE, reservation), (SERVICE, binding()), (MODEL, price()), (ACCOUNT, terms())):
        records.upsert(key, fact)
    task = asyncio.create_task(records.run())
    told = Told(records, records.ledger, [])  # type: ignore[arg-type]
    await told.settled()
    task.cancel()
    assert [type(fact).__name__ for fact in told.line.said] == [
        "PriceVersion",
        "AccountRecord",
        "Binding",
        "ReservationRecord",
    ]


async def test_many_facts_go_in_batches(ledger: Ledger) -> None:
    async with telling(ledger) as told:
        for number in range(1100):
            name = ObjectKey("team-a", f"s{number}")
            told.ledger_sync.upsert(service_key(name), binding(name))
        await told.settled()
        assert told.line.batches == [500, 500, 100]
        assert len(told.answered) == 1100


async def test_a_refusal_is_kept_answered_and_not_asked_again(ledger: Ledger) -> None:
    async with telling(ledger) as told:
        told.ledger_sync.upsert(ACCOUNT, terms())
        assert not told.ledger_sync.acknowledged(ACCOUNT, terms())
        await told.settled()
        assert told.ledger_sync.acknowledged(ACCOUNT, terms())
        told.answered.clear()
        euros = terms(currency="EUR")
        told.ledger_sync.upsert(ACCOUNT, euros)
        assert not told.ledger_sync.acknowledged(ACCOUNT, euros)
        await told.settled()
        assert told.ledger_sync.acknowledged(ACCOUNT, euros)
        refusal = told.ledger_sync.refusal(ACCOUNT)
        assert refusal is not None
        assert "USD" in refusal.message
        assert told.answered == [ACCOUNT]
        told.ledger_sync.upsert(ACCOUNT, euros)
        assert not told.ledger_sync.pending


@pytest.mark.parametrize("next_one", [terms(), terms(limit="1")])
async def test_a_refused_fact_that_is_taken_back_or_put_right_is_refused_no_more(
    ledger: Ledger, next_one: Record
) -> None:
    async with telling(ledger) as told:
        for fact in (terms(), terms(currency="EUR")):
            told.ledger_sync.upsert(ACCOUNT, fact)
            await told.settled()
        assert told.ledger_sync.refusal(ACCOUNT) is not None
        told.answered.clear()
        told.ledger_sync.upsert(ACCOUNT, next_one)
        await told.settled()
        assert told.ledger_sync.refusal(ACCOUNT) is None
        assert told.answered == [ACCOUNT]


async def test_services_of_one_name_have_a_reservation_for_each_uid(ledger: Ledger) -> None:
    old = ReservationRecord(CHAT, "old", ACME, "qwen3-8b", 10, 10, 30, Buying.NOTHING)
    async with telling(ledger) as told:
        for fact in (terms(), old, replace(old, uid="new")):
            told.ledger_sync.upsert(SERVICE, fact)
        await told.settled()
        told.ledger_sync.upsert(SERVICE, old)
        assert not told.ledger_sync.pending
        assert len(told.line.said) == 3


async def test_a_restored_ledger_is_told_everything_again(ledger: Ledger) -> None:
    async with telling(ledger) as told:
        told.ledger_sync.upsert(ACCOUNT, terms())
        told.ledger_sync.upsert(SERVICE, binding())
        await told.settled()
        told.line.said.clear()
        told.ledger_sync.forget_all()
        await told.settled()
        assert told.line.said == [terms(), binding()]


@pytest.mark.parametrize("again", [terms(), terms(limit="3")])
async def test_an_object_made_anew_is_told_anew(ledger: Ledger, again: Record) -> None:
    async with telling(ledger) as told:
        told.ledger_sync.upsert(ACCOUNT, terms())
        await told.settled()
        told.ledger_sync.forget(ACCOUNT)
        told.ledger_sync.upsert(ACCOUNT, again)
        await told.settled()
        assert told.line.said == [terms(), again]


@pytest.mark.parametrize("seconds", [0.0, 0.7, 30.0], ids=["at-once", "within-a-second", "clocks-differ"])
async def test_b12_what_is_told_later_holds_whatever_the_clocks_say(ledger: Ledger, seconds: float) -> None:
    """A model is edited, deleted and made again: its creation is known to the second, by another clock."""
    edited = price(tiers=flat(7), at=START + timedelta(seconds=seconds))
    moved = binding(account=ACME._replace(name="other"), at=edited.effective_at)
    async with telling(ledger) as told:
        for key, fact in (
            *((ACCOUNT, terms()), (account_key(moved.account), terms(moved.account))),
            *((MODEL, price()), (SERVICE, binding())),
        ):
            told.ledger_sync.upsert(key, fact)
        await told.settled()
        told.ledger_sync.upsert(MODEL, edited)
        told.ledger_sync.upsert(SERVICE, moved)
        await told.settled()
        told.ledger_sync.forget(MODEL)
        told.ledger_sync.forget(SERVICE)
        told.ledger_sync.upsert(MODEL, price(tiers=flat(9), at=START))
        told.ledger_sync.upsert(SERVICE, binding(at=START))
        await told.settled()
    result = await ledger.ingest([usage(time=START + timedelta(minutes=1))])
    assert result.pending == 0
    assert await balance(ledger) == -120 * 9
    assert await balance(ledger, moved.account) == 0
