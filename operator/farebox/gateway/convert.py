"""Conversion of the cluster's objects to policies of admission and to upstreams. Pure."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from farebox.api import (
    APIKey,
    CacheSalt,
    ConditionStatus,
    ConditionType,
    InferenceService,
    Model,
    Phase,
    QuotaPeriod,
    ReservationState,
    StreamUsage,
)
from farebox.domain.admission.addresses import parse_networks
from farebox.domain.admission.types import (
    KeyAllowance,
    KeyPolicy,
    MediaTokens,
    ModelPolicy,
    ReservedThroughput,
    ServicePolicy,
    Window,
)
from farebox.domain.keys import ObjectKey
from farebox.kube.names import shared_backend_name
from farebox.meterapi.types import token_price_tiers

_WINDOWS = {
    QuotaPeriod.DAY: Window.DAY,
    QuotaPeriod.MONTH: Window.MONTH,
    QuotaPeriod.LIFETIME: Window.LIFETIME,
}


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A key of a Secret in the backends' namespace."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Provider:
    """An external API.

    Args:
        upstream: "host:port".
        base_path: the path of its API, without a trailing slash.
    """

    upstream: str
    tls: bool
    base_path: str
    secret: SecretRef | None


@dataclass(frozen=True, slots=True)
class ModelUpstream:
    """The upstream of a model: a provider, or a port of backends in this cluster.

    Args:
        stream_usage: when a stream reports its usage.
        salt_key: unique to the model; the salts of its namespaces are made with it.
        salts_cache: whether the shared backend knows `cache_salt`.
        allowed_fields: of request bodies, beside the documented ones; "tools.TYPE" is a type of tool.
        backend: the name of the shared backend; dedicated backends have the same port.
    """

    served_name: str
    stream_usage: StreamUsage
    salt_key: bytes
    allowed_fields: frozenset[str] = frozenset()
    salts_cache: bool = False
    backend: str = ""
    port: int = 0
    provider: Provider | None = None


def key_policy(key: APIKey) -> KeyPolicy:
    """The policy of an APIKey."""
    spec = key.spec
    quota = spec.quota
    return KeyPolicy(
        key=ObjectKey(key.namespace, key.name),
        disabled=spec.disabled,
        expires_at=spec.expires_at,
        services=None if spec.services.all else frozenset(spec.services.names or ()),
        networks=parse_networks(spec.allowed_cidrs),
        quota=None if quota is None else KeyAllowance(quota.tokens, _WINDOWS[quota.period]),
        created_at=key.metadata.creation_timestamp,
    )


def service_policy(service: InferenceService) -> ServicePolicy:
    """The policy of an InferenceService."""
    spec = service.spec
    return ServicePolicy(
        key=ObjectKey(service.namespace, service.name),
        model=service.model_name,
        account=ObjectKey(service.billing_account_namespace, service.billing_account_name),
        postpaid=spec.postpaid,
        trial=spec.trial,
        reserves=spec.reservation is not None,
        dedicated=spec.dedicated,
        inactive=why_inactive(service),
        rpm=spec.limits.rpm,
        tpm=spec.limits.tpm,
        networks=parse_networks(spec.access.allowed_cidrs),
        reservation=_reservation(service),
        created_at=service.metadata.creation_timestamp,
    )


def why_inactive(service: InferenceService) -> str:
    """The operator's reason why a service does not serve, in CamelCase; "" if it serves.

    The reason is set before the pods stop, and Serving is true again when a backend is ready (B18).
    """
    status = service.status
    if status.stop_reasons:
        return status.stop_reasons[0].value
    serving = status.condition(ConditionType.SERVING)
    if serving is None:
        return "Creating"
    if status.phase is Phase.RUNNING and serving.status is ConditionStatus.TRUE:
        return ""
    return serving.reason


def _reservation(service: InferenceService) -> ReservedThroughput | None:
    spec, status = service.spec.reservation, service.status.reservation
    if spec is None or status is None or status.state is not ReservationState.ACTIVE:
        return None
    if status.period_start is None or status.period_end is None:
        return None
    return ReservedThroughput(spec.input_tpm, spec.output_tpm, status.period_start, status.period_end)


def model_policy(model: Model) -> ModelPolicy:
    """The policy of a Model."""
    limits, requests = model.spec.limits, model.spec.requests
    return ModelPolicy(
        name=model.name,
        currency=model.currency,
        retired=model.spec.retired,
        rpm=limits.rpm,
        tpm=limits.tpm,
        context_tokens=limits.context_tokens,
        max_output_tokens=limits.max_output_tokens,
        tiers=token_price_tiers(model.spec.prices),
        media=MediaTokens(
            requests.image_tokens, requests.audio_tokens, requests.file_tokens, requests.video_tokens
        ),
    )


def model_upstream(model: Model) -> ModelUpstream:
    """The upstream of a Model.

    Raises:
        ValueError: it has none, or an invalid URL. The CRD's validation admits neither.
    """
    serving, allowed = model.spec.serving, frozenset(model.spec.requests.allowed_fields)
    salt_key = model.metadata.uid.encode()
    if serving.external is not None:
        external = serving.external
        ref = external.credentials_secret_ref
        secret = None if ref is None else SecretRef(ref.name, ref.key)
        return ModelUpstream(
            model.served_name,
            external.stream_usage,
            *(salt_key, allowed),
            provider=_provider(external.base_url, secret),
        )
    deployment = serving.deployment
    if deployment is None:
        raise ValueError(f"model {model.name} has neither serving.deployment nor serving.external")
    return ModelUpstream(
        model.served_name,
        deployment.stream_usage,
        *(salt_key, allowed),
        salts_cache=deployment.cache_salt is CacheSalt.NAMESPACE,
        backend=shared_backend_name(model.name),
        port=deployment.port,
    )


def _provider(base_url: str, secret: SecretRef | None) -> Provider:
    """Raises ValueError for a URL that the CRD's validation does not admit."""
    url = urlsplit(base_url)
    tls = url.scheme == "https"
    if url.hostname is None or (not tls and url.scheme != "http"):
        raise ValueError(f"{base_url!r} is not an http or https URL")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return Provider(f"{host}:{url.port or (443 if tls else 80)}", tls, url.path.rstrip("/"), secret)
