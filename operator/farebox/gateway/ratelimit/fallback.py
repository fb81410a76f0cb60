"""Counts while the shared server is unreachable (docs/decisions/410).

Each replica then counts by itself with its share of each limit. When the server is reachable again, the use
that was counted for quotas is added to the server's counts.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog
from msgspec import structs

from farebox.domain.admission.rate_limits import Adjustment, bucket_start, refunds
from farebox.domain.admission.types import LimitRequest, LimitStatus, Window
from farebox.errors import CountersUnavailable
from farebox.gateway.ratelimit.base import Counters, TakeResult
from farebox.gateway.ratelimit.memory import MemoryCounters

log = structlog.get_logger(__name__)

_QUOTA_WINDOWS: Final = (Window.DAY, Window.MONTH, Window.LIFETIME)
"""Long windows: their counts must survive an outage of the server."""
_Bucket = tuple[str, Window, int]
"""The counter, its window, and the start of the bucket."""


class SharedCounters(Counters, Protocol):
    """Counters on a server. Their methods raise CountersUnavailable when it does not answer."""

    async def reach(self) -> None:
        """Raise CountersUnavailable unless the server answers."""


class EvenShareCounters(MemoryCounters):
    """Counts of one of several replicas without a shared server: each has an even share of every limit."""

    def __init__(self, replicas: int) -> None:
        super().__init__()
        assert replicas > 0
        self._replicas = replicas

    async def take(self, requests: Sequence[LimitRequest], now: int) -> TakeResult:
        """See Counters."""
        return await super().take([share_of(request, self._replicas) for request in requests], now)

    async def read(self, requests: Sequence[LimitRequest], now: int) -> tuple[LimitStatus, ...]:
        """See Counters."""
        return await super().read([share_of(request, self._replicas) for request in requests], now)


def share_of(request: LimitRequest, replicas: int) -> LimitRequest:
    """The request against one replica's share. A request that fits the whole limit still fits the share."""
    if request.window in _QUOTA_WINDOWS:
        return request
    share = max(1, request.limit // replicas)
    return structs.replace(request, limit=max(share, min(request.required, request.limit)))


class FallbackCounters:
    """Shared counts, or this replica's own while the server is unreachable. Never raises CountersUnavailable.

    Args:
        replicas: the number of shares that limits are divided into during an outage.
        retry_seconds: the interval between attempts to reach the server; no other call waits for them.
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
        self._known_totals: dict[tuple[str, Window], tuple[int, int]] = {}
        self._unsynced: dict[_Bucket, int] = {}
        self._undoing: set[asyncio.Future[None]] = set()

    @property
    def away(self) -> bool:
        """Whether this replica counts by itself."""
        return self._next_try is not None

    async def take(self, requests: Sequence[LimitRequest], now: int) -> TakeResult:
        """See Counters."""
        if await self._available(now):
            try:
                result = await self._take_shared(requests, now)
                for each, total in zip(result.consumption, result.totals, strict=True):
                    if each.window in _QUOTA_WINDOWS:
                        bucket = bucket_start(each.window, now)
                        self._known_totals[each.counter, each.window] = (bucket, total)
                return result
            except CountersUnavailable as error:
                await self._fall_back(error, now)
        result = await self._local.take([share_of(request, self._replicas) for request in requests], now)
        for each in result.consumption:
            self._remember(each.counter, each.window, bucket_start(each.window, now), each.amount)
        return result

    async def read(self, requests: Sequence[LimitRequest], now: int) -> tuple[LimitStatus, ...]:
        """See Counters."""
        if await self._available(now):
            try:
                return await self._shared.read(requests, now)
            except CountersUnavailable as error:
                await self._fall_back(error, now)
        return await self._local.read([share_of(request, self._replicas) for request in requests], now)

    async def _take_shared(self, requests: Sequence[LimitRequest], now: int) -> TakeResult:
        """Count on the server. If the call is cancelled meanwhile, its counts are undone later."""
        taking = asyncio.ensure_future(self._shared.take(requests, now))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            undoing = asyncio.ensure_future(self._undo(taking, now))
            self._undoing.add(undoing)
            undoing.add_done_callback(self._undoing.discard)
            raise

    async def _undo(self, taking: asyncio.Future[TakeResult], now: int) -> None:
        try:
            result = await taking
        except CountersUnavailable:
            return
        await self.adjust(refunds(result.consumption, now), now)

    async def adjust(self, adjustments: Sequence[Adjustment], now: int) -> None:
        """See Counters."""
        if await self._available(now):
            try:
                return await self._shared.adjust(adjustments, now)
            except CountersUnavailable as error:
                await self._fall_back(error, now)
        await self._local.adjust(adjustments, now)
        for each in adjustments:
            self._remember(each.counter, each.window, each.bucket, each.amount)
        return None

    async def raise_to(self, counter: str, window: Window, used: int, now: int) -> None:
        """See Counters."""
        bucket = bucket_start(window, now)
        known_bucket, known = self._known_totals.get((counter, window), (bucket, 0))
        self._known_totals[counter, window] = (bucket, max(used, known if known_bucket == bucket else 0))
        if await self._available(now):
            try:
                return await self._shared.raise_to(counter, window, used, now)
            except CountersUnavailable as error:
                await self._fall_back(error, now)
        await self._local.raise_to(counter, window, used, now)
        return None

    async def close(self) -> None:
        """See Counters."""
        if self._undoing:
            await asyncio.wait(self._undoing)
        await self._shared.close()

    async def _available(self, now: int) -> bool:
        """Whether to use the server. After a failure, one call per `retry_seconds` tries it again."""
        if self._next_try is None:
            return True
        if self._clock() < self._next_try:
            return False
        self._next_try = self._clock() + self._retry_seconds
        try:
            await self._shared.reach()
            await self._sync(now)
        except CountersUnavailable:
            return False
        self._next_try = None
        log.info("counters.reachable")
        return True

    async def _fall_back(self, error: CountersUnavailable, now: int) -> None:
        """Count alone from now on; quotas start at their last known totals."""
        if self._next_try is None:
            log.warning("counters.unreachable", error=str(error), share=f"1/{self._replicas}")
            self._local = MemoryCounters()
            for (counter, window), (bucket, used) in self._known_totals.items():
                await self._local.raise_to(counter, window, used, bucket * 1000)
        self._next_try = self._clock() + self._retry_seconds

    async def _sync(self, now: int) -> None:
        """Raise the server's quotas to their known totals, and add the use counted during the outage."""
        for (counter, window), (bucket, used) in list(self._known_totals.items()):
            if bucket == bucket_start(window, now):
                await self._shared.raise_to(counter, window, used, now)
        unsynced, self._unsynced = self._unsynced, {}
        try:
            await self._shared.adjust([Adjustment(*key, amount) for key, amount in unsynced.items()], now)
        except CountersUnavailable:
            for key, amount in unsynced.items():
                self._unsynced[key] = self._unsynced.get(key, 0) + amount
            raise

    def _remember(self, counter: str, window: Window, bucket: int, amount: int) -> None:
        """Keep the use of a quota for `_sync`."""
        if window in _QUOTA_WINDOWS:
            key = (counter, window, bucket)
            self._unsynced[key] = self._unsynced.get(key, 0) + amount
