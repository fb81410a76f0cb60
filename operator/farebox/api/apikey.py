"""APIKey: permission to call services of its namespace. The key is in a Secret, its hash in the status."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from farebox.api.base import APIObject, APIPart, Lenient, Status
from farebox.api.fields import Cidr, ObjectName, OpenAPI, Rule, Time, WrittenTime, rules

SECRET_TYPE = "farebox.dev/api-key"
"""The type of the Secret with a key."""
SECRET_KEY = "api-key"
"""The entry of the Secret's data that has the key."""


class QuotaPeriod(StrEnum):
    """When a key's quota starts again."""

    DAY = "Day"
    MONTH = "Month"
    LIFETIME = "Lifetime"


class KeyServices(APIPart):
    """Which services a key may call: all of its namespace, or those that are named."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "has(self.all) != has(self.names)",
                "set exactly one of all: true (every service of the namespace) and names: [...]",
            ),
            Rule(
                "!has(self.all) || self.all",
                "write all: true, or list the services in names; disabled: true holds a key back",
                at=".all",
            ),
            Rule(
                "!has(self.names) || size(self.names) > 0",
                "name at least one service; disabled: true holds a key back",
                at=".names",
            ),
        )
    )

    all: bool | None = Field(
        None,
        description="true: every InferenceService of the key's namespace, present and future.",
    )
    names: Annotated[tuple[ObjectName, ...] | None, OpenAPI({"x-kubernetes-list-type": "set"})] = Field(
        None,
        max_length=256,
        description="Names of InferenceServices in the key's namespace. They need not exist yet.",
    )


class KeyQuota(APIPart):
    """How much a key may use."""

    tokens: Annotated[int, OpenAPI({"format": "int64"})] = Field(
        ge=1, le=2**53, description="Tokens, input and output together, of all services that the key calls."
    )
    period: QuotaPeriod = Field(
        description="Day or Month: the quota starts again with each calendar day or month (UTC). Lifetime:"
        " never."
    )


class APIKeySpec(APIPart):
    """What the key may do."""

    services: KeyServices = Field(description="The services that the key may call.")
    allowed_cidrs: Annotated[tuple[Cidr, ...], OpenAPI({"x-kubernetes-list-type": "set"})] = Field(
        (),
        alias="allowedCIDRs",
        max_length=64,
        description="Address ranges (IPv4 or IPv6) from which calls with the key are accepted, in addition to"
        " the check of the service. Empty: from everywhere.",
    )
    expires_at: WrittenTime | None = Field(
        None, description="Time from which on the key is refused. Without it: never."
    )
    disabled: bool = Field(
        False, description="Refuses all calls with the key while it is true. Takes effect within a second."
    )
    quota: KeyQuota | None = Field(None, description="How much the key may use. Without it: no limit.")


class APIKeyStatus(Status):
    """What the operator reports of a key."""

    key_hash: str | None = Field(
        None,
        max_length=64,
        description="SHA-256 of the key, in lower-case hex. Only the Secret has the key itself.",
    )
    prefix: str | None = Field(
        None, max_length=8, description="The first 8 characters of the key, to tell keys apart."
    )
    secret_name: str | None = Field(
        None,
        max_length=253,
        description="The Secret that has the key, under api-key. Absent until the Secret exists.",
    )
    created_at: Time | None = Field(
        None,
        description="When the API server confirmed the creation of the Secret. Absent if the operator was"
        " interrupted and found the Secret later.",
    )


class APIKey(APIObject):
    """Permission to call services of a namespace. The key is in the Secret of the same name."""

    KIND: ClassVar[str] = "APIKey"

    kind: Literal["APIKey"] = "APIKey"
    spec: APIKeySpec = Field(description="What the key may do.")
    status: Annotated[APIKeyStatus, Lenient] = Field(
        APIKeyStatus(), description="What the operator reports of the key."
    )

    def allows(self, service: str) -> bool:
        """Whether the key may call this service of its namespace (B14)."""
        return self.spec.services.names is None or service in self.spec.services.names
