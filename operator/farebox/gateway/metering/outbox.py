"""Ships usage from Envoy's log to the meter, each call once, across crashes and outages.

The log on disk is the queue. A checkpoint marks the end of the lines that the meter has acknowledged. Later
lines are sent until they are acknowledged, and may be sent twice: the meter counts (source, request id) once
(B12). One loop reads the log as it grows and calls `on_usage`, another one sends. Reading never waits for
sending, so limits are corrected while the meter is unreachable.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from farebox.errors import LedgerUnavailable
from farebox.gateway.metering import usage
from farebox.gateway.metering.log_segments import Checkpoint, LogSegments, Position
from farebox.gateway.metering.observations import observe
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
"""After this many lines at once, the next read follows without a pause. A poll costs more than a line."""
ROTATE_BYTES: Final = 64 * 2**20
READ_AHEAD: Final = 20_000
"""Lines kept in memory between the loops; others are read from disk again."""
CHECKPOINT_SECONDS: Final = 0.5
"""The interval between checkpoints. Lines after the last one are sent again after a crash."""
_RETRY_SECONDS: Final = (0.1, 10.0)
_REOPEN_SECONDS: Final = 1.0

_log = structlog.get_logger(__name__)

OnUsage = Callable[[UsageLine, BilledTokens | None], None]
"""Receives a call that has ended, and the tokens that it pays for."""
OnAcknowledged = Callable[[Sequence[str], Sequence[CreditLease], int], None]
"""Receives the request ids of acknowledged calls, the leases after their charges, and the sequence of the
feed that includes them (see PublishResult)."""
Reopen = Callable[[], Awaitable[None]]
"""Makes Envoy reopen its log; raises OSError if Envoy does not answer."""


class _Entry(NamedTuple):
    """A line of the log: its start, its end, and its event for the meter, if it has one."""

    start: Position
    end: Position
    event: Event | None


class Outbox:
    """Ships the usage of one log. `run` does all the work."""

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
            log_file: Envoy's log; the checkpoint and rejected events are beside it.
            source: this gateway's name in the ledger, the same after a restart with the same directory.
            on_usage: receives each line as soon as it is in the log; after a restart, those that the meter
                had not acknowledged are received again.
            on_acknowledged: receives calls that the ledger has charged, or never will.
        """
        self._checkpoint = Checkpoint(log_file.with_suffix(".done"))
        self._rejected = log_file.with_suffix(".rejected")
        self._segments = LogSegments(log_file, self._checkpoint.load())
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
        self._lines_read = asyncio.Event()
        self.rotate_bytes = ROTATE_BYTES

    async def run(self, stop: asyncio.Event, last_seconds: float = 5.0) -> None:
        """Read and send until `stop` is set; then send the rest of the log, for at most `last_seconds`."""
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
        """Whether lines that were read are not acknowledged."""
        return self._done_to < self._read_to

    def backlog(self) -> tuple[int, datetime | None]:
        """Unacknowledged usage: bytes of the log, and the end time of the first call in them."""
        return self._segments.bytes_after(self._done_to), self._first_time()

    def _first_time(self) -> datetime | None:
        chunk = self._segments.read(self._done_to)
        if chunk.end.number > self._done_to.number and not chunk.lines:
            chunk = self._segments.read(chunk.end)
        for line in chunk.lines:
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
                await self._reopen_log()
            await asyncio.sleep(POLL_SECONDS)

    async def _reopen_log(self) -> None:
        try:
            await self._reopen()
        except OSError as error:
            _log.warning("envoy.reopen_log_failed", error=str(error))

    def _read_some(self) -> int:
        """Read the next lines; returns their number."""
        start = self._read_to
        chunk = self._segments.read(start)
        if chunk.end == start:
            return 0
        for line, end in zip(chunk.lines, chunk.ends, strict=True):
            parsed = self._parse(line, end)
            event = None
            if parsed is not None:
                billed = usage.billed_tokens(parsed)
                observe(parsed, billed)
                self._notify_usage(parsed, billed)
                event = self._event(parsed, billed)
            self._ahead.append(_Entry(start, end, event))
            start = end
        while len(self._ahead) > READ_AHEAD:
            self._ahead.popleft()
        self._read_to = chunk.end
        self._lines_read.set()
        return len(chunk.lines)

    def _event(self, line: UsageLine, billed: BilledTokens | None) -> Event | None:
        return None if billed is None else event_of(line, billed, self._source)

    def _notify_usage(self, line: UsageLine, billed: BilledTokens | None) -> None:
        try:
            self._on_usage(line, billed)
        except Exception:
            _log.exception("usage.listener_failed", request_id=line.request_id)

    def _parse(self, line: bytes, end: Position) -> UsageLine | None:
        try:
            return usage.parse(line)
        except InvalidLine as error:
            if line:
                _log.error("usage.line_unreadable", before=end, error=str(error))
            return None

    # Sending.

    async def _send_forever(self) -> None:
        loop = asyncio.get_running_loop()
        checkpoint_at = loop.time()
        while True:
            if not self.behind:
                self._lines_read.clear()
                await self._lines_read.wait()
            entries = self._next_entries()
            if entries:
                await self._deliver([entry.event for entry in entries if entry.event is not None])
                done = entries[-1].end
            else:
                done = self._read_to
            new_file = done.number > self._done_to.number
            self._done_to = done
            if new_file or loop.time() >= checkpoint_at:
                checkpoint_at = loop.time() + CHECKPOINT_SECONDS
                await self._save()

    async def _save(self) -> None:
        """Save the checkpoint, then delete the files before it."""
        if self._saving is not None:
            # The thread of a cancelled save still writes, and must not overwrite this one.
            await asyncio.shield(self._saving)
        if self._done_to != self._saved:
            self._saved = self._done_to
            self._saving = asyncio.create_task(asyncio.to_thread(self._checkpoint.save, self._saved))
            await asyncio.shield(self._saving)
            self._segments.delete_before(self._saved.number)

    def _next_entries(self) -> list[_Entry]:
        """The next lines to send, from memory if they are there, otherwise from disk."""
        ahead = self._ahead
        while ahead and ahead[0].start < self._done_to:
            ahead.popleft()
        limit = ahead[0].start if ahead else self._read_to
        # The gap may be only the step from one file to the next.
        if self._done_to < limit and (found := self._from_disk(limit)):
            return found
        return [ahead.popleft() for _ in range(min(len(ahead), BATCH_EVENTS))]

    def _from_disk(self, limit: Position) -> list[_Entry]:
        start = self._done_to
        entries: list[_Entry] = []
        while start < limit and not entries:
            chunk = self._segments.read(start)
            if chunk.end == start:
                break
            for line, end in zip(chunk.lines, chunk.ends, strict=True):
                if end > limit or len(entries) == BATCH_EVENTS:
                    break
                parsed = self._parse(line, end)
                event = None if parsed is None else self._event(parsed, usage.billed_tokens(parsed))
                entries.append(_Entry(start, end, event))
                start = end
            else:
                start = chunk.end
        return entries

    async def _deliver(self, events: Sequence[Event]) -> None:
        """Send events until the meter has acknowledged them."""
        delay = _RETRY_SECONDS[0]
        while events:
            try:
                result = await self._events.post(events)
            except LedgerUnavailable as error:
                GATEWAY_USAGE_RETRIES.inc()
                _log.warning("usage.publish_failed", events=len(events), error=str(error))
                await asyncio.sleep(delay * random.uniform(0.7, 1.3))
                delay = min(delay * 2, _RETRY_SECONDS[1])
                continue
            if result.rejected:
                await asyncio.to_thread(self._store_rejected, result.rejected)
            self._notify_acknowledged(events, result)
            GATEWAY_USAGE.labels("taken").inc(len(events) - len(result.rejected))
            GATEWAY_USAGE.labels("rejected").inc(len(result.rejected))
            return

    def _notify_acknowledged(self, events: Sequence[Event], result: PublishResult) -> None:
        try:
            calls = [str(event["data"]["requestId"]) for event in events]
            self._on_acknowledged(calls, result.leases, result.sequence)
        except Exception:
            _log.exception("usage.acknowledgement_listener_failed", events=len(events))

    def _store_rejected(self, rejected: Sequence[RejectedEvent]) -> None:
        """Keep the events that the meter will never accept, for a person to inspect."""
        with self._rejected.open("ab") as file:
            for item in rejected:
                file.write(item.line())
        for item in rejected[:10]:
            _log.error("usage.rejected", id=item.event["id"], reason=item.reason, message=item.message)

    async def _all_done(self) -> None:
        """Return when the whole log is acknowledged."""
        while True:
            if not self.behind and not self._segments.read(self._read_to).lines:
                return
            await asyncio.sleep(POLL_SECONDS)
