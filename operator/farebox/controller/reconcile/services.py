"""Reconciles an InferenceService: gather facts, decide, apply the difference."""

from farebox.api import ConditionType, InferenceService, Phase, StopReason
from farebox.controller.queue import Key, Priority, model_key
from farebox.controller.reconcile.backends import ensure_backend, remove_backend, stop_backend
from farebox.controller.reconcile.context import COUNTS_SECONDS, Context
from farebox.controller.reconcile.events import EventKind
from farebox.controller.reconcile.gather import backend_name, gather
from farebox.controller.reconcile.reservations import record_renewal_failure, release, reserve
from farebox.controller.reconcile.resources import dedicated_backend, endpoint_url, selector_text
from farebox.controller.reconcile.status import service_status
from farebox.controller.state.cache import account_of
from farebox.domain.conditions import ConditionVerdict
from farebox.domain.facts import MISSING, BackendFacts, Facts
from farebox.domain.keys import ObjectKey
from farebox.domain.lifecycle import NO_REPLICA_READY, ServiceVerdict, decide_service, desired_replicas
from farebox.errors import Conflict, KubeError
from farebox.meterapi.types import Binding
from farebox.metrics import TRANSITIONS

# While replicas start, a write for each of them would report one replica more.
_STARTING_COUNTS_SECONDS = 5.0


async def reconcile_service(context: Context, key: Key, priority: Priority) -> None:
    """Bring one service to what its facts require. Safe to repeat and to interrupt anywhere (B20)."""
    service = context.cache.services.get(key.object)
    if service is None:
        await _forget(context, key, priority)
        return
    _bind(context, key, service)
    target = ObjectKey(context.backend_namespace, backend_name(service))
    facts = gather(
        context.cache,
        context.balances,
        context.entitlements,
        context.backend_namespace,
        service,
        context.backend_errors.get(target, ""),
    )
    verdict = decide_service(facts, context.now())
    context.requeue_after(key, verdict.due)
    reserve(context, key, service, facts)
    _record_demand(context, key, service, verdict)
    if verdict.wanted:
        # Start: first the backend, then the status.
        try:
            await _apply_backend(context, key, priority, service, verdict, target)
        except Conflict:
            raise
        except KubeError:
            # A webhook may be down for hours: the status reports the state until then.
            await _report(context, key, priority, service, facts, verdict)
            raise
        await _report(context, key, priority, service, facts, verdict)
    else:
        # Stop: first the status, so that calls are refused before the pods end (B18).
        await _report(context, key, priority, service, facts, verdict)
        await _apply_backend(context, key, priority, service, verdict, target)


async def _apply_backend(
    context: Context,
    key: Key,
    priority: Priority,
    service: InferenceService,
    verdict: ServiceVerdict,
    target: ObjectKey,
) -> None:
    """Apply a dedicated backend. The Model's reconciler applies a shared one; an external one has none."""
    model = context.cache.models.get(ObjectKey("", service.model_name))
    serving = None if model is None else model.spec.serving.deployment
    if not service.spec.dedicated or (model is not None and serving is None):
        # A backend is left if the service, or its model, was of another sort before.
        await _remove_backends(context, key, priority)
        return
    if not verdict.wanted:
        await stop_backend(context, target, priority)
        return
    if serving is None:
        return
    replicas = desired_replicas(verdict.wanted, service.spec.replicas)
    deployment = dedicated_backend(context.backend_namespace, service, serving, replicas)
    await ensure_backend(context, key, priority, deployment, serving)


async def _report(
    context: Context,
    key: Key,
    priority: Priority,
    service: InferenceService,
    facts: Facts,
    verdict: ServiceVerdict,
) -> None:
    """Write the status, and record Events about a new phase."""
    backend = facts.backend if isinstance(facts.backend, BackendFacts) else None
    name = backend_name(service)
    model = context.cache.models.get(ObjectKey("", service.model_name))
    serving = model.spec.serving if model is not None else None
    backend_url = service.status.backend
    if serving is not None and serving.deployment is not None:
        backend_url = endpoint_url(context.backend_namespace, name, serving.deployment)
    elif serving is not None and serving.external is not None:
        backend_url = serving.external.base_url
    status = service_status(
        service.status,
        verdict,
        backend if verdict.wanted or service.spec.dedicated else None,
        facts.quota,
        facts.reservation if service.spec.reservation is not None else MISSING,
        generation=service.metadata.generation,
        selector=selector_text(name),
        endpoint=context.endpoint,
        backend_url=backend_url,
        now=context.now(),
    )
    starting = verdict.wanted and verdict.phase is not Phase.RUNNING
    counts_seconds = _STARTING_COUNTS_SECONDS if starting else COUNTS_SECONDS
    if await context.write_status(key, priority, service, status, counts_seconds):
        _record_events(context, service, verdict)
        record_renewal_failure(context, service, facts)


def _record_events(context: Context, service: InferenceService, verdict: ServiceVerdict) -> None:
    """Record what changed: the phase or its reasons, or else whether a running service serves."""
    status, recorder = service.status, context.recorder
    serving = next(c for c in verdict.conditions if c.type is ConditionType.SERVING)
    if (status.phase, tuple(status.stop_reasons)) != (verdict.phase, verdict.stop_reasons):
        _record_phase(context, service, verdict, serving)
    elif verdict.phase is Phase.RUNNING:
        before = status.condition(ConditionType.SERVING)
        if before is not None and before.status is not serving.status:
            kind: EventKind = "Warning" if serving.reason == NO_REPLICA_READY else "Normal"
            recorder.event(service, kind, serving.reason, "Serve", serving.message)
    recorder.stalled(service, verdict.conditions, reported=verdict.stop_reasons)


def _record_phase(
    context: Context, service: InferenceService, verdict: ServiceVerdict, serving: ConditionVerdict
) -> None:
    """Record a new phase, or new stop reasons."""
    if verdict.phase is None:
        return
    TRANSITIONS.labels(verdict.phase).inc()
    if verdict.phase is Phase.NOT_ENABLED:
        return
    if verdict.stop_reasons:
        reason = verdict.stop_reasons[0]
        by_owner = reason is StopReason.POSTPAID_DISABLED
        context.recorder.event(service, "Normal" if by_owner else "Warning", reason, "Stop", serving.message)
    else:
        action = "Resume" if verdict.phase is Phase.STOPPED else "Start"
        context.recorder.event(service, "Normal", serving.reason, action, serving.message)


def _record_demand(context: Context, key: Key, service: InferenceService, verdict: ServiceVerdict) -> None:
    demand, model = context.shared_backend_demand, service.model_name
    if service.spec.dedicated:
        changed = demand.record_dedicated(key.object, verdict.decided)
    else:
        changed = demand.record_shared(model, key.object, verdict.wanted, verdict.decided)
    for name in changed:
        context.queue.add(model_key(name), Priority.HIGH)


def _bind(context: Context, key: Key, service: InferenceService) -> None:
    """Send the ledger who pays for the service: from its creation on, or from now on after an edit."""
    created = service.metadata.generation == 1
    since = service.metadata.creation_timestamp if created else context.now()
    context.ledger_sync.upsert(
        key, Binding(key.object, account_of(service), service.model_name, since, service.spec.trial)
    )


async def _forget(context: Context, key: Key, priority: Priority) -> None:
    """Delete the backend of a deleted service. The ledger keeps what the service owes (B11)."""
    for model in context.shared_backend_demand.forget(key.object):
        context.queue.add(model_key(model), priority)
    if not release(context, key):
        context.forget(key)
    await _remove_backends(context, key, priority)


async def _remove_backends(context: Context, key: Key, priority: Priority) -> None:
    """Delete the dedicated backends of a service, those of an earlier service of its name too."""
    cache = context.cache
    for target in cache.backends_of_service.of(key.object) | cache.endpoints_of_service.of(key.object):
        await remove_backend(context, target, priority)
