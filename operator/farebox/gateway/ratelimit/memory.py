"""Counts in this process. All limit requests of a call are counted, or none."""

from collections import defaultdict
from collections.abc import Sequence

from farebox.domain.admission.rate_limits import (
    SLIDING_SECONDS,
    Adjustment,
    Consumption,
    amount_to_take,
    bucket_start,
    first_slot,
    period_end,
    period_status,
    sliding_status,
    sliding_used,
)
from farebox.domain.admission.types import SLIDING, LimitRequest, LimitStatus, Window
from farebox.gateway.ratelimit.base import TakeResult


class _Window:
    """Amounts by second, and their sum at the second of the latest query."""

    __slots__ = ("_at", "_sum", "slots")

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}
        self._at = self._sum = 0

    def used(self, bucket: int) -> int:
        """The sum of the window, computed once a second rather than for each call."""
        if self._at != bucket:
            self._at, self._sum = bucket, sliding_used(self.slots, bucket * 1000)
        return self._sum

    def add(self, bucket: int, amount: int) -> None:
        """Add an amount to a bucket."""
        self.slots[bucket] = self.slots.get(bucket, 0) + amount
        if bucket >= self._at - SLIDING_SECONDS:
            self._sum += amount

    def has(self, bucket: int) -> bool:
        """Whether the bucket has an amount."""
        return bucket in self.slots


class _Period:
    """The amount of one calendar period, and the end of the period."""

    __slots__ = ("amount", "end")

    def __init__(self, end: int | None) -> None:
        self.amount = 0
        self.end = end

    def used(self, bucket: int) -> int:
        """The amount."""
        return self.amount

    def add(self, bucket: int, amount: int) -> None:
        """Add an amount to a bucket."""
        self.amount += amount

    def has(self, bucket: int) -> bool:
        """Whether there is an amount."""
        return self.amount > 0


class MemoryCounters:
    """Counts of this process, lost when it ends. Exact for a single replica (docs/decisions/410)."""

    _SWEEP_MS = 60_000

    def __init__(self) -> None:
        self._windows: defaultdict[str, _Window] = defaultdict(_Window)
        self._periods: dict[tuple[str, int], _Period] = {}
        self._swept = 0

    def __len__(self) -> int:
        return len(self._windows) + len(self._periods)

    async def take(self, requests: Sequence[LimitRequest], now: int) -> TakeResult:
        """See Counters. It never awaits, so no other call runs in between."""
        if now - self._swept >= self._SWEEP_MS:
            self._sweep(now)
        found, consumption, totals = [], [], []
        for request in requests:
            bucket = bucket_start(request.window, now)
            count = self._count(request.counter, request.window, bucket)
            used = count.used(bucket)
            if request.enforced and used + request.required > request.limit:
                return TakeResult(
                    (), limit_statuses=tuple(self._limit_status(each, now) for each in requests)
                )
            found.append((request, bucket, count, used))
        for request, bucket, count, used in found:
            amount = amount_to_take(request, used)
            count.add(bucket, amount)
            consumption.append(Consumption(request.counter, request.window, now, amount))
            totals.append(used + amount)
        return TakeResult(tuple(consumption), tuple(totals), tuple(requests))

    async def read(self, requests: Sequence[LimitRequest], now: int) -> tuple[LimitStatus, ...]:
        """See Counters."""
        return tuple(self._limit_status(each, now) for each in requests)

    async def adjust(self, adjustments: Sequence[Adjustment], now: int) -> None:
        """See Counters."""
        for each in adjustments:
            if each.window is SLIDING and each.bucket < first_slot(now):
                continue
            count = self._count(each.counter, each.window, each.bucket)
            if each.amount > 0 or count.has(each.bucket):
                count.add(each.bucket, each.amount)

    async def raise_to(self, counter: str, window: Window, used: int, now: int) -> None:
        """See Counters."""
        bucket = bucket_start(window, now)
        count = self._count(counter, window, bucket)
        count.add(bucket, max(0, used - count.used(bucket)))

    async def close(self) -> None:
        """See Counters."""

    def _count(self, counter: str, window: Window, bucket: int) -> _Window | _Period:
        if window is SLIDING:
            return self._windows[counter]
        count = self._periods.get((counter, bucket))
        if count is None:
            count = self._periods[counter, bucket] = _Period(period_end(window, bucket * 1000))
        return count

    def _limit_status(self, request: LimitRequest, now: int) -> LimitStatus:
        if request.window is SLIDING:
            return sliding_status(request, self._windows[request.counter].slots, now)
        bucket = bucket_start(request.window, now)
        return period_status(request, self._count(request.counter, request.window, bucket).used(bucket), now)

    def _sweep(self, now: int) -> None:
        """Drop expired slots and periods."""
        self._swept = now
        first = first_slot(now)
        for counter, window in list(self._windows.items()):
            window.slots = {slot: amount for slot, amount in window.slots.items() if slot >= first}
            if not window.slots:
                del self._windows[counter]
        for key, period in list(self._periods.items()):
            # One minute of grace, for adjustments by calls that end just after their period.
            if period.end is not None and now > period.end + self._SWEEP_MS:
                del self._periods[key]
