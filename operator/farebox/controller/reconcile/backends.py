"""Brings a backend (a Deployment and its Service) to what was decided, with as few writes as possible."""

import hashlib
import json

import structlog

from farebox.api import DeploymentServing
from farebox.controller.queue import Key, Priority
from farebox.controller.reconcile.context import REFUSED_RETRY_SECONDS, Context
from farebox.controller.reconcile.drift import contains
from farebox.controller.reconcile.resources import JSONObject, endpoint
from farebox.domain.keys import ObjectKey
from farebox.errors import Forbidden, Invalid
from farebox.kube.names import core_path, deployment_path

log = structlog.get_logger(__name__)


async def ensure_backend(
    context: Context, key: Key, priority: Priority, deployment: JSONObject, serving: DeploymentServing
) -> None:
    """Create or update a backend; writes nothing when it matches already.

    A backend without replicas is only scaled: it gets a new template when it starts again, and is not created
    for zero replicas. A refusal of the API server is kept for the next decision, which reports it. The
    operator retries after a while, because quotas and policies change without an event.
    """
    target = ObjectKey(deployment["metadata"]["namespace"], deployment["metadata"]["name"])
    replicas = deployment["spec"]["replicas"]
    known_error = context.backend_errors.get(target)
    try:
        if replicas == 0:
            await scale_to_zero(context, target, priority)
        else:
            await _ensure_deployment(context, target, priority, deployment)
            await _ensure_service(context, target, priority, deployment, serving)
    except (Invalid, Forbidden) as error:
        context.backend_errors[target] = error.message
        if known_error != error.message:
            log.warning("backend.refused", object=str(key), backend=str(target), error=error.message)
            context.queue.add(key, priority)
        context.queue.add_after(key, REFUSED_RETRY_SECONDS)
        return
    if context.backend_errors.pop(target, None) is not None:
        context.queue.add(key, priority)


async def scale_to_zero(context: Context, target: ObjectKey, priority: Priority) -> None:
    """Scale a backend to zero, if it exists and has replicas."""
    backend = context.cache.backends.get(target)
    if backend is not None and backend.facts.desired != 0:
        await context.writer.scale(target, backend, 0, priority)


async def stop_backend(context: Context, target: ObjectKey, priority: Priority) -> None:
    """Scale a dedicated backend to zero. An earlier refusal does not count for its next start."""
    await scale_to_zero(context, target, priority)
    context.backend_errors.pop(target, None)


async def remove_backend(context: Context, target: ObjectKey, priority: Priority) -> None:
    """Delete a backend whose owner is gone."""
    backend, service = context.cache.backends.get(target), context.cache.endpoints.get(target)
    if service is not None:
        await context.writer.delete(core_path("services", *target), service.uid, priority)
    if backend is not None:
        await context.writer.delete(deployment_path(*target), backend.uid, priority)
    context.backend_errors.pop(target, None)
    context.applied_backends.pop(target, None)


async def _ensure_deployment(
    context: Context, target: ObjectKey, priority: Priority, deployment: JSONObject
) -> None:
    backend = context.cache.backends.get(target)
    replicas = deployment["spec"]["replicas"]
    if backend is None:
        await context.writer.create_deployment(deployment, priority)
        return
    desired = {
        "labels": deployment["metadata"]["labels"],
        "annotations": deployment["metadata"]["annotations"],
        "template": deployment["spec"]["template"],
    }
    actual = {"labels": backend.labels, "annotations": backend.annotations, "template": backend.template}
    if not contains(actual, desired):
        # The server may drop unknown fields. If the same request led to this result before, repeating it
        # would never end.
        applied = (_digest(desired), _digest(actual))
        if context.applied_backends.get(target) != applied:
            await context.writer.replace_deployment(backend, deployment, priority)
            written = context.cache.backends.get(target)
            if written is not None:
                result = {
                    "labels": written.labels,
                    "annotations": written.annotations,
                    "template": written.template,
                }
                context.applied_backends[target] = (_digest(desired), _digest(result))
            return
    if backend.facts.desired != replicas:
        await context.writer.scale(target, backend, replicas, priority)


async def _ensure_service(
    context: Context,
    target: ObjectKey,
    priority: Priority,
    deployment: JSONObject,
    serving: DeploymentServing,
) -> None:
    """Create the Service of a backend, or replace it after its port or the Service itself was edited."""
    found = context.cache.endpoints.get(target)
    if found is None:
        await context.writer.create_endpoint(endpoint(deployment, serving), priority)
    elif found.port != serving.port:
        await context.writer.replace_endpoint(endpoint(deployment, serving), priority)


def _digest(value: JSONObject) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
