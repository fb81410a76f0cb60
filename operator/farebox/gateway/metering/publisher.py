"""Sends usage to the meter as CloudEvents. It never retries: the outbox does."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from farebox.errors import LedgerRefused, LedgerUnavailable
from farebox.gateway.metering.usage import BilledTokens, UsageLine
from farebox.meterapi.client import MeterClient
from farebox.meterapi.types import CreditLease

BATCH_EVENTS: Final = 1000
_TYPE: Final = "dev.farebox.usage.v1"

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RejectedEvent:
    """An event that the meter refuses for good, and why."""

    event: Event
    reason: str
    message: str

    def line(self) -> bytes:
        """The event as a line of the file of rejected events."""
        return (
            json.dumps({"reason": self.reason, "message": self.message, "event": self.event}).encode() + b"\n"
        )


@dataclass(frozen=True, slots=True)
class PublishResult:
    """The outcome of a batch: the events are stored except the `rejected` ones (B17).

    `leases` are the current leases of the charged accounts. The charges are in the feed up to `sequence` (0:
    unknown).
    """

    rejected: Sequence[RejectedEvent] = ()
    leases: Sequence[CreditLease] = ()
    sequence: int = 0


class UsageSink(Protocol):
    """The receiver of usage."""

    async def post(self, events: Sequence[Event]) -> PublishResult:
        """Store the events and return those that are refused for good.

        Raises:
            LedgerUnavailable: the outcome is unknown; repeat the call.
        """


def event_of(line: UsageLine, paid: BilledTokens, source: str) -> Event:
    """The usage of a call as a CloudEvent.

    The source of the event is the process that admitted the call, whose lease has the authorization. A call
    without that label gets `source`.
    """
    labels = line.labels
    data = {
        "inputTokens": paid.input_tokens,
        "cachedInputTokens": paid.cached_tokens,
        "outputTokens": paid.output_tokens,
        "requestId": line.request_id,
        "status": line.status,
    }
    if paid.cache_write_tokens:
        data["cacheWriteInputTokens"] = paid.cache_write_tokens
    if paid.estimated:
        data["estimated"] = True
    if line.duration_ms is not None:
        data["durationMs"] = line.duration_ms
    if line.first_byte_ms is not None:
        data["firstByteMs"] = line.first_byte_ms
    if labels.get("model"):
        data["model"] = labels["model"]
    if labels.get("api_key"):
        data["apiKey"] = labels["api_key"]
    return {
        "specversion": "1.0",
        "type": _TYPE,
        "source": labels.get("source") or source,
        "id": _event_id(line),
        "subject": labels.get("service", ""),
        "time": line.time.isoformat(),
        "data": data,
    }


def _event_id(line: UsageLine) -> str:
    """The end time and the request id: ids that rise with time keep the ledger fast (decision 110)."""
    return f"{int(line.time.timestamp() * 1000):012x}-{line.request_id}"


class UsagePublisher:
    """Sends usage to the meter."""

    def __init__(self, meter: MeterClient) -> None:
        self._meter = meter

    async def post(self, events: Sequence[Event]) -> PublishResult:
        """See UsageSink. A batch that is refused as a whole is halved until the faulty event is found."""
        try:
            result = await self._meter.post_usage(events)
        except LedgerRefused as refusal:
            if len(events) == 1:
                return PublishResult([RejectedEvent(events[0], refusal.reason, refusal.message)])
            middle = len(events) // 2
            first, second = await self.post(events[:middle]), await self.post(events[middle:])
            return PublishResult(
                [*first.rejected, *second.rejected],
                # In this order: where both name a lease, the second is newer.
                [*first.leases, *second.leases],
                max(first.sequence, second.sequence),
            )
        try:
            rejected = [
                RejectedEvent(events[item.index], item.reason, item.message) for item in result.rejected
            ]
        except IndexError as error:
            raise LedgerUnavailable("The meter rejects an event that was not sent") from error
        return PublishResult(rejected, result.leases, result.sequence)
