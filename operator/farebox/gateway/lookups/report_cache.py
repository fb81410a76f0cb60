"""Reads of the meter for callers: few at a time, and the same one not twice in a while.

Callers may poll, and the meter's first work is to charge usage. So it gets at most `concurrency` of their
reads at a time. A read may take longer than a caller can wait, because Envoy waits 2 s for any decision. It
goes on, and the next one who asks gets its answer.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, TypeVar

from farebox.errors import LedgerUnavailable

T = TypeVar("T")
_MAX_ANSWERS: Final = 64
"""Answers that are kept; one can have some hundred kilobytes."""
_MAX_RUNNING: Final = 64
"""Reads that run or wait for their turn."""


class _Read:
    """A read, and until when its answer is used."""

    __slots__ = ("task", "until")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.until: float | None = None


class ReportCache:
    """Answers of the meter, and its errors, for `ttl` seconds after they came.

    Args:
        ttl: seconds for which an answer is used again.
        patience: seconds that a caller waits.
        timeout: seconds after which a read has failed, the wait for its turn included.
        concurrency: reads at a time.
    """

    def __init__(
        self,
        ttl: float = 5.0,
        patience: float = 1.5,
        timeout: float = 15.0,
        concurrency: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl = ttl
        self._patience = patience
        self._timeout = timeout
        self._clock = clock
        self._turns = asyncio.Semaphore(concurrency)
        self._reads: dict[Hashable, _Read] = {}

    async def get(self, question: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """Return the answer to a question, by `read` unless it runs already or was answered recently.

        Raises:
            LedgerUnavailable: the meter has not answered in time.
            LedgerRefused: by `read`.
        """
        now = self._clock()
        found = self._reads.get(question)
        if found is None or (found.until is not None and found.until <= now):
            found = self._start(question, read, now)
        try:
            async with asyncio.timeout(self._patience):
                # Others may wait for the same read, so it outlives the one that leaves.
                answer: T = await asyncio.shield(found.task)
        except TimeoutError:
            raise LedgerUnavailable(f"The meter has not answered within {self._patience:g} s") from None
        return answer

    async def close(self) -> None:
        """Cancel what still runs."""
        tasks = [each.task for each in self._reads.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, question: Hashable, read: Callable[[], Awaitable[Any]], now: float) -> _Read:
        self._forget(now)
        if sum(each.until is None for each in self._reads.values()) >= _MAX_RUNNING:
            raise LedgerUnavailable("Too many reads wait for the meter")
        started = self._reads[question] = _Read(asyncio.create_task(self._read(read)))
        started.task.add_done_callback(lambda task: self._ended(started, task))
        return started

    async def _read(self, read: Callable[[], Awaitable[Any]]) -> Any:
        try:
            async with asyncio.timeout(self._timeout), self._turns:
                return await read()
        except TimeoutError as error:
            raise LedgerUnavailable(f"The meter has not answered within {self._timeout:g} s") from error

    def _ended(self, read: _Read, task: asyncio.Task[Any]) -> None:
        read.until = self._clock() + self._ttl
        if not task.cancelled():
            # Taken here, so that asyncio does not report an error that no caller waits for.
            task.exception()

    def _forget(self, now: float) -> None:
        """Drop what has expired, and the oldest answers if there are too many."""
        ended = [(question, each.until) for question, each in self._reads.items() if each.until is not None]
        too_many = len(ended) - _MAX_ANSWERS + 1
        for number, (question, until) in enumerate(ended):
            if number < too_many or until <= now:
                del self._reads[question]
