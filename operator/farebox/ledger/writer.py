"""The only thread that writes to the ledger, and how jobs share commits.

Event loops submit jobs and stay responsive. Jobs that arrive during a commit share the next one. When a
commit fails, its jobs are retried one by one, so that a faulty job fails alone. A result is returned only
after the commit is on disk.
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
"""The limit of jobs that share a commit."""

Perform = Callable[[Journal, Sequence[Any]], Sequence[Any]]
"""Performs jobs in one transaction. Returns a result for each, or an exception for a job that was refused
before it wrote anything."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    work: Any
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"


class TransactionWriter:
    """Runs jobs on the database in its own thread, from `start` to `stop`."""

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
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the submitted jobs, then end the thread. Blocks until then."""
        self._closed = True
        self._jobs.put(None)
        self._thread.join()

    async def run(self, work: Any) -> Any:
        """Submit a job and return its result after the commit.

        Raises:
            LedgerUnavailable: the database failed; it is unknown whether the job was committed.
        """
        if self._closed:
            raise LedgerUnavailable("The ledger is shutting down")
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
                # The context of the transaction rolls back if the commit fails; otherwise locks would remain.
                with one_trip(journal.connection), transaction:
                    journal.finish()
        except Exception as error:
            # The state may include a transaction that was never committed.
            self._state = LedgerState()
            if len(jobs) > 1:
                for job in jobs:
                    self._commit([job])
                return
            _log.warning("ledger.transaction_failed", error=str(error), error_type=type(error).__name__)
            self._answer(jobs, [_translated(error)])
            return
        self._after_commit(time.monotonic() - started)
        self._answer(jobs, outcomes)

    @contextmanager
    def _begun(self) -> Iterator[tuple[Journal, RootTransaction]]:
        """A transaction that has locked the ledger. It is rolled back at the end unless it was committed.

        A connection that was lost while idle fails only here, before anything was written on it. Then a new
        connection replaces it.
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
        """Close the connection, which outlives transactions. An open transaction is rolled back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _answer(self, jobs: Sequence[_Job], outcomes: Sequence[Any]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
        for job, outcome in zip(jobs, outcomes, strict=True):
            by_loop.setdefault(job.loop, []).append((job.future, outcome))
        for loop, answers in by_loop.items():
            # A loop that was closed meanwhile has no waiters.
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
        return LedgerUnavailable(f"The ledger's database failed: {error}")
    return error
