"""Brings a backend (a Deployment and its Service) to what was decided, with as few writes as it takes."""

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
    """Make the backend as the Deployment says; nothing is written when it is so already.

    A backend that is to have no replicas is only scaled: it takes a new template when it comes back, and is
    not made just to be empty. What the API server refuses is kept for the next decision, which reports it;
    it is tried again now and then, as quotas and policies change without a word.
    """
    target = ObjectKey(deployment["metadata"]["namespace"], deployment["metadata"]["name"])
    replicas = deployment["spec"]["replicas"]
    known_error = context.backend_errors.get(target)
    try:
        if replicas == 0:
            await scale_to_zero(context, target, priority)
        else:
            await _bring_up(context, target, priority, deployment)
            await _open(context, target, priority, deployment, serving)
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
    """Take all replicas from a backend, if it exists and has any."""
    backend = context.cache.backends.get(target)
    if backend is not None and backend.facts.desired != 0:
        await context.writer.scale(target, backend, 0, priority)


async def stop_backend(context: Context, target: ObjectKey, priority: Priority) -> None:
    """Take all replicas from a dedicated backend; a refusal of before says nothing of its way back up."""
    await scale_to_zero(context, target, priority)
    context.backend_errors.pop(target, None)


async def remove_backend(context: Context, target: ObjectKey, priority: Priority) -> None:
    """Delete a backend that nobody owns any more."""
    backend, service = context.cache.backends.get(target), context.cache.endpoints.get(target)
    if service is not None:
        await context.writer.delete(core_path("services", *target), service.uid, priority)
    if backend is not None:
        await context.writer.delete(deployment_path(*target), backend.uid, priority)
    context.backend_errors.pop(target, None)
    context.settled_backends.pop(target, None)


async def _bring_up(context: Context, target: ObjectKey, priority: Priority, deployment: JSONObject) -> None:
    backend = context.cache.backends.get(target)
    replicas = deployment["spec"]["replicas"]
    if backend is None:
        await context.writer.create_deployment(deployment, priority)
        return
    asked = {
        "labels": deployment["metadata"]["labels"],
        "annotations": deployment["metadata"]["annotations"],
        "template": deployment["spec"]["template"],
    }
    there = {"labels": backend.labels, "annotations": backend.annotations, "template": backend.template}
    if not contains(there, asked):
        # The server may keep less than was asked for (unknown fields): what came of the same request before
        # is as good as it gets, and asking again would never end.
        settled = (_digest(asked), _digest(there))
        if context.settled_backends.get(target) != settled:
            await context.writer.replace_deployment(backend, deployment, priority)
            written = context.cache.backends.get(target)
            if written is not None:
                result = {
                    "labels": written.labels,
                    "annotations": written.annotations,
                    "template": written.template,
                }
                context.settled_backends[target] = (_digest(asked), _digest(result))
            return
    if backend.facts.desired != replicas:
        await context.writer.scale(target, backend, replicas, priority)


async def _open(
    context: Context,
    target: ObjectKey,
    priority: Priority,
    deployment: JSONObject,
    serving: DeploymentServing,
) -> None:
    """Make the Service of a backend, or put it right: its port was edited in the Model, or it by hand."""
    there = context.cache.endpoints.get(target)
    if there is None:
        await context.writer.create_endpoint(endpoint(deployment, serving), priority)
    elif there.port != serving.port:
        await context.writer.replace_endpoint(endpoint(deployment, serving), priority)


def _digest(value: JSONObject) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
