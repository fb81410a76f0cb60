"""What the rest of Farebox asks of the ledger, and in which words.

Two implementations say the same: `ledger.engine.Ledger` on a database, `meterapi.client.MeterClient` over
the meter's HTTP API. All amounts are nano-units of the account's currency, all times are aware UTC.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, Protocol

from farebox.api import ReservationState
from farebox.domain.billing.money import Nano
from farebox.domain.billing.reservations import Buying, ReservationTerms
from farebox.domain.keys import ObjectKey


@dataclass(frozen=True, slots=True)
class AccountRecord:
    """An account as its owner declares it. The currency is fixed by the first record of the key (B11)."""

    account: ObjectKey
    currency: str
    credit_limit: Nano


@dataclass(frozen=True, slots=True)
class Binding:
    """From `effective_at` on, calls of `service` are served by `model` and paid by `account`.

    A `trial` never bills: what the free quota does not cover costs nothing (B6).
    """

    service: ObjectKey
    account: ObjectKey
    model: str
    effective_at: datetime
    trial: bool = False


@dataclass(frozen=True, slots=True)
class TokenPriceTier:
    """Prices of a token in nano-units, for calls with at most `up_to_input_tokens` (None: any number)."""

    up_to_input_tokens: int | None
    input: Nano
    cached_input: Nano
    output: Nano


@dataclass(frozen=True, slots=True)
class FreeQuota:
    """What a model gives to each account for nothing: so many tokens, good for so many days (B6)."""

    tokens: int
    valid_days: int


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """What a model costs and offers from `effective_at` on, until the next version.

    A term costs what the version in force says when it is bought; an account's quota is what the newest
    version gave when the account's first service on the model was recorded.
    """

    model: str
    currency: str
    tiers: tuple[TokenPriceTier, ...]
    effective_at: datetime
    reservation: ReservationTerms | None = None
    free_quota: FreeQuota | None = None

    def same_terms(self, other: "PriceVersion") -> bool:
        """Whether both say the same, whenever they took effect."""
        return replace(self, effective_at=other.effective_at) == other


@dataclass(frozen=True, slots=True)
class ReservationRecord:
    """Throughput that a service wants to buy from its account (B9). (service, uid) names it for ever."""

    service: ObjectKey
    uid: str
    account: ObjectKey
    model: str
    input_tpm: int
    output_tpm: int
    days: int
    buying: Buying


Record = AccountRecord | Binding | PriceVersion | ReservationRecord
"""A fact that the operator tells the ledger. Recording the same again changes nothing."""


@dataclass(frozen=True, slots=True)
class RecordRefusal:
    """Why the record at `index` was not taken; the others were."""

    index: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class TopUpOrder:
    """Money to book, once per account and reference (B10). `source` is the TopUp's namespace/name."""

    account: ObjectKey
    reference: str
    kind: Literal["Payment", "Adjustment"]
    amount: Nano
    source: str


@dataclass(frozen=True, slots=True)
class AccountBalance:
    """An account as the ledger has it after the transaction numbered `sequence`."""

    account: ObjectKey
    currency: str
    balance: Nano
    credit_limit: Nano
    sequence: int


@dataclass(frozen=True, slots=True)
class TopUpReceipt:
    """The receipt of a TopUp. A repetition gets the first one's receipt, with `duplicate` set.

    `balance_after` is the balance just after this top-up was booked; `account` is the account as it is now.
    """

    posted_at: datetime
    balance_after: Nano
    duplicate: bool
    account: AccountBalance


@dataclass(frozen=True, slots=True)
class CreditLeaseRequest:
    """What a gateway, the `source` of its usage events, wants to be sure of: `amount` is all that its running
    calls hold, that it has not reported yet, and that it wants to spare."""

    source: str
    account: ObjectKey
    amount: Nano


@dataclass(frozen=True, slots=True)
class CreditLease:
    """A gateway's budget: `granted` in all, of which `spent` is charged already, until `expires_at`."""

    account: ObjectKey
    granted: Nano
    spent: Nano
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class QuotaBalance:
    """An account's free quota for a model, in tokens, after the transaction numbered `sequence`."""

    account: ObjectKey
    model: str
    total: int
    used: int
    expires_at: datetime
    sequence: int


@dataclass(frozen=True, slots=True)
class ReservationBalance:
    """A reservation after the change numbered `sequence`.

    The period is that of the term in force or, without one, of the last; None: no term was ever bought.
    `reason` and `message` say why the next term is not bought, or are "".
    """

    service: ObjectKey
    uid: str
    account: ObjectKey
    model: str
    input_tpm: int
    output_tpm: int
    days: int
    buying: Buying
    state: ReservationState
    reason: str
    message: str
    period_start: datetime | None
    period_end: datetime | None
    sequence: int


@dataclass(frozen=True, slots=True)
class Bookmark:
    """How far a reader of the feed has come, and in which history: one of `ledger_id`, in which number
    `sequence` was written at `written_at`.

    A ledger that was restored from an older copy gives the same numbers out again, at other times: it may
    have come as far as the reader, or further, but not to the same place.
    """

    ledger_id: str = ""
    sequence: int = 0
    written_at: datetime | None = None

    def __str__(self) -> str:
        """For `parse`; "" at the beginning."""
        return (
            ""
            if self.written_at is None
            else f"{self.ledger_id} {self.sequence} {self.written_at.isoformat()}"
        )

    @classmethod
    def parse(cls, text: str) -> "Bookmark":
        """The bookmark of a text; one that cannot be read is at the beginning."""
        try:
            ledger_id, sequence, written_at = text.split(" ")
            return cls(ledger_id, int(sequence), datetime.fromisoformat(written_at))
        except ValueError:
            return cls()


@dataclass(frozen=True, slots=True)
class ChangePage:
    """Accounts, quotas and reservations that changed after a sequence number, each once, oldest first.

    `ledger_id` changes when the database is another one. `complete` says that nothing that was committed
    when the page was made is missing after it; `next` is what to ask after for the next page. The last two
    say when the ledger wrote the number that was asked after, and `next`: None if it has no such number.
    """

    ledger_id: str
    head: int
    accounts: tuple[AccountBalance, ...]
    complete: bool
    next: int
    quotas: tuple[QuotaBalance, ...] = ()
    reservations: tuple[ReservationBalance, ...] = ()
    after_written_at: datetime | None = None
    next_written_at: datetime | None = None

    @property
    def bookmark(self) -> Bookmark:
        """Where a reader is that has read this page."""
        return Bookmark(self.ledger_id, self.next, self.next_written_at)

    def follows(self, bookmark: Bookmark) -> bool:
        """Whether the page, asked for after a bookmark, goes on in the same history.

        If not, the ledger is another one or was restored from an older copy: the reader forgets what it has
        heard and starts again from 0.
        """
        return self.ledger_id == (bookmark.ledger_id or self.ledger_id) and (
            self.after_written_at == bookmark.written_at
        )


class LedgerAPI(Protocol):
    """The ledger as the operator sees it.

    Every method raises LedgerUnavailable when nothing is known of the outcome; all are safe to repeat.
    """

    async def record(self, records: Sequence[Record]) -> Sequence[RecordRefusal]:
        """Record facts; those already known change nothing. Bad ones are refused one by one."""

    async def post_topup(self, order: TopUpOrder) -> TopUpReceipt:
        """Book a top-up.

        Raises:
            LedgerRefused: AccountNotFound (the account was never recorded), ReferenceConflict (another
                amount or kind under the same reference), AmountOutOfRange.
        """

    async def changes(self, after: int, wait_seconds: float, limit: int = 1000) -> ChangePage:
        """What changed after `after`; waits up to `wait_seconds` when there is nothing yet."""
