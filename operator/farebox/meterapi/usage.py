"""Usage events, and the ledger's answer to a batch of them."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, NamedTuple

from pydantic import Field

from farebox.domain.billing.coverage import CallTokens
from farebox.domain.keys import ObjectKey
from farebox.meterapi.types import Answer, CreditLease


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """A call that a service answered.

    (source, id) identifies the event. `input_tokens` includes `cached_input_tokens` and
    `cache_write_input_tokens`. `model` is the Model that served the call, if the sender knows it.
    `estimated` (B26): at least one count was not reported by the upstream. `duration_ms` and `first_byte_ms`
    are milliseconds from the call's begin to its end and to the first byte of the answer; None: unknown.
    """

    source: str
    id: str
    service: ObjectKey
    time: datetime
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    model: str | None = None
    api_key: str | None = None
    request_id: str | None = None
    status: int | None = None
    cache_write_input_tokens: int = 0
    estimated: bool = False
    duration_ms: int | None = None
    first_byte_ms: int | None = None

    @property
    def tokens(self) -> CallTokens:
        """The tokens by kind."""
        return CallTokens(
            self.input_tokens, self.cached_input_tokens, self.cache_write_input_tokens, self.output_tokens
        )


@dataclass(frozen=True, slots=True)
class Rejection(Answer):
    """An event that is not stored, and would be rejected again."""

    index: int
    id: str
    reason: str
    message: str


class MeteredCalls(NamedTuple):
    """The calls of a batch on one model that are estimated, or are not: their number and all their tokens."""

    model: str
    estimated: bool
    calls: int
    tokens: int


@dataclass(frozen=True, slots=True)
class IngestResult(Answer):
    """The outcome of a batch: accepted + duplicate + len(rejected) is its length.

    This call stored the `accepted` events; `pending` of them wait for a binding, a price or an account.
    `leases` are the current leases of the batch's sources on the charged accounts. The charges are in the
    feed up to `sequence` (0: unknown). `metered` has the accepted events, for the meter's metrics; the model
    is "" for events that name none, or one without prices.
    """

    accepted: int
    duplicate: int
    pending: int
    rejected: tuple[Rejection, ...]
    leases: Annotated[
        tuple[CreditLease, ...], Field(alias="budgets", exclude_if=lambda leases: not leases)
    ] = ()
    sequence: Annotated[int, Field(exclude=True)] = 0
    metered: Annotated[tuple[MeteredCalls, ...], Field(exclude=True)] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class PendingEvent:
    """A stored event that is not charged yet. `cursor` orders such events by arrival."""

    cursor: int
    event: UsageEvent
    received_at: datetime
    reason: str
    waiting_for: str
