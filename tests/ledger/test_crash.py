"""Crediting and charging survive a failure at any call to the database, before or after its commit.

`make test` lets some of the calls fail, `make test-thorough` (FAREBOX_SEEDS above 1) each of them.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import pytest
from sqlalchemy import Engine, event, inspect
from sqlalchemy.exc import OperationalError

from farebox.api import ReservationState
from farebox.domain.billing.money import Nano
from farebox.domain.billing.reservations import Buying
from farebox.errors import LedgerUnavailable
from farebox.ledger.db.migrate import upgrade
from farebox.ledger.engine import Ledger
from tests.ledger.databases import Database, Databases
from tests.ledger.faults import after_commits, before_calls, injected
from tests.ledger.support import (
    CALL_CHARGE,
    FACTS,
    OFFER,
    QUOTA,
    TERM_PRICE,
    Clock,
    balance,
    model,
    price,
    reserved,
    terms,
    topup,
    usage,
)


@dataclass
class Fault:
    """Fails the `at`-th call of the writer to its database, once: a statement, or a commit not yet done."""

    at: int
    calls: int = field(default=0, init=False)

    @property
    def fired(self) -> bool:
        """Whether it came so far."""
        return self.calls >= self.at

    def arm(self, ledger: Ledger) -> None:
        """Count the ledger's calls from now on."""
        before_calls(ledger._write_engine, self.call)

    def call(self) -> None:
        """One more call."""
        self.calls += 1
        if self.calls == self.at:
            raise injected()


class FaultAfterCommit(Fault):
    """Fails the `at`-th commit once it is done: the ledger has the work and cannot know it."""

    def arm(self, ledger: Ledger) -> None:
        """Count the ledger's commits from now on."""
        after_commits(ledger._write_engine, lambda _: self.call())


Step = Callable[[Ledger], Awaitable[object]]

STEPS: tuple[Step, ...] = (
    lambda ledger: ledger.record([terms(), FACTS[1]]),
    lambda ledger: ledger.ingest([usage("1"), usage("2")]),
    lambda ledger: ledger.post_topup(topup()),
    lambda ledger: ledger.record([price(), terms(limit="4")]),
    lambda ledger: ledger.ingest([usage("2"), usage("3")]),
    lambda ledger: ledger.post_topup(topup("adj", kind="Adjustment")),
)


async def repeated(steps: Sequence[Step], database: Database, fault: Fault, restarts: bool) -> Ledger:
    """Each step is repeated until the ledger says it is done, as every client of the ledger does."""
    ledger = await Ledger.open(database.url, clock=Clock())
    fault.arm(ledger)
    for step in steps:
        while True:
            try:
                await step(ledger)
                break
            except LedgerUnavailable:
                if restarts:
                    await ledger.close()
                    ledger = await Ledger.open(database.url, clock=Clock())
    return ledger


async def run_with_fault(database: Database, fault: Fault, restarts: bool) -> None:
    """All steps are done once, whatever failed."""
    ledger = await repeated(STEPS, database, fault, restarts)
    assert await balance(ledger) == 20_000_000_000 - 3 * CALL_CHARGE
    assert await ledger.pending_count() == 0
    await ledger.close()
    database.check()


TERM_STEPS: tuple[Step, ...] = (
    lambda ledger: ledger.record([terms(), FACTS[1], model(reservation=OFFER, free_quota=QUOTA)]),
    lambda ledger: ledger.record([reserved(Buying.RENEWING)]),
    lambda ledger: ledger.ingest([usage("before")]),
    lambda ledger: ledger.post_topup(topup(amount=Nano(TERM_PRICE))),
    lambda ledger: ledger.process_due_renewals(),
    lambda ledger: ledger.ingest([usage("before"), usage("covered"), usage("beyond", output_tokens=1_000)]),
)


async def buy_with_fault(database: Database, fault: Fault, restarts: bool) -> None:
    """A quota is granted and a term bought once, and both are used once, whatever failed (B6, B9)."""
    ledger = await repeated(TERM_STEPS, database, fault, restarts)
    page = await ledger.changes(0, 0)
    # 120 tokens before the term, and 20 out beyond what is left of its minute.
    assert [(item.total, item.used) for item in page.quotas] == [(1_000, 140)]
    assert [item.state for item in page.reservations] == [ReservationState.ACTIVE]
    assert await balance(ledger) == 0
    await ledger.close()
    database.check()


Life = Callable[[Database, Fault], Coroutine[Any, Any, None]]
THOROUGH = float(os.environ.get("FAREBOX_SEEDS", "1")) > 1


def failing_calls(databases: Databases, restarts: bool) -> Iterable[int]:
    """The numbers of the calls that fail: every second one on SQLite, every fourth one on a server.

    The variants with and without a restart let different calls fail.
    """
    if THOROUGH:
        return count(1)
    step = 2 if databases.name == "sqlite" else 4
    return count(1 + restarts * step // 2, step)


def fail_each_call(databases: Databases, life: Life, kind: type[Fault], numbers: Iterable[int]) -> int:
    """Run the life once for each call number that fails, until it has fewer calls; the last number."""
    for number in numbers:
        fault = kind(number)
        with databases.ledger() as database:
            asyncio.run(life(database, fault))
        if not fault.fired:
            return number
    raise AssertionError("the numbers do not end")


@pytest.mark.parametrize("restarts", [False, True], ids=["same-process", "restarted"])
@pytest.mark.parametrize(("kind", "at_least"), [(Fault, 40), (FaultAfterCommit, len(TERM_STEPS) - 1)])
def test_a_failure_at_any_database_call_buys_and_grants_once(
    databases: Databases, kind: type[Fault], at_least: int, restarts: bool
) -> None:
    numbers = failing_calls(databases, restarts)
    number = fail_each_call(databases, partial(buy_with_fault, restarts=restarts), kind, numbers)
    assert number >= at_least, "every call of every step had its turn to fail"


@pytest.mark.parametrize("restarts", [False, True], ids=["same-process", "restarted"])
@pytest.mark.parametrize(("kind", "at_least"), [(Fault, 40), (FaultAfterCommit, len(STEPS))])
def test_a_failure_at_any_database_call_loses_and_doubles_nothing(
    databases: Databases, kind: type[Fault], at_least: int, restarts: bool
) -> None:
    numbers = failing_calls(databases, restarts)
    number = fail_each_call(databases, partial(run_with_fault, restarts=restarts), kind, numbers)
    assert number > at_least, "every call of every step had its turn to fail"


async def test_a_commit_that_fails_keeps_nothing_locked(database: Database) -> None:
    ledger = await Ledger.open(database.url, clock=Clock())
    await ledger.record(FACTS)

    def fail(*_: Any) -> None:
        raise injected()

    event.listen(ledger._write_engine, "commit", fail)
    with pytest.raises(LedgerUnavailable):
        await ledger.ingest([usage()])
    with database.raw() as connection:
        assert connection.exec_driver_sql("UPDATE ledger SET revision = revision").rowcount == 1
    event.remove(ledger._write_engine, "commit", fail)
    await ledger.close()
    database.check()


async def test_work_that_shares_a_commit_with_a_failing_one_is_done(database: Database) -> None:
    ledger = await Ledger.open(database.url, clock=Clock())
    await ledger.record(FACTS)
    # A lone surrogate cannot be stored. The meter lets none in; here it stands for any work that fails.
    poison = ledger.ingest([usage("poison", source="\ud800")])
    good = [ledger.ingest([usage(str(number))]) for number in range(20)]
    orders = [ledger.post_topup(topup(f"pay_{number}")) for number in range(20)]
    results = await asyncio.gather(poison, *good, *orders, return_exceptions=True)
    assert isinstance(results[0], Exception)
    assert not any(isinstance(result, Exception) for result in results[1:])
    assert await balance(ledger) == 20 * 10_000_000_000 - 20 * CALL_CHARGE
    await ledger.close()
    database.check()


def test_an_upgrade_that_fails_at_any_statement_leaves_nothing_half_done(databases: Databases) -> None:
    with databases.empty() as database:
        for number in failing_calls(databases, restarts=False):
            if upgraded_with_fault(database, number):
                break
            with database.raw() as connection:
                assert inspect(connection).get_table_names() == []
        database.check()
    assert number > 20


def upgraded_with_fault(database: Database, at: int) -> bool:
    """Whether the upgrade came to its end before its statement of this number, which fails."""
    seen = 0

    def fail(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            raise injected()

    event.listen(Engine, "before_cursor_execute", fail)
    try:
        upgrade(database.url)
    except OperationalError:
        return False
    finally:
        event.remove(Engine, "before_cursor_execute", fail)
    return True
