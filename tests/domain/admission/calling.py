"""A scenario in which a call is admitted, for tests that change one part of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec import Struct, structs

from farebox.domain.admission.addresses import parse_address, parse_networks
from farebox.domain.admission.rules import admit
from farebox.domain.admission.types import (
    Allow,
    AvailableFunds,
    Call,
    Denied,
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
class Scenario:
    """A Snapshot with one key, service, model and account, and a call."""

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

    def denied(self) -> Denied:
        """The denial; fails if the call is admitted."""
        with pytest.raises(Denied) as caught:
            admit(self.call, self, NOW)
        return caught.value

    def allowed(self) -> Allow:
        """The conditions of the call; raises Denied if it is refused."""
        return admit(self.call, self, NOW)


Change = Callable[[Scenario], Scenario]


def with_(part: str, **values: Any) -> Change:
    """Change fields of one part of the scenario: "call", "the_key", ... An absent part stays absent."""

    def change(scenario: Scenario) -> Scenario:
        old = getattr(scenario, part)
        if old is None:
            return scenario
        new = structs.replace(old, **values) if isinstance(old, Struct) else replace(old, **values)
        return replace(scenario, **{part: new})

    return change


def without(part: str) -> Change:
    """Remove one part of the scenario."""
    return lambda scenario: replace(scenario, **{part: None})


def both(*changes: Change) -> Change:
    """Apply the changes in order."""

    def change(scenario: Scenario) -> Scenario:
        for each in changes:
            scenario = each(scenario)
        return scenario

    return change


HARD = with_("the_funds", hard=True)
PAID = Scenario(
    Call(HASH, parse_address("10.0.0.7"), "chat", body_bytes=400, asked_output=100),
    KeyPolicy(ObjectKey("team-a", "ci")),
    ServicePolicy(CHAT, "qwen3-8b", ACCOUNT),
    ModelPolicy("qwen3-8b", max_output_tokens=8192, tiers=TIERS),
    AvailableFunds(Nano(5 * NANO_PER_UNIT)),
)
"""A call that is admitted and paid with money."""
TRIAL = replace(
    with_("the_service", postpaid=False, trial=True)(PAID), free=FreeTokens(1000, NOW + timedelta(days=3))
)
RESERVED = with_("the_service", postpaid=True, reserves=True, reservation=TERM)(PAID)
