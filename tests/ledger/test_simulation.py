"""Lives of a ledger by seed, with crashes, against the reference model (B6, B9-B12, B19).

FAREBOX_SEEDS multiplies the number of lives (`make test-thorough`: 5). FAREBOX_SEED runs one seed alone,
in both tests.
"""

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from farebox.errors import LedgerRefused, LedgerUnavailable
from farebox.ledger.audit.verify import _Verification
from farebox.ledger.db.connections import disposing, read_engine, write_engine
from farebox.ledger.engine import Ledger, _CreditLease, _Ingest, _perform, _Records, _Renewals, _TopUp
from farebox.ledger.writer import TransactionWriter, _Job
from tests.ledger.databases import Database, Databases, SqliteDatabases, scratch
from tests.ledger.script import Script, Step, Work
from tests.ledger.simulation import Books, Observer, compare
from tests.ledger.support import START, Clock

SCALE = float(os.environ.get("FAREBOX_SEEDS", "1"))
ONLY = os.environ.get("FAREBOX_SEED")
LIVES = 300
CONCURRENT_LIVES = 6
STEPS = (10, 30)
CHANCE_OF_FAULT = 0.15
CHANCE_OF_RESTART = 0.05
CALLS = 25
"""A piece of work makes about this many calls to the database; a fault strikes one of them."""


class _AtOnce:
    """An event loop and a future in one, for a writer that runs in the caller's thread."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def is_closed(self) -> bool:
        return False

    def call_soon_threadsafe(self, callback: Any, *arguments: Any) -> None:
        callback(*arguments)

    def cancelled(self) -> bool:
        return False

    def set_result(self, _: Any) -> None:
        self.error = None

    def set_exception(self, error: Exception) -> None:
        self.error = error


class Process:
    """A ledger's process without its thread: a writer over an engine that outlives it, as its code does."""

    def __init__(self, url: str, clock: Clock) -> None:
        self._clock = clock
        self._engine = write_engine(url)
        self._writer: TransactionWriter | None = None
        self.observer = Observer(self._engine, _perform)
        self.start(Books())

    def start(self, books: Books) -> None:
        """A new process: it remembers nothing, and has no connection yet."""
        if self._writer is not None:
            self._writer.disconnect()
        self._engine.dispose()
        self.observer.books = books
        self.observer.fail_call, self.observer.fail_commit = 0, False
        self._writer = TransactionWriter(self._engine, self._clock, self.observer.perform, lambda _: None)

    def commit(self, works: Sequence[Work]) -> list[Work]:
        """Do work that is handed over together; what has to be tried again."""
        assert self._writer is not None
        jobs = [(work, _AtOnce()) for work in works]
        self._writer._commit([_Job(work, at_once, at_once) for work, at_once in jobs])  # type: ignore[arg-type]
        failed = [(work, at_once.error) for work, at_once in jobs if at_once.error is not None]
        for _, error in failed:
            if not isinstance(error, LedgerUnavailable | LedgerRefused):
                raise error
        return [work for work, error in failed if isinstance(error, LedgerUnavailable)]


class Lives:
    """Many lives, one after the other, each of two processes on a database and clients that try again."""

    def __init__(self, directory: Path) -> None:
        databases = SqliteDatabases(directory)
        self._template = databases.template()
        self._database = Database(f"sqlite:///{directory / 'life.db'}")
        self._clock = Clock()
        self._processes = [Process(self._database.url, self._clock) for _ in range(2)]
        self._current = 0
        self._reader = read_engine(self._database.url, 1)

    def run(self, seed: int) -> None:
        """A whole life, and the comparison at its end."""
        random_ = random.Random(seed)
        self._reader.dispose()
        books = Books()
        for process in self._processes:
            process.start(books)
        for suffix in ("", "-wal", "-shm"):
            Path(self._database.name + suffix).unlink(missing_ok=True)
        shutil.copyfile(self._template.name, self._database.name)
        self._clock.now, self._current = START, 0
        for step in Script(random_).steps(random_.randint(*STEPS)):
            self._clock.now += step.later
            self._do(random_, books, step.together)
        self._do(random_, books, (_Renewals(),))
        with self._reader.begin() as connection:
            compare(connection, books)
            report = _Verification(connection).run()
            assert report.ok, str(report)

    def _do(self, random_: random.Random, books: Books, works: Sequence[Work]) -> None:
        left, tries = list(works), 0
        while left:
            tries += 1
            assert tries < 100, f"{left} never succeeds"
            if random_.random() < 0.3:
                self._current = 1 - self._current
            process = self._processes[self._current]
            _arm(process.observer, random_)
            left = process.commit(left)
            if random_.random() < CHANCE_OF_RESTART:
                process.start(books)


async def live_concurrently(seed: int, database: Database) -> None:
    """A life of the real ledger with its thread: work that is handed over together comes in any order."""
    random_ = random.Random(seed)
    clock, books = Clock(), Books()
    ledger, observer = await _open(database, clock, books)
    for step in [*Script(random_).steps(random_.randint(*STEPS)), Step(timedelta(0), (_Renewals(),))]:
        clock.now += step.later
        left = list(step.together)
        while left:
            _arm(observer, random_)
            outcomes = await asyncio.gather(
                *(_hand_over(ledger, work) for work in left), return_exceptions=True
            )
            for outcome in outcomes:
                if isinstance(outcome, BaseException) and not isinstance(
                    outcome, LedgerUnavailable | LedgerRefused
                ):
                    raise outcome
            failed = [isinstance(outcome, LedgerUnavailable) for outcome in outcomes]
            left = [work for work, again in zip(left, failed, strict=True) if again]
            if random_.random() < CHANCE_OF_RESTART:
                await ledger.close()
                ledger, observer = await _open(database, clock, books)
    await ledger.close()
    with disposing(read_engine(database.url, 1)) as engine, engine.begin() as connection:
        compare(connection, books)
    database.check()


async def _open(database: Database, clock: Clock, books: Books) -> tuple[Ledger, Observer]:
    ledger = await Ledger.open(database.url, clock=clock)
    observer = Observer(ledger._write_engine, _perform)
    observer.books = books
    ledger._writer._perform = observer.perform
    return ledger, observer


def _arm(observer: Observer, random_: random.Random) -> None:
    """Perhaps let a call or a commit fail. Nothing is under way."""
    if random_.random() < CHANCE_OF_FAULT:
        observer.fail_commit = random_.random() < 0.3
        observer.fail_call = random_.randint(1, CALLS)


async def _hand_over(ledger: Ledger, work: Work) -> object:
    match work:
        case _Records(records):
            return await ledger.record(records)
        case _TopUp(order):
            return await ledger.post_topup(order)
        case _CreditLease(order):
            return await ledger.lease_credit(order)
        case _Ingest(events):
            return await ledger.ingest(events)
        case _Renewals():
            return await ledger.process_due_renewals()


def _seeds(count: int) -> list[int]:
    return [int(ONLY)] if ONLY else list(range(max(1, round(count * SCALE))))


@pytest.mark.timeout(3600)
def test_any_life_with_crashes_ends_in_the_books_of_the_reference() -> None:
    with tempfile.TemporaryDirectory(dir=scratch()) as directory, capture_logs():
        lives = Lives(Path(directory))
        for seed in _seeds(LIVES):
            try:
                lives.run(seed)
            except Exception as error:
                raise AssertionError(f"FAREBOX_SEED={seed} shows it again") from error


@pytest.mark.timeout(3600)
def test_any_life_of_the_ledger_with_its_thread_does_too(databases: Databases) -> None:
    for seed in _seeds(CONCURRENT_LIVES):
        with databases.ledger() as database, capture_logs():
            try:
                asyncio.run(live_concurrently(seed, database))
            except Exception as error:
                raise AssertionError(f"FAREBOX_SEED={seed} may show it again") from error
