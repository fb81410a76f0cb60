"""The values of admission: the call, the policies that apply to it, the limits it counts on, and the result.

`Snapshot` is the interface through which the rules read current state; they do not know its source. `None`
means that there is no such object. `UNKNOWN` means that its state is not known (product.md, States).
"""

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from msgspec import Struct

from farebox.domain.admission.addresses import Address, Network
from farebox.domain.billing.money import Nano
from farebox.domain.billing.pricing import Tier
from farebox.domain.facts import Unknown
from farebox.domain.keys import ObjectKey
from farebox.errors import FareboxError


class Window(enum.StrEnum):
    """The time over which amounts are added up."""

    SLIDING = "window"
    """The 60 seconds up to now."""
    MINUTE = "minute"
    DAY = "day"
    MONTH = "month"
    LIFETIME = "lifetime"


SLIDING: Final = Window.SLIDING
"""An alias for the hot path: before Python 3.12, reading a member of an enum is slow."""


class MediaPieces(Struct, frozen=True):
    """The images, recordings and files in a request.

    Args:
        encoded_bytes: of the request that encode them (base64). A model does not read these as text.
    """

    encoded_bytes: int = 0
    images: int = 0
    audios: int = 0
    files: int = 0
    videos: int = 0


NO_MEDIA: Final = MediaPieces()


@dataclass(frozen=True, slots=True)
class MediaTokens:
    """The likely number of tokens of one piece, by its kind (B28)."""

    image: int = 1100
    audio: int = 1500
    file: int = 3000
    video: int = 8000


DEFAULT_MEDIA_TOKENS: Final = MediaTokens()


class Call(Struct, frozen=True):
    """The parts of a call that admission needs.

    Args:
        key_hash: lower-case hex SHA-256 of the caller's token.
        address: of the client, by the trusted-hop rule; None if it cannot be determined.
        model: the name in the request, which is that of an InferenceService in the key's namespace.
        body_bytes: of the request.
        text_tokens: the likely tokens of a request without media (`estimates.estimate_text`); None: by its
            bytes.
        asked_output: the caller's bound on the tokens of each answer, or None; 0 where there is no answer.
        choices: how many answers the caller wants.
        inputs: how many texts the model reads separately; its context bounds each of them.
        text_only: whether the request contains nothing but text.
        media: its pieces that are not text.
    """

    key_hash: str
    address: Address | None
    model: str
    body_bytes: int
    asked_output: int | None
    choices: int = 1
    inputs: int = 1
    text_only: bool = True
    media: MediaPieces = NO_MEDIA
    text_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class KeyAllowance:
    """The tokens that a key may use in each window."""

    tokens: int
    window: Window


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """An APIKey.

    Args:
        services: the services that the key may call; None: all services of its namespace.
        networks: the ranges that the key may be used from; empty: all; None: the list is unreadable.
    """

    key: ObjectKey
    disabled: bool = False
    expires_at: datetime | None = None
    services: frozenset[str] | None = None
    networks: tuple[Network, ...] | None = ()
    quota: KeyAllowance | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ReservedThroughput:
    """A term of a reservation: tokens for each calendar minute from `start` until before `end`."""

    input_tpm: int
    output_tpm: int
    start: datetime
    end: datetime

    def in_force(self, now: datetime) -> bool:
        """Whether `now` is within the term."""
        return self.start <= now < self.end


@dataclass(frozen=True, slots=True)
class ServicePolicy:
    """An InferenceService. `inactive` is the operator's reason why it does not serve, or ""."""

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
    """A Model: its ceilings (0: none), its prices and what a piece of media counts."""

    name: str
    currency: str = ""
    retired: bool = False
    rpm: int = 0
    tpm: int = 0
    context_tokens: int = 0
    max_output_tokens: int = 0
    tiers: tuple[Tier, ...] = ()
    media: MediaTokens = DEFAULT_MEDIA_TOKENS


class AvailableFunds(Struct, frozen=True):
    """The money of an account.

    Args:
        available: the ledger's last figure less the calls that this gateway has admitted since.
        hard: whether the maximum cost of a call is held before it (B17).
        fresh: whether the ledger's figure is recent enough to spend money on.
    """

    available: Nano | Unknown
    hard: bool = False
    fresh: bool = True


class FreeTokens(Struct, frozen=True):
    """An account's free quota for a model: the rest of it less the calls admitted since."""

    left: int
    expires_at: datetime

    def usable(self, now: datetime) -> int:
        """Tokens that can be used at `now`. The rest is void after the expiry date."""
        return max(0, self.left) if now < self.expires_at else 0


class Snapshot(Protocol):
    """The state that the rules read."""

    def key(self, key_hash: str) -> KeyPolicy | None: ...
    def service(self, namespace: str, name: str) -> ServicePolicy | None: ...
    def model(self, name: str) -> ModelPolicy | None: ...
    def funds(self, account: ObjectKey) -> AvailableFunds: ...
    def free_tokens(self, account: ObjectKey, model: str) -> FreeTokens | Unknown: ...


class LimitRequest(Struct, frozen=True):
    """The amount that a call needs of one limit.

    Args:
        dimension: the name of the limit in errors, such as "rpm".
        counter: the name of the count; equal names share one count.
        limit: of the window, above 0.
        required: the amount that must fit, otherwise the call is refused; at least 1.
        optional: the amount that is counted on top of it, as far as there is room.
        enforced: False counts everything and refuses nothing.
    """

    dimension: str
    counter: str
    window: Window
    limit: int
    required: int
    optional: int = 0
    enforced: bool = True

    def __post_init__(self) -> None:
        assert self.limit > 0, "an absent limit has no request"
        assert self.required > 0, "a call that requires nothing would never be refused"
        assert self.optional >= 0


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """The state of one limit when a call was refused, or after it was counted.

    Args:
        used: of the window.
        retry_ms: until the required amount may fit; None if waiting does not help.
        reset_ms: until nothing of the current use counts any more; None: never.
    """

    request: LimitRequest
    used: int
    retry_ms: int | None
    reset_ms: int | None

    @property
    def exceeded(self) -> bool:
        """Whether this limit refuses the call."""
        return self.request.enforced and self.used + self.request.required > self.request.limit

    @property
    def remaining(self) -> int:
        """The unused part of the window."""
        return max(0, self.request.limit - self.used)


class Allow(Struct, frozen=True):
    """A call that may proceed once its limit requests fit and its money is held and authorized.

    Args:
        limit_requests: counted together or not at all.
        hold: nano-units that the account must have beforehand (Hard); None: no hold.
        committed: nano-units that the call costs at least; they count as spent until its usage is known.
        covered: whether free tokens or a reservation are expected to pay for the call.
        free_tokens: tokens of the account's free quota that count as used until the call's usage is known.
        input_estimate: tokens.
        input_bound, output_bound: tokens that the call cannot exceed, all answers together; None: no bound.
            The input of an account that holds nothing is bounded by the model's context alone.
        output_ceiling: output tokens that an upstream may report (B30): what the hold covers, or else the
            bounds of the model alone, because some servers do not count reasoning in the caller's bound.
    """

    key: KeyPolicy
    service: ServicePolicy
    model: ModelPolicy
    limit_requests: tuple[LimitRequest, ...]
    hold: Nano | None
    committed: Nano
    covered: bool
    free_tokens: int
    input_estimate: int
    input_bound: int | None
    output_bound: int | None
    output_ceiling: int | None


class Denied(FareboxError):
    """A call is refused.

    Args:
        status: the HTTP status.
        code: a stable word for programs.
        message: a sentence for the caller.
        limit_statuses: the state of every limit of the call, if the limits were read.
        exceeded: the limit that refused it.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        limit_statuses: tuple[LimitStatus, ...] = (),
        exceeded: LimitStatus | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.limit_statuses = limit_statuses
        self.exceeded = exceeded
