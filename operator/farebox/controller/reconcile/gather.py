"""Gathers the facts of one decision from the caches. Reads memory alone, decides nothing."""

from farebox.api import BillingAccount, InferenceService, Model, NamespacesFrom, ReservationState
from farebox.controller.state.balances import Balances, available_amount
from farebox.controller.state.cache import Cache, account_of, model_of
from farebox.controller.state.entitlements import Entitlements
from farebox.domain.facts import (
    EXTERNAL,
    MISSING,
    UNKNOWN,
    AccountFacts,
    BackendFacts,
    External,
    Facts,
    Missing,
    ModelFacts,
    Previous,
    QuotaFacts,
    ReservationFacts,
    ServiceFacts,
    Unknown,
)
from farebox.domain.keys import ObjectKey
from farebox.kube.names import dedicated_backend_name, shared_backend_name


def gather(
    cache: Cache,
    balances: Balances,
    entitlements: Entitlements,
    backend_namespace: str,
    service: InferenceService,
    backend_error: str,
) -> Facts:
    """Return the facts of a service as they are known now.

    The caches are complete when this is called, so an object that they lack does not exist.
    """
    key = ObjectKey(service.metadata.namespace, service.metadata.name)
    account_key = account_of(service)
    model = cache.models.get(model_of(service))
    account = cache.accounts.get(account_key)
    return Facts(
        service=ServiceFacts(
            key=key,
            type=service.spec.type,
            postpaid=service.spec.postpaid,
            trial=service.spec.trial,
            reserves=service.spec.reservation is not None,
            dedicated=service.spec.dedicated,
            replicas=service.spec.replicas,
            rpm_limit=service.spec.limits.rpm,
            tpm_limit=service.spec.limits.tpm,
        ),
        account=MISSING if account is None else _account_facts(cache, balances, account_key, account, key),
        model=MISSING if model is None else _model_facts(model),
        backend=_backend_facts(cache, backend_namespace, service, model),
        backend_error=backend_error,
        quota=_quota_facts(balances, entitlements, account_key, service.model_name, model),
        reservation=_reservation_facts(balances, entitlements, key, service.metadata.uid),
        account_key=account_key,
        model_name=service.model_name,
        previous=Previous(
            phase=service.status.phase,
            billing_mode=service.status.billing_mode or Previous().billing_mode,
            stop_reasons=tuple(service.status.stop_reasons),
            enabled_at=service.status.enabled_at,
            first_running_at=service.status.first_running_at,
        ),
    )


def backend_name(service: InferenceService) -> str:
    """Return the name of the Deployment that serves a service."""
    if service.spec.dedicated:
        return dedicated_backend_name(ObjectKey(service.metadata.namespace, service.metadata.name))
    return shared_backend_name(service.model_name)


def _account_facts(
    cache: Cache, balances: Balances, key: ObjectKey, account: BillingAccount, service: ObjectKey
) -> AccountFacts:
    return AccountFacts(
        key=key,
        currency=account.spec.currency,
        available=available_amount(balances, key, account),
        allows=_allows(cache, account, service.namespace),
    )


def _allows(cache: Cache, account: BillingAccount, namespace: str) -> bool | Unknown:
    """Return whether an account admits services of a namespace (B22); its own is always admitted."""
    allowed = account.spec.allowed_namespaces
    if namespace == account.metadata.namespace or allowed.from_ is NamespacesFrom.ALL:
        return True
    if allowed.from_ is NamespacesFrom.SAME or allowed.selector is None:
        return False
    labels = cache.namespaces.get(ObjectKey("", namespace))
    return UNKNOWN if labels is None else allowed.selector.matches(labels.labels)


def _quota_facts(
    balances: Balances, entitlements: Entitlements, account: ObjectKey, model_name: str, model: Model | None
) -> QuotaFacts | Missing | Unknown:
    """Return a free quota; unknown while the model offers one that the ledger has not granted yet."""
    if not balances.known:
        return UNKNOWN
    quota = entitlements.quota(account, model_name)
    if quota is not None:
        return QuotaFacts(quota.total, quota.used, quota.expires_at)
    return MISSING if model is not None and model.spec.free_quota is None else UNKNOWN


def _reservation_facts(
    balances: Balances, entitlements: Entitlements, service: ObjectKey, uid: str
) -> ReservationFacts | Unknown:
    if not balances.known:
        return UNKNOWN
    known = entitlements.reservation(service, uid)
    if known is None:
        return ReservationFacts(ReservationState.PENDING)
    return ReservationFacts(known.state, known.message, known.period_start, known.period_end)


def _model_facts(model: Model) -> ModelFacts:
    return ModelFacts(
        name=model.metadata.name,
        retired=model.spec.retired,
        currency=model.spec.prices.currency,
        rpm_ceiling=model.spec.limits.rpm,
        tpm_ceiling=model.spec.limits.tpm,
    )


def _backend_facts(
    cache: Cache, backend_namespace: str, service: InferenceService, model: Model | None
) -> BackendFacts | Missing | External:
    if model is not None and model.spec.serving.external is not None:
        return EXTERNAL
    backend = cache.backends.get(ObjectKey(backend_namespace, backend_name(service)))
    return MISSING if backend is None else backend.facts
