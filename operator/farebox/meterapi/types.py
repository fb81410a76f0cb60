"""The values that the operator, the gateway, the command line and the ledger exchange.

`LedgerAPI` has two implementations: `ledger.engine.Ledger` on a database, and `meterapi.client.MeterClient`
over the meter's HTTP API. Amounts are nano-units of the account's currency, times are aware UTC. The
annotations say how schema.py reads and writes each value as JSON; a constructor does not validate.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import AwareDatetime, ConfigDict, Field, GetCoreSchemaHandler, StringConstraints, computed_field
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

from farebox.api import Prices, ReservationState
from farebox.domain.billing.money import MAX_NANO, available, is_overdue
from farebox.domain.billing.pricing import parse_price
from farebox.domain.billing.reservations import Buying, ReservationTerms
from farebox.meterapi.scalars import (
    Amount,
    Count,
    Days,
    EventSource,
    Key,
    Name,
    OptionalTime,
    Positive,
    Price,
    Text,
)


def json_name(field: str) -> str:
    """The name of a field in JSON: camelCase, with TPM as the CRDs spell it."""
    return to_camel(field).replace("Tpm", "TPM")


class Value:
    """Base of the values with a JSON form: camelCase names, and no unknown fields."""

    __slots__ = ()
    __pydantic_config__: ClassVar = ConfigDict(alias_generator=json_name, extra="forbid")


class Answer(Value):
    """Base of the answers in which a reader ignores unknown fields, such as those that follow from others."""

    __slots__ = ()
    __pydantic_config__: ClassVar = ConfigDict(alias_generator=json_name, extra="ignore")


@dataclass(frozen=True, slots=True)
class _Offer(Value):
    """ReservationTerms with annotations: the domain knows no JSON."""

    input_unit_tpm: Positive
    input_unit_price_per_day: Amount
    output_unit_tpm: Positive
    output_unit_price_per_day: Amount
    terms: Annotated[tuple[Days, ...], Field(min_length=1, max_length=100)]


class _AsOffer:
    """Reads and writes ReservationTerms as an _Offer."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        offer = handler.generate_schema(_Offer)
        return core_schema.no_info_after_validator_function(
            lambda read: ReservationTerms(**asdict(read)),
            offer,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda terms: _Offer(**asdict(terms)), return_schema=offer
            ),
        )


@dataclass(frozen=True, slots=True)
class AccountRecord(Value):
    """An account as its owner declares it. The first record of the key fixes the currency (B11)."""

    account: Key
    currency: Name
    credit_limit: Amount


@dataclass(frozen=True, slots=True)
class Binding(Value):
    """From `effective_at` on, `model` serves the calls of `service` and `account` pays for them.

    A `trial` is never charged: usage beyond the free quota costs nothing (B6).
    """

    service: Key
    account: Key
    model: Name
    effective_at: AwareDatetime
    trial: bool = False


@dataclass(frozen=True, slots=True)
class TokenPriceTier(Value):
    """Prices of a token in nano-units, for calls with at most `up_to_input_tokens` (None: any number).

    Without `cache_write`, tokens that write a cache cost the price of input (B41).
    """

    up_to_input_tokens: Annotated[int | None, Field(default=None, ge=-MAX_NANO, le=MAX_NANO)]
    input: Price
    cached_input: Price
    output: Price
    cache_write: Price | None = None


def token_price_tiers(prices: Prices) -> tuple[TokenPriceTier, ...]:
    """The tiers of a Model. Raises InvalidAmount for a price that the CRD's validation does not admit."""
    return tuple(
        TokenPriceTier(
            up_to_input_tokens=tier.up_to_input_tokens,
            input=parse_price(tier.input),
            cached_input=parse_price(tier.cached_input),
            output=parse_price(tier.output),
            cache_write=None if tier.cache_write is None else parse_price(tier.cache_write),
        )
        for tier in prices.tiers
    )


@dataclass(frozen=True, slots=True)
class FreeQuota(Value):
    """The tokens that a model gives to each account for free, and for how many days (B6)."""

    tokens: Positive
    valid_days: Days


@dataclass(frozen=True, slots=True)
class PriceVersion(Value):
    """What a model costs and offers from `effective_at` until the next version.

    The version in force at the purchase sets the price of a reservation term. The newest version at the time
    of the account's first binding to the model sets the account's free quota.
    """

    model: Name
    currency: Name
    tiers: Annotated[tuple[TokenPriceTier, ...], Field(max_length=100)]
    effective_at: AwareDatetime
    reservation: Annotated[ReservationTerms, _AsOffer()] | None = None
    free_quota: FreeQuota | None = None

    def same_terms(self, other: "PriceVersion") -> bool:
        """Whether the two versions differ in nothing but the time at which they take effect."""
        return replace(self, effective_at=other.effective_at) == other


@dataclass(frozen=True, slots=True)
class ReservationRecord(Value):
    """Throughput that a service reserves at the expense of its account (B9). (service, uid) identifies it."""

    service: Key
    uid: Name
    account: Key
    model: Name
    input_tpm: Count
    output_tpm: Count
    days: Days
    buying: Buying


Record = AccountRecord | Binding | PriceVersion | ReservationRecord
"""A fact that the operator reports to the ledger. Recording the same fact again changes nothing."""


@dataclass(frozen=True, slots=True)
class RecordRefusal:
    """Why the ledger refuses the record at `index`. The other records of the request are recorded."""

    index: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class TopUpOrder(Value):
    """Money to post, once per account and reference (B10). `source` is the TopUp's namespace/name."""

    account: Key
    reference: Name
    kind: Literal["Payment", "Adjustment"]
    amount: Amount
    source: Annotated[Text, StringConstraints(max_length=512)]


@dataclass(frozen=True, slots=True)
class AccountBalance(Answer):
    """An account in the ledger after the transaction numbered `sequence`."""

    account: Key
    currency: str
    balance: Amount
    credit_limit: Amount
    sequence: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def available(self) -> Amount:
        """What the account can still spend, with its credit limit."""
        return available(self.balance, self.credit_limit)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def state(self) -> Literal["Active", "Overdue"]:
        """Whether the account is Overdue (B2)."""
        return "Overdue" if is_overdue(self.balance, self.credit_limit) else "Active"


@dataclass(frozen=True, slots=True)
class TopUpReceipt(Value):
    """The receipt of a top-up. A repeated order returns the first receipt, with `duplicate` set.

    `balance_after` is the balance just after this top-up was posted, `account` is the account now.
    """

    posted_at: AwareDatetime
    balance_after: Amount
    duplicate: bool
    account: AccountBalance


@dataclass(frozen=True, slots=True)
class CreditLeaseRequest(Value):
    """The money of an account that a gateway, the `source` of usage events, wants to lease.

    `amount` covers the authorized calls, the usage that is not reported yet, and a reserve.
    """

    source: EventSource
    account: Key
    amount: Amount


@dataclass(frozen=True, slots=True)
class CreditLease(Value):
    """A gateway's lease until `expires_at`: `granted` in total, of which `spent` is already charged."""

    account: Key
    granted: Amount
    spent: Amount
    expires_at: AwareDatetime


@dataclass(frozen=True, slots=True)
class QuotaBalance(Value):
    """An account's free quota for a model, in tokens, after the transaction numbered `sequence`."""

    account: Key
    model: str
    total: int
    used: int
    expires_at: AwareDatetime
    sequence: int


@dataclass(frozen=True, slots=True)
class ReservationBalance(Value):
    """A reservation after the change numbered `sequence`.

    The period is the one of the term in force, or of the last term, or None before the first term. `reason`
    and `message` say why the next term is not bought, or are "".
    """

    service: Key
    uid: str
    account: Key
    model: str
    input_tpm: int
    output_tpm: int
    days: int
    buying: Buying
    state: ReservationState
    reason: str
    message: str
    period_start: OptionalTime
    period_end: OptionalTime
    sequence: int


@dataclass(frozen=True, slots=True)
class Bookmark:
    """A reader's position in the feed: number `sequence` of ledger `ledger_id`, written at `written_at`.

    A ledger that is restored from an older copy assigns the same numbers again, at other times. The time
    tells the two histories apart even when the restored ledger has passed the reader's number.
    """

    ledger_id: str = ""
    sequence: int = 0
    written_at: datetime | None = None

    def __str__(self) -> str:
        """The bookmark as a text that `parse` reads; "" at the beginning."""
        if self.written_at is None:
            return ""
        return f"{self.ledger_id} {self.sequence} {self.written_at.isoformat()}"

    @classmethod
    def parse(cls, text: str) -> "Bookmark":
        """Parse a bookmark. A malformed text gives the beginning."""
        try:
            ledger_id, sequence, written_at = text.split(" ")
            return cls(ledger_id, int(sequence), datetime.fromisoformat(written_at))
        except ValueError:
            return cls()


@dataclass(frozen=True, slots=True)
class ChangePage(Value):
    """The accounts, quotas and reservations that changed after a number, each once, the oldest change first.

    `ledger_id` identifies the database. With `complete`, the page ends at the newest commit. `next` is the
    number to request the next page after. `after_written_at` and `next_written_at` say when the ledger wrote
    the requested number and `next`; None: it has no such number.
    """

    ledger_id: str
    head: int
    accounts: tuple[AccountBalance, ...]
    complete: bool
    next: int
    quotas: tuple[QuotaBalance, ...] = ()
    reservations: tuple[ReservationBalance, ...] = ()
    after_written_at: AwareDatetime | None = None
    next_written_at: AwareDatetime | None = None

    @property
    def bookmark(self) -> Bookmark:
        """The position of a reader after this page."""
        return Bookmark(self.ledger_id, self.next, self.next_written_at)

    def follows(self, bookmark: Bookmark) -> bool:
        """Whether the page, requested after a bookmark, continues the same history.

        If not, this is another ledger or one that was restored from an older copy: the reader must forget
        the state and read again from 0.
        """
        return self.ledger_id == (bookmark.ledger_id or self.ledger_id) and (
            self.after_written_at == bookmark.written_at
        )


class LedgerAPI(Protocol):
    """The ledger as the operator uses it.

    Every method raises LedgerUnavailable when the outcome is unknown; every call is safe to repeat.
    """

    async def record(self, records: Sequence[Record]) -> Sequence[RecordRefusal]:
        """Record facts. Known facts change nothing; invalid ones are refused one by one."""

    async def post_topup(self, order: TopUpOrder) -> TopUpReceipt:
        """Post a top-up.

        Raises:
            LedgerRefused: AccountNotFound (the account is not recorded yet), ReferenceConflict (the
                reference has another amount or kind), AmountOutOfRange.
        """

    async def changes(self, after: int, wait_seconds: float, limit: int = 1000) -> ChangePage:
        """Read the changes after a number; wait up to `wait_seconds` for the first one."""
