"""Single calls as the ledger stores them (B32). Prompts and answers are never stored."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

from pydantic import AwareDatetime, Field

from farebox.domain.keys import ObjectKey
from farebox.meterapi.scalars import Amount, Key, OptionalText, Price
from farebox.meterapi.types import Answer

MAX_CALLS: Final = 1_000
"""The limit of calls in a page."""

_OptionalCount = Annotated[int | None, Field(default=None)]


@dataclass(frozen=True, slots=True)
class CallQuery:
    """Which calls a list has, by the time of their end from `start` to before `end`.

    `owner` is the account that pays, or the namespace of the services. None: no filter.
    """

    owner: ObjectKey | str
    start: datetime
    end: datetime
    services: frozenset[ObjectKey] | None = None
    model: str | None = None
    api_key: str | None = None
    status: int | None = None
    estimated: bool | None = None


@dataclass(frozen=True, slots=True)
class CallPrice(Answer):
    """The price tier of a call: prices per million tokens, from a version of the model's prices."""

    version: int
    effective_at: AwareDatetime
    up_to_input_tokens: _OptionalCount
    input: Price
    cached_input: Price
    cache_write: Price
    output: Price


@dataclass(frozen=True, slots=True)
class Call(Answer):
    """A call that a service answered.

    `source` and `id` identify its usage event. `input_tokens` includes cached tokens and cache writes;
    `reservation_input_tokens`, `reservation_output_tokens` and `free_quota_tokens` are the tokens that cost
    no money. `charge` is the money for the rest, 0 for a trial. A call that is not charged yet has
    `pending_reason` and `waiting_for`, and neither account, price, currency nor charge.
    """

    source: str
    id: str
    request_id: OptionalText
    time: AwareDatetime
    received_at: AwareDatetime
    service: Key
    model: OptionalText
    api_key: OptionalText
    status: _OptionalCount
    input_tokens: int
    cached_input_tokens: int
    cache_write_input_tokens: int
    output_tokens: int
    estimated: bool
    duration_ms: _OptionalCount
    first_byte_ms: _OptionalCount
    reservation_input_tokens: int
    reservation_output_tokens: int
    free_quota_tokens: int
    account: Annotated[Key | None, Field(default=None)]
    trial: bool
    price: Annotated[CallPrice | None, Field(default=None)]
    charge: Annotated[Amount | None, Field(default=None)]
    currency: OptionalText
    pending_reason: OptionalText
    waiting_for: OptionalText


@dataclass(frozen=True, slots=True)
class CallPage(Answer):
    """A page of calls, the newest first. `next` is the cursor of the next page, if there is one."""

    start: Annotated[AwareDatetime, Field(alias="from")]
    end: Annotated[AwareDatetime, Field(alias="to")]
    calls: tuple[Call, ...]
    next: str | None = None
