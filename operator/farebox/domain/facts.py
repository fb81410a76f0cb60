"""The input of `lifecycle.decide_service`: the facts about one service, as plain values.

`UNKNOWN` is a value of its own: it is neither zero nor a reason to stop (product.md, States). `MISSING` is
a fact: the caches are complete and the object does not exist.
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
"""Not reported yet, or its source is unreachable."""
MISSING: Final = _Absence.MISSING
"""The caches are complete and the object does not exist."""
EXTERNAL: Final = _Absence.EXTERNAL
"""The model runs outside the cluster: there is no Deployment to scale or to wait for."""


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """The spec of an InferenceService. Limits are requests and tokens per minute; 0 means no limit."""

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
    """The account that pays.

    `available` is balance + credit limit. `allows` says whether the account accepts services of this
    service's namespace (B22).
    """

    key: ObjectKey
    currency: str
    available: Nano | Unknown
    allows: bool | Unknown


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model of the service. Ceilings are requests and tokens per minute; 0 means no ceiling."""

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
    """The service's reservation as the ledger reports it.

    `message` says why the next term could not be bought, or is "". The period is that of the active term,
    or of the last one if none is active.
    """

    state: ReservationState
    message: str = ""
    period_start: datetime | None = None
    period_end: datetime | None = None


@dataclass(frozen=True, slots=True)
class BackendFacts:
    """The status of the Deployment behind a service, as the deployment controller reports it.

    `current` says that the figures belong to the current specification (observedGeneration). `failure` is
    the deployment controller's message when the rollout exceeds its deadline or pods are rejected, else "".
    """

    desired: int
    replicas: int
    ready: int
    updated: int
    current: bool
    failure: str = ""

    @property
    def rolled_out(self) -> bool:
        """Whether all replicas exist, are up to date and ready, and no old replica is left."""
        return self.current and self.ready == self.replicas == self.updated == self.desired


@dataclass(frozen=True, slots=True)
class Previous:
    """The previous decision, read from the status. `phase` is None for a service without a decision."""

    phase: Phase | None = None
    billing_mode: BillingMode = BillingMode.NONE
    stop_reasons: tuple[StopReason, ...] = ()
    enabled_at: datetime | None = None
    first_running_at: datetime | None = None

    @property
    def wanted(self) -> bool:
        """Whether the service was meant to run. Stopped without a reason means that it resumes."""
        if self.phase is Phase.STOPPED:
            return not self.stop_reasons
        return self.phase in (Phase.CREATING, Phase.RUNNING)


@dataclass(frozen=True, slots=True)
class Facts:
    """All input of `lifecycle.decide_service`, for one service at one moment.

    `backend_error` is the API server's message when it rejects the backend's last write, or "". `quota` is
    MISSING when the model offers no free quota.
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
