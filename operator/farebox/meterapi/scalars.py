"""The scalars of the meter's JSON, as annotated types that pydantic reads and writes.

Amounts are decimal strings in the account's currency, prices are decimal strings per million tokens, times
are RFC 3339. Reading checks shapes and bounds; the ledger checks the rules about money.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import AfterValidator, AwareDatetime, Field, PlainSerializer, PlainValidator, StringConstraints

from farebox.domain.billing.money import (
    MAX_NANO,
    NANO_PER_UNIT,
    Nano,
    format_amount,
    parse_amount,
)
from farebox.domain.billing.pricing import format_price, parse_price
from farebox.domain.keys import ObjectKey

NO_TIME: Final = "must be an RFC 3339 time with an offset, such as 2026-01-31T12:00:00Z"
MAX_DAYS: Final = 36_500
"""The longest reservation term, and the longest life of a free quota, in days."""
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def parse_key(text: str) -> ObjectKey:
    """Parse "namespace/name", within the bounds of Kubernetes' names.

    Raises:
        ValueError: the text is not such a key.
    """
    key = ObjectKey.parse(text)
    if len(key.namespace) > 63 or len(key.name) > 253 or not text.isprintable():
        raise ValueError("a namespace has at most 63 characters, a name 253, all printable")
    return key


def parse_time(text: str) -> datetime:
    """Parse an RFC 3339 time to UTC. Digits below a microsecond are cut off.

    Raises:
        ValueError: the text is not such a time.
    """
    if _RFC3339.fullmatch(text) is None:
        raise ValueError(NO_TIME)
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("is outside of the calendar in UTC") from error


def _parse_total(text: str) -> int:
    """Parse a sum of amounts, which may be larger than any single amount."""
    units, _, decimals = text.partition(".")
    return int(units) * NANO_PER_UNIT + int(decimals.ljust(9, "0"))


def _from_text(parse: Callable[[str], Any]) -> PlainValidator:
    """Accept strings only: a JSON number could be read as nano-units, or be a float."""

    def validate(value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError("must be a string")
        return parse(value)

    return PlainValidator(validate)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not have control characters")
    return text


Text = Annotated[str, AfterValidator(_printable)]
"""A string that any database and any log can hold."""
Name = Annotated[Text, StringConstraints(min_length=1, max_length=253)]
EventSource = Annotated[Text, StringConstraints(min_length=1, max_length=256)]
Key = Annotated[ObjectKey, _from_text(parse_key), PlainSerializer(str, return_type=str)]
"""An ObjectKey as "namespace/name"."""
Amount = Annotated[Nano, _from_text(parse_amount), PlainSerializer(format_amount, return_type=str)]
Total = Annotated[int, _from_text(_parse_total), PlainSerializer(format_amount, return_type=str)]
"""A sum of amounts in nano-units. Unlike an Amount it can exceed 64 bits."""
Price = Annotated[Nano, _from_text(parse_price), PlainSerializer(format_price, return_type=str)]
Count = Annotated[int, Field(ge=0, le=MAX_NANO)]
Positive = Annotated[int, Field(ge=1, le=MAX_NANO)]
Days = Annotated[int, Field(ge=1, le=MAX_DAYS)]
OptionalTime = Annotated[AwareDatetime | None, Field(default=None)]
"""A time. The JSON omits the field when the value is missing."""
OptionalText = Annotated[str | None, Field(default=None)]
