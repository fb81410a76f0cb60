"""Reads and writes the values of types.py and reports.py as the JSON of the meter's API."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from farebox.meterapi.types import (
    AccountRecord,
    Binding,
    PriceVersion,
    Record,
    RecordRefusal,
    ReservationRecord,
    Value,
)

MAX_RECORDS: Final = 5_000
"""Records of each kind in one request."""
SEQUENCE_HEADER: Final = "Farebox-Sequence"
"""Header of the answer to usage: the feed has the charges up to this number."""

V = TypeVar("V")


_ADAPTERS: Final[dict[type[Any], TypeAdapter[Any]]] = {}


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def from_json(kind: type[V], payload: bytes) -> V:
    """Read a value.

    Raises:
        ValidationError: the JSON is not one. `fault` words the error for the sender.
    """
    value: V = _adapter(kind).validate_json(payload)
    return value


def to_json(value: object) -> bytes:
    """Write a value as a JSON object. Omits fields whose value is None."""
    return _adapter(type(value)).dump_json(value, by_alias=True, exclude_none=True)


_MESSAGES: Final = {
    "unexpected_keyword_argument": "is not a known field",
    "dataclass_type": "must be an object",
    "tuple_type": "must be a list",
}
"""For errors that pydantic words for Python's callers."""


def fault(invalid: ValidationError, whole: str = "the body") -> str:
    """The first error as a sentence that names the field, or `whole` if no field is at fault."""
    first = invalid.errors(include_url=False, include_input=False)[0]
    message = _MESSAGES.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    field = ".".join(map(str, first["loc"])) or whole
    return f"{field}: {message}"


class _Invalid(NamedTuple):
    """A record that cannot be read, and why."""

    message: str


def _or_invalid(item: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(item)
    except ValidationError as invalid:
        return _Invalid(fault(invalid, "the record"))


R = TypeVar("R")
_Records = Annotated[
    tuple[Annotated[R, WrapValidator(_or_invalid)], ...], Field(default=(), max_length=MAX_RECORDS)
]


@dataclass(frozen=True, slots=True)
class RecordsBody(Value):
    """The body of POST /v1/records: the records by kind. When read, an invalid record is an _Invalid."""

    accounts: _Records[AccountRecord] = ()
    prices: _Records[PriceVersion] = ()
    bindings: _Records[Binding] = ()
    reservations: _Records[ReservationRecord] = ()


_Kind = Literal["accounts", "prices", "bindings", "reservations"]
_KINDS: Final[dict[type[Record], _Kind]] = {
    AccountRecord: "accounts",
    PriceVersion: "prices",
    Binding: "bindings",
    ReservationRecord: "reservations",
}


Place = tuple[_Kind, int]
"""Where a record is in the body of POST /v1/records: its kind, and its index within the kind."""


@dataclass(frozen=True, slots=True)
class RefusedRecord(Value):
    """The ledger's refusal of the record at `index` of its kind."""

    kind: _Kind
    index: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class RecordsAnswer(Value):
    """The answer of POST /v1/records."""

    refused: tuple[RefusedRecord, ...]

    def by_position(self, records: Sequence[Record]) -> list[RecordRefusal]:
        """The refusals with their positions in the list that `write_records` wrote."""
        count = dict.fromkeys(_KINDS.values(), 0)
        positions: dict[Place, int] = {}
        for position, record in enumerate(records):
            kind = _KINDS[type(record)]
            positions[kind, count[kind]] = position
            count[kind] += 1
        return [
            RecordRefusal(positions[item.kind, item.index], item.reason, item.message)
            for item in self.refused
        ]


def write_records(records: Iterable[Record]) -> bytes:
    """The body for these records. Records of one kind keep their order."""
    body: dict[str, list[Any]] = {kind: [] for kind in _KINDS.values()}
    for record in records:
        body[_KINDS[type(record)]].append(record)
    return to_json(RecordsBody(**{kind: tuple(items) for kind, items in body.items()}))


@dataclass(frozen=True, slots=True)
class ReadRecords:
    """The valid records of a body with their places, and a refusal of each invalid one."""

    records: Sequence[Record]
    places: Sequence[Place]
    invalid: Sequence[RefusedRecord]

    def answer(self, refusals: Iterable[RecordRefusal]) -> RecordsAnswer:
        """The answer to the body, with the ledger's refusals of `records`."""
        refused = (RefusedRecord(*self.places[item.index], item.reason, item.message) for item in refusals)
        return RecordsAnswer((*self.invalid, *refused))


def read_records(payload: bytes) -> ReadRecords:
    """Read the body of POST /v1/records.

    Raises:
        ValidationError: the body as a whole is not a RecordsBody.
    """
    body = from_json(RecordsBody, payload)
    placed = [
        ((kind, index), item) for kind in _KINDS.values() for index, item in enumerate(getattr(body, kind))
    ]
    valid = [(place, item) for place, item in placed if not isinstance(item, _Invalid)]
    return ReadRecords(
        records=[item for _, item in valid],
        places=[place for place, _ in valid],
        invalid=[
            RefusedRecord(*place, "InvalidRecord", item.message)
            for place, item in placed
            if isinstance(item, _Invalid)
        ],
    )
