"""Usage as CloudEvents, and where they go. It never retries: the outbox does."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
from pydantic_core import from_json, to_json

from farebox.errors import LedgerUnavailable
from farebox.gateway.metering.usage import BilledTokens, UsageLine
from farebox.meterapi.client import TokenFile
from farebox.meterapi.schema import SEQUENCE_HEADER
from farebox.meterapi.types import CreditLease
from farebox.meterapi.wire_answers import WireBudget
from farebox.sockets import connector

BATCH_EVENTS: Final = 1000
POST_SECONDS: Final = 15.0
_TYPE: Final = "dev.farebox.usage.v1"
_CONTENT_TYPE: Final = "application/cloudevents-batch+json"
_TOO_MUCH: Final = frozenset({400, 413})
"""Answers that a smaller batch may not get."""

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RejectedEvent:
    """An event that the meter will never store, and why."""

    event: Event
    reason: str
    message: str

    def line(self) -> bytes:
        """For the file of rejected events."""
        return (
            json.dumps({"reason": self.reason, "message": self.message, "event": self.event}).encode() + b"\n"
        )


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What became of a batch: all is stored but what is `rejected`; `leases` as they are after it (B17).

    The feed has its charges when it was read up to `sequence`; 0: nobody said.
    """

    rejected: Sequence[RejectedEvent] = ()
    leases: Sequence[CreditLease] = ()
    sequence: int = 0


class UsageSink(Protocol):
    """Where usage goes."""

    async def post(self, events: Sequence[Event]) -> PublishResult:
        """Store them; those that never will be come back. Raises LedgerUnavailable: nothing is known."""


def event_of(line: UsageLine, paid: BilledTokens, source: str) -> Event:
    """A call as a CloudEvent.

    The process that admitted the call is its source, if the call says which: what was held for it then is of
    that process's lease. Otherwise `source` is.
    """
    labels = line.labels
    data = {
        "inputTokens": paid.input_tokens,
        "cachedInputTokens": paid.cached_tokens,
        "outputTokens": paid.output_tokens,
        "requestId": line.request_id,
        "status": line.status,
    }
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
    """The call's id, behind the time of its end: ids that rise keep the ledger fast (docs/decisions/110)."""
    return f"{int(line.time.timestamp() * 1000):012x}-{line.request_id}"


class UsagePublisher:
    """The meter over HTTP. Make it inside a running event loop; use it with `async with`."""

    def __init__(self, url: str, token_file: Path | None) -> None:
        """`url` is the meter's, without a path; without `token_file` no token is sent."""
        self._url = url.rstrip("/") + "/v1/events"
        self._token = None if token_file is None else TokenFile(token_file)
        self._session = aiohttp.ClientSession(
            connector=connector(limit=4, keepalive_timeout=60),
            headers={"User-Agent": "farebox-gateway", "Content-Type": _CONTENT_TYPE},
            timeout=aiohttp.ClientTimeout(total=POST_SECONDS),
        )

    async def __aenter__(self) -> "UsagePublisher":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._session.close()

    async def post(self, events: Sequence[Event]) -> PublishResult:
        """See Events. A batch that cannot be read as a whole is halved until the event is found."""
        status, body, sequence = await self._send(events)
        if status in _TOO_MUCH:
            if len(events) > 1:
                middle = len(events) // 2
                first, second = await self.post(events[:middle]), await self.post(events[middle:])
                return PublishResult(
                    [*first.rejected, *second.rejected],
                    # The second answer is the newer word on what it names.
                    [*first.leases, *second.leases],
                    max(first.sequence, second.sequence),
                )
            return PublishResult(
                [RejectedEvent(events[0], f"HTTP{status}", body.decode(errors="replace")[:500])]
            )
        if status != 200:
            raise LedgerUnavailable(f"POST /v1/events failed with {status}: {body[:300]!r}")
        try:
            answer = from_json(body)
            rejected = [
                RejectedEvent(events[item["index"]], str(item["reason"]), str(item["message"]))
                for item in answer["rejected"]
            ]
            leases = [WireBudget.model_validate(item).value() for item in answer.get("budgets", ())]
            return PublishResult(rejected, leases, sequence)
        except (ValueError, LookupError, TypeError) as error:
            raise LedgerUnavailable(f"the meter's answer cannot be read: {error}") from error

    async def _send(self, events: Sequence[Event]) -> tuple[int, bytes, int]:
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token.read()}"}
        try:
            async with self._session.post(self._url, data=to_json(list(events)), headers=headers) as response:
                sequence = response.headers.get(SEQUENCE_HEADER, "")
                return response.status, await response.read(), int(sequence) if sequence.isdecimal() else 0
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise LedgerUnavailable(f"the meter does not answer: {type(error).__name__} {error}") from error
