"""Refused calls, counted by minute, service, key and code (B32)."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Final

from pydantic import AwareDatetime, Field, StringConstraints

from farebox.meterapi.reports import Bucket
from farebox.meterapi.scalars import EventSource, Name, OptionalText, OptionalTime, Positive, Text
from farebox.meterapi.types import Answer, Value

MAX_COUNTS: Final = 5_000
"""The limit of counts in one request."""
RETENTION: Final = timedelta(days=35)
"""Counts of older minutes are deleted."""

_Namespace = Annotated[Text, StringConstraints(max_length=63)]
_Status = Annotated[int, Field(ge=100, le=599)]


@dataclass(frozen=True, slots=True)
class RefusalCount(Value):
    """The calls that a gateway refused in a minute (UTC) so far.

    `service` and `api_key` are names in `namespace`. `namespace` is "" for a call without a valid key;
    `service` and `api_key` are None where they are unknown, such as a model that does not exist. `code` is
    the code of the error, `status` its HTTP status.
    """

    minute: AwareDatetime
    namespace: _Namespace
    service: Annotated[Name | None, Field(default=None)]
    api_key: Annotated[Name | None, Field(default=None)]
    code: Name
    status: _Status
    count: Positive


@dataclass(frozen=True, slots=True)
class RefusalCounts(Value):
    """The counts of one gateway process, the `source`.

    A count replaces a smaller one of the same source, minute, service, key, code and status, so it may be
    sent again. A process that starts again must use another source, because it counts from 0.
    """

    source: EventSource
    refusals: Annotated[tuple[RefusalCount, ...], Field(max_length=MAX_COUNTS)]


@dataclass(frozen=True, slots=True)
class RefusalReceipt(Answer):
    """The number of counts that are stored; those of minutes before RETENTION are not."""

    stored: int


@dataclass(frozen=True, slots=True)
class RefusalQuery:
    """Which refused calls a report has, by their minute from `start` to before `end`.

    `namespace` None: all of them, also calls without a valid key.
    """

    namespace: str | None
    start: datetime
    end: datetime
    bucket: Bucket = Bucket.NONE
    service: str | None = None
    api_key: str | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True)
class RefusalRow(Answer):
    """A sum of refused calls. `start` is the beginning of the bucket, None without buckets."""

    start: OptionalTime
    namespace: str
    service: OptionalText
    api_key: OptionalText
    code: str
    status: int
    count: int


@dataclass(frozen=True, slots=True)
class RefusalReport(Answer):
    """The refused calls from `start` to before `end`, the newest bucket first, then the largest count."""

    start: Annotated[AwareDatetime, Field(alias="from")]
    end: Annotated[AwareDatetime, Field(alias="to")]
    bucket: Bucket
    rows: tuple[RefusalRow, ...]
