"""The values of usage reports and statements, as the ledger reads them and GET /v1/usage returns them."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, Field

from farebox.domain.keys import ObjectKey
from farebox.meterapi.scalars import Amount, Key, OptionalText, OptionalTime, Total
from farebox.meterapi.types import Answer


class Group(StrEnum):
    """What a usage report can be grouped by."""

    SERVICE = "service"
    MODEL = "model"
    API_KEY = "apiKey"


class Bucket(StrEnum):
    """The time that a row of a usage report covers, in UTC."""

    NONE = "none"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which calls a report has, by the time of their end from `start` to before `end`, and its grouping.

    `owner` is the account that pays, or the namespace of the services. `services` limits the report to these.
    """

    owner: ObjectKey | str
    start: datetime
    end: datetime
    group_by: frozenset[Group] = frozenset()
    bucket: Bucket = Bucket.NONE
    services: frozenset[ObjectKey] | None = None
    model: str | None = None
    api_key: str | None = None


@dataclass(frozen=True, slots=True)
class UsageRow(Answer):
    """A sum of calls. `charge` is in nano-units.

    `input_tokens` includes cached tokens, cache writes and covered tokens. `start` is the beginning of the
    bucket. `start`, `service`, `model` and `api_key` are None unless the report is grouped by them. `api_key`
    is "" for calls without a key's name. `estimated_calls` have at least one count that the upstream did not
    report (B26); `estimated_tokens` are their input and output, `estimated_charge` is their charge. A meter
    of an earlier version sends none of the fields with defaults.
    """

    start: OptionalTime
    service: OptionalText
    model: OptionalText
    api_key: OptionalText
    calls: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reservation_input_tokens: int
    reservation_output_tokens: int
    free_quota_tokens: int
    charge: Total
    currency: str
    cache_write_input_tokens: int = 0
    estimated_calls: int = 0
    estimated_tokens: int = 0
    estimated_charge: Total = 0


@dataclass(frozen=True, slots=True)
class UsageReport(Answer):
    """A page of a usage report. `next` is the cursor of the next page, if there is one.

    `as_of` is the ledger's number at which all pages are read. `pending` calls are stored but not charged.
    """

    start: Annotated[AwareDatetime, Field(alias="from")]
    end: Annotated[AwareDatetime, Field(alias="to")]
    bucket: Bucket
    group_by: tuple[Group, ...]
    as_of: int
    pending: int
    rows: tuple[UsageRow, ...]
    next: str | None = None


@dataclass(frozen=True, slots=True)
class StatementLine(Answer):
    """A change of the balance by `amount` nano-units. `kind` is the kind of the transaction.

    `time` is the time of posting; for Usage it is the beginning of the day (UTC). The other fields depend on
    the kind: reference and source of top-ups; service, model, number and period of reservation terms; the
    model of usage, and its part that is estimated (B26), if there is one. `estimated_amount` is a part of
    `amount`, with the same sign.
    """

    kind: str
    time: AwareDatetime
    amount: Amount
    reference: str | None = None
    source: str | None = None
    service: str | None = None
    model: str | None = None
    term: int | None = None
    period_start: AwareDatetime | None = None
    period_end: AwareDatetime | None = None
    estimated_calls: int | None = None
    estimated_tokens: int | None = None
    estimated_amount: Amount | None = None


@dataclass(frozen=True, slots=True)
class Statement(Answer):
    """The postings from `start` to before `end`, read at the ledger's number `as_of`."""

    account: Key
    currency: str
    start: Annotated[AwareDatetime, Field(alias="from")]
    end: Annotated[AwareDatetime, Field(alias="to")]
    as_of: int
    opening_balance: Amount
    closing_balance: Amount
    lines: tuple[StatementLine, ...]
