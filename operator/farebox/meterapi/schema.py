"""The ledger's values as the JSON of the meter's API: what all its shapes have in common.

Amounts are decimal strings of the account's currency, prices decimal strings per million tokens, times RFC
3339. It validates shapes and bounds; rules about money are the ledger's. The shapes are in wire_records.py
and wire_answers.py, each read by both ends of the API.
"""

import re
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Self, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
)
from pydantic.alias_generators import to_camel

from farebox.domain.billing.money import Nano, format_amount, parse_amount
from farebox.domain.billing.pricing import format_price, parse_price
from farebox.domain.keys import ObjectKey

NO_TIME: Final = "must be an RFC 3339 time with an offset, such as 2026-01-31T12:00:00Z"
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _from_text(parse: Callable[[str], Any]) -> PlainValidator:
    """Only strings: a JSON number would be taken for nano-units, or be a float."""

    def validate(value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError("must be a string")
        return parse(value)

    return PlainValidator(validate)


def _no_control(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not have control characters")
    return text


def parse_key(text: str) -> ObjectKey:
    """The key of "namespace/name", within the bounds of Kubernetes' names.

    Raises:
        ValueError: it is not one.
    """
    key = ObjectKey.parse(text)
    if len(key.namespace) > 63 or len(key.name) > 253 or not text.isprintable():
        raise ValueError("a namespace has at most 63 characters, a name 253, all printable")
    return key


def parse_time(text: str) -> datetime:
    """The moment of an RFC 3339 time, in UTC, to the microsecond: what is finer is cut off.

    Raises:
        ValueError: it is not one.
    """
    if _RFC3339.fullmatch(text) is None:
        raise ValueError(NO_TIME)
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("is outside of the calendar in UTC") from error


Text = Annotated[str, AfterValidator(_no_control)]
"""A string that any database and log can hold."""
Name = Annotated[Text, StringConstraints(min_length=1, max_length=253)]
Key = Annotated[ObjectKey, _from_text(parse_key), PlainSerializer(str, return_type=str)]
"""An ObjectKey as "namespace/name"."""
Amount = Annotated[Nano, _from_text(parse_amount), PlainSerializer(format_amount, return_type=str)]
Price = Annotated[Nano, _from_text(parse_price), PlainSerializer(format_price, return_type=str)]


SEQUENCE_HEADER: Final = "Farebox-Sequence"
"""Of the answer to usage: whoever has read the feed up to this number has read its charges."""


V = TypeVar("V")


class Wire(BaseModel):
    """Base of all shapes: camelCase on the wire, nothing unknown is taken.

    A shape and the ledger's value that it stands for have fields of the same names. What comes from the
    ledger's own values is not validated again.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    def dump(self) -> dict[str, Any]:
        """As a JSON object."""
        return self.model_dump(by_alias=True, mode="json", exclude_none=True)

    @classmethod
    def copied(cls, value: object, **others: Any) -> Self:
        """The shape of a value, with the fields that are of another kind there."""
        same = {name: getattr(value, name) for name in cls.model_fields if name not in others}
        return cast(Self, cls.model_construct(**others, **same))  # pydantic's plugin says Wire

    def into(self, kind: type[V], **others: Any) -> V:
        """The value of this shape: a dataclass, with the fields that are of another kind here."""
        names = (field.name for field in fields(kind))  # type: ignore[arg-type]
        return kind(**others, **{name: getattr(self, name) for name in names if name not in others})
