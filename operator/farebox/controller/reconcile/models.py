"""Reconciles a Model: its prices in the ledger, and the shared backend that its services need."""

from datetime import datetime

from farebox.api import Model, ModelStatus
from farebox.controller.queue import Key, Priority, service_key
from farebox.controller.reconcile.backends import ensure_backend, remove_backend
from farebox.controller.reconcile.context import Context
from farebox.controller.reconcile.resources import selector_text, shared_backend
from farebox.domain.billing.money import parse_amount
from farebox.domain.billing.reservations import ReservationTerms
from farebox.domain.facts import EXTERNAL, MISSING, UNKNOWN, BackendFacts
from farebox.domain.keys import ObjectKey
from farebox.domain.model_status import ModelVerdict, SharedBackendFacts, decide_model
from farebox.errors import Conflict, KubeError
from farebox.kube.names import shared_backend_name
from farebox.meterapi.types import FreeQuota, PriceVersion, token_price_tiers


async def reconcile_model(context: Context, key: Key, priority: Priority) -> None:
    """Bring the model's shared backend to what its services need. Safe to repeat (B20)."""
    model = context.cache.models.get(key.object)
    target = ObjectKey(context.backend_namespace, shared_backend_name(key.name))
    if model is None:
        context.forget(key)
        await remove_backend(context, target, priority)
        return
    context.ledger_sync.upsert(key, price_version(model, context.now()))
    facts = _gather(context, key, model, target)
    if facts.wanted is UNKNOWN:
        # Some of its services were not reconciled since the start: the last of them queues the model again.
        return
    verdict = decide_model(facts)
    serving = model.spec.serving.deployment
    if verdict.replicas is not None and serving is not None:
        deployment = shared_backend(context.backend_namespace, model, serving, verdict.replicas)
        try:
            await ensure_backend(context, key, priority, deployment, serving)
        except Conflict:
            raise
        except KubeError:
            # As in services.py: the status reports the state until then.
            await _report(context, key, priority, model, facts, verdict)
            raise
        if context.backend_errors.get(target, "") != facts.refusal:
            for service in context.cache.services_of_model.of(key.object):
                context.queue.add(service_key(service), Priority.LOW)
    elif serving is None:
        # A provider serves the model. A backend is left if an earlier model of this name was served here.
        await remove_backend(context, target, priority)
    await _report(context, key, priority, model, facts, verdict)


def price_version(model: Model, now: datetime) -> PriceVersion:
    """Return the model's prices as the ledger records them.

    The first prices apply from the model's creation, so that every early call has a price. A change applies
    from when the operator saw it.
    """
    first = model.metadata.generation == 1
    offer, quota = model.spec.reservation, model.spec.free_quota
    return PriceVersion(
        model=model.metadata.name,
        currency=model.spec.prices.currency,
        tiers=token_price_tiers(model.spec.prices),
        effective_at=model.metadata.creation_timestamp if first else now,
        reservation=None
        if offer is None
        else ReservationTerms(
            offer.input_unit_tpm,
            parse_amount(offer.input_unit_price_per_day),
            offer.output_unit_tpm,
            parse_amount(offer.output_unit_price_per_day),
            offer.terms,
        ),
        free_quota=None if quota is None else FreeQuota(quota.tokens, quota.valid_days),
    )


def _gather(context: Context, key: Key, model: Model, target: ObjectKey) -> SharedBackendFacts:
    services = context.cache.services_of_model.of(key.object)
    shared = frozenset(
        service
        for service in services
        if (found := context.cache.services.get(service)) is not None and not found.spec.dedicated
    )
    backend = context.cache.backends.get(target)
    serving = model.spec.serving.deployment
    refusal = context.ledger_sync.refusal(key)
    return SharedBackendFacts(
        backend=EXTERNAL if serving is None else MISSING if backend is None else backend.facts,
        wanted=context.shared_backend_demand.wanted(key.name, shared),
        replicas=0 if serving is None else serving.replicas,
        refusal=context.backend_errors.get(target, ""),
        price_refusal="" if refusal is None else refusal.message,
    )


async def _report(
    context: Context,
    key: Key,
    priority: Priority,
    model: Model,
    facts: SharedBackendFacts,
    verdict: ModelVerdict,
) -> None:
    backend = facts.backend if isinstance(facts.backend, BackendFacts) else None
    status = ModelStatus(
        observed_generation=model.metadata.generation,
        conditions=context.conditions(model, verdict.conditions),
        replicas=backend.replicas if backend else 0,
        ready_replicas=backend.ready if backend else 0,
        selector=selector_text(shared_backend_name(key.name)) if model.spec.serving.deployment else None,
        services=context.cache.services_of_model.count(key.object),
    )
    if await context.write_status(key, priority, model, status):
        context.recorder.stalled(model, verdict.conditions)
