"""Types of fields, with their constraints for Python and for the CRD's schema.

Constraints are only here and in the kinds' modules; `schema.py` carries them into the CRDs. This module never
checks anything across objects.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


@dataclass(frozen=True, eq=False)
class OpenAPI:
    """Adds keys to a type's OpenAPI schema. It checks nothing when objects are read.

    For keys that pydantic cannot express ("format", "x-kubernetes-..."), and for checks that only the API
    server may do, because an object that is already stored must stay readable.
    """

    extra: Mapping[str, Any]

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core)
        schema.update(self.extra)
        return schema


@dataclass(frozen=True)
class Rule:
    """A CEL rule of the API server, with the message that a user reads when it fails (B8, B23).

    Args:
        cel: true for a valid object. `oldSelf` makes it a rule about changes.
        message: what is wrong and what to do instead.
        at: the field that the error names, such as ".modelRef"; default: where the rule stands.
        reason: the API server's class of the error.
    """

    cel: str
    message: str
    at: str | None = None
    reason: Literal["FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired"] = "FieldValueInvalid"

    def as_schema(self) -> dict[str, str]:
        """The rule as an entry of x-kubernetes-validations."""
        entry = {"rule": self.cel, "message": self.message}
        if self.reason != "FieldValueInvalid":
            entry["reason"] = self.reason
        if self.at is not None:
            entry["fieldPath"] = self.at
        return entry


def rules(*entries: Rule) -> dict[str, Any]:
    """The schema keys of some rules, for `json_schema_extra` of a class or for `OpenAPI`."""
    return {"x-kubernetes-validations": [entry.as_schema() for entry in entries]}


def immutable(field: str, instead: str) -> Rule:
    """A rule for the parent of a required or defaulted field: its value may not change (B8).

    It stands on the parent, because the API server does not evaluate a rule on the field itself when the
    field is added or removed (docs/decisions/201). An optional field also needs has() on both sides: see the
    reservation of InferenceService.
    """
    return Rule(
        f"self.{field} == oldSelf.{field}",
        f"{field} cannot be changed: {instead}",
        at=f".{field}",
        reason="FieldValueForbidden",
    )


def _whole_seconds(value: datetime) -> datetime:
    """UTC without fractions, as Kubernetes writes times, so that what is read equals what was written."""
    return value.astimezone(UTC).replace(microsecond=0)


Time = Annotated[AwareDatetime, AfterValidator(_whole_seconds)]
"""A moment in UTC, to the second."""

WrittenTime = Annotated[
    Time,
    OpenAPI(
        {
            "maxLength": 40,
            "pattern": r"^2[0-9]{3}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
            r"([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$",
        }
    ),
]
"""A moment that a user writes. The pattern rejects values that the API server's `date-time` accepts but no
parser reads, such as an offset of 99 hours."""

Count32 = Annotated[int, Field(ge=0, le=2**31 - 1), OpenAPI({"format": "int32"})]
Count64 = Annotated[int, Field(ge=0, le=2**53), OpenAPI({"format": "int64"})]
"""A number from 0 to 2^53, which every JSON reader keeps exact."""

FieldName = Annotated[
    str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_-]*([.][A-Za-z0-9_-]+)?$")
]
"""A field of a request body, or tools.TYPE."""

ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""The name of an object: lower-case letters, digits, "-" and "."."""

NamespaceName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
SecretKey = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]

_SIGNED_AMOUNT = r"^-?[0-9]{1,9}(\.[0-9]{1,9})?$"
_AMOUNT = r"^[0-9]{1,9}(\.[0-9]{1,9})?$"
_PRICE = r"^[0-9]{1,6}(\.[0-9]{1,3})?$"


def _decimal(pattern: str, message: str) -> OpenAPI:
    """A message for a pattern. The API server's own only repeats the regular expression."""
    return OpenAPI(rules(Rule(f"self.matches(r'{pattern}')", message)))


SignedAmount = Annotated[
    str,
    Field(min_length=1, max_length=20, pattern=_SIGNED_AMOUNT),
    _decimal(
        _SIGNED_AMOUNT,
        'write the amount as a decimal with at most 9 digits before and 9 after the point, such as "100.00"',
    ),
]
"""Money as a decimal string; may be negative."""

Amount = Annotated[
    str,
    Field(min_length=1, max_length=19, pattern=_AMOUNT),
    _decimal(
        _AMOUNT,
        "write a decimal that is not negative, with at most 9 digits before and 9 after the point, such as"
        ' "100.00"',
    ),
]
"""Money as a decimal string, zero or more."""

Price = Annotated[
    str,
    Field(min_length=1, max_length=10, pattern=_PRICE),
    _decimal(
        _PRICE,
        "write a price that is not negative, with at most 6 digits before and 3 after the point, such as"
        ' "0.500"',
    ),
]
"""A price as a decimal string with at most 3 decimals: every charge is a whole number of nano-units."""

Currency = Annotated[
    str,
    Field(min_length=3, max_length=3, pattern=r"^[A-Z]{3}$"),
    OpenAPI(
        rules(Rule("self.matches(r'^[A-Z]{3}$')", 'write a currency as three capital letters, such as "USD"'))
    ),
]
"""A currency's three-letter code."""

Cidr = Annotated[
    str,
    Field(min_length=1, max_length=43),
    OpenAPI(
        rules(
            Rule(
                "isCIDR(self)",
                'write an address range as address/length, such as "10.0.0.0/8", "192.0.2.7/32" or'
                ' "2001:db8::/32"',
            )
        )
    ),
]
"""A range of IPv4 or IPv6 addresses. Not `format: cidr`, whose error would hide all messages of rules."""
