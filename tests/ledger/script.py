"""What may happen to a ledger, drawn by a random generator: the steps of a life for test_simulation."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, TypeVar

from farebox.domain.billing.money import Nano
from farebox.domain.billing.reservations import Buying, ReservationTerms
from farebox.domain.keys import ObjectKey
from farebox.ledger.engine import _CreditLease, _Ingest, _Records, _Renewals, _TopUp
from farebox.meterapi.types import (
    AccountRecord,
    Binding,
    CreditLeaseRequest,
    FreeQuota,
    PriceVersion,
    Record,
    ReservationRecord,
    TokenPriceTier,
    TopUpOrder,
)
from farebox.meterapi.usage import UsageEvent
from tests.ledger.support import START

ACCOUNTS = [ObjectKey("billing", name) for name in ("acme", "emca")]
MODELS = ["bge", "qwen3"]
SERVICES = [ObjectKey("team", name) for name in ("chat", "embed", "search")]
GATEWAYS = ("gateway-0", "gateway-1")
DAYS = (1, 2, 30)
UNIT = 1_000_000_000

KINDS: tuple[Literal["Payment", "Adjustment"], ...] = ("Payment", "Payment", "Adjustment")

Work = _Renewals | _CreditLease | _Ingest | _Records | _TopUp
T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """The clock moves on, then work is handed over; what is handed over together may share a commit."""

    later: timedelta
    together: tuple[Work, ...]


class Script:
    """Draws the steps of one life."""

    def __init__(self, random_: random.Random) -> None:
        self._random = random_
        self._now = START
        self._steps = [START]
        self._sent: list[UsageEvent] = []
        self._recorded: list[Record] = []
        self._orders: list[TopUpOrder] = []
        self._rarely_far = random_.random() < 0.5

    def steps(self, count: int) -> list[Step]:
        """All of them. Most lives begin with what is needed to charge; the others find it on their way."""
        start = [self._start()] if self._random.random() < 0.8 else []
        return start + [self._step() for _ in range(count)]

    def _start(self) -> Step:
        self._recorded = [AccountRecord(account, "USD", Nano(0)) for account in ACCOUNTS]
        self._recorded += [
            Binding(service, ACCOUNTS[place % 2], MODELS[place // 2], START)
            for place, service in enumerate(SERVICES)
        ]
        self._recorded += [self._price(model) for model in MODELS]
        self._recorded += [self._reservation() for _ in range(self._random.randint(0, 2))]
        amount = Nano(self._random.choice((1, 1_000 * UNIT)))
        self._orders = [
            TopUpOrder(account, "pay_0", "Payment", amount, "billing/first") for account in ACCOUNTS
        ]
        return Step(timedelta(0), (_Records(self._recorded[:]), *map(_TopUp, self._orders)))

    def _step(self) -> Step:
        later = self._later()
        self._now += later
        self._steps.append(self._now)
        choice = self._random.random
        works: list[Work] = [self._work() for _ in range(1 if choice() < 0.7 else self._random.randint(2, 4))]
        if later >= timedelta(hours=1) and choice() < 0.7:
            works.insert(0, _Renewals())
        return Step(later, tuple(works))

    def _later(self) -> timedelta:
        draw = self._random.random()
        if draw < 0.4:
            return timedelta(0)
        if draw < 0.7:
            # A clock may be set back a little, or be that of another meter.
            return timedelta(seconds=self._random.choice((1, 20, 59.999999, 60, 600, -1, -90)))
        if draw < 0.97 or self._rarely_far:
            return timedelta(hours=self._random.choice((1, 11, 12, 13, 23, 24, 25, 48)))
        return timedelta(days=self._random.choice((29, 30, 31, 90, 400)))

    def _work(self) -> Work:
        draw = self._random.random()
        if draw < 0.45:
            return _Ingest([self._usage() for _ in range(self._random.randint(1, 6))])
        if draw < 0.6:
            return _TopUp(self._topup())
        if draw < 0.7:
            return _CreditLease(self._claim())
        if draw < 0.93:
            return _Records([self._record() for _ in range(self._random.choice((1, 1, 2, 4)))])
        return _Renewals()

    def _again(self, known: list[T], chance: float, make: Callable[[], T]) -> T:
        """One that was there before, or a new one that is kept."""
        if known and self._random.random() < chance:
            return self._random.choice(known)
        known.append(make())
        return known[-1]

    def _moment(self) -> datetime:
        """When something happened: mostly just now, sometimes long ago, once in a while too far ahead."""
        draw = self._random.random()
        if draw < 0.6:
            return self._now - timedelta(seconds=self._random.choice((0, 0, 0.000001, 1, 30)))
        if draw < 0.8:
            return self._now - timedelta(hours=self._random.choice((1, 12, 24, 24.5, 48, 720)))
        if draw < 0.97:
            # To the microsecond where something that began at an earlier step begins or ends.
            days = self._random.choice((0, *DAYS, 90))
            edge = self._random.choice(self._steps) + timedelta(days=days)
            return min(edge + timedelta(microseconds=self._random.choice((-1, 0, 1))), self._now)
        return self._now + timedelta(minutes=self._random.choice((4, 5, 5.1)))

    def _usage(self) -> UsageEvent:
        event_ = self._again(self._sent, 0.2, self._call)
        if self._random.random() < 0.02:
            # The same name with another payload: the first counts.
            return replace(event_, output_tokens=event_.output_tokens + 1)
        return event_

    def _call(self) -> UsageEvent:
        tokens = self._random.choice((0, 1, 90, 400, 999, 1_000, 1_001, 2_500))
        service = self._random.choice(SERVICES)
        its_own = MODELS[SERVICES.index(service) // 2]
        cached = self._random.choice((0, tokens // 3, tokens))
        return UsageEvent(
            source=self._random.choice(GATEWAYS),
            id=str(self._random.randint(0, 400)),
            service=service,
            time=self._moment(),
            input_tokens=tokens,
            cached_input_tokens=cached,
            cache_write_input_tokens=self._random.choice((0, 0, (tokens - cached) // 2, tokens - cached)),
            estimated=self._random.random() < 0.2,
            output_tokens=self._random.choice((0, 7, 100, 250)),
            model=self._random.choice((None, None, its_own, its_own, *MODELS)),
        )

    def _topup(self) -> TopUpOrder:
        order = self._again(self._orders, 0.25, self._order)
        if self._random.random() < 0.05:
            # The same reference for something else: the first counts.
            return replace(order, kind="Adjustment" if order.kind == "Payment" else "Payment")
        return order

    def _order(self) -> TopUpOrder:
        kind = self._random.choice(KINDS)
        amount = self._random.choice((1, 5 * UNIT, 50 * UNIT, 500 * UNIT, 3_000 * UNIT))
        if self._random.random() < (0.5 if kind == "Adjustment" else 0.03):
            amount = self._random.choice((0, -1, -5 * UNIT, -700 * UNIT))
        return TopUpOrder(
            account=self._random.choice(ACCOUNTS),
            reference=f"pay_{self._random.randint(0, 12)}",
            kind=kind,
            amount=Nano(amount),
            source="billing/topup",
        )

    def _claim(self) -> CreditLeaseRequest:
        """From a gateway that holds nothing any more, to one that wants more than there is."""
        amount = self._random.choice((0, 1, 100, 40_000, 5 * UNIT, 600 * UNIT, 9_000 * UNIT))
        return CreditLeaseRequest(self._random.choice(GATEWAYS), self._random.choice(ACCOUNTS), Nano(amount))

    def _record(self) -> Record:
        makers = (self._account, self._binding, self._binding, self._price, self._reservation)
        return self._again(self._recorded, 0.2, self._random.choice(makers))

    def _account(self) -> Record:
        currency = "EUR" if self._random.random() < 0.03 else "USD"
        limit = Nano(self._random.choice((0, 0, 5 * UNIT, 100 * UNIT)))
        return AccountRecord(self._random.choice(ACCOUNTS), currency, limit)

    def _binding(self) -> Record:
        service = self._random.choice(SERVICES)
        # Mostly the same for a service, or nothing would ever last.
        place = SERVICES.index(service) if self._random.random() < 0.8 else self._random.randint(0, 2)
        trial = self._random.random() < 0.2
        return Binding(service, ACCOUNTS[place % 2], MODELS[place // 2], self._since(), trial)

    def _since(self) -> datetime:
        """From when on a record holds: it is never about the future."""
        return min(self._moment(), self._now)

    def _price(self, model: str | None = None) -> Record:
        price = [Nano(self._random.randint(0, 5)) for _ in range(8)]
        chance = self._random.random
        writes = [each if chance() < 0.6 else None for each in price[6:]]
        tiers = (
            TokenPriceTier(1_000, *price[:3], cache_write=writes[0]),
            TokenPriceTier(None, *price[3:6], cache_write=writes[1]),
        )
        return PriceVersion(
            model or self._random.choice(MODELS),
            "EUR" if not model and chance() < 0.03 else "USD",
            tiers if chance() < 0.8 else tiers[1:],
            self._since(),
            reservation=ReservationTerms(1_000, Nano(price[0] * UNIT), 100, Nano(2 * UNIT), DAYS)
            if chance() < 0.8
            else None,
            free_quota=FreeQuota(self._random.choice((500, 3_000)), self._random.choice((1, 90)))
            if chance() < 0.6
            else None,
        )

    def _reservation(self) -> Record:
        place = self._random.randint(0, 2)
        if self._random.random() < 0.1:
            place = self._random.randint(0, 2)
        return ReservationRecord(
            service=SERVICES[place],
            uid=f"uid-{self._random.choice((0, 0, 0, 1))}",
            account=ACCOUNTS[place % 2],
            model=MODELS[place // 2],
            input_tpm=self._random.choice((0, 1_000, 1_000, 2_000, 3_000, 1_500)),
            output_tpm=self._random.choice((0, 100, 200)),
            days=self._random.choice((*DAYS, *DAYS, 7)),
            buying=self._random.choice((Buying.RENEWING, Buying.RENEWING, Buying.ONCE, Buying.NOTHING)),
        )
