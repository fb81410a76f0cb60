"""Reads of the meter for callers: few at a time, for a short time, and the same one not twice in a while.

Callers may poll. The meter also charges usage, so it gets at most `concurrency` of their reads at a time.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, TypeVar

from farebox.errors import LedgerUnavailable

T = TypeVar("T")
_MAX_ENTRIES: Final = 64
"""An answer can have some hundred kilobytes."""


class ReportCache:
    """Answers of the meter, and errors, for `ttl` seconds. Make it in a running event loop.

    Args:
        ttl: seconds for which an answer is used again.
        timeout: seconds after which a read has failed, the wait for its turn included.
        concurrency: reads at a time.
    """

    def __init__(
        self,
        ttl: float = 5.0,
        timeout: float = 3.0,
        concurrency: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl = ttl
        self._timeout = timeout
        self._clock = clock
        self._turns = asyncio.Semaphore(concurrency)
        self._reads: dict[Hashable, tuple[float, asyncio.Task[Any]]] = {}

    async def get(self, question: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """Return the answer to a question, by `read` unless it was answered a short time ago.

        Raises:
            LedgerUnavailable: the meter did not answer in time.
            LedgerRefused: by `read`.
        """
        now = self._clock()
        found = self._reads.get(question)
        if found is None or found[0] <= now:
            self._forget(now)
            task = asyncio.create_task(self._read(read))
            task.add_done_callback(_retrieve)
            found = self._reads[question] = (now + self._ttl, task)
        # Another caller may wait for the same read, so it outlives the one that leaves.
        answer: T = await asyncio.shield(found[1])
        return answer

    async def close(self) -> None:
        """Cancel what still runs."""
        tasks = [task for _, task in self._reads.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, read: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._timeout), self._turns:
                return await read()
        except TimeoutError as error:
            raise LedgerUnavailable(f"The meter has not answered within {self._timeout:g} s") from error

    def _forget(self, now: float) -> None:
        """Drop what has expired, and the oldest if there are too many."""
        for question, (until, _) in list(self._reads.items()):
            if until > now and len(self._reads) < _MAX_ENTRIES:
                return
            del self._reads[question]


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Take the error of a read, so that asyncio does not report one that no caller waits for."""
    if not task.cancelled():
        task.exception()
