"""Counts of requests and tokens: taken before a call, corrected after it. All of a call's demands or none.

`Counters` is what the handler asks; `MemoryCounters` keeps them in this process, `counters_valkey` in a
server that all replicas share. Which limits there are, and their arithmetic, is in the domain; nothing is
decided here.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from farebox.domain.admission.rate_limits import (
    SLIDING,
    SLIDING_SECONDS,
    Adjustment,
    Consumption,
    LimitRequest,
    LimitStatus,
    Window,
    amount_to_take,
    bucket_start,
    first_slot,
    period_end,
    period_status,
    sliding_status,
    sliding_used,
)


class TakeResult(Struct, frozen=True):
    """What became of a call's demands: all `taken`, or none, and then where each limit stood.

    `totals` is each count with what was taken.
    """

    taken: tuple[Consumption, ...]
    totals: tuple[int, ...] = ()
    limit_statuses: tuple[LimitStatus, ...] = ()


class Counters(Protocol):
    """Where amounts are counted."""

    async def take(self, demands: Sequence[LimitRequest], now: int) -> TakeResult:
        """Count all demands of a call if each of them fits, or none.

        Args:
            now: milliseconds since 1970 UTC.
        """

    async def adjust(self, adjustments: Sequence[Adjustment], now: int) -> None:
        """Correct counts. One that is too old to matter is let go."""

    async def raise_to(self, counter: str, window: Window, used: int, now: int) -> None:
        """Make a period's count at least this: what another source knows was used in it."""

    async def close(self) -> None:
        """End connections."""


class _Window:
    """What is counted in each second, and the sum of what counted in the second `at`."""

    __slots__ = ("_at", "_sum", "slots")

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}
        self._at = self._sum = 0

    def used(self, at: int) -> int:
        """What the window holds: added up once a second, not for each call."""
        if self._at != at:
            self._at, self._sum = at, sliding_used(self.slots, at * 1000)
        return self._sum

    def add(self, at: int, amount: int) -> None:
        """Count an amount."""
        self.slots[at] = self.slots.get(at, 0) + amount
        if at >= self._at - SLIDING_SECONDS:
            self._sum += amount

    def has(self, at: int) -> bool:
        """Whether something was counted then."""
        return at in self.slots


class _Period:
    """What is counted in one calendar period, and when that ends."""

    __slots__ = ("amount", "end")

    def __init__(self, end: int | None) -> None:
        self.amount = 0
        self.end = end

    def used(self, at: int) -> int:
        """What was counted in it."""
        return self.amount

    def add(self, at: int, amount: int) -> None:
        """Count an amount."""
        self.amount += amount

    def has(self, at: int) -> bool:
        """Whether something was counted in it."""
        return self.amount > 0


class MemoryCounters:
    """Counts of this process alone; lost with it. Exact for one replica (docs/decisions/410)."""

    _SWEEP_MS = 60_000

    def __init__(self) -> None:
        self._windows: defaultdict[str, _Window] = defaultdict(_Window)
        self._periods: dict[tuple[str, int], _Period] = {}
        self._swept = 0

    def __len__(self) -> int:
        return len(self._windows) + len(self._periods)

    async def take(self, demands: Sequence[LimitRequest], now: int) -> TakeResult:
        """See Counters. Nothing else runs meanwhile."""
        if now - self._swept >= self._SWEEP_MS:
            self._sweep(now)
        found, taken, totals = [], [], []
        for demand in demands:
            at = bucket_start(demand.window, now)
            count = self._count(demand.counter, demand.window, at)
            used = count.used(at)
            if demand.enforced and used + demand.required > demand.limit:
                return TakeResult((), (), tuple(self._limit_status(each, now) for each in demands))
            found.append((demand, at, count, used))
        for demand, at, count, used in found:
            amount = amount_to_take(demand, used)
            count.add(at, amount)
            taken.append(Consumption(demand.counter, demand.window, now, amount))
            totals.append(used + amount)
        return TakeResult(tuple(taken), tuple(totals))

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
        at = bucket_start(window, now)
        count = self._count(counter, window, at)
        count.add(at, max(0, used - count.used(at)))

    async def close(self) -> None:
        """See Counters."""

    def _count(self, counter: str, window: Window, at: int) -> _Window | _Period:
        if window is SLIDING:
            return self._windows[counter]
        count = self._periods.get((counter, at))
        if count is None:
            count = self._periods[counter, at] = _Period(period_end(window, at * 1000))
        return count

    def _limit_status(self, demand: LimitRequest, now: int) -> LimitStatus:
        if demand.window is SLIDING:
            return sliding_status(demand, self._windows[demand.counter].slots, now)
        at = bucket_start(demand.window, now)
        return period_status(demand, self._count(demand.counter, demand.window, at).used(at), now)

    def _sweep(self, now: int) -> None:
        """Forget what no call can be counted on any more."""
        self._swept = now
        first = first_slot(now)
        for counter, window in list(self._windows.items()):
            window.slots = {slot: amount for slot, amount in window.slots.items() if slot >= first}
            if not window.slots:
                del self._windows[counter]
        for key, period in list(self._periods.items()):
            # A minute longer, for corrections of calls that end just after their period.
            if period.end is not None and now > period.end + self._SWEEP_MS:
                del self._periods[key]
