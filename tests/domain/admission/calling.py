"""A world in which a call is admitted, for tests that change what matters."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec import Struct, structs

from farebox.domain.admission.addresses import parse_address, parse_networks
from farebox.domain.admission.cases import Allow, Deny
from farebox.domain.admission.rules import admit
from farebox.domain.admission.types import (
    AvailableFunds,
    Call,
    FreeTokens,
    KeyPolicy,
    ModelPolicy,
    ReservedThroughput,
    ServicePolicy,
)
from farebox.domain.billing.money import NANO_PER_UNIT, Nano
from farebox.domain.facts import UNKNOWN, Unknown
from farebox.domain.keys import ObjectKey
from farebox.meterapi.types import TokenPriceTier

NOW = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
CHAT = ObjectKey("team-a", "chat")
ACCOUNT = ObjectKey("billing", "acme")
HASH = "0" * 64
TIERS = (
    TokenPriceTier(32_768, Nano(500), Nano(50), Nano(1500)),
    TokenPriceTier(None, Nano(800), Nano(80), Nano(2400)),
)
ELSEWHERE = parse_networks(["192.0.2.0/24"])
TERM = ReservedThroughput(10_000, 1_000, NOW - timedelta(days=1), NOW + timedelta(days=29))


@dataclass(frozen=True)
class World:
    """All that admission looks at."""

    call: Call
    the_key: KeyPolicy | None
    the_service: ServicePolicy | None
    the_model: ModelPolicy | None
    the_funds: AvailableFunds
    free: FreeTokens | Unknown = UNKNOWN

    def key(self, key_hash: str) -> KeyPolicy | None:
        return self.the_key if key_hash == HASH else None

    def service(self, namespace: str, name: str) -> ServicePolicy | None:
        return self.the_service if self.the_service and (namespace, name) == self.the_service.key else None

    def model(self, name: str) -> ModelPolicy | None:
        return self.the_model

    def funds(self, account: ObjectKey) -> AvailableFunds:
        assert account == ACCOUNT
        return self.the_funds

    def free_tokens(self, account: ObjectKey, model: str) -> FreeTokens | Unknown:
        return self.free

    def admit(self) -> Allow | Deny:
        return admit(self.call, self, NOW)

    def refused(self) -> Deny:
        """The refusal; fails if the call is admitted."""
        answer = self.admit()
        assert isinstance(answer, Deny)
        return answer

    def granted(self) -> Allow:
        """The grant; fails if the call is refused."""
        answer = self.admit()
        assert isinstance(answer, Allow), answer
        return answer


Change = Callable[[World], World]


def with_(part: str, **values: Any) -> Change:
    """Change some fields of one part of the world; "call", "the_key", ... What is not there stays so."""

    def change(world: World) -> World:
        old = getattr(world, part)
        if old is None:
            return world
        new = structs.replace(old, **values) if isinstance(old, Struct) else replace(old, **values)
        return replace(world, **{part: new})

    return change


def without(part: str) -> Change:
    """Take away one part of the world."""
    return lambda world: replace(world, **{part: None})


def both(*changes: Change) -> Change:
    """One change after the other."""

    def change(world: World) -> World:
        for each in changes:
            world = each(world)
        return world

    return change


HARD = with_("the_funds", hard=True)
PAID = World(
    Call(HASH, parse_address("10.0.0.7"), "chat", body_bytes=400, asked_output=100),
    KeyPolicy(ObjectKey("team-a", "ci")),
    ServicePolicy(CHAT, "qwen3-8b", ACCOUNT),
    ModelPolicy("qwen3-8b", max_output_tokens=8192, tiers=TIERS),
    AvailableFunds(Nano(5 * NANO_PER_UNIT)),
)
"""All is well, and money pays."""
TRIAL = replace(
    with_("the_service", postpaid=False, trial=True)(PAID), free=FreeTokens(1000, NOW + timedelta(days=3))
)
RESERVED = with_("the_service", postpaid=True, reserves=True, reservation=TERM)(PAID)
