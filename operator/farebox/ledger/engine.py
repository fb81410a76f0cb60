"""The ledger on a database: `LedgerAPI`, and what the meter needs beyond it.

It joins the parts (writer, booking, feed, reports) and has no rules. One process writes to an SQLite file; on
PostgreSQL there can be several writers.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar, cast

import structlog
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from farebox.clock import utc_now
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerRefused, LedgerUnavailable
from farebox.ledger.booking.credit_leases import grant_lease
from farebox.ledger.booking.entitlements import process_due_renewals
from farebox.ledger.booking.journal import Journal
from farebox.ledger.booking.records import record
from farebox.ledger.booking.refusals import count_refusals
from farebox.ledger.booking.request_index import SEGMENT_EVENTS, index_segment, segment_is_due
from farebox.ledger.booking.topups import post_topup
from farebox.ledger.booking.usage import (
    PENDING_LIST,
    ingest,
    pending_event,
)
from farebox.ledger.db import tables
from farebox.ledger.db.connections import limited, read_engine, write_engine
from farebox.ledger.db.migrate import is_current, upgrade
from farebox.ledger.db.notify import CommitListener
from farebox.ledger.feed import POLL_SECONDS, Notifier, read_account, read_changes
from farebox.ledger.writer import TransactionWriter
from farebox.meterapi.refusals import RefusalCounts
from farebox.meterapi.types import (
    AccountBalance,
    ChangePage,
    CreditLease,
    CreditLeaseRequest,
    Record,
    RecordRefusal,
    TopUpOrder,
    TopUpReceipt,
)
from farebox.meterapi.usage import IngestResult, PendingEvent, UsageEvent

ADVANCE_SECONDS: Final = 5.0
"""How often a meter processes what is due: renewals and ends of reservations, the index of requests."""
_READERS: Final = 4
_REPORTERS: Final = 2
MAX_REPORTS: Final = 32
"""The limit of reports that run or wait. One more gets 503."""
REPORT_SECONDS: Final = 60.0
"""The timeout of a report's SQL statement."""
T = TypeVar("T")
Order = TypeVar("Order")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Ingest:
    events: Sequence[UsageEvent]


@dataclass(frozen=True, slots=True)
class _TopUp:
    order: TopUpOrder


@dataclass(frozen=True, slots=True)
class _Records:
    records: Sequence[Record]


@dataclass(frozen=True, slots=True)
class _CreditLease:
    order: CreditLeaseRequest


@dataclass(frozen=True, slots=True)
class _Refusals:
    counts: RefusalCounts


@dataclass(frozen=True, slots=True)
class _RequestSegment:
    events: int


@dataclass(frozen=True, slots=True)
class _Renewals:
    pass


class Ledger:
    """A ledger in a database with the current schema. Create it with `open`, end it with `close`.

    Every method raises LedgerUnavailable when the database fails. Then the outcome is unknown, and it is safe
    to repeat the call.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], datetime] = utc_now,
        on_commit: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._write_engine = write_engine(url)
        self._read_engine = read_engine(url, _READERS + _REPORTERS)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="ledger-reader")
        self._reporters = ThreadPoolExecutor(_REPORTERS, thread_name_prefix="ledger-reports")
        self._reports = 0
        self._notifier = Notifier()
        self._on_commit = on_commit
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self._listener: CommitListener | None = None
        if self._write_engine.dialect.name == "postgresql":
            self._listener = CommitListener(self._write_engine, self._notifier.notify)
        self._writer = TransactionWriter(self._write_engine, clock, _perform, self._committed)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        clock: Callable[[], datetime] = utc_now,
        on_commit: Callable[[float], None] = lambda seconds: None,
        advance_seconds: float | None = None,
    ) -> "Ledger":
        """Upgrade the schema and start the writer.

        Args:
            url: SQLAlchemy URL, such as sqlite:////var/lib/farebox/ledger.db.
            clock: the current time, aware UTC.
            on_commit: called in the writer's thread with the duration of each write transaction in seconds.
            advance_seconds: the interval of `process_due_renewals` and `index_requests`; None: only when they
                are called.

        Raises:
            ConfigurationError: the URL is not one of a ledger.
            LedgerUnavailable: the database cannot be opened or upgraded.
        """
        try:
            await asyncio.to_thread(upgrade, url)
        except SQLAlchemyError as error:
            raise LedgerUnavailable(f"Cannot open the ledger's database: {error}") from error
        ledger = cls(url, clock=clock, on_commit=on_commit)
        ledger._writer.start()
        if ledger._listener is not None:
            ledger._tasks.append(asyncio.create_task(ledger._listener.listen()))
        if advance_seconds is not None:
            ledger._tasks.append(asyncio.create_task(ledger._advance_forever(advance_seconds)))
        return ledger

    async def close(self) -> None:
        """Finish the submitted work, then close the database."""
        self.end_waits()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._shut_down)

    def _shut_down(self) -> None:
        self._writer.stop()
        self._readers.shutdown()
        self._reporters.shutdown(cancel_futures=True)
        self._write_engine.dispose()
        self._read_engine.dispose()

    def end_waits(self) -> None:
        """End all waits for changes, now and later: `changes` returns what there is."""
        self._closing = True
        self._notifier.notify()

    def _committed(self, seconds: float) -> None:
        self._on_commit(seconds)
        self._notifier.notify()

    async def record(self, records: Sequence[Record]) -> Sequence[RecordRefusal]:
        """See LedgerAPI. The same transaction charges the pending usage that waited for the records (B12)."""
        return cast("Sequence[RecordRefusal]", await self._writer.run(_Records(records)))

    async def post_topup(self, order: TopUpOrder) -> TopUpReceipt:
        """See LedgerAPI (B10)."""
        return cast("TopUpReceipt", await self._writer.run(_TopUp(order)))

    async def ingest(self, events: Sequence[UsageEvent]) -> IngestResult:
        """Store usage events and charge each once by (source, id) (B12). Durable when it returns."""
        return cast("IngestResult", await self._writer.run(_Ingest(events)))

    async def lease_credit(self, order: CreditLeaseRequest) -> CreditLease:
        """Set the lease of a gateway to the requested amount, or to what is available (B17).

        Raises:
            LedgerRefused: AccountNotFound, AmountOutOfRange.
        """
        return cast("CreditLease", await self._writer.run(_CreditLease(order)))

    async def count_refusals(self, counts: RefusalCounts) -> int:
        """Store counts of refused calls (B32). Returns how many are stored.

        Raises:
            LedgerRefused: MinuteInFuture.
        """
        return cast("int", await self._writer.run(_Refusals(counts)))

    async def process_due_renewals(self) -> None:
        """Renew reservations a day ahead, and end those whose term is over (B9).

        Several meters can do so: each term is bought once.
        """
        await self._writer.run(_Renewals())

    async def index_requests(self, events: int = SEGMENT_EVENTS) -> None:
        """Index the request ids of new usage events, for each segment of this number (B32)."""
        while await self._read(lambda connection: segment_is_due(connection, events)):
            await self._writer.run(_RequestSegment(events))

    async def _advance_forever(self, seconds: float) -> None:
        while True:
            try:
                await self.process_due_renewals()
                await self.index_requests()
            except LedgerUnavailable as error:
                _log.warning("advance.failed", error=str(error), retry_seconds=seconds)
            await asyncio.sleep(seconds)

    async def changes(self, after: int, wait_seconds: float, limit: int = 1000) -> ChangePage:
        """See LedgerAPI."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        while True:
            changed = self._notifier.subscribe()
            try:
                page = await self._read(lambda connection: read_changes(connection, after, limit))
                left = deadline - loop.time()
                if page.head != after or left <= 0 or self._closing:
                    return page
                await asyncio.wait((changed,), timeout=min(left, POLL_SECONDS))
            finally:
                self._notifier.unsubscribe(changed)

    async def account(self, key: ObjectKey) -> AccountBalance | None:
        """Read an account; None if it is not recorded."""
        return await self._read(lambda connection: read_account(connection, key))

    async def pending(self, after: int = 0, limit: int = 1000) -> Sequence[PendingEvent]:
        """List the events that are not charged yet, with a cursor above `after`, in the order of arrival."""

        def read(connection: Connection) -> list[PendingEvent]:
            rows = connection.execute(PENDING_LIST, {"after": after, "at_most": limit})
            return [pending_event(row) for row in rows]

        return await self._read(read)

    async def pending_count(self) -> int:
        """Count the events that are not charged yet."""
        return await self._read(lambda connection: connection.execute(_PENDING_COUNT).scalar_one())

    async def head(self) -> int:
        """The last assigned sequence number."""
        return await self._read(lambda connection: connection.execute(_HEAD).scalar_one())

    async def ready(self) -> bool:
        """Whether the database answers, is writable, and has the schema of this code."""

        def writable(connection: Connection) -> bool:
            standby = connection.dialect.name == "postgresql" and connection.execute(_STANDBY).scalar_one()
            return not standby and is_current(connection)

        try:
            return await self._read(writable)
        except LedgerUnavailable:
            return False

    async def report(self, read: Callable[[Connection], T]) -> T:
        """Read a report in one snapshot, in its own thread pool: it may take long.

        Raises:
            LedgerRefused: as `read` raises it, and ReportTooLong.
        """

        def bounded(connection: Connection) -> T:
            with limited(connection, REPORT_SECONDS):
                return read(connection)

        if self._reports >= MAX_REPORTS:
            raise LedgerUnavailable(f"{MAX_REPORTS} reports are running already")
        self._reports += 1
        try:
            return await self._read(bounded, self._reporters)
        finally:
            self._reports -= 1

    async def _read(self, read: Callable[[Connection], T], pool: ThreadPoolExecutor | None = None) -> T:
        def in_snapshot() -> T:
            with self._read_engine.begin() as connection:
                return read(connection)

        try:
            return await asyncio.get_running_loop().run_in_executor(pool or self._readers, in_snapshot)
        except SQLAlchemyError as error:
            raise LedgerUnavailable(f"The ledger's database failed: {error}") from error
        except RuntimeError as error:
            if self._closing:
                raise LedgerUnavailable("The ledger is shutting down") from error
            raise


def _perform(journal: Journal, works: Sequence[Any]) -> Sequence[Any]:
    """Perform the jobs of one commit. All usage is one batch: it needs the same SQL statements."""
    outcomes: list[Any] = [None] * len(works)
    ingests: list[int] = []
    for place, work in enumerate(works):
        if isinstance(work, _Ingest):
            ingests.append(place)
        else:
            outcomes[place] = _perform_one(journal, work)
    if ingests:
        results = ingest(journal, [works[place].events for place in ingests])
        for place, result in zip(ingests, results, strict=True):
            outcomes[place] = result
    return outcomes


def _perform_one(journal: Journal, work: Any) -> Any:
    """Perform a job that is not usage."""
    match work:
        case _Records(records):
            return record(journal, records)
        case _TopUp(order):
            return _refusable(journal, post_topup, order)
        case _CreditLease(order):
            return _refusable(journal, grant_lease, order)
        case _Refusals(counts):
            return _refusable(journal, count_refusals, counts)
        case _RequestSegment(events):
            return index_segment(journal.connection, events)
        case _Renewals():
            return process_due_renewals(journal)


def _refusable(journal: Journal, act: Callable[[Journal, Order], T], order: Order) -> T | LedgerRefused:
    try:
        return act(journal, order)
    except LedgerRefused as refusal:
        return refusal


_PENDING_COUNT = (
    select(func.count())
    .select_from(tables.usage_events)
    .where(tables.usage_events.c.transaction_sequence.is_(None))
)
_STANDBY = select(func.pg_is_in_recovery())
_HEAD = select(tables.ledger.c.head)
