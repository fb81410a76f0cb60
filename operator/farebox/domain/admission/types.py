"""What admission looks at, as plain values: the call, and what is known of the key, service, model and money.

`Snapshot` is how admission asks for them; it never learns where they come from. `None` is knowledge: there is
no such object. `UNKNOWN` is not (product.md, States).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from farebox.domain.admission.addresses import Address, Network
from farebox.domain.admission.rate_limits import Window
from farebox.domain.billing.money import Nano
from farebox.domain.billing.pricing import Tier
from farebox.domain.facts import Unknown
from farebox.domain.keys import ObjectKey


def always() -> bool:
    """True."""
    return True


class Call(Struct, frozen=True):
    """A call, as far as admission cares.

    Args:
        key_hash: lower-case hex SHA-256 of the caller's token.
        address: of the client, by the trusted-hop rule; None if it cannot be told.
        model: as the caller names it: an InferenceService in the key's namespace.
        body_bytes: of the request.
        asked_output: the caller's bound on the tokens of each answer, or None; 0 where there is no answer.
        choices: how many answers the caller wants.
        inputs: how many texts the model reads each by itself: its context bounds each of them.
        text_only: whether the model sees nothing but text of the request; asked where it matters.
    """

    key_hash: str
    address: Address | None
    model: str
    body_bytes: int
    asked_output: int | None
    choices: int = 1
    inputs: int = 1
    text_only: Callable[[], bool] = always


@dataclass(frozen=True, slots=True)
class KeyAllowance:
    """Tokens that a key may use in each window."""

    tokens: int
    window: Window


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """An APIKey. `services` None: all of its namespace. `networks` empty: everywhere; None: unreadable."""

    key: ObjectKey
    disabled: bool = False
    expires_at: datetime | None = None
    services: frozenset[str] | None = None
    networks: tuple[Network, ...] | None = ()
    quota: KeyAllowance | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ReservedThroughput:
    """A term that was bought: tokens for each calendar minute between two times."""

    input_tpm: int
    output_tpm: int
    start: datetime
    end: datetime

    def in_force(self, now: datetime) -> bool:
        """Whether the term holds now."""
        return self.start <= now < self.end


@dataclass(frozen=True, slots=True)
class ServicePolicy:
    """An InferenceService. `inactive` is why the operator says that it does not serve, or ""."""

    key: ObjectKey
    model: str
    account: ObjectKey
    postpaid: bool = True
    trial: bool = False
    reserves: bool = False
    dedicated: bool = False
    inactive: str = ""
    rpm: int = 0
    tpm: int = 0
    networks: tuple[Network, ...] | None = ()
    reservation: ReservedThroughput | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """A Model: its ceilings (0: none) and its prices."""

    name: str
    retired: bool = False
    rpm: int = 0
    tpm: int = 0
    context_tokens: int = 0
    max_output_tokens: int = 0
    tiers: tuple[Tier, ...] = field(default=())


class AvailableFunds(Struct, frozen=True):
    """The money of an account.

    Args:
        available: what the ledger said last, less what this gateway has admitted since.
        hard: what a call may cost is held before it (B17).
        fresh: the ledger was heard recently enough for money to be spent on its word.
    """

    available: Nano | Unknown
    hard: bool = False
    fresh: bool = True


class FreeTokens(Struct, frozen=True):
    """An account's free quota for a model: what is left of it, less what was admitted since."""

    left: int
    expires_at: datetime

    def usable(self, now: datetime) -> int:
        """Tokens that can be used now: what is left after its date is void."""
        return max(0, self.left) if now < self.expires_at else 0


class Snapshot(Protocol):
    """What is known now."""

    def key(self, key_hash: str) -> KeyPolicy | None: ...
    def service(self, namespace: str, name: str) -> ServicePolicy | None: ...
    def model(self, name: str) -> ModelPolicy | None: ...
    def funds(self, account: ObjectKey) -> AvailableFunds: ...
    def free_tokens(self, account: ObjectKey, model: str) -> FreeTokens | Unknown: ...
