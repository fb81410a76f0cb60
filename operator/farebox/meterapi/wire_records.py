"""The JSON of POST /v1/records: what the operator tells the ledger, and what was refused of it."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AwareDatetime,
    Field,
    ValidationError,
)
from pydantic_core import from_json, to_json

from farebox.domain.billing.money import MAX_NANO
from farebox.domain.billing.reservations import Buying, ReservationTerms
from farebox.meterapi.schema import Amount, Key, Name, Price, Wire
from farebox.meterapi.types import (
    AccountRecord,
    Binding,
    FreeQuota,
    PriceVersion,
    Record,
    RecordRefusal,
    ReservationRecord,
    TokenPriceTier,
)

MAX_DAYS: Final = 36_500
"""Days of a term, or of a quota's life."""
MAX_RECORDS: Final = 5_000
"""Records of each sort in one request."""


class WireAccountTerms(Wire):
    """AccountTerms."""

    account: Key
    currency: Name
    credit_limit: Amount

    def value(self) -> AccountRecord:
        """As the ledger's value."""
        return self.into(AccountRecord)


class WireBinding(Wire):
    """Binding."""

    service: Key
    account: Key
    model: Name
    effective_at: AwareDatetime
    trial: bool = False

    def value(self) -> Binding:
        """As the ledger's value."""
        return self.into(Binding)


class WireTier(Wire):
    """PriceTier."""

    up_to_input_tokens: int | None = Field(None, ge=-MAX_NANO, le=MAX_NANO)
    input: Price
    cached_input: Price
    output: Price


_Count = Annotated[int, Field(ge=0, le=MAX_NANO)]
_Unit = Annotated[int, Field(ge=1, le=MAX_NANO)]
_Days = Annotated[int, Field(ge=1, le=MAX_DAYS)]


class WireOffer(Wire):
    """Offer."""

    input_unit_tpm: _Unit = Field(alias="inputUnitTPM")
    input_unit_price_per_day: Amount
    output_unit_tpm: _Unit = Field(alias="outputUnitTPM")
    output_unit_price_per_day: Amount
    terms: tuple[_Days, ...] = Field(min_length=1, max_length=100)


class WireFreeQuota(Wire):
    """FreeQuota."""

    tokens: _Unit
    valid_days: _Days


class WirePrice(Wire):
    """PriceVersion."""

    model: Name
    currency: Name
    effective_at: AwareDatetime
    tiers: tuple[WireTier, ...] = Field(max_length=100)
    reservation: WireOffer | None = None
    free_quota: WireFreeQuota | None = None

    def value(self) -> PriceVersion:
        """As the ledger's value."""
        return self.into(
            PriceVersion,
            tiers=tuple(tier.into(TokenPriceTier) for tier in self.tiers),
            reservation=None if self.reservation is None else self.reservation.into(ReservationTerms),
            free_quota=None if self.free_quota is None else self.free_quota.into(FreeQuota),
        )

    @classmethod
    def of(cls, price: PriceVersion) -> "WirePrice":
        """The price on the wire."""
        return cls.copied(
            price,
            tiers=tuple(map(WireTier.copied, price.tiers)),
            reservation=None if price.reservation is None else WireOffer.copied(price.reservation),
            free_quota=None if price.free_quota is None else WireFreeQuota.copied(price.free_quota),
        )


class WireReservation(Wire):
    """Reservation."""

    service: Key
    uid: Name
    account: Key
    model: Name
    input_tpm: _Count = Field(alias="inputTPM")
    output_tpm: _Count = Field(alias="outputTPM")
    days: _Days
    buying: Buying

    def value(self) -> ReservationRecord:
        """As the ledger's value."""
        return self.into(ReservationRecord)


RecordSort = Literal["accounts", "prices", "bindings", "reservations"]


class WireRecords(Wire):
    """The body of POST /v1/records."""

    accounts: tuple[WireAccountTerms, ...] = Field((), max_length=MAX_RECORDS)
    prices: tuple[WirePrice, ...] = Field((), max_length=MAX_RECORDS)
    bindings: tuple[WireBinding, ...] = Field((), max_length=MAX_RECORDS)
    reservations: tuple[WireReservation, ...] = Field((), max_length=MAX_RECORDS)

    def places(self) -> list[tuple[RecordSort, int]]:
        """Where each record of `values` is in the body."""
        return [
            *(("accounts", index) for index in range(len(self.accounts))),
            *(("prices", index) for index in range(len(self.prices))),
            *(("bindings", index) for index in range(len(self.bindings))),
            *(("reservations", index) for index in range(len(self.reservations))),
        ]

    def values(self) -> list[Record]:
        """As the ledger's values."""
        return [
            *(terms.value() for terms in self.accounts),
            *(price.value() for price in self.prices),
            *(binding.value() for binding in self.bindings),
            *(reservation.value() for reservation in self.reservations),
        ]

    @classmethod
    def of(cls, records: Iterable[Record]) -> "WireRecords":
        """The body for these records; each sort keeps its order."""
        accounts: list[WireAccountTerms] = []
        bindings: list[WireBinding] = []
        prices: list[WirePrice] = []
        reservations: list[WireReservation] = []
        for record in records:
            match record:
                case AccountRecord():
                    accounts.append(WireAccountTerms.copied(record))
                case Binding():
                    bindings.append(WireBinding.copied(record))
                case PriceVersion():
                    prices.append(WirePrice.of(record))
                case ReservationRecord():
                    reservations.append(WireReservation.copied(record))
        return cls.model_construct(
            accounts=tuple(accounts),
            prices=tuple(prices),
            bindings=tuple(bindings),
            reservations=tuple(reservations),
        )


class WireRefusal(Wire):
    """RecordRefusal; `index` counts within its sort."""

    kind: RecordSort
    index: int
    reason: str
    message: str


def read_records(payload: bytes) -> tuple[WireRecords, list[tuple[RecordSort, int]], list[WireRefusal]]:
    """The records of a body that can be read, their places in it, and a refusal for each other one.

    Raises:
        ValidationError: the body as a whole has not the shape of WireRecords.
    """
    try:
        records = WireRecords.model_validate_json(payload)
        return records, records.places(), []
    except ValidationError as invalid:
        faults: dict[tuple[Any, ...], str] = {}
        for error in invalid.errors(include_url=False, include_input=False):
            place = error["loc"][:2]
            if len(place) < 2:
                raise
            field = ".".join(map(str, error["loc"][2:]))
            message = error["msg"].removeprefix("Value error, ")
            faults.setdefault(place, f"{field}: {message}" if field else message)
    body: dict[str, list[Any]] = from_json(payload)
    kept = {
        sort: [item for index, item in enumerate(items) if (sort, index) not in faults]
        for sort, items in body.items()
    }
    records = WireRecords.model_validate_json(to_json(kept))
    indexes = {
        sort: [index for index in range(len(items)) if (sort, index) not in faults]
        for sort, items in body.items()
    }
    places = [(sort, indexes[sort][index]) for sort, index in records.places()]
    refusals = [
        WireRefusal.model_construct(kind=sort, index=index, reason="InvalidRecord", message=message)
        for (sort, index), message in faults.items()
    ]
    return records, places, refusals


class WireRefusals(Wire):
    """The answer of POST /v1/records."""

    refused: tuple[WireRefusal, ...]

    @classmethod
    def of(
        cls,
        refusals: Sequence[RecordRefusal],
        places: Sequence[tuple[RecordSort, int]],
        unread: Sequence[WireRefusal] = (),
    ) -> "WireRefusals":
        """The answer for the ledger's refusals and those of `read_records`; `places` as of the latter."""
        return cls.model_construct(
            refused=(
                *unread,
                *(
                    WireRefusal.model_construct(
                        kind=places[refusal.index][0],
                        index=places[refusal.index][1],
                        reason=refusal.reason,
                        message=refusal.message,
                    )
                    for refusal in refusals
                ),
            )
        )
