"""Reads usage from CloudEvents 1.0: structured mode, binary mode, or a batch. Pure: bytes in, values out.

An invalid event is rejected alone, with its index, its id and what to change. Only a body that is not a batch
of events is refused as a whole.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)
from pydantic.alias_generators import to_camel
from pydantic_core import from_json

from farebox.domain.billing.money import MAX_NANO
from farebox.domain.billing.pricing import MAX_TOKENS
from farebox.domain.keys import ObjectKey
from farebox.meterapi.scalars import NO_TIME, parse_key, parse_time
from farebox.meterapi.usage import Rejection, UsageEvent

STRUCTURED: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"
BINARY: Final = "application/json"
"""The Content-Type of binary mode: the body is the data, the attributes are headers (`ce-id`, ...)."""
ATTRIBUTE: Final = "ce-"
"""The prefix of these headers."""
MAX_EVENTS: Final = 10_000
"""The limit of events in one request."""


class InvalidBody(Exception):
    """The body is neither a CloudEvent nor a batch. `reason` is CamelCase, the message says what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Parsed:
    """The valid events with their indexes in the body, and a rejection of each invalid one."""

    events: Sequence[UsageEvent]
    indexes: Sequence[int]
    rejected: Sequence[Rejection]


def parse(body: bytes, content_type: str) -> Parsed:
    """Parse the usage events of a body; `content_type` is STRUCTURED or BATCH.

    Raises:
        InvalidBody: InvalidJSON, InvalidBatch or TooManyEvents.
    """
    decoded = _json(body)
    if content_type == STRUCTURED:
        decoded = [decoded]
    if not isinstance(decoded, list):
        raise InvalidBody("InvalidBatch", f"The body of {BATCH} must be a list of events")
    if len(decoded) > MAX_EVENTS:
        raise InvalidBody(
            "TooManyEvents", f"{len(decoded)} events in one request: send at most {MAX_EVENTS} at a time"
        )
    try:
        return Parsed([item.event() for item in _MANY.validate_python(decoded)], range(len(decoded)), ())
    except ValidationError:
        return _one_by_one(decoded)


def parse_binary(headers: Iterable[tuple[str, str]], body: bytes) -> Parsed:
    """Parse the usage event of a request in binary mode.

    Raises:
        InvalidBody: InvalidJSON, or InvalidHeader for a repeated attribute.
    """
    event: dict[str, Any] = {}
    for header, value in headers:
        if not is_attribute(header):
            continue
        name = header.lower().removeprefix(ATTRIBUTE)
        if name in event:
            raise InvalidBody("InvalidHeader", f"{ATTRIBUTE}{name} is sent more than once: send it once")
        event[name] = _attribute(value)
    return _one_by_one([event | {"data": _json(body)}])


def is_attribute(header: str) -> bool:
    """Whether a header of this name is an attribute of an event in binary mode."""
    return header.lower().startswith(ATTRIBUTE)


def _attribute(value: str) -> str:
    """Decode a header: remove quotes, then decode percent-encoding once (HTTP binding, 3.1.3.2)."""
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    # Invalid UTF-8 becomes surrogates, which are rejected as unprintable: two ids must not become one.
    return unquote(value, errors="surrogateescape")


def _json(body: bytes) -> Any:
    try:
        return from_json(body)
    except ValueError as error:
        raise InvalidBody("InvalidJSON", f"The body is not JSON: {error}") from error


def _one_by_one(decoded: Sequence[Any]) -> Parsed:
    events: list[UsageEvent] = []
    indexes: list[int] = []
    rejected: list[Rejection] = []
    for index, item in enumerate(decoded):
        try:
            events.append(_Envelope.model_validate(item).event())
            indexes.append(index)
        except ValidationError as error:
            rejected.append(Rejection(index, _id_of(item), "InvalidEvent", _sentence(error)))
    return Parsed(events, indexes, rejected)


def _id_of(item: Any) -> str:
    """The id, if there is one, to help the sender find the event. It is not validated."""
    identifier = item.get("id", "") if isinstance(item, dict) else ""
    if not isinstance(identifier, str):
        return ""
    return identifier[:256].encode(errors="replace").decode()


def _sentence(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(
        f"{'.'.join(map(str, fault['loc'])) or 'event'}: {fault['msg'].removeprefix('Value error, ')}"
        for fault in faults[:5]
    )


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not have control characters")
    return text


def _moment(value: Any) -> datetime:
    if not isinstance(value, str):
        raise ValueError(NO_TIME)
    return parse_time(value)


def _subject(value: Any) -> ObjectKey:
    if not isinstance(value, str):
        raise ValueError("must be the service as namespace/name")
    return parse_key(value)


_Identity = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_printable)]
_Name = Annotated[str, Field(min_length=1, max_length=253), AfterValidator(_printable)]
_Tokens = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
_Milliseconds = Annotated[int, Field(ge=0, le=MAX_NANO)]


class _Usage(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, strict=True)

    model: _Name | None = None
    api_key: _Name | None = None
    input_tokens: _Tokens
    cached_input_tokens: _Tokens = 0
    cache_write_input_tokens: _Tokens = 0
    output_tokens: _Tokens
    request_id: _Identity | None = None
    status: Annotated[int, Field(ge=0, le=999)] | None = None
    estimated: bool = False
    duration_ms: _Milliseconds | None = None
    first_byte_ms: _Milliseconds | None = None


class _Envelope(BaseModel):
    model_config = ConfigDict(strict=True)

    specversion: Literal["1.0"]
    id: _Identity
    source: _Identity
    type: Literal["dev.farebox.usage.v1"]
    subject: Annotated[ObjectKey, PlainValidator(_subject)]
    time: Annotated[datetime, PlainValidator(_moment)]
    datacontenttype: Literal["application/json"] | None = None
    data: _Usage

    def event(self) -> UsageEvent:
        """The event as the ledger's value."""
        data = self.data
        return UsageEvent(
            source=self.source,
            id=self.id,
            service=self.subject,
            time=self.time,
            input_tokens=data.input_tokens,
            output_tokens=data.output_tokens,
            cached_input_tokens=data.cached_input_tokens,
            model=data.model,
            api_key=data.api_key,
            request_id=data.request_id,
            status=data.status,
            cache_write_input_tokens=data.cache_write_input_tokens,
            estimated=data.estimated,
            duration_ms=data.duration_ms,
            first_byte_ms=data.first_byte_ms,
        )


_MANY: Final = TypeAdapter(list[_Envelope])
