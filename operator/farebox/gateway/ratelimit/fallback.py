"""What happens to counts while the shared server is away (docs/decisions/410).

Each replica then counts by itself, from what it knows, with its share of each limit; what it counted for
quotas is added to the server's counts when it is back.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog
from msgspec import structs

from farebox.domain.admission.rate_limits import Adjustment, LimitRequest, Window, bucket_start, refunds
from farebox.errors import CountersUnavailable
from farebox.gateway.ratelimit.memory import Counters, MemoryCounters, TakeResult

log = structlog.get_logger(__name__)

_LONG: Final = (Window.DAY, Window.MONTH, Window.LIFETIME)
"""Spans of quotas: what was used in them is not forgotten with an outage."""
_Place = tuple[str, Window, int]


class SharedCounters(Counters, Protocol):
    """Counters that may be away: their methods raise CountersUnavailable then."""

    async def reach(self) -> None:
        """Raise CountersUnavailable unless they answer."""


class EvenShareCounters(MemoryCounters):
    """Counts of one of several replicas that share none: each has its share of every minute's limit."""

    def __init__(self, replicas: int) -> None:
        super().__init__()
        assert replicas > 0
        self._replicas = replicas

    async def take(self, demands: Sequence[LimitRequest], now: int) -> TakeResult:
        """See Counters."""
        return await super().take([share_of(demand, self._replicas) for demand in demands], now)


def share_of(demand: LimitRequest, replicas: int) -> LimitRequest:
    """The demand on one replica's share; one that the whole limit has room for still fits into it."""
    if demand.window in _LONG:
        return demand
    share = max(1, demand.limit // replicas)
    return structs.replace(demand, limit=max(share, min(demand.required, demand.limit)))


class FallbackCounters:
    """Shared counts, or this replica's own while those are away. Never raises CountersUnavailable.

    Args:
        replicas: into how many shares limits are divided meanwhile.
        retry_seconds: how often the server is tried again; no call waits for it in between.
    """

    def __init__(
        self,
        shared: SharedCounters,
        replicas: int = 1,
        retry_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert replicas > 0
        self._shared = shared
        self._replicas = replicas
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._local = MemoryCounters()
        self._next_try: float | None = None
        self._known: dict[tuple[str, Window], tuple[int, int]] = {}
        self._owed: dict[_Place, int] = {}
        self._undoing: set[asyncio.Future[None]] = set()

    @property
    def away(self) -> bool:
        """Whether this replica counts by itself."""
        return self._next_try is not None

    async def take(self, demands: Sequence[LimitRequest], now: int) -> TakeResult:
        """See Counters."""
        if await self._available(now):
            try:
                answer = await self._take_shared(demands, now)
                for taken, total in zip(answer.taken, answer.totals, strict=True):
                    if taken.window in _LONG:
                        self._known[taken.counter, taken.window] = (bucket_start(taken.window, now), total)
                return answer
            except CountersUnavailable as error:
                await self._lose(error, now)
        answer = await self._local.take([share_of(demand, self._replicas) for demand in demands], now)
        for taken in answer.taken:
            self._owe(taken.counter, taken.window, bucket_start(taken.window, now), taken.amount)
        return answer

    async def _take_shared(self, demands: Sequence[LimitRequest], now: int) -> TakeResult:
        """A call that is given up meanwhile may be counted all the same: then that is undone."""
        taking = asyncio.ensure_future(self._shared.take(demands, now))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            undoing = asyncio.ensure_future(self._undo(taking, now))
            self._undoing.add(undoing)
            undoing.add_done_callback(self._undoing.discard)
            raise

    async def _undo(self, taking: asyncio.Future[TakeResult], now: int) -> None:
        try:
            answer = await taking
        except CountersUnavailable:
            return
        await self.adjust(refunds(answer.taken, now), now)

    async def adjust(self, adjustments: Sequence[Adjustment], now: int) -> None:
        """See Counters."""
        if await self._available(now):
            try:
                return await self._shared.adjust(adjustments, now)
            except CountersUnavailable as error:
                await self._lose(error, now)
        await self._local.adjust(adjustments, now)
        for each in adjustments:
            self._owe(each.counter, each.window, each.bucket, each.amount)
        return None

    async def raise_to(self, counter: str, window: Window, used: int, now: int) -> None:
        """See Counters."""
        at = bucket_start(window, now)
        known_at, known = self._known.get((counter, window), (at, 0))
        self._known[counter, window] = (at, max(used, known if known_at == at else 0))
        if await self._available(now):
            try:
                return await self._shared.raise_to(counter, window, used, now)
            except CountersUnavailable as error:
                await self._lose(error, now)
        await self._local.raise_to(counter, window, used, now)
        return None

    async def close(self) -> None:
        """See Counters."""
        if self._undoing:
            await asyncio.wait(self._undoing)
        await self._shared.close()

    async def _available(self, now: int) -> bool:
        """Whether to ask the server. One call in `retry_seconds` finds out; the others do not wait for it."""
        if self._next_try is None:
            return True
        if self._clock() < self._next_try:
            return False
        self._next_try = self._clock() + self._retry_seconds
        try:
            await self._shared.reach()
            await self._pay(now)
        except CountersUnavailable:
            return False
        self._next_try = None
        log.info("counters.back")
        return True

    async def _lose(self, error: CountersUnavailable, now: int) -> None:
        """Begin to count alone, quotas from where they are known to stand."""
        if self._next_try is None:
            log.warning("counters.away", error=str(error), share=f"1/{self._replicas}")
            self._local = MemoryCounters()
            for (counter, window), (at, used) in self._known.items():
                await self._local.raise_to(counter, window, used, at * 1000)
        self._next_try = self._clock() + self._retry_seconds

    async def _pay(self, now: int) -> None:
        """Tell the server what it does not know: how quotas stood, if it forgot, and what was used since."""
        for (counter, window), (at, used) in list(self._known.items()):
            if at == bucket_start(window, now):
                await self._shared.raise_to(counter, window, used, now)
        owed, self._owed = self._owed, {}
        try:
            await self._shared.adjust(
                [Adjustment(counter, window, at, amount) for (counter, window, at), amount in owed.items()],
                now,
            )
        except CountersUnavailable:
            for where, amount in owed.items():
                self._owed[where] = self._owed.get(where, 0) + amount
            raise

    def _owe(self, counter: str, window: Window, at: int, amount: int) -> None:
        if window in _LONG:
            where = (counter, window, at)
            self._owed[where] = self._owed.get(where, 0) + amount
