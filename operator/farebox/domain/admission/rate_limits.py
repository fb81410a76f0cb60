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

SLIDING_SECONDS: Final = 60


class Window(enum.StrEnum):
    """Over which time amounts are added up."""

    SLIDING = "window"
    """The 60 seconds up to now."""
    MINUTE = "minute"
    DAY = "day"
    MONTH = "month"
    LIFETIME = "lifetime"


SLIDING: Final = Window.SLIDING
"""By this name, as every call asks for it: before Python 3.12 the members of an enum are slow to reach."""


class LimitRequest(Struct, frozen=True):
    """What a call wants of one limit.

    Args:
        dimension: the word for it in errors, such as "rpm".
        counter: whose count it is; equal names are one count.
        limit: of the window, above 0.
        must: what has to fit, or the call is refused; at least 1.
        may: what is taken beyond it, as far as there is room.
        binding: False counts all of it and refuses nothing.
    """

    dimension: str
    counter: str
    window: Window
    limit: int
    required: int
    optional: int = 0
    enforced: bool = True

    def __post_init__(self) -> None:
        assert self.limit > 0, "no limit is no demand"
        assert self.required > 0, "a call that wants nothing would never be refused"
        assert self.optional >= 0


class Consumption(Struct, frozen=True, array_like=True):
    """What a call took of one count, and at what time; in JSON a list of these."""

    counter: str
    window: Window
    at: int
    amount: int


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """One limit, as a refused call found it.

    Args:
        used: of the window.
        retry_ms: until what had to fit may fit; None if time alone will not help.
        reset_ms: until nothing of what is used now counts any more; None: never.
    """

    request: LimitRequest
    used: int
    retry_ms: int | None
    reset_ms: int | None

    @property
    def exceeded(self) -> bool:
        """Whether this limit refuses the call."""
        return self.request.enforced and self.used + self.request.required > self.request.limit

    @property
    def remaining(self) -> int:
        """What is left of the window."""
        return max(0, self.request.limit - self.used)


class Adjustment(Struct, frozen=True):
    """An amount to add to a count at one place of it: the slot of a window, the start of a period."""

    counter: str
    window: Window
    bucket: int
    amount: int


def bucket_start(window: Window, now: int) -> int:
    """Where an amount of this moment is counted: the second, or the second in which the period begins."""
    second = now // 1000
    if window is SLIDING:
        return second
    if window is Window.MINUTE:
        return second - second % 60
    if window is Window.LIFETIME:
        return 0
    moment = datetime.fromtimestamp(second, UTC).replace(hour=0, minute=0, second=0)
    return int((moment.replace(day=1) if window is Window.MONTH else moment).timestamp())


def period_end(window: Window, now: int) -> int | None:
    """When the calendar period of this moment ends; None: never."""
    if window is Window.LIFETIME:
        return None
    start = bucket_start(window, now)
    if window is Window.MONTH:
        later = datetime.fromtimestamp(start, UTC) + timedelta(days=32)
        return int(later.replace(day=1).timestamp()) * 1000
    return (start + {Window.MINUTE: 60, Window.DAY: 86_400}[window]) * 1000


def first_slot(now: int) -> int:
    """The oldest slot that still counts: the one that the moment 60 seconds ago is in."""
    return now // 1000 - SLIDING_SECONDS


def sliding_used(slots: Mapping[int, int], now: int) -> int:
    """What a window holds; older slots do not count."""
    first = first_slot(now)
    return sum(amount for slot, amount in slots.items() if slot >= first)


def sliding_status(demand: LimitRequest, slots: Mapping[int, int], now: int) -> LimitStatus:
    """How a limit stands whose count is a window."""
    used = sliding_used(slots, now)
    live = sorted((slot, amount) for slot, amount in slots.items() if slot >= first_slot(now) and amount)
    excess = used + demand.required - demand.limit
    retry: int | None = 0
    if demand.required > demand.limit:
        retry = None
    elif excess > 0:
        retry = _until_freed(live, excess, now)
    return LimitStatus(demand, used, retry, _leaves(live[-1][0], now) if live else 0)


def period_status(demand: LimitRequest, used: int, now: int) -> LimitStatus:
    """How a limit stands whose count is a calendar period's."""
    end = period_end(demand.window, now)
    reset = None if end is None else end - now
    fits = used + demand.required <= demand.limit
    return LimitStatus(demand, used, 0 if fits else None if demand.required > demand.limit else reset, reset)


def amount_to_take(demand: LimitRequest, used: int) -> int:
    """What a demand takes of a count that has room for it: all that must fit, and what else does."""
    if not demand.enforced:
        return demand.required + demand.optional
    room = demand.limit - used - demand.required
    assert room >= 0, "what does not fit is not taken"
    return demand.required + min(demand.optional, room)


def first_exceeded(limit_statuses: Sequence[LimitStatus]) -> LimitStatus | None:
    """The limit that refuses a call, if one does: the first of them."""
    for limit_status in limit_statuses:
        if limit_status.exceeded:
            return limit_status
    return None


def corrections(taken: Consumption, actual: int, now: int) -> list[Adjustment]:
    """What to add to a count when it is known what a call used.

    In a window, what was taken too much goes back to where it was taken, and what was taken too little counts
    now. In a period, what a call used counts in the one that it ended in.
    """
    assert actual >= 0
    before, after = bucket_start(taken.window, taken.at), bucket_start(taken.window, now)
    difference = actual - taken.amount
    if taken.window is SLIDING:
        moves = [(before if difference < 0 else after, difference)]
    elif before == after:
        moves = [(before, difference)]
    else:
        moves = [(before, -taken.amount), (after, actual)]
    return [Adjustment(taken.counter, taken.window, where, amount) for where, amount in moves if amount]


def refunds(taken: Sequence[Consumption], now: int) -> list[Adjustment]:
    """What to add to counts of which a call that is not made had taken this."""
    return [change for each in taken for change in corrections(each, 0, now)]


def _until_freed(live: Sequence[tuple[int, int]], excess: int, now: int) -> int:
    """Milliseconds until slots with so much in them have left the window."""
    for slot, amount in live:
        excess -= amount
        if excess <= 0:
            return _leaves(slot, now)
    # Only where slots are negative: counts that were lost and then corrected. The whole window is safe.
    return (SLIDING_SECONDS + 1) * 1000


def _leaves(slot: int, now: int) -> int:
    """Milliseconds until a slot does not count any more."""
    return max(0, (slot + SLIDING_SECONDS + 1) * 1000 - now)
