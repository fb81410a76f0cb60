"""Counts of requests and tokens: taken before a call, corrected after it. All of a call's demands or none.

`Counters` is what the handler asks; `MemoryCounters` keeps them in this process, `counters_valkey` in a
server that all replicas share. Which limits there are, and their arithmetic, is in the domain; nothing is
decided here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from farebox.domain.limits import (
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


@dataclass(frozen=True, slots=True)
class Answer:
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


class MemoryCounters:
    """Counts of this process alone; lost with it. Exact for one replica (docs/decisions/410)."""

    _SWEEP_MS = 60_000

    def __init__(self) -> None:
        self._windows: dict[str, dict[int, int]] = {}
        self._totals: dict[str, tuple[int, int]] = {}
        self._periods: dict[tuple[str, int], int] = {}
        self._ends: dict[tuple[str, int], int] = {}
        self._swept = 0

    def __len__(self) -> int:
        return len(self._windows) + len(self._periods)

    async def take(self, demands: Sequence[Demand], now: int) -> Answer:
        """See Counters. Nothing else runs meanwhile."""
        self._sweep(now)
        used = [self._used(demand, now) for demand in demands]
        if any(
            each.binding and amount + each.must > each.limit
            for each, amount in zip(demands, used, strict=True)
        ):
            return Answer((), (), tuple(self._standing(demand, now) for demand in demands))
        taken = tuple(self._count(demand, amount, now) for demand, amount in zip(demands, used, strict=True))
        return Answer(taken, tuple(amount + each.amount for amount, each in zip(used, taken, strict=True)))

    async def adjust(self, adjustments: Sequence[Adjustment], now: int) -> None:
        """See Counters."""
        for each in adjustments:
            if each.span is Span.WINDOW:
                self._adjust_window(each, now)
            elif each.amount > 0 or (each.counter, each.place) in self._periods:
                self._add(each.counter, each.span, each.place, each.amount)

    async def raise_to(self, counter: str, span: Span, used: int, now: int) -> None:
        """See Counters."""
        at = place(span, now)
        self._add(counter, span, at, max(0, used - self._periods.get((counter, at), 0)))

    async def close(self) -> None:
        """See Counters."""

    def _standing(self, demand: Demand, now: int) -> Standing:
        if demand.span is Span.WINDOW:
            return window_standing(demand, self._windows.get(demand.counter, {}), now)
        used = self._periods.get((demand.counter, place(demand.span, now)), 0)
        return period_standing(demand, used, now)

    def _used(self, demand: Demand, now: int) -> int:
        if demand.span is Span.WINDOW:
            return self._window_used(demand.counter, now)
        return self._periods.get((demand.counter, place(demand.span, now)), 0)

    def _count(self, demand: Demand, used: int, now: int) -> Taken:
        at, amount = place(demand.span, now), amount_taken(demand, used)
        if demand.span is Span.WINDOW:
            self._put(demand.counter, at, amount)
        else:
            self._add(demand.counter, demand.span, at, amount)
        return Taken(demand.counter, demand.span, now, amount)

    def _adjust_window(self, adjustment: Adjustment, now: int) -> None:
        slots = self._windows.setdefault(adjustment.counter, {})
        if adjustment.place >= first_slot(now) and (adjustment.amount > 0 or adjustment.place in slots):
            self._put(adjustment.counter, adjustment.place, adjustment.amount)

    def _window_used(self, counter: str, now: int) -> int:
        """What a window holds: added up once a second, not for each call."""
        first, total = self._totals.get(counter, (None, 0))
        if first != first_slot(now):
            total = window_used(self._windows.get(counter, {}), now)
            self._totals[counter] = (first_slot(now), total)
        return total

    def _put(self, counter: str, slot: int, amount: int) -> None:
        slots = self._windows.setdefault(counter, {})
        slots[slot] = slots.get(slot, 0) + amount
        known = self._totals.get(counter)
        if known is not None and slot >= known[0]:
            self._totals[counter] = (known[0], known[1] + amount)

    def _add(self, counter: str, span: Span, at: int, amount: int) -> None:
        key = (counter, at)
        self._periods[key] = self._periods.get(key, 0) + amount
        if (end := period_end(span, at * 1000)) is not None:
            self._ends[key] = end

    def _sweep(self, now: int) -> None:
        """Forget what no call can be counted on any more."""
        if now - self._swept < self._SWEEP_MS:
            return
        self._swept = now
        self._totals.clear()
        first = first_slot(now)
        for counter, slots in list(self._windows.items()):
            live = {slot: amount for slot, amount in slots.items() if slot >= first}
            if live:
                self._windows[counter] = live
            else:
                del self._windows[counter]
        for key, end in list(self._ends.items()):
            # A minute longer, for corrections of calls that end just after their period.
            if now > end + self._SWEEP_MS:
                del self._ends[key], self._periods[key]
