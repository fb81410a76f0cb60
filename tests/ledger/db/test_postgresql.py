"""What happens on PostgreSQL alone: lost connections, and several meters on one database."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from itertools import count
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL, create_engine, make_url

from farebox.api import ReservationState
from farebox.domain.billing.money import Nano
from farebox.domain.billing.reservations import Buying
from farebox.errors import ConfigurationError, LedgerUnavailable
from farebox.ledger import engine as engine_module
from farebox.ledger.audit.verify import verify
from farebox.ledger.db import notify
from farebox.ledger.db.connections import ledger_url
from farebox.ledger.db.prepared import BulkInsert
from farebox.ledger.engine import Ledger
from farebox.meterapi.types import CreditLeaseRequest
from tests.ledger.databases import Database, Databases, PostgresDatabases
from tests.ledger.faults import after_commits, before_calls
from tests.ledger.support import (
    ACME,
    CALL_CHARGE,
    CHAT,
    FACTS,
    OFFER,
    QUOTA,
    START,
    TERM_PRICE,
    Clock,
    balance,
    binding,
    model,
    opened,
    reservation,
    reserved,
    terms,
    topup,
    usage,
)
from tests.support.postgres import Postgres

UNIT = 1_000_000_000
BATCH = [usage(str(number)) for number in range(50)]


@pytest.fixture(scope="module")
def databases(postgres: Postgres) -> Databases:
    """Databases of the server."""
    return PostgresDatabases(postgres)


@pytest.fixture
async def meters(database: Database, clock: Clock) -> AsyncIterator[list[Ledger]]:
    """Three ledgers on one database, like those of three meters."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(opened(database, clock)) for _ in range(3)]
    database.check()


class Cutter:
    """Disconnects the writer at one of its calls: at a statement, before or after a commit."""

    def __init__(self, ledger: Ledger, cut: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
        """Observe the ledger."""
        self._cut = cut
        self._left = 0
        copy = BulkInsert.run_many

        def answer_is_lost(connection: Any) -> None:
            if self._call():
                connection.execute("SELECT 1")

        def call_and_copy(*arguments: Any) -> None:
            self._call()
            copy(*arguments)

        before_calls(ledger._write_engine, self._call)
        after_commits(ledger._write_engine, answer_is_lost)
        monkeypatch.setattr(BulkInsert, "run_many", call_and_copy)

    def arm(self, at: int) -> None:
        """Disconnect at this call, counted from 1."""
        self._left = at

    @property
    def waits(self) -> bool:
        """Whether the call has not happened yet."""
        return self._left > 0

    def _call(self) -> bool:
        self._left -= 1
        if self._left == 0:
            self._cut()
        return self._left == 0


async def paid(ledger: Ledger, number: int) -> None:
    """A top-up."""
    await ledger.post_topup(topup(f"pay_{number}", Nano(UNIT)))


async def used(ledger: Ledger, number: int) -> None:
    """The calls of a minute: first the reservation and the quota cover them, then a lease pays."""
    time = START + timedelta(minutes=number)
    calls = [usage(f"{number}-{call}", time=time, output_tokens=40) for call in range(50)]
    result = await ledger.ingest(calls)
    assert (result.accepted + result.duplicate, result.pending, result.rejected) == (50, 0, ())


async def recorded(ledger: Ledger, number: int) -> None:
    """A call of an unrecorded service, and then its binding and account."""
    account, service = ACME._replace(name=f"a{number}"), CHAT._replace(name=f"s{number}")
    await ledger.ingest([usage(f"waits-{number}", service=service)])
    assert await ledger.record([terms(account), binding(service, account)]) == []


async def leased(ledger: Ledger, number: int) -> None:
    """A lease request of a gateway."""
    lease = await ledger.lease_credit(CreditLeaseRequest("gateway-0", ACME, Nano(number)))
    assert lease.granted - lease.spent == number


@pytest.mark.parametrize(
    ("act", "accounts", "transactions", "events"),
    [(paid, 0, 1, 0), (used, 0, 1, 50), (recorded, 1, 2, 1), (leased, 0, 0, 0)],
)
async def test_a_connection_lost_at_any_call_is_an_error_and_the_retry_counts_once(
    act: Callable[[Ledger, int], Awaitable[None]],
    accounts: int,
    transactions: int,
    events: int,
    database: Database,
    clock: Clock,
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parameters are the rows that each repetition adds."""
    async with opened(database, clock) as ledger:
        await ledger.record([terms(), binding(), model(reservation=OFFER, free_quota=QUOTA)])
        await ledger.post_topup(topup("first", Nano(TERM_PRICE + UNIT)))
        await ledger.record([reserved()])
        await ledger.lease_credit(CreditLeaseRequest("gateway-0", ACME, Nano(UNIT)))
        clock.advance(hours=1)
        before = verify(database.url)
        cutter = Cutter(ledger, lambda: postgres.cut_off(database.name), monkeypatch)
        lost = 0
        for number in count(1):
            cutter.arm(number)
            done = False
            while not done:
                try:
                    await act(ledger, number)
                    done = True
                except LedgerUnavailable:
                    lost += 1
            if cutter.waits:
                break
    # What is lost at the first call of a transaction is made good before anybody notices.
    assert lost >= number - 3 > 2, "every call was the last one once"
    after = verify(database.url)
    assert after.ok, str(after)
    assert (after.accounts, after.usage_events) == (
        before.accounts + number * accounts,
        before.usage_events + number * events,
    )
    assert (after.transactions, after.pending_events) == (before.transactions + number * transactions, 0)


async def test_idle_connections_that_were_lost_are_replaced(
    database: Database, ledger: Ledger, postgres: Postgres
) -> None:
    await ledger.record(FACTS)
    assert postgres.cut_off(database.name) > 0
    assert (await ledger.ingest(BATCH)).accepted == len(BATCH)


async def test_b12_meters_with_the_same_usage_charge_it_once(meters: list[Ledger]) -> None:
    await meters[0].record(FACTS)
    batches = [[usage(f"{start + number}") for number in range(20)] for start in range(0, 200, 10)]
    results = await asyncio.gather(*(meter.ingest(batch) for batch in batches for meter in meters))
    assert sum(result.accepted for result in results) == 210
    assert [await balance(meter) for meter in meters] == [-210 * CALL_CHARGE] * 3


async def test_b10_meters_with_the_same_topup_post_it_once(meters: list[Ledger]) -> None:
    await meters[0].record(FACTS)
    receipts = await asyncio.gather(
        *(meter.post_topup(topup(f"pay_{number}")) for number in range(10) for meter in meters)
    )
    assert sum(not receipt.duplicate for receipt in receipts) == 10
    assert await balance(meters[1]) == 100_000_000_000


async def test_b9_several_meters_buy_each_term_once(meters: list[Ledger], clock: Clock) -> None:
    await meters[0].record([terms(), binding(), model(reservation=OFFER)])
    await meters[1].post_topup(topup(amount=Nano(10 * TERM_PRICE)))
    await meters[2].record([reserved(Buying.RENEWING)])
    for _ in range(100):
        clock.advance(days=1)
        await asyncio.gather(*(meter.process_due_renewals() for meter in meters))
    # Bought at days 0, 29, 59 and 89.
    assert await balance(meters[0]) == 6 * TERM_PRICE
    in_force = await reservation(meters[0])
    assert (in_force.state, in_force.period_end) == (
        ReservationState.ACTIVE,
        clock.now + timedelta(days=20),
    )


async def test_a_commit_wakes_the_readers_of_other_meters(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "POLL_SECONDS", 600.0)
    async with opened(database, clock) as one, opened(database, clock) as other:
        await one.record(FACTS)
        head = await one.head()
        for number in range(5):
            waiting = asyncio.create_task(other.changes(head, 600.0))
            await one.post_topup(topup(f"pay_{number}"))
            head = (await asyncio.wait_for(waiting, 30)).head


async def test_every_commit_notifies_listeners(database: Database, clock: Clock) -> None:
    with psycopg.connect(database.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"LISTEN {notify.CHANNEL}")
        async with opened(database, clock) as ledger:
            await ledger.record(FACTS)
            await ledger.post_topup(topup("pay_1"))
            await ledger.post_topup(topup("pay_1"))
        connection.execute("SELECT 1")
        # The repeated top-up writes nothing.
        assert len(list(connection.notifies(timeout=0))) == 2


class Firewall:
    """Between a client and a server: it can forget connections, and resets one that is used after that."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._connections = 0
        self._forgotten = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Forward connections to the server's Unix socket; yields the port."""
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    def forget(self) -> None:
        """Forget all connections, without a sign to either side."""
        self._forgotten = self._connections

    async def _forward(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._connections += 1
        number = self._connections
        server, to_server = await asyncio.open_unix_connection(self._socket)

        async def answers() -> None:
            while data := await server.read(65_536):
                if number > self._forgotten:
                    to_client.write(data)

        answering = asyncio.create_task(answers())
        while (data := await client.read(65_536)) and number > self._forgotten:
            to_server.write(data)
        answering.cancel()
        to_client.transport.abort()
        to_server.transport.abort()


async def test_a_listener_replaces_a_connection_that_was_lost_without_a_sign(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(notify, "_RETRY_SECONDS", 0.1)
    url = make_url(database.url)
    firewall, woken = Firewall(f"{url.query['host']}/.s.PGSQL.5432"), asyncio.Event()
    async with firewall.listening() as port:
        through = URL.create(url.drivername, url.username, host="127.0.0.1", port=port, database=url.database)
        listener = notify.CommitListener(create_engine(through), woken.set)
        listening = asyncio.create_task(listener.listen())
        try:
            await asyncio.wait_for(woken.wait(), 30)
            woken.clear()
            firewall.forget()
            # A new connection wakes the readers, because there may have been commits before.
            await asyncio.wait_for(woken.wait(), 30)
        finally:
            listening.cancel()


@pytest.mark.parametrize("prefix", ["postgresql", "postgresql+psycopg"])
def test_postgresql_urls_get_the_psycopg_driver(prefix: str) -> None:
    assert ledger_url(f"{prefix}://user@host/name").drivername == "postgresql+psycopg"


def test_urls_of_other_databases_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="mysql"):
        ledger_url("mysql://host/name")
