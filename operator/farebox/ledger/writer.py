"""The one thread that writes to the ledger, and how waiting work shares commits.

Event loops hand work over and stay responsive. While one commit is on its way to the disk, work queues up
and then shares the next one. Work that fails is tried again alone, so that it fails nobody else. Nothing
is answered before it is on the disk.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Engine, RootTransaction
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from farebox.errors import LedgerUnavailable
from farebox.ledger.booking.journal import Journal
from farebox.ledger.booking.state import LedgerState
from farebox.ledger.db.prepared import one_trip

MAX_SHARED: Final = 256
"""So many pieces of work share a commit at most."""

Perform = Callable[[Journal, Sequence[Any]], Sequence[Any]]
"""Does pieces of work in one transaction: a result for each, or an exception for one that was refused
before it wrote anything."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    work: Any
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"


class TransactionWriter:
    """Runs work on the database, in its own thread, from `start` to `stop`."""

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], datetime],
        perform: Perform,
        after_commit: Callable[[float], None],
    ) -> None:
        """`after_commit` is called in the writer's thread with the duration of the transaction in seconds."""
        self._engine = engine
        self._clock = clock
        self._perform = perform
        self._after_commit = after_commit
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._state = LedgerState()
        self._connection: Connection | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)

    def start(self) -> None:
        """Begin to take work."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what was handed over, then end. Blocks until then."""
        self._closed = True
        self._jobs.put(None)
        self._thread.join()

    async def run(self, work: Any) -> Any:
        """Hand over a piece of work, and return its result once it is committed.

        Raises:
            LedgerUnavailable: the database refused; whether it was committed is not known.
        """
        if self._closed:
            raise LedgerUnavailable("the ledger is shutting down")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._jobs.put(_Job(work, loop, future))
        return await future

    def _run(self) -> None:
        stopping = False
        while not stopping:
            jobs: list[_Job] = []
            job = self._jobs.get()
            while job is not None:
                jobs.append(job)
                if len(jobs) == MAX_SHARED or self._jobs.empty():
                    break
                job = self._jobs.get()
            stopping = job is None
            if jobs:
                self._commit(jobs)
        self.disconnect()

    def _commit(self, jobs: Sequence[_Job]) -> None:
        started = time.monotonic()
        try:
            with self._begun() as (journal, transaction):
                outcomes = self._perform(journal, [job.work for job in jobs])
                journal.write()
                # The transaction ends its own context: rolled back if its commit fails, or it kept locks.
                with one_trip(journal.connection), transaction:
                    journal.finish()
        except Exception as error:
            # What was remembered may be of a transaction that never happened.
            self._state = LedgerState()
            if len(jobs) > 1:
                for job in jobs:
                    self._commit([job])
                return
            _log.warning("ledger transaction failed", error=str(error), error_type=type(error).__name__)
            self._answer(jobs, [_translated(error)])
            return
        self._after_commit(time.monotonic() - started)
        self._answer(jobs, outcomes)

    @contextmanager
    def _begun(self) -> Iterator[tuple[Journal, RootTransaction]]:
        """A transaction that has the ledger locked, rolled back at the end if it was not committed.

        A connection that was lost while nothing was to do shows it only now, and nothing can have happened on
        it yet: then another one is taken.
        """
        try:
            try:
                begun = self._begin()
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                self.disconnect()
                self._state = LedgerState()
                begun = self._begin()
            yield begun
        except BaseException:
            self.disconnect()
            raise

    def _begin(self) -> tuple[Journal, RootTransaction]:
        if self._connection is None:
            self._connection = self._engine.connect()
        transaction = self._connection.begin()
        return Journal(self._connection, self._state, self._clock), transaction

    def disconnect(self) -> None:
        """Let go of the connection, which outlives its transactions; what is open on it is undone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _answer(self, jobs: Sequence[_Job], outcomes: Sequence[Any]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
        for job, outcome in zip(jobs, outcomes, strict=True):
            by_loop.setdefault(job.loop, []).append((job.future, outcome))
        for loop, answers in by_loop.items():
            # A loop that closed meanwhile has nobody left to tell.
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, answers)


def _resolve(answers: Sequence[tuple["asyncio.Future[Any]", Any]]) -> None:
    for future, outcome in answers:
        if future.cancelled():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _translated(error: Exception) -> Exception:
    if isinstance(error, SQLAlchemyError):
        return LedgerUnavailable(f"the ledger's database failed: {error}")
    return error
