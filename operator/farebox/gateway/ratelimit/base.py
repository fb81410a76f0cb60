"""The interface of counts of requests and tokens: taken before a call, adjusted after it.

`memory` keeps them in this process, `valkey` in a server that all replicas share, and `fallback` combines
both. The limits and their arithmetic are in `farebox.domain.admission.rate_limits`; nothing is decided here.
"""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from farebox.domain.admission.rate_limits import Adjustment, Consumption, counted_status
from farebox.domain.admission.types import LimitRequest, LimitStatus, Window


class TakeResult(Struct, frozen=True):
    """The result of `Counters.take`: all requests are counted, or none.

    Args:
        consumption: what was counted; empty if a limit refused.
        totals: each count, including what was counted.
        requests: the limit requests as they were applied, each with a replica's share of the limit.
        limit_statuses: the status of every limit if one refused; otherwise empty.
    """

    consumption: tuple[Consumption, ...]
    totals: tuple[int, ...] = ()
    requests: tuple[LimitRequest, ...] = ()
    limit_statuses: tuple[LimitStatus, ...] = ()

    def statuses_after(self, now: int) -> tuple[LimitStatus, ...]:
        """The status of every limit after the call was counted at `now`, without asking the store again."""
        return tuple(
            counted_status(request, total, now)
            for request, total in zip(self.requests, self.totals, strict=True)
        )


class Counters(Protocol):
    """A store of counts. `now` is milliseconds since 1970 UTC."""

    async def take(self, requests: Sequence[LimitRequest], now: int) -> TakeResult:
        """Count all limit requests of a call if each of them fits, or none."""

    async def read(self, requests: Sequence[LimitRequest], now: int) -> tuple[LimitStatus, ...]:
        """The status of each limit, without counting anything."""

    async def adjust(self, adjustments: Sequence[Adjustment], now: int) -> None:
        """Correct counts. Adjustments of expired buckets are ignored."""

    async def raise_to(self, counter: str, window: Window, used: int, now: int) -> None:
        """Raise the count of a period to `used`, which another source knows; never lower it."""

    async def close(self) -> None:
        """Close connections."""
