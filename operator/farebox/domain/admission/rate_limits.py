"""Arithmetic of limits: how much of a window or a period is used, what fits, and when more will. Pure.

Requests and tokens a minute are counted in a window that slides: 61 slots of a second, so that no 60 seconds,
wherever they begin, have more than the limit. Quotas and reservations are counted in calendar periods of UTC.
Times are milliseconds since 1970 UTC; slots are seconds. Who keeps the counts is not known here.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from msgspec import Struct

WINDOW_SECONDS: Final = 60


class Span(enum.StrEnum):
    """Over which time amounts are added up."""

    WINDOW = "window"
    """The 60 seconds up to now."""
    MINUTE = "minute"
    DAY = "day"
    MONTH = "month"
    LIFETIME = "lifetime"


WINDOW: Final = Span.WINDOW
"""By this name, as every call asks for it: before Python 3.12 the members of an enum are slow to reach."""


class Demand(Struct, frozen=True):
    """What a call wants of one limit.

    Args:
        dimension: the word for it in errors, such as "rpm".
        counter: whose count it is; equal names are one count.
        limit: of the span, above 0.
        must: what has to fit, or the call is refused; at least 1.
        may: what is taken beyond it, as far as there is room.
        binding: False counts all of it and refuses nothing.
    """

    dimension: str
    counter: str
    span: Span
    limit: int
    must: int
    may: int = 0
    binding: bool = True

    def __post_init__(self) -> None:
        assert self.limit > 0, "no limit is no demand"
        assert self.must > 0, "a call that wants nothing would never be refused"
        assert self.may >= 0


class Taken(Struct, frozen=True, array_like=True):
    """What a call took of one count, and at what time; in JSON a list of these."""

    counter: str
    span: Span
    at: int
    amount: int


@dataclass(frozen=True, slots=True)
class Standing:
    """One limit, as a refused call found it.

    Args:
        used: of the span.
        retry_ms: until what had to fit may fit; None if time alone will not help.
        reset_ms: until nothing of what is used now counts any more; None: never.
    """

    demand: Demand
    used: int
    retry_ms: int | None
    reset_ms: int | None

    @property
    def exceeded(self) -> bool:
        """Whether this limit refuses the call."""
        return self.demand.binding and self.used + self.demand.must > self.demand.limit

    @property
    def remaining(self) -> int:
        """What is left of the span."""
        return max(0, self.demand.limit - self.used)


class Adjustment(Struct, frozen=True):
    """An amount to add to a count at one place of it: the slot of a window, the start of a period."""

    counter: str
    span: Span
    place: int
    amount: int


def place(span: Span, now: int) -> int:
    """Where an amount of this moment is counted: the second, or the second in which the period begins."""
    second = now // 1000
    if span is WINDOW:
        return second
    if span is Span.MINUTE:
        return second - second % 60
    if span is Span.LIFETIME:
        return 0
    moment = datetime.fromtimestamp(second, UTC).replace(hour=0, minute=0, second=0)
    return int((moment.replace(day=1) if span is Span.MONTH else moment).timestamp())


def period_end(span: Span, now: int) -> int | None:
    """When the calendar period of this moment ends; None: never."""
    if span is Span.LIFETIME:
        return None
    start = place(span, now)
    if span is Span.MONTH:
        later = datetime.fromtimestamp(start, UTC) + timedelta(days=32)
        return int(later.replace(day=1).timestamp()) * 1000
    return (start + {Span.MINUTE: 60, Span.DAY: 86_400}[span]) * 1000


def first_slot(now: int) -> int:
    """The oldest slot that still counts: the one that the moment 60 seconds ago is in."""
    return now // 1000 - WINDOW_SECONDS


def window_used(slots: Mapping[int, int], now: int) -> int:
    """What a window holds; older slots do not count."""
    first = first_slot(now)
    return sum(amount for slot, amount in slots.items() if slot >= first)


def window_standing(demand: Demand, slots: Mapping[int, int], now: int) -> Standing:
    """How a limit stands whose count is a window."""
    used = window_used(slots, now)
    live = sorted((slot, amount) for slot, amount in slots.items() if slot >= first_slot(now) and amount)
    excess = used + demand.must - demand.limit
    retry: int | None = 0
    if demand.must > demand.limit:
        retry = None
    elif excess > 0:
        retry = _until_freed(live, excess, now)
    return Standing(demand, used, retry, _leaves(live[-1][0], now) if live else 0)


def period_standing(demand: Demand, used: int, now: int) -> Standing:
    """How a limit stands whose count is a calendar period's."""
    end = period_end(demand.span, now)
    reset = None if end is None else end - now
    fits = used + demand.must <= demand.limit
    return Standing(demand, used, 0 if fits else None if demand.must > demand.limit else reset, reset)


def amount_taken(demand: Demand, used: int) -> int:
    """What a demand takes of a count that has room for it: all that must fit, and what else does."""
    if not demand.binding:
        return demand.must + demand.may
    room = demand.limit - used - demand.must
    assert room >= 0, "what does not fit is not taken"
    return demand.must + min(demand.may, room)


def first_exceeded(standings: Sequence[Standing]) -> Standing | None:
    """The limit that refuses a call, if one does: the first of them."""
    for standing in standings:
        if standing.exceeded:
            return standing
    return None


def corrections(taken: Taken, actual: int, now: int) -> list[Adjustment]:
    """What to add to a count when it is known what a call used.

    In a window, what was taken too much goes back to where it was taken, and what was taken too little counts
    now. In a period, what a call used counts in the one that it ended in.
    """
    assert actual >= 0
    before, after = place(taken.span, taken.at), place(taken.span, now)
    difference = actual - taken.amount
    if taken.span is WINDOW:
        moves = [(before if difference < 0 else after, difference)]
    elif before == after:
        moves = [(before, difference)]
    else:
        moves = [(before, -taken.amount), (after, actual)]
    return [Adjustment(taken.counter, taken.span, where, amount) for where, amount in moves if amount]


def returned(taken: Sequence[Taken], now: int) -> list[Adjustment]:
    """What to add to counts of which a call that is not made had taken this."""
    return [change for each in taken for change in corrections(each, 0, now)]


def _until_freed(live: Sequence[tuple[int, int]], excess: int, now: int) -> int:
    """Milliseconds until slots with so much in them have left the window."""
    for slot, amount in live:
        excess -= amount
        if excess <= 0:
            return _leaves(slot, now)
    # Only where slots are negative: counts that were lost and then corrected. The whole window is safe.
    return (WINDOW_SECONDS + 1) * 1000


def _leaves(slot: int, now: int) -> int:
    """Milliseconds until a slot does not count any more."""
    return max(0, (slot + WINDOW_SECONDS + 1) * 1000 - now)
