"""What an account can spend: the reported balance less all calls that it does not include (B6, B17)."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.domain.billing.money import Nano
from farebox.domain.facts import UNKNOWN
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerUnavailable
from farebox.gateway.feed import spend_feed
from farebox.gateway.spend.tracker import LOST_SECONDS, SpendTracker
from farebox.ledger.engine import Ledger
from farebox.meterapi.types import AccountBalance, ChangePage, QuotaBalance
from tests.domain.strategies import THOROUGH
from tests.gateway.harness import ACCOUNT, NOW, balance
from tests.ledger.databases import SqliteDatabases
from tests.ledger.support import ACME, CALL_CHARGE, FACTS, opened, topup, usage

MODEL = "qwen3-8b"
UNIT = 1_000_000_000


class Time:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def spend(time: Time) -> SpendTracker:
    """With 100 nano-units and 1,000 free tokens."""
    made = SpendTracker(max_age=300, clock=time)
    quota = QuotaBalance(ACCOUNT, MODEL, 1500, 500, NOW + timedelta(days=1), 1)
    made.update([balance(100)], [quota], True, time())
    return made


def report(spend: SpendTracker, nano: int, sequence: int, requested_at: float, complete: bool = True) -> None:
    spend.update([balance(nano, sequence)], [], complete, requested_at)


def free(spend: SpendTracker) -> int:
    tokens = spend.free_tokens(ACCOUNT, MODEL)
    assert tokens is not UNKNOWN
    return tokens.left


def test_an_authorized_amount_counts_at_once(spend: SpendTracker) -> None:
    spend.authorize("a", ACCOUNT, 30, MODEL, 200)
    spend.authorize("b", ACCOUNT, 100, MODEL, 0)
    assert (spend.available(ACCOUNT), free(spend)) == (-30, 800)
    spend.void("b")
    spend.void("b")
    assert (spend.available(ACCOUNT), free(spend)) == (70, 800)


def test_the_captured_cost_replaces_the_authorized_amount(spend: SpendTracker) -> None:
    spend.authorize("a", ACCOUNT, 30, MODEL, 200)
    spend.capture("a", 45, 250)
    spend.capture("a", 99, 999)
    assert (spend.available(ACCOUNT), free(spend)) == (55, 750)


def test_a_paid_call_uses_no_tokens_of_the_free_quota(spend: SpendTracker) -> None:
    spend.authorize("a", ACCOUNT, 30, MODEL, 0)
    spend.capture("a", 45, 250)
    assert free(spend) == 1000


def test_a_charge_counts_until_the_reported_balance_includes_it(spend: SpendTracker, time: Time) -> None:
    spend.authorize("a", ACCOUNT, 30, MODEL, 0)
    spend.capture("a", 40, 0)
    time.now += 1
    spend.acknowledge(["a", "of another process"])
    report(spend, 60, 2, requested_at=time.now - 0.5)
    assert spend.available(ACCOUNT) == 20, "the page was requested before the acknowledgement"
    report(spend, 60, 2, requested_at=time.now + 0.1, complete=False)
    assert spend.available(ACCOUNT) == 20, "there is more to come"
    report(spend, 60, 2, requested_at=time.now + 0.1)
    assert spend.available(ACCOUNT) == 60


def test_a_charge_counts_until_the_ledger_accepts_it(spend: SpendTracker, time: Time) -> None:
    """With a full disk, for example, the ledger keeps reporting balances, and no balance has the charge."""
    spend.authorize("a", ACCOUNT, 30, MODEL, 0)
    spend.capture("a", 40, 0)
    for _ in range(3):
        time.now += 10_000
        report(spend, 100, 1, requested_at=time.now)
        assert spend.available(ACCOUNT) == 60
    spend.acknowledge(["a"], 2)
    spend.update([balance(60, 2)], [], True, time.now, 2)
    assert spend.available(ACCOUNT) == 60


def test_a_call_that_never_ends_is_voided_after_a_long_time(spend: SpendTracker, time: Time) -> None:
    spend.call_seconds = 100
    spend.authorize("a", ACCOUNT, 30, MODEL, 0)
    time.now += 50
    spend.authorize("b", ACCOUNT, 5, MODEL, 0)
    time.now += 50 + LOST_SECONDS
    report(spend, 100, 2, requested_at=time.now)
    assert spend.available(ACCOUNT) == 65
    time.now += 1
    report(spend, 100, 2, requested_at=time.now)
    assert spend.available(ACCOUNT) == 95


def test_calls_that_are_charged_or_cost_nothing_leave_nothing_behind(spend: SpendTracker, time: Time) -> None:
    """There may be thousands a second; those paid by a reservation go on without a meter."""
    before = kept(spend)
    for number in range(100):
        free, paid, failed = f"free-{number}", f"paid-{number}", f"failed-{number}"
        for call, amount in ((free, 0), (paid, 1), (failed, 1)):
            spend.authorize(call, ACCOUNT, amount, MODEL, 0)
        spend.capture(free, 0, 120)
        spend.capture(paid, 2, 0)
        spend.void(failed)
    assert kept(spend) == before + 100 + len([ACCOUNT]), "those that are to be charged, and their sum"
    spend.acknowledge([f"paid-{number}" for number in range(100)])
    time.now += 1
    report(spend, 100, 2, requested_at=time.now)
    assert kept(spend) == before


def kept(spend: SpendTracker) -> int:
    """Entries of all that the spend keeps."""
    return sum(len(value) for value in vars(spend).values() if isinstance(value, (dict, deque)))


def test_an_older_balance_changes_nothing(spend: SpendTracker, time: Time) -> None:
    report(spend, 50, 5, requested_at=time())
    report(spend, 100, 4, requested_at=time())
    assert spend.available(ACCOUNT) == 50


def test_it_is_stale_without_updates_and_fresh_after_one(spend: SpendTracker, time: Time) -> None:
    assert spend.fresh
    time.now += 300
    assert not spend.fresh
    assert spend.available(ACCOUNT) == 100, "what is known stays known"
    spend.update([], [], True, time())
    assert spend.fresh


def test_balances_are_not_fresh_before_the_first_complete_page(time: Time) -> None:
    spend = SpendTracker(max_age=300, clock=time)
    assert not spend.fresh
    spend.update([balance(5)], [], False, time())
    assert not spend.fresh


def test_running_calls_still_count_after_a_switch_to_another_ledger(spend: SpendTracker, time: Time) -> None:
    spend.authorize("a", ACCOUNT, 30, MODEL, 0)
    spend.forget()
    assert (spend.fresh, spend.available(ACCOUNT)) == (False, UNKNOWN)
    report(spend, 90, 1, requested_at=time())
    assert spend.available(ACCOUNT) == 60


@THOROUGH
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["commit", "settle", "release", "acknowledge", "report"]),
            st.integers(0, 5),
            st.integers(0, 50),
        ),
        max_size=60,
    )
)
def test_what_is_available_is_the_meters_figure_less_what_it_does_not_have(
    steps: list[tuple[str, int, int]],
) -> None:
    """A ledger that charges when it acknowledges; the spend never shows more than is really left."""
    time = Time()
    spend = SpendTracker(max_age=300, clock=time)
    ledger, reported, sequence = 10_000, 10_000, 1
    report(spend, ledger, sequence, time())
    committed: dict[str, int] = {}
    settled: dict[str, int] = {}
    acknowledged: dict[str, int] = {}
    for number, (what, which, amount) in enumerate(steps):
        time.now += 0.01
        call = f"call-{which}"
        if what == "commit" and call not in {**committed, **settled, **acknowledged}:
            spend.authorize(call, ACCOUNT, amount, MODEL, 0)
            committed[call] = amount
        elif what == "settle" and call in committed:
            spend.capture(call, amount, 0)
            del committed[call]
            settled[call] = amount
        elif what == "release" and call in committed:
            spend.void(call)
            del committed[call]
        elif what == "acknowledge" and call in settled:
            ledger, sequence = ledger - settled[call], sequence + 1
            acknowledged[call] = settled.pop(call)
            spend.acknowledge([call])
        elif what == "report":
            time.now += 0.01
            report(spend, ledger, sequence, time())
            reported = ledger
            acknowledged.clear()
        unseen = sum(committed.values()) + sum(settled.values()) + sum(acknowledged.values())
        assert spend.available(ACCOUNT) == reported - unseen, number
        assert spend.available(ACCOUNT) <= ledger - sum(committed.values()) - sum(settled.values())  # type: ignore


# With a real ledger behind.


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    with SqliteDatabases(tmp_path).ledger() as database:
        async with opened(database) as running:
            yield running


async def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.005)


async def test_the_feed_reports_the_ledgers_figures(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an acknowledgement it asks at once: the open request would return in an hour."""
    monkeypatch.setattr("farebox.gateway.feed._WAIT_SECONDS", 3600.0)
    spend = SpendTracker(max_age=100_000)
    feed = spend_feed(ledger, spend)
    assert spend.available(ACME) is UNKNOWN
    await ledger.record(FACTS)
    task = asyncio.create_task(feed.run())
    await asyncio.wait_for(feed.current.wait(), 60)
    await ledger.post_topup(topup(amount="10"))
    await until(lambda: spend.available(ACME) == 10 * UNIT)
    spend.authorize("1", ACME, CALL_CHARGE, MODEL, 0)
    spend.capture("1", CALL_CHARGE, 120)
    await ledger.ingest([usage("1")])
    await until(lambda: spend.available(ACME) == 10 * UNIT - 2 * CALL_CHARGE)
    spend.acknowledge(["1"])
    await until(lambda: spend.available(ACME) == 10 * UNIT - CALL_CHARGE)
    task.cancel()


async def test_balances_stay_fresh_while_a_reachable_ledger_has_no_changes(ledger: Ledger) -> None:
    """However short the time is after which silence counts: nothing is refused while nothing happens."""
    spend = SpendTracker(max_age=3)
    feed = spend_feed(ledger, spend)
    task = asyncio.create_task(feed.run())
    await asyncio.wait_for(feed.current.wait(), 30)
    updates: set[float | None] = set()

    def look() -> bool:
        assert spend.fresh
        updates.add(spend.updated_at)
        return len(updates) == 4

    await until(look)
    task.cancel()


class Scripted:
    """A ledger that returns the given answers, for cases that a real ledger cannot produce on request."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[int] = []

    async def changes(self, after: int, wait_seconds: float, limit: int = 1000) -> ChangePage:
        self.asked.append(after)
        if not self.answers:
            await asyncio.Event().wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]


def page(ledger_id: str, head: int, nano: int, after: datetime | None = None) -> ChangePage:
    """A page up to change `head`, written at second `head`; the change before it was written at `after`."""
    account = AccountBalance(ObjectKey("billing", "acme"), "USD", Nano(nano), Nano(0), head)
    return ChangePage(
        ledger_id,
        head,
        (account,),
        complete=True,
        next=head,
        after_written_at=after,
        next_written_at=second(head),
    )


def second(number: int) -> datetime:
    return datetime(2026, 3, 1, 12, 0, number, tzinfo=UTC)


RESTORED = {
    "behind": [page("x", 9, 100), page("x", 3, 70), page("x", 3, 70)],
    "ahead, by other writes": [page("x", 9, 100), page("x", 30, 70, second(29)), page("x", 30, 70)],
    "another": [page("x", 9, 100), page("y", 9, 70, second(9)), page("y", 9, 70)],
}


@pytest.mark.parametrize("answers", RESTORED.values(), ids=RESTORED.keys())
async def test_a_restored_ledger_is_read_from_the_beginning(answers: list[ChangePage]) -> None:
    spend = SpendTracker(max_age=300)
    ledger = Scripted(*answers)
    resets: list[bool] = []
    feed = spend_feed(ledger, spend, lambda: resets.append(True))  # type: ignore[arg-type]
    # Charged under a number that the other history may never come to.
    spend.authorize("charged", ACCOUNT, 1, MODEL, 0)
    spend.capture("charged", 1, 0)
    spend.acknowledge(["charged"], 1_000)
    task = asyncio.create_task(feed.run())
    await until(lambda: len(ledger.asked) == 4)
    assert ledger.asked == [0, 9, 0, answers[-1].next]
    assert resets == [True]
    assert spend.available(ACCOUNT) == 70
    task.cancel()


async def test_the_feed_reads_an_unreachable_ledger_again_and_keeps_known_balances() -> None:
    spend = SpendTracker(max_age=300)
    ledger = Scripted(
        page("x", 9, 100),
        LedgerUnavailable("away"),
        LedgerUnavailable("away"),
        page("x", 10, 90, second(9)),
    )
    task = asyncio.create_task(spend_feed(ledger, spend).run())  # type: ignore[arg-type]
    await until(lambda: len(ledger.asked) >= 2)
    assert spend.available(ACCOUNT) == 100
    await until(lambda: spend.available(ACCOUNT) == 90)
    assert ledger.asked[:4] == [0, 9, 9, 9]
    task.cancel()


def test_a_charge_counts_once_from_the_moment_that_the_feed_has_it(time: Time) -> None:
    spend = SpendTracker(max_age=60, clock=time)

    def page(nano: int, sequence: int) -> None:
        spend.update([balance(nano, sequence)], [], True, time(), sequence)

    page(10 * UNIT, 5)
    for call in ("first", "second"):
        spend.authorize(call, ACCOUNT, 2 * UNIT, MODEL, 0)
        spend.capture(call, 2 * UNIT, 0)
    # The answer to the usage comes first: nothing is free until the figures have the charge.
    spend.acknowledge(["first"], 6)
    assert spend.available(ACCOUNT) == 6 * UNIT
    page(8 * UNIT, 6)
    assert spend.available(ACCOUNT) == 6 * UNIT
    # The figures come first: the answer frees at once.
    page(6 * UNIT, 7)
    assert spend.available(ACCOUNT) == 4 * UNIT
    spend.acknowledge(["second"], 7)
    assert spend.available(ACCOUNT) == 6 * UNIT
