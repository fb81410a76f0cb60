"""Counts of requests and tokens: taken before a call, corrected after it. All of a call's demands or none.

`Counters` is what the handler asks; `MemoryCounters` keeps them in this process, `counters_valkey` in a
server that all replicas share. Which limits there are, and their arithmetic, is in the domain; nothing is
decided here.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from farebox.domain.limits import (
    WINDOW,
    Adjustment,
    Demand,
    Span,
    Standing,
    Taken,
    amount_taken,
    first_slot,
    period_end,
    period_standing,
    place,
    window_standing,
    window_used,
)


class Answer(Struct, frozen=True):
    """What became of a call's demands: all `taken`, or none, and then where each limit stood.

    `totals` is each count with what was taken.
    """

    taken: tuple[Taken, ...]
    totals: tuple[int, ...] = ()
    standings: tuple[Standing, ...] = ()


class Counters(Protocol):
    """Where amounts are counted."""

    async def take(self, demands: Sequence[Demand], now: int) -> Answer:
        """Count all demands of a call if each of them fits, or none.

        Args:
            now: milliseconds since 1970 UTC.
        """

    async def adjust(self, adjustments: Sequence[Adjustment], now: int) -> None:
        """Correct counts. One that is too old to matter is let go."""

    async def raise_to(self, counter: str, span: Span, used: int, now: int) -> None:
        """Make a period's count at least this: what another source knows was used in it."""

    async def close(self) -> None:
        """End connections."""


class _Window:
    """What is counted in each second, and the sum of what counts since the second `first`."""

    __slots__ = ("first", "slots", "total")

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}
        self.first = 0
        self.total = 0

    def used(self, now: int) -> int:
        """What the window holds: added up once a second, not for each call."""
        first = first_slot(now)
        if self.first != first:
            self.first, self.total = first, window_used(self.slots, now)
        return self.total

    def put(self, slot: int, amount: int) -> None:
        """Count an amount in a second."""
        self.slots[slot] = self.slots.get(slot, 0) + amount
        if slot >= self.first:
            self.total += amount


class MemoryCounters:
    """Counts of this process alone; lost with it. Exact for one replica (docs/decisions/410)."""

    _SWEEP_MS = 60_000

    def __init__(self) -> None:
        self._windows: defaultdict[str, _Window] = defaultdict(_Window)
        self._periods: dict[tuple[str, int], int] = {}
        self._ends: dict[tuple[str, int], int] = {}
        self._swept = 0

    def __len__(self) -> int:
        return len(self._windows) + len(self._periods)

    async def take(self, demands: Sequence[Demand], now: int) -> Answer:
        """See Counters. Nothing else runs meanwhile."""
        if now - self._swept >= self._SWEEP_MS:
            self._sweep(now)
        before, taken, totals = [], [], []
        for demand in demands:
            used = self._used(demand, now)
            if demand.binding and used + demand.must > demand.limit:
                return Answer((), (), tuple(self._standing(each, now) for each in demands))
            before.append(used)
        for demand, used in zip(demands, before, strict=True):
            amount = amount_taken(demand, used)
            self._count(demand.counter, demand.span, place(demand.span, now), amount)
            taken.append(Taken(demand.counter, demand.span, now, amount))
            totals.append(used + amount)
        return Answer(tuple(taken), tuple(totals))

    async def adjust(self, adjustments: Sequence[Adjustment], now: int) -> None:
        """See Counters."""
        for each in adjustments:
            if each.span is WINDOW and each.place < first_slot(now):
                continue
            if each.amount > 0 or self._has(each.counter, each.span, each.place):
                self._count(each.counter, each.span, each.place, each.amount)

    async def raise_to(self, counter: str, span: Span, used: int, now: int) -> None:
        """See Counters."""
        at = place(span, now)
        self._count(counter, span, at, max(0, used - self._periods.get((counter, at), 0)))

    async def close(self) -> None:
        """See Counters."""

    def _standing(self, demand: Demand, now: int) -> Standing:
        if demand.span is WINDOW:
            return window_standing(demand, self._windows[demand.counter].slots, now)
        return period_standing(demand, self._used(demand, now), now)

    def _used(self, demand: Demand, now: int) -> int:
        if demand.span is WINDOW:
            return self._windows[demand.counter].used(now)
        return self._periods.get((demand.counter, place(demand.span, now)), 0)

    def _has(self, counter: str, span: Span, at: int) -> bool:
        """Whether something is counted there: what is taken back is taken from it alone."""
        if span is WINDOW:
            return at in self._windows[counter].slots
        return (counter, at) in self._periods

    def _count(self, counter: str, span: Span, at: int, amount: int) -> None:
        if span is WINDOW:
            self._windows[counter].put(at, amount)
            return
        key = (counter, at)
        self._periods[key] = self._periods.get(key, 0) + amount
        if (end := period_end(span, at * 1000)) is not None:
            self._ends[key] = end

    def _sweep(self, now: int) -> None:
        """Forget what no call can be counted on any more."""
        self._swept = now
        first = first_slot(now)
        for counter, window in list(self._windows.items()):
            window.slots = {slot: amount for slot, amount in window.slots.items() if slot >= first}
            if not window.slots:
                del self._windows[counter]
        for key, end in list(self._ends.items()):
            # A minute longer, for corrections of calls that end just after their period.
            if now > end + self._SWEEP_MS:
                del self._ends[key], self._periods[key]
