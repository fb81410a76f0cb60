"""Brings usage from Envoy's log to the meter, each call once, whatever dies or is away meanwhile.

The log on the disk is the queue. A bookmark says up to where the meter has acknowledged; what comes behind it
is sent until it is, and may be sent twice: the meter counts (source, request id) once (B12). Two loops: one
reads the log as it grows and tells the process (`on_usage`), the other sends. The first never waits for the
second, so limits are corrected while the meter is away.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from farebox.errors import LedgerUnavailable
from farebox.gateway.metering import usage
from farebox.gateway.metering.log_segments import Checkpoint, LogSegments, Position
from farebox.gateway.metering.publisher import (
    BATCH_EVENTS,
    Event,
    PublishResult,
    RejectedEvent,
    UsageSink,
    event_of,
)
from farebox.gateway.metering.usage import BilledTokens, InvalidLine, UsageLine
from farebox.meterapi.types import CreditLease
from farebox.metrics import GATEWAY_USAGE, GATEWAY_USAGE_RETRIES

POLL_SECONDS: Final = 0.01
_MANY_LINES: Final = 50
"""After so many at once more are looked for without a pause. A look for each line would cost more than it."""
ROTATE_BYTES: Final = 64 * 2**20
READ_AHEAD: Final = 20_000
"""Lines kept in memory between the loops; what does not fit is read from the disk again."""
BOOKMARK_SECONDS: Final = 0.5
"""Seconds between two writes of it: what is behind it is sent again after a crash, and counted once."""
_RETRY_SECONDS: Final = (0.1, 10.0)
_REOPEN_SECONDS: Final = 1.0

_log = structlog.get_logger(__name__)

OnUsage = Callable[[UsageLine, BilledTokens | None], None]
"""Hears of a call that has ended, and what it has to pay."""
OnAcknowledged = Callable[[Sequence[str], Sequence[CreditLease], int], None]
Reopen = Callable[[], Awaitable[None]]
"""Tells Envoy to open its log anew; raises OSError if it cannot be told now."""


class _Entry(NamedTuple):
    """A line of the log: where it begins, the place behind it, and what of it goes to the meter."""

    start: Position
    end: Position
    event: Event | None


@dataclass
class Counts:
    """What has happened since the start, for metrics and tests."""

    lines: int = 0
    invalid_lines: int = 0
    sent: int = 0
    rejected: int = 0
    retries: int = 0


class Outbox:
    """One log and its way to the meter. `run` does all the work."""

    def __init__(
        self,
        log_file: Path,
        source: str,
        events: UsageSink,
        reopen: Reopen,
        on_usage: OnUsage = lambda _line, _paid: None,
        on_acknowledged: OnAcknowledged = lambda _calls, _leases, _sequence: None,
    ) -> None:
        """Nothing is read before `run`.

        Args:
            log_file: Envoy's; the bookmark and rejected events are beside it.
            source: this gateway's name in the ledger, the same after a restart with the same directory.
            on_usage: hears of each line as soon as it is in the log; after a restart once more of those
                that the meter had not acknowledged.
            on_acknowledged: hears of calls that the ledger has charged, or never will, by their request ids,
                of what is left of leases, and up to which number the feed has it (Receipt).
        """
        self._bookmark = Checkpoint(log_file.with_suffix(".done"))
        self._rejected = log_file.with_suffix(".rejected")
        self._segments = LogSegments(log_file, self._bookmark.load())
        self._source = source
        self._events = events
        self._reopen = reopen
        self._on_usage = on_usage
        self._on_acknowledged = on_acknowledged
        self._read_to = self._segments.start
        self._done_to = self._segments.start
        self._saved = self._segments.start
        self._saving: asyncio.Task[None] | None = None
        self._ahead: deque[_Entry] = deque()
        self._news = asyncio.Event()
        self.rotate_bytes = ROTATE_BYTES
        self.counts = Counts()

    async def run(self, stop: asyncio.Event, last_seconds: float = 5.0) -> None:
        """Read and send until `stop` is set; then what is in the log, for at most `last_seconds`."""
        reading = asyncio.create_task(self._read_forever())
        sending = asyncio.create_task(self._send_forever())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({reading, sending, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                await asyncio.wait(
                    {reading, sending, asyncio.create_task(self._all_done())},
                    timeout=last_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            for task in (reading, sending, stopping):
                task.cancel()
            ended = await asyncio.gather(reading, sending, return_exceptions=True)
            await self._save()
            self._segments.close()
        for error in ended:
            if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
                raise error

    @property
    def behind(self) -> bool:
        """Whether lines that were read wait for the meter."""
        return self._done_to < self._read_to

    def backlog(self) -> tuple[int, datetime | None]:
        """What the meter has not taken: bytes of the log, and the end of the first call in them."""
        return self._segments.bytes_behind(self._done_to), self._first_time()

    def _first_time(self) -> datetime | None:
        piece = self._segments.read(self._done_to)
        if piece.end.number > self._done_to.number and not piece.lines:
            piece = self._segments.read(piece.end)
        for line in piece.lines:
            with contextlib.suppress(InvalidLine):
                return usage.parse(line).time
        return None

    # Reading.

    async def _read_forever(self) -> None:
        loop = asyncio.get_running_loop()
        reopen_at = loop.time()
        while True:
            if self._read_some() >= _MANY_LINES:
                await asyncio.sleep(0)
                continue
            self._segments.rotate_if_over(self.rotate_bytes)
            if self._segments.awaits_envoy and loop.time() >= reopen_at:
                reopen_at = loop.time() + _REOPEN_SECONDS
                await self._tell_envoy()
            await asyncio.sleep(POLL_SECONDS)

    async def _tell_envoy(self) -> None:
        try:
            await self._reopen()
        except OSError as error:
            _log.warning("envoy cannot be told to open its log anew; will try again", error=str(error))

    def _read_some(self) -> int:
        """Take in the next lines; how many there were."""
        start = self._read_to
        piece = self._segments.read(start)
        if piece.end == start:
            return 0
        for line, end in zip(piece.lines, piece.ends, strict=True):
            parsed = self._parse(line, end)
            event = None
            if parsed is not None:
                self.counts.lines += 1
                paid = usage.billed_tokens(parsed)
                self._tell(parsed, paid)
                event = self._event(parsed, paid)
            self._ahead.append(_Entry(start, end, event))
            start = end
        while len(self._ahead) > READ_AHEAD:
            self._ahead.popleft()
        self._read_to = piece.end
        self._news.set()
        return len(piece.lines)

    def _event(self, line: UsageLine, paid: BilledTokens | None) -> Event | None:
        return None if paid is None else event_of(line, paid, self._source)

    def _tell(self, line: UsageLine, paid: BilledTokens | None) -> None:
        try:
            self._on_usage(line, paid)
        except Exception:
            _log.exception("a listener to usage failed", request_id=line.request_id)

    def _parse(self, line: bytes, end: Position) -> UsageLine | None:
        try:
            return usage.parse(line)
        except InvalidLine as error:
            if line:
                self.counts.invalid_lines += 1
                _log.error("a line of the log cannot be read", before=end, error=str(error))
            return None

    # Sending.

    async def _send_forever(self) -> None:
        loop = asyncio.get_running_loop()
        save_at = loop.time()
        while True:
            if not self.behind:
                self._news.clear()
                await self._news.wait()
            entries = self._next_entries()
            if entries:
                await self._deliver([entry.event for entry in entries if entry.event is not None])
                done = entries[-1].end
            else:
                done = self._read_to
            new_file = done.number > self._done_to.number
            self._done_to = done
            if new_file or loop.time() >= save_at:
                save_at = loop.time() + BOOKMARK_SECONDS
                await self._save()

    async def _save(self) -> None:
        """Files are deleted when the bookmark is behind them, never before."""
        if self._saving is not None:
            # A task that was cancelled leaves its write to a thread: it must not come after this one.
            await asyncio.shield(self._saving)
        if self._done_to != self._saved:
            self._saved = self._done_to
            self._saving = asyncio.create_task(asyncio.to_thread(self._bookmark.save, self._saved))
            await asyncio.shield(self._saving)
            self._segments.delete_before(self._saved.number)

    def _next_entries(self) -> list[_Entry]:
        """The next lines to be sent, from memory if they are there, otherwise from the disk."""
        ahead = self._ahead
        while ahead and ahead[0].start < self._done_to:
            ahead.popleft()
        limit = ahead[0].start if ahead else self._read_to
        # The gap may be nothing but the step from one file to the next.
        if self._done_to < limit and (found := self._from_disk(limit)):
            return found
        return [ahead.popleft() for _ in range(min(len(ahead), BATCH_EVENTS))]

    def _from_disk(self, limit: Position) -> list[_Entry]:
        start = self._done_to
        entries: list[_Entry] = []
        while start < limit and not entries:
            piece = self._segments.read(start)
            if piece.end == start:
                break
            for line, end in zip(piece.lines, piece.ends, strict=True):
                if end > limit or len(entries) == BATCH_EVENTS:
                    break
                parsed = self._parse(line, end)
                event = None if parsed is None else self._event(parsed, usage.billed_tokens(parsed))
                entries.append(_Entry(start, end, event))
                start = end
            else:
                start = piece.end
        return entries

    async def _deliver(self, events: Sequence[Event]) -> None:
        """Send until the meter has acknowledged them."""
        delay = _RETRY_SECONDS[0]
        while events:
            try:
                receipt = await self._events.post(events)
            except LedgerUnavailable as error:
                self.counts.retries += 1
                GATEWAY_USAGE_RETRIES.inc()
                _log.warning("usage cannot be sent; will try again", events=len(events), error=str(error))
                await asyncio.sleep(delay * random.uniform(0.7, 1.3))
                delay = min(delay * 2, _RETRY_SECONDS[1])
                continue
            if receipt.rejected:
                await asyncio.to_thread(self._put_aside, receipt.rejected)
            self._tell_acknowledged(events, receipt)
            self.counts.sent += len(events)
            GATEWAY_USAGE.labels("taken").inc(len(events) - len(receipt.rejected))
            GATEWAY_USAGE.labels("rejected").inc(len(receipt.rejected))
            return

    def _tell_acknowledged(self, events: Sequence[Event], receipt: PublishResult) -> None:
        try:
            calls = [str(event["data"]["requestId"]) for event in events]
            self._on_acknowledged(calls, receipt.leases, receipt.sequence)
        except Exception:
            _log.exception("a listener to acknowledgements failed", events=len(events))

    def _put_aside(self, rejected: Sequence[RejectedEvent]) -> None:
        """Keep what the meter will never take, for a person to look at."""
        self.counts.rejected += len(rejected)
        with self._rejected.open("ab") as file:
            for item in rejected:
                file.write(item.line())
        for item in rejected[:10]:
            _log.error(
                "the meter rejects usage", id=item.event["id"], reason=item.reason, message=item.message
            )

    async def _all_done(self) -> None:
        """Returns when nothing that is in the log waits."""
        while True:
            if not self.behind and not self._segments.read(self._read_to).lines:
                return
            await asyncio.sleep(POLL_SECONDS)
