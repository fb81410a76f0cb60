"""What all kinds share: metadata, conditions, reading and writing JSON.

Objects are values: frozen, compared by content. This module never talks to a cluster.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, WrapValidator
from pydantic.alias_generators import to_camel

from farebox.api.fields import Count64, OpenAPI, Time

GROUP = "farebox.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

NEVER_CREATED = datetime(1970, 1, 1, tzinfo=UTC)
"""creationTimestamp of an object that the API server has not seen."""


class APIPart(BaseModel):
    """A part of an object: snake_case in Python, camelCase in JSON. Reading ignores unknown fields."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    def to_json(self) -> dict[str, Any]:
        """The part as JSON for the API server: camelCase, without absent fields."""
        return self.model_dump(by_alias=True, exclude_none=True, mode="json")


class OwnerReference(APIPart):
    """The owner of an object. Kubernetes deletes the object with its owner."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(APIPart):
    """The parts of metadata that Farebox reads or writes."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: Time = NEVER_CREATED
    deletion_timestamp: Time | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(APIPart):
    """One fact about an object, as all Kubernetes tools read it."""

    type: str = Field(
        min_length=1,
        max_length=316,
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        description="What the condition is about, such as Ready or Stalled.",
    )
    status: ConditionStatus = Field(description="Whether it holds: True, False or Unknown.")
    reason: str = Field(
        min_length=1,
        max_length=1024,
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        description="One CamelCase word for machines: why it has this status.",
    )
    message: str = Field(
        "", max_length=32768, description="Text for people: what is wrong or right, and what to do about it."
    )
    last_transition_time: Time = Field(description="When the status changed last.")
    observed_generation: Count64 | None = Field(
        None, description="The metadata.generation that the condition was derived from."
    )


Conditions = Annotated[
    tuple[Condition, ...],
    Field(max_length=32),
    OpenAPI({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
]
"""A list of conditions with at most one of each type."""


class Status(APIPart):
    """What the operator reports of an object. Every field may be missing."""

    observed_generation: Count64 = Field(
        0, description="The metadata.generation that the rest of the status was derived from."
    )
    conditions: Conditions = Field((), description="What holds for the object, one entry for each type.")

    def condition(self, type_: str) -> Condition | None:
        """The condition of that type, if it was ever reported."""
        return next((condition for condition in self.conditions if condition.type == type_), None)


StatusT = TypeVar("StatusT", bound=Status)


def _read_leniently(value: Any, read: ModelWrapValidatorHandler[StatusT]) -> StatusT:
    """Read a status and drop the top-level fields that this version cannot read (docs/decisions/205).

    A newer operator may have written values that this version does not know. A status is derived, so such a
    field counts as not reported, and the object stays readable (B23).
    """
    try:
        return read(value)
    except ValidationError as error:
        if not isinstance(value, Mapping):
            return read({})
        unreadable = {problem["loc"][0] for problem in error.errors(include_url=False) if problem["loc"]}
        return read({key: part for key, part in value.items() if key not in unreadable})


Lenient = WrapValidator(_read_leniently)
"""Annotation of a kind's `status` field; see `_read_leniently`."""


class APIObject(APIPart):
    """An object of one of Farebox's kinds. Subclasses add `spec` and `status`.

    `Kind.model_validate(obj)` reads an object from the API server. It raises pydantic.ValidationError if the
    CRD would reject the spec.
    """

    KIND: ClassVar[str]

    api_version: str = API_VERSION
    kind: str = ""
    metadata: ObjectMeta = ObjectMeta()

    @property
    def name(self) -> str:
        """metadata.name."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """metadata.namespace; empty for cluster-scoped kinds."""
        return self.metadata.namespace

    def manifest(self) -> dict[str, Any]:
        """The object as a body to create or apply: no status, and only the spec fields that were set."""
        metadata = self.metadata.model_dump(
            by_alias=True,
            mode="json",
            exclude_none=True,
            exclude_defaults=True,
            include={"name", "namespace", "labels", "annotations", "owner_references"},
        )
        body = self.model_dump(
            by_alias=True, mode="json", exclude_none=True, exclude_unset=True, include={"spec"}
        )
        return {"apiVersion": API_VERSION, "kind": self.KIND, "metadata": metadata, **body}
