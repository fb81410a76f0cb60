"""Counts refused calls by minute, service, key and code, and sends the counts to the meter (B32).

Counts are kept in memory. A killed process loses those of the last SEND_SECONDS; one that ends in order sends
them first. What callers choose freely, such as names of models, is never part of a count, so their number is
bounded by the objects of the cluster.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple, Protocol

import structlog

from farebox.errors import LedgerRefused, LedgerUnavailable
from farebox.meterapi.refusals import RefusalCount

log = structlog.get_logger(__name__)
SEND_SECONDS: Final = 10.0
FLUSH_SECONDS: Final = 5.0
"""The time that the last counts have at the end of the process."""
MAX_COUNTS: Final = 20_000
"""Counts that are kept while the meter is unreachable. The oldest minutes are dropped first."""
_KEEP: Final = timedelta(minutes=2)
"""A count is complete, and is dropped after it was sent, when its minute began this long ago."""


class Refused(NamedTuple):
    """What is counted together within a minute. Unknown names are None, an unknown namespace is ""."""

    namespace: str
    service: str | None
    api_key: str | None
    code: str
    status: int


class RefusalReceiver(Protocol):
    """Where counts are sent (`MeterClient`)."""

    async def report_refusals(self, source: str, refusals: Sequence[RefusalCount]) -> int:
        """Store counts. Raises LedgerRefused and LedgerUnavailable."""


class RefusalCounter:
    """The refused calls of this process. `limit` bounds how many counts it keeps."""

    def __init__(self, limit: int = MAX_COUNTS) -> None:
        self._limit = limit
        self._minutes: dict[datetime, dict[Refused, int]] = {}
        self._unsent: set[tuple[datetime, Refused]] = set()
        self._size = 0

    def add(self, refused: Refused, now: datetime) -> None:
        """Count one refused call."""
        minute = now.replace(second=0, microsecond=0)
        counts = self._minutes.get(minute)
        if counts is None:
            counts = self._minutes[minute] = {}
        before = counts.get(refused, 0)
        counts[refused] = before + 1
        self._unsent.add((minute, refused))
        if not before:
            self._size += 1
            if self._size > self._limit:
                self._drop_oldest()

    def unsent(self) -> list[RefusalCount]:
        """The counts that grew since they were sent, each as the total of its minute."""
        return [
            RefusalCount(minute, *refused, self._minutes[minute][refused])
            for minute, refused in sorted(self._unsent, key=lambda each: each[0])
        ]

    async def run(self, meter: RefusalReceiver, source: str) -> None:
        """Send counts at intervals, if there are any. Never returns."""
        while True:
            await asyncio.sleep(SEND_SECONDS)
            await self.send(meter, source)

    async def close(self, meter: RefusalReceiver, source: str) -> None:
        """Send the last counts."""
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await self.send(meter, source)
        except TimeoutError:
            log.warning("refusals.lost", counts=len(self._unsent))

    async def send(self, meter: RefusalReceiver, source: str) -> None:
        """Send what the meter does not have. If it is unreachable, the next call sends it."""
        counts = self.unsent()
        if not counts:
            return
        try:
            await meter.report_refusals(source, counts)
        except LedgerUnavailable as error:
            log.warning("refusals.unsent", counts=len(counts), error=str(error))
            return
        except LedgerRefused as refusal:
            log.error("refusals.refused", counts=len(counts), reason=refusal.reason, error=refusal.message)
        self._sent(counts)

    def _sent(self, counts: Sequence[RefusalCount]) -> None:
        """Forget what was sent and has not grown meanwhile; keep the totals of minutes that may grow."""
        latest = counts[-1].minute
        for each in counts:
            refused = Refused(each.namespace, each.service, each.api_key, each.code, each.status)
            if self._minutes.get(each.minute, {}).get(refused) == each.count:
                self._unsent.discard((each.minute, refused))
        waiting = {minute for minute, _ in self._unsent}
        for minute in [each for each in self._minutes if each <= latest - _KEEP and each not in waiting]:
            self._size -= len(self._minutes.pop(minute))

    def _drop_oldest(self) -> None:
        oldest = min(self._minutes)
        dropped = self._minutes.pop(oldest)
        self._size -= len(dropped)
        self._unsent = {each for each in self._unsent if each[0] != oldest}
        log.warning("refusals.dropped", minute=oldest.isoformat(), counts=len(dropped))
