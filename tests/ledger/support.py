"""Facts and builders of the ledger's tests: one account, one model, a few services."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from farebox.domain.billing.money import Nano, parse_amount
from farebox.domain.billing.reservations import Buying, ReservationTerms
from farebox.domain.keys import ObjectKey
from farebox.ledger.engine import Ledger
from farebox.meterapi.types import (
    AccountRecord,
    Binding,
    FreeQuota,
    PriceVersion,
    QuotaBalance,
    Record,
    ReservationBalance,
    ReservationRecord,
    TokenPriceTier,
    TopUpOrder,
)
from farebox.meterapi.usage import UsageEvent
from tests.ledger.databases import Database

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ACME = ObjectKey("billing", "acme")
CHAT = ObjectKey("team-a", "chat")
MODEL = "qwen3-8b"
TIERS = (
    TokenPriceTier(1_000, Nano(500), Nano(50), Nano(1_500)),
    TokenPriceTier(None, Nano(800), Nano(80), Nano(2_400)),
)
CALL_CHARGE = 100 * 500 + 20 * 1_500
"""Of `usage()` without arguments: 100 tokens in and 20 out, in the first tier."""

OFFER = ReservationTerms(10_000, Nano(12_000_000_000), 1_000, Nano(9_000_000_000), (1, 30))
TERM_PRICE = 30 * (2 * 12 + 1 * 9) * 1_000_000_000
QUOTA = FreeQuota(1_000, 90)
"""What the model may offer: reservations, at the price of `reserved()`'s term, and a free quota."""


@dataclass
class Clock:
    """A clock that a test controls."""

    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> None:
        """Advance by timedelta(**by)."""
        self.now += timedelta(**by)


def terms(account: ObjectKey = ACME, currency: str = "USD", limit: str = "0") -> AccountRecord:
    """An account."""
    return AccountRecord(account, currency, parse_amount(limit))


def binding(
    service: ObjectKey = CHAT, account: ObjectKey = ACME, model: str = MODEL, at: datetime = START
) -> Binding:
    """A service on the account."""
    return Binding(service, account, model, at)


def price(
    model: str = MODEL,
    tiers: Sequence[TokenPriceTier] = TIERS,
    at: datetime = START,
    currency: str = "USD",
) -> PriceVersion:
    """The model's prices."""
    return PriceVersion(model, currency, tuple(tiers), at)


def model(**offers: object) -> PriceVersion:
    """The model's prices, with what it offers."""
    return PriceVersion(MODEL, "USD", TIERS, START, **offers)  # type: ignore[arg-type]


def reserved(buying: Buying = Buying.ONCE, **changes: object) -> ReservationRecord:
    """The service's reservation of 20,000 tokens in and 1,000 out, for 30 days."""
    values: dict[str, object] = {
        "service": CHAT,
        "uid": "uid-1",
        "account": ACME,
        "model": MODEL,
        "input_tpm": 20_000,
        "output_tpm": 1_000,
        "days": 30,
        "buying": buying,
    }
    return ReservationRecord(**(values | changes))  # type: ignore[arg-type]


def flat(nano: int) -> tuple[TokenPriceTier, ...]:
    """One tier in which every token costs `nano`."""
    return (TokenPriceTier(None, Nano(nano), Nano(nano), Nano(nano)),)


FACTS: tuple[Record, ...] = (terms(), binding(), price())
"""All that is needed to charge `usage()`."""


def usage(name: str = "1", **changes: Any) -> UsageEvent:
    """A call of the service, named `name`."""
    values: dict[str, Any] = {
        "source": "gateway-0",
        "id": name,
        "service": CHAT,
        "time": START,
        "input_tokens": 100,
        "output_tokens": 20,
    }
    return UsageEvent(**(values | changes))


def topup(reference: str = "pay_1", amount: str | Nano = "10", **changes: Any) -> TopUpOrder:
    """A payment onto the account."""
    values: dict[str, Any] = {
        "account": ACME,
        "reference": reference,
        "kind": "Payment",
        "amount": parse_amount(amount) if isinstance(amount, str) else amount,
        "source": f"billing/{reference}",
    }
    return TopUpOrder(**(values | changes))


@asynccontextmanager
async def opened(database: Database, clock: Clock | None = None) -> AsyncIterator[Ledger]:
    """A ledger on the database, closed at the end."""
    ledger = await Ledger.open(database.url, clock=clock or Clock())
    try:
        yield ledger
    finally:
        await ledger.close()


async def balance(ledger: Ledger, account: ObjectKey = ACME) -> int:
    """The account's balance in nano-units."""
    found = await ledger.account(account)
    assert found is not None
    return found.balance


async def quota(ledger: Ledger) -> QuotaBalance:
    """The one free quota there is."""
    (found,) = (await ledger.changes(0, 0)).quotas
    return found


async def reservation(ledger: Ledger) -> ReservationBalance:
    """The one reservation there is."""
    (found,) = (await ledger.changes(0, 0)).reservations
    return found
