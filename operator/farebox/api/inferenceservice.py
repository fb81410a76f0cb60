"""InferenceService: a team's access to a model, metered and paid by one account."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from farebox.api.base import APIObject, APIPart, Lenient, Status
from farebox.api.fields import (
    Cidr,
    Count32,
    Count64,
    NamespaceName,
    ObjectName,
    OpenAPI,
    Rule,
    Time,
    immutable,
    rules,
)
from farebox.api.model import MAX_TERM_DAYS


class ServiceType(StrEnum):
    """Who created a service."""

    DEFAULT = "Default"
    """The operator, one for each account and model (B1)."""
    CUSTOM = "Custom"
    """A user."""


class Phase(StrEnum):
    """Where a service is in its life."""

    NOT_ENABLED = "NotEnabled"
    STOPPED = "Stopped"
    CREATING = "Creating"
    RUNNING = "Running"


class BillingMode(StrEnum):
    """What pays for a service's calls."""

    TPM_RESERVATION = "TPMReservation"
    PAY_AS_YOU_GO = "PayAsYouGo"
    FREE_QUOTA = "FreeQuota"
    NONE = "None"


class StopReason(StrEnum):
    """Why a service is stopped. Reasons form a set; each clears only itself.

    They are reported in this order: the owner's choice, then what money cannot fix, then money. So the first
    reported reason is the one to fix first.
    """

    POSTPAID_DISABLED = "PostpaidDisabled"
    """postpaid, trial and reservation are all off."""
    ACCOUNT_NOT_FOUND = "AccountNotFound"
    ACCOUNT_NOT_ALLOWED = "AccountNotAllowed"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_RETIRED = "ModelRetired"
    CURRENCY_MISMATCH = "CurrencyMismatch"
    OVERDUE = "Overdue"
    """The account has nothing left to spend, and the service is pay-as-you-go."""
    FREE_QUOTA_EXHAUSTED = "FreeQuotaExhausted"
    FREE_QUOTA_EXPIRED = "FreeQuotaExpired"
    RESERVATION_UNPAID = "ReservationUnpaid"
    RESERVATION_EXPIRED = "ReservationExpired"


class ReservationState(StrEnum):
    """Where a reservation is in its life."""

    PENDING = "Pending"
    ACTIVE = "Active"
    UNPAID = "Unpaid"
    EXPIRED = "Expired"


class ModelRef(APIPart):
    """A Model."""

    name: ObjectName = Field(description="Name of the Model.")


class BillingAccountRef(APIPart):
    """A BillingAccount, perhaps in another namespace."""

    name: ObjectName = Field(description="Name of the BillingAccount.")
    namespace: NamespaceName | None = Field(
        None,
        description="Namespace of the BillingAccount. Default: the service's own. An account elsewhere must"
        " allow the service's namespace (allowedNamespaces).",
    )


class Reservation(APIPart):
    """Throughput bought in advance."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "self.inputTPM > 0 || self.outputTPM > 0",
                "reserve some throughput: set inputTPM or outputTPM above 0, or leave reservation out",
            )
        )
    )

    input_tpm: Count64 = Field(
        0,
        alias="inputTPM",
        description="Input tokens per minute; a multiple of the model's inputUnitTPM.",
    )
    output_tpm: Count64 = Field(
        0,
        alias="outputTPM",
        description="Output tokens per minute; a multiple of the model's outputUnitTPM.",
    )
    days: Annotated[int, OpenAPI({"format": "int32"})] = Field(
        ge=1,
        le=MAX_TERM_DAYS,
        description="Length of the term in days: one of the model's reservation terms.",
    )
    auto_renew: bool = Field(
        False,
        description="Buys the next term from the balance one day before this one ends. May be changed at any"
        " time.",
    )


class ServiceLimits(APIPart):
    """Limits of one service."""

    rpm: Count64 = Field(0, description="Requests per minute. 0: only the model's ceiling.")
    tpm: Count64 = Field(
        0, description="Tokens per minute, input and output together. 0: only the model's ceiling."
    )


class Access(APIPart):
    """Who may call."""

    allowed_cidrs: Annotated[tuple[Cidr, ...], OpenAPI({"x-kubernetes-list-type": "set"})] = Field(
        (),
        alias="allowedCIDRs",
        max_length=64,
        description="Address ranges (IPv4 or IPv6) from which calls are accepted. Empty: from everywhere.",
    )


_SPEC_RULES = rules(
    immutable("type", "create another service of the other type"),
    immutable(
        "modelRef",
        "create another service for the other model, and delete this one when it is no longer called",
    ),
    immutable("billingAccountRef", "create another service that names the other account"),
    immutable(
        "dedicated",
        "create another service with the other setting, and delete this one when it is no longer called",
    ),
    Rule(
        "has(self.reservation) == has(oldSelf.reservation) && (!has(self.reservation)"
        " || self.reservation.inputTPM == oldSelf.reservation.inputTPM"
        " && self.reservation.outputTPM == oldSelf.reservation.outputTPM"
        " && self.reservation.days == oldSelf.reservation.days)",
        "reservation cannot be added, removed or changed after creation, except autoRenew: set autoRenew to"
        " false to let it end, and create another service with the reservation that you want",
        at=".reservation",
        reason="FieldValueForbidden",
    ),
    Rule(
        "self.type != 'Default' || !has(self.reservation)",
        "a Default service cannot have a reservation: create a Custom service (type: Custom) for it",
        at=".reservation",
        reason="FieldValueForbidden",
    ),
    Rule(
        "self.type != 'Default' || !self.dedicated",
        "a Default service runs on the model's shared backend: create a Custom service (type: Custom) for a"
        " dedicated one",
        at=".dedicated",
        reason="FieldValueForbidden",
    ),
    Rule(
        "self.dedicated || self.replicas == 1",
        "replicas can only be set with dedicated: true; without it the service runs on the model's shared"
        " backend, which is scaled on the Model (serving.deployment.replicas)",
        at=".replicas",
    ),
    Rule(
        "!self.trial || !self.postpaid",
        "trial runs on the free quota alone and never bills: set postpaid to false, or leave trial out to"
        " use the free quota first and pay for what is beyond it",
        at=".trial",
    ),
    Rule(
        "!self.trial || !has(self.reservation)",
        "trial runs on the free quota alone and never bills: leave trial or reservation out",
        at=".trial",
    ),
)


class InferenceServiceSpec(APIPart):
    """The spec of a service."""

    model_config = ConfigDict(json_schema_extra=_SPEC_RULES)

    type: ServiceType = Field(
        ServiceType.CUSTOM,
        description="Custom, or Default for the services that the operator creates for each account and"
        " model. Cannot be changed.",
    )
    model_ref: ModelRef = Field(description="The Model that the service offers. Cannot be changed.")
    billing_account_ref: BillingAccountRef = Field(
        description="The BillingAccount that pays for the service. Cannot be changed."
    )
    postpaid: bool = Field(
        False,
        description="The pay-as-you-go switch: true pays each call from the account, by token. With false"
        " (and neither trial nor reservation) the service is stopped.",
    )
    trial: bool = Field(
        False,
        description="Runs on the account's free quota for the model alone and never bills; stops when the"
        " quota is used up or past its date. Not together with postpaid or reservation.",
    )
    reservation: Reservation | None = Field(
        None,
        description="Throughput bought in advance, for Custom services. Only autoRenew can be changed later.",
    )
    replicas: Count32 = Field(
        1,
        description="Pods of the service's dedicated backend while it runs; while it is stopped they are at"
        " zero, and this number stays. Target of the scale subresource: autoscalers go here, never to the"
        " Deployment. Without dedicated it must be 1.",
    )
    dedicated: bool = Field(
        False,
        description="Gives the service a backend of its own instead of the model's shared one. For Custom"
        " services. Cannot be changed.",
    )
    limits: ServiceLimits = Field(
        ServiceLimits(),
        description="Limits of this service, at most the model's ceilings. Without it only these apply.",
    )
    access: Access = Field(Access(), description="Who may call the service. Without it: every valid key.")


class FreeQuotaStatus(APIPart):
    """The account's free quota on the model."""

    total: Count64 = Field(0, description="Tokens granted to the account on this model.")
    used: Count64 = Field(0, description="Tokens used so far, by all services of the account on this model.")
    expires_at: Time | None = Field(None, description="When the rest becomes void.")


class ReservationStatus(APIPart):
    """The reservation's current term."""

    state: ReservationState | None = Field(
        None, description="Pending (not bought yet), Active, Unpaid (could not be bought) or Expired."
    )
    period_start: Time | None = Field(None, description="When the current term began.")
    period_end: Time | None = Field(None, description="When the current term ends.")
    message: str | None = Field(None, description="Why the next term could not be bought yet.")


class InferenceServiceStatus(Status):
    """What the operator reports of a service."""

    phase: Phase | None = Field(
        None,
        description="NotEnabled (never enabled), Stopped (see stopReasons), Creating (should run, never ready"
        " before) or Running (has been ready; see conditions for the current state).",
    )
    billing_mode: BillingMode | None = Field(
        None, description="What pays: TPMReservation, PayAsYouGo, FreeQuota or None."
    )
    stop_reasons: Annotated[tuple[StopReason, ...], OpenAPI({"x-kubernetes-list-type": "set"})] = Field(
        (),
        max_length=16,
        description="All reasons why the service is stopped. Each clears independently of the others.",
    )
    replicas: Count32 = Field(
        0,
        description="Pods of the backend that serves the calls: the service's own, or the model's shared one;"
        " 0 while the service is stopped.",
    )
    ready_replicas: Count32 = Field(0, description="Replicas that are ready.")
    selector: str | None = Field(None, description="Label selector of these pods, for the scale subresource.")
    endpoint: str | None = Field(
        None,
        description="The base URL at which the service is called with an API key, and with the service's name"
        " as model. It is that of the gateway, so it is the same for all services.",
    )
    backend: str | None = Field(
        None,
        description="The address of the model server or provider behind the gateway. Callers cannot use it.",
    )
    enabled_at: Time | None = Field(None, description="When the service was enabled for the first time.")
    first_running_at: Time | None = Field(None, description="When the service was ready for the first time.")
    last_transition_time: Time | None = Field(None, description="When the phase changed last.")
    free_quota: FreeQuotaStatus | None = Field(
        None, description="The account's free quota on the model; figures may be 10 seconds old."
    )
    reservation: ReservationStatus | None = Field(None, description="The reservation's current term.")


class InferenceService(APIObject):
    """A team's access to a model: enabled or disabled, limited, metered, and paid by one account."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "self.spec.type != 'Default' || self.metadata.name == self.spec.modelRef.name",
                "a Default service is named like its model: name it as modelRef.name says, or use type:"
                " Custom",
                at=".spec.type",
            )
        )
    )

    KIND: ClassVar[str] = "InferenceService"

    kind: Literal["InferenceService"] = "InferenceService"
    spec: InferenceServiceSpec = Field(description="The service as the team wants it.")
    status: Annotated[InferenceServiceStatus, Lenient] = Field(
        InferenceServiceStatus(), description="What the operator reports of the service."
    )

    @property
    def model_name(self) -> str:
        """The name of the service's Model."""
        return self.spec.model_ref.name

    @property
    def billing_account_name(self) -> str:
        """The name of the account that pays."""
        return self.spec.billing_account_ref.name

    @property
    def billing_account_namespace(self) -> str:
        """The namespace of the account that pays: the service's own unless the reference names another."""
        return self.spec.billing_account_ref.namespace or self.metadata.namespace

    @property
    def is_default(self) -> bool:
        """Whether the service is a Default service, which the operator creates (B1)."""
        return self.spec.type is ServiceType.DEFAULT
