"""What is known about a service when its state is decided, as plain values.

`UNKNOWN` is a value of its own: not zero, not "stop" (product.md, States). `MISSING` is knowledge: the
caches are complete and the object is not there.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final, Literal

from farebox.api import BillingMode, Phase, ReservationState, ServiceType, StopReason
from farebox.domain.billing.money import Nano
from farebox.domain.keys import ObjectKey


class _Absence(Enum):
    UNKNOWN = "unknown"
    MISSING = "missing"
    EXTERNAL = "external"


Unknown = Literal[_Absence.UNKNOWN]
Missing = Literal[_Absence.MISSING]
External = Literal[_Absence.EXTERNAL]

UNKNOWN: Final = _Absence.UNKNOWN
"""Not heard yet, or not reachable now."""
MISSING: Final = _Absence.MISSING
"""Looked for where everything is known, and not there."""
EXTERNAL: Final = _Absence.EXTERNAL
"""Served outside the cluster: there is nothing to scale and nothing to wait for."""


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """What the owner wants, from the InferenceService's spec. `limits` in requests and tokens a minute."""

    key: ObjectKey
    type: ServiceType
    postpaid: bool
    trial: bool
    reserves: bool
    dedicated: bool
    replicas: int
    rpm_limit: int = 0
    tpm_limit: int = 0


@dataclass(frozen=True, slots=True)
class AccountFacts:
    """The account that pays. `available` is balance + credit limit; `allows` this service's namespace."""

    key: ObjectKey
    currency: str
    available: Nano | Unknown
    allows: bool | Unknown


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model that is served, with its ceilings (0: none)."""

    name: str
    retired: bool
    currency: str
    rpm_ceiling: int = 0
    tpm_ceiling: int = 0


@dataclass(frozen=True, slots=True)
class QuotaFacts:
    """The account's free quota for the model, in tokens."""

    total: int
    used: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class ReservationFacts:
    """The service's reservation as the ledger has it.

    `message` says why the next term could not be bought, or is "". The period is that of the term in force,
    or of the last one.
    """

    state: ReservationState
    message: str = ""
    period_start: datetime | None = None
    period_end: datetime | None = None


@dataclass(frozen=True, slots=True)
class BackendFacts:
    """The Deployment behind a service, as its own controller reports it.

    `current` says that the figures are about the Deployment as it is specified now; `failure` is the
    deployment controller's sentence when the roll-out exceeded its deadline or pods are refused, or else "".
    """

    desired: int
    replicas: int
    ready: int
    updated: int
    current: bool
    failure: str = ""

    @property
    def rolled_out(self) -> bool:
        """All replicas are there, up to date and ready, and no old one is left."""
        return self.current and self.ready == self.replicas == self.updated == self.desired


@dataclass(frozen=True, slots=True)
class Previous:
    """What was decided before, from the status; `phase` is None for a service never decided on."""

    phase: Phase | None = None
    billing_mode: BillingMode = BillingMode.NONE
    stop_reasons: tuple[StopReason, ...] = ()
    enabled_at: datetime | None = None
    first_running_at: datetime | None = None

    @property
    def wanted(self) -> bool:
        """Whether it was meant to run. Stopped without a reason is the way back up (Resuming)."""
        if self.phase is Phase.STOPPED:
            return not self.stop_reasons
        return self.phase in (Phase.CREATING, Phase.RUNNING)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that `lifecycle.decide` looks at, for one service at one moment.

    `backend_error` is the API server's refusal of the backend's last write, or "". A `quota` that is MISSING
    is none that the model offers.
    """

    service: ServiceFacts
    account: AccountFacts | Missing | Unknown
    model: ModelFacts | Missing | Unknown
    backend: BackendFacts | Missing | Unknown | External
    account_key: ObjectKey
    model_name: str
    quota: QuotaFacts | Missing | Unknown = UNKNOWN
    reservation: ReservationFacts | Unknown = UNKNOWN
    backend_error: str = ""
    previous: Previous = Previous()
