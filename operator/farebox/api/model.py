"""Model: a published model, written by cluster admins."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from farebox.api.base import APIObject, APIPart, Lenient, Status
from farebox.api.fields import (
    Count32,
    Count64,
    Currency,
    FieldName,
    ObjectName,
    OpenAPI,
    Price,
    Rule,
    SecretKey,
    immutable,
    rules,
)

MAX_TIERS = 16
MAX_TERM_DAYS = 365

_CONTAINER = {
    "type": "object",
    "required": ["name", "image"],
    "properties": {
        "name": {
            "type": "string",
            "description": "Name of the container.",
            "minLength": 1,
            "maxLength": 63,
            "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        },
        "image": {"type": "string", "description": "Container image.", "minLength": 1, "maxLength": 1024},
    },
    "x-kubernetes-preserve-unknown-fields": True,
}

POD_TEMPLATE = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "metadata": {
            "type": "object",
            "description": "Labels and annotations of the pods.",
            "x-kubernetes-preserve-unknown-fields": True,
        },
        "spec": {
            "type": "object",
            "description": "As in a Deployment. Only its skeleton is validated here; the rest is kept as"
            " written.",
            "required": ["containers"],
            "properties": {
                "containers": {
                    "type": "array",
                    "description": "The containers; the first is the model server. Each has a name and an"
                    " image.",
                    "minItems": 1,
                    "maxItems": 16,
                    "items": _CONTAINER,
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                },
                "terminationGracePeriodSeconds": {
                    "type": "integer",
                    "format": "int64",
                    "minimum": 0,
                    "description": "Seconds between SIGTERM and SIGKILL; at least drainSeconds.",
                },
            },
            "x-kubernetes-preserve-unknown-fields": True,
        },
    },
    "x-kubernetes-preserve-unknown-fields": True,
}
"""The schema of a pod template: a checked skeleton, everything else preserved.

The full schema would be half a megabyte in each CRD, and would age with the cluster's version
(docs/decisions/204).
"""


class CacheSalt(StrEnum):
    """Whether calls of different namespaces share the prefix cache of a model server."""

    NAMESPACE = "Namespace"
    NEVER = "Never"


class StreamUsage(StrEnum):
    """When a stream reports its usage. The gateway requests it unless it is Never (B16)."""

    EACH_EVENT = "EachEvent"
    LAST_EVENT = "LastEvent"
    NEVER = "Never"


_STREAM_USAGE = (
    "When streams of the {server} report their usage. EachEvent: with each event, as vLLM and SGLang do"
    " (stream_options.continuous_usage_stats), so that a call whose client leaves midway is charged exactly."
    " LastEvent: only at the end, as OpenAI does; such a call is charged by an estimate. Callers see only the"
    " usage that they requested. Never: for a {server} that refuses stream_options; nothing is added to the"
    " request, and a stream that reports no usage is charged by an estimate."
)


class DeploymentServing(APIPart):
    """A backend that runs on this cluster."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.template.spec.terminationGracePeriodSeconds)"
                " || self.drainSeconds <= self.template.spec.terminationGracePeriodSeconds",
                "drainSeconds must not be above the template's terminationGracePeriodSeconds, or running"
                " calls are cut off: raise the one, lower the other, or leave terminationGracePeriodSeconds"
                " out",
                at=".drainSeconds",
            )
        )
    )

    replicas: Count32 = Field(
        1,
        description="Pods of the model's shared backend while any service on it should run; otherwise it is"
        " at zero. Target of the scale subresource. Services with a dedicated backend have their own"
        " replicas.",
    )
    port: Annotated[int, OpenAPI({"format": "int32"})] = Field(
        8000,
        ge=1,
        le=65535,
        description="Port on which the model server accepts OpenAI-compatible HTTP calls.",
    )
    drain_seconds: Annotated[int, OpenAPI({"format": "int32"})] = Field(
        30,
        ge=0,
        le=3600,
        description="Seconds that running calls get to finish before a pod ends, after new ones are refused."
        " Becomes a preStop sleep, unless the template has its own preStop hook.",
    )
    stream_usage: StreamUsage = Field(
        StreamUsage.EACH_EVENT, description=_STREAM_USAGE.format(server="model server")
    )
    cache_salt: CacheSalt = Field(
        CacheSalt.NAMESPACE,
        description="Namespace: requests to the shared backend carry cache_salt, a hash of the caller's"
        " namespace, so that a namespace cannot find out by cached_tokens what others asked. vLLM and SGLang"
        " know the field, and llama.cpp and Ollama ignore it. Never: for a model server that refuses unknown"
        " fields.",
    )
    template: Annotated[dict[str, Any], OpenAPI(POD_TEMPLATE)] = Field(
        description="Pod template of the shared backend and the pattern of dedicated ones. Secrets, claims"
        " and service accounts that it names must be in the backends' namespace (farebox-models)."
    )


class SecretKeyRef(APIPart):
    """A key of a Secret."""

    name: ObjectName = Field(description="Name of the Secret, in the backends' namespace (farebox-models).")
    key: SecretKey = Field("token", description="Key within the Secret.")


class ExternalServing(APIPart):
    """An external provider's API."""

    base_url: Annotated[
        str,
        OpenAPI(
            rules(
                Rule(
                    "isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHost() != ''"
                    " && !self.matches('[?#@]')",
                    "baseURL must be an http or https URL without user, query or fragment, such as"
                    ' "https://api.example.com/v1"; credentials belong in credentialsSecretRef',
                )
            )
        ),
    ] = Field(
        alias="baseURL",
        min_length=1,
        max_length=2048,
        description="Where the provider's OpenAI-compatible API begins, such as https://api.example.com/v1."
        " http or https; no user, query or fragment.",
    )
    credentials_secret_ref: SecretKeyRef | None = Field(
        None, description="Bearer token for the provider. Without it calls carry none."
    )
    stream_usage: StreamUsage = Field(
        StreamUsage.LAST_EVENT, description=_STREAM_USAGE.format(server="provider")
    )


class Serving(APIPart):
    """Where the model runs."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "has(self.deployment) != has(self.external)",
                "set exactly one of deployment (runs on this cluster) and external (a provider's API)",
            ),
            Rule(
                "has(self.deployment) == has(oldSelf.deployment) && has(self.external) =="
                " has(oldSelf.external)",
                "serving cannot change between deployment and external: create another Model, move the"
                " services to it, and set retired on this one",
                reason="FieldValueForbidden",
            ),
        )
    )

    deployment: DeploymentServing | None = Field(
        None, description="A backend on this cluster. Exactly one of deployment and external is set."
    )
    external: ExternalServing | None = Field(
        None, description="An external provider's API. Exactly one of deployment and external is set."
    )


class PriceTier(APIPart):
    """Prices of a call, by the size of its input."""

    up_to_input_tokens: Annotated[int, OpenAPI({"format": "int64"})] | None = Field(
        None,
        ge=1,
        le=2**53,
        description="The tier prices calls with at most this many input tokens (cached ones included). Only"
        " the last tier omits it: that one prices all larger calls.",
    )
    input: Price = Field(
        description="Price of a million input tokens that were not cached, in the model's currency."
    )
    cached_input: Price = Field(description="Price of a million input tokens that came from the cache.")
    output: Price = Field(description="Price of a million output tokens.")
    cache_write: Price | None = Field(
        None,
        description="Price of a million input tokens that the provider wrote to its cache, such as"
        " Anthropic's cache_creation_input_tokens. Default: the price of input.",
    )


_TIER_RULES = rules(
    Rule(
        "size(self) == 0 || !has(self[size(self) - 1].upToInputTokens)",
        "the last tier must be without upToInputTokens, so that every call has a price",
    ),
    Rule(
        "self.filter(t, !has(t.upToInputTokens)).size() <= 1",
        "only the last tier may be without upToInputTokens: give it to every tier before",
    ),
    Rule(
        "self.filter(t, has(t.upToInputTokens)).map(t, t.upToInputTokens).isSorted() &&"
        " self.filter(t, has(t.upToInputTokens)).all(t,"
        " self.exists_one(u, has(u.upToInputTokens) && u.upToInputTokens == t.upToInputTokens))",
        "upToInputTokens must grow from tier to tier: the first tier that a call fits into prices it",
    ),
)


class Prices(APIPart):
    """What tokens cost."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            immutable("currency", "create another Model with prices in the other currency"),
        )
    )

    currency: Currency = Field(
        description="Currency of all prices of the model, as a three-letter code. Only accounts in this"
        " currency can use the model. Cannot be changed."
    )
    tiers: Annotated[tuple[PriceTier, ...], OpenAPI({"x-kubernetes-list-type": "atomic", **_TIER_RULES})] = (
        Field(
            min_length=1,
            max_length=MAX_TIERS,
            description="Price tiers by input size, smallest first. The first tier that a call fits into"
            " prices the whole call. A change prices calls from then on; earlier ones keep their price.",
        )
    )


class ReservationOffer(APIPart):
    """Throughput that services can reserve in advance."""

    input_unit_tpm: Annotated[int, OpenAPI({"format": "int64"})] = Field(
        alias="inputUnitTPM",
        ge=1,
        le=2**53,
        description="Input tokens per minute of one unit; services reserve a multiple of it.",
    )
    input_unit_price_per_day: Price = Field(description="Price of one input unit for one day.")
    output_unit_tpm: Annotated[int, OpenAPI({"format": "int64"})] = Field(
        alias="outputUnitTPM",
        ge=1,
        le=2**53,
        description="Output tokens per minute of one unit; services reserve a multiple of it.",
    )
    output_unit_price_per_day: Price = Field(description="Price of one output unit for one day.")
    terms: Annotated[
        tuple[Annotated[int, Field(ge=1, le=MAX_TERM_DAYS), OpenAPI({"format": "int32"})], ...],
        OpenAPI({"x-kubernetes-list-type": "set"}),
    ] = Field(
        (1, 30, 90, 365),
        min_length=1,
        max_length=16,
        description="Terms in days for which a reservation can be bought.",
    )


class FreeQuotaOffer(APIPart):
    """Tokens that every account gets for free."""

    tokens: Annotated[int, OpenAPI({"format": "int64"})] = Field(
        ge=1,
        le=2**53,
        description="Tokens of each account on this model, shared by all its services; input, cached input"
        " and output count alike. Used before money.",
    )
    valid_days: Annotated[int, OpenAPI({"format": "int32"})] = Field(
        ge=1,
        le=3650,
        description="Days for which the quota is valid, from the account's first service on this model. The"
        " rest is then void.",
    )


class ModelLimits(APIPart):
    """Ceilings for every service on the model."""

    rpm: Count64 = Field(0, description="Requests per minute. 0: no ceiling.")
    tpm: Count64 = Field(0, description="Tokens per minute, input and output together. 0: no ceiling.")
    context_tokens: Count64 = Field(
        0,
        description="Largest input and output of a call together, in tokens. 0: the model server decides.",
    )
    max_output_tokens: Count64 = Field(
        0, description="Largest output of a call, in tokens. 0: the model server decides."
    )


class RequestRules(APIPart):
    """What requests may contain, and how their pieces that are not text are counted."""

    allowed_fields: Annotated[tuple[FieldName, ...], OpenAPI({"x-kubernetes-list-type": "set"})] = Field(
        (),
        max_length=64,
        description="Fields of request bodies that the model accepts beside the documented ones. tools.TYPE"
        " accepts a type of tool, such as tools.web_search. Fields and tools that cost extra, name stored"
        " objects or control the engine of a model server are refused unless they are listed here.",
    )
    image_tokens: Count32 = Field(
        1100, description="Tokens that one image counts before its call has reported its usage."
    )
    audio_tokens: Count32 = Field(
        1500, description="Tokens that one recording counts before its call has reported its usage."
    )
    file_tokens: Count32 = Field(
        3000, description="Tokens that one file counts before its call has reported its usage."
    )
    video_tokens: Count32 = Field(
        8000, description="Tokens that one video counts before its call has reported its usage."
    )


class ModelSpec(APIPart):
    """The spec of a model."""

    display_name: str = Field("", max_length=256, description="Name for people. Default: the object's name.")
    served_name: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="What the model server or provider calls the model. Default: the object's name.",
    )
    serving: Serving = Field(description="Where the model runs: on this cluster, or at a provider.")
    prices: Prices = Field(description="What tokens cost.")
    reservation: ReservationOffer | None = Field(
        None, description="Throughput that services can reserve in advance. Without it the model offers none."
    )
    free_quota: FreeQuotaOffer | None = Field(
        None, description="Tokens that each account gets for free. Without it the model has no free quota."
    )
    limits: ModelLimits = Field(
        ModelLimits(),
        description="Ceilings for every service on the model. Without it there are no ceilings.",
    )
    requests: RequestRules = Field(
        RequestRules(),
        description="What requests may contain, and how images and files in them are counted.",
    )
    retired: bool = Field(
        False,
        description="Takes the model out of service: services on it stop with reason ModelRetired, and come"
        " back when it is set to false again.",
    )


class ModelStatus(Status):
    """What the operator reports of a model."""

    replicas: Count32 = Field(0, description="Pods of the shared backend.")
    ready_replicas: Count32 = Field(0, description="Pods of the shared backend that are ready.")
    selector: str | None = Field(
        None, description="Label selector of the shared backend's pods, for the scale subresource."
    )
    services: Count32 = Field(0, description="Inference services on this model, in all namespaces.")


class Model(APIObject):
    """A published model: how it runs, what it costs, and the ceilings of its services.

    Written by cluster admins. Each account gets a Default inference service for it (B1).
    """

    KIND: ClassVar[str] = "Model"

    kind: Literal["Model"] = "Model"
    spec: ModelSpec = Field(description="What the model is, how it runs and what it costs.")
    status: Annotated[ModelStatus, Lenient] = Field(
        ModelStatus(), description="What the operator reports of the model."
    )

    @property
    def served_name(self) -> str:
        """What the upstream calls the model."""
        return self.spec.served_name or self.metadata.name

    @property
    def currency(self) -> str:
        """The currency of the model's prices."""
        return self.spec.prices.currency
