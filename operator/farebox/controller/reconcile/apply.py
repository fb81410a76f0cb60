"""Writes to the API server. Nothing else in the operator changes an object.

Every write carries a resourceVersion or a uid, so that a write based on an old version fails instead of
undoing a newer one. Every answer goes into the cache, so that the next reconcile does not write again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from farebox.api import InferenceService
from farebox.controller.queue import Kind, Priority, TokenBucket
from farebox.controller.reconcile.resources import redacted
from farebox.controller.state.cache import Backend, Cache, is_farebox_backend
from farebox.domain.apikey_status import SecretOutcome, SecretWriteResult
from farebox.domain.keys import ObjectKey
from farebox.errors import Conflict, Invalid, KubeError, NotFound, NotLeading
from farebox.kube.client import MERGE_PATCH, KubeClient
from farebox.kube.names import core_path, deployment_path, resource_path
from farebox.kube.store import Change
from farebox.metrics import WRITE_ERRORS, WRITE_SECONDS, WRITES

log = structlog.get_logger(__name__)
JSONObject = dict[str, Any]


@dataclass
class ClusterWriter:
    """Sends the writes of reconcilers.

    Args:
        may_write: returns whether this replica certainly holds the Lease; called before every write (B21).
        on_service: called with each change of a service in the answer to a write. The watch reports nothing
            new then, so the dependents (the service itself, its account's counts) are queued here.
    """

    client: KubeClient
    cache: Cache
    bucket: TokenBucket
    may_write: Callable[[], bool]
    on_service: Callable[[Change[InferenceService]], None]

    async def patch_status(
        self, kind: Kind, key: ObjectKey, version: int, patch: JSONObject, priority: Priority
    ) -> None:
        """Merge-patch the status of an object as it was at `version`."""
        path = resource_path(kind, key.namespace, key.name, "status")
        body = {"metadata": {"resourceVersion": str(version)}, "status": patch}
        answer = await self._write("status", "PATCH", path, body, priority, MERGE_PATCH)
        change = self.cache.store(kind).put(answer)
        if change is not None and kind is Kind.SERVICE:
            self.on_service(change)

    async def scale(self, key: ObjectKey, backend: Backend, replicas: int, priority: Priority) -> None:
        """Set the replicas of a Deployment as it was when the decision was made."""
        body = {"metadata": {"resourceVersion": backend.version}, "spec": {"replicas": replicas}}
        path = deployment_path(key.namespace, key.name, "scale")
        answer = await self._write("scale", "PATCH", path, body, priority, MERGE_PATCH)
        version = answer["metadata"]["resourceVersion"]
        self.cache.backends.assume(key, backend.scaled(replicas, version), int(version))

    async def create_deployment(self, deployment: JSONObject, priority: Priority) -> None:
        """Create a backend.

        Raises:
            Invalid: the name belongs to a Deployment that Farebox did not create.
        """
        metadata = deployment["metadata"]
        path = deployment_path(metadata["namespace"])
        try:
            self.cache.backends.put(await self._write("deployment", "POST", path, deployment, priority))
        except Conflict as conflict:
            found = await self.client.get(deployment_path(metadata["namespace"], metadata["name"]))
            if not is_farebox_backend(found):
                raise _foreign("Deployment", metadata) from conflict
            raise
        except NotFound as error:
            raise _no_namespace(metadata, error) from error

    async def replace_deployment(self, backend: Backend, deployment: JSONObject, priority: Priority) -> None:
        """Replace a backend whose template or labels differ; foreign labels and annotations stay."""
        metadata = deployment["metadata"]
        merged = metadata | {
            "labels": backend.labels | metadata["labels"],
            "annotations": backend.annotations | metadata["annotations"],
            "resourceVersion": backend.version,
        }
        path = deployment_path(metadata["namespace"], metadata["name"])
        answer = await self._write("deployment", "PUT", path, deployment | {"metadata": merged}, priority)
        self.cache.backends.put(answer)

    async def create_endpoint(self, endpoint: JSONObject, priority: Priority) -> None:
        """Create the Service of a backend, unless it exists already.

        Raises:
            Invalid: the name belongs to a Service that Farebox did not create.
        """
        metadata = endpoint["metadata"]
        path = core_path("services", metadata["namespace"])
        try:
            self.cache.endpoints.put(await self._write("service", "POST", path, endpoint, priority))
        except Conflict as conflict:
            found = await self.client.get(f"{path}/{metadata['name']}")
            if not is_farebox_backend(found):
                raise _foreign("Service", metadata) from conflict
            self.cache.endpoints.put(found)
        except NotFound as error:
            raise _no_namespace(metadata, error) from error

    async def replace_endpoint(self, endpoint: JSONObject, priority: Priority) -> None:
        """Replace a Service that leads elsewhere; foreign labels and annotations stay."""
        metadata = endpoint["metadata"]
        path = core_path("services", metadata["namespace"], metadata["name"])
        found = (await self.client.get(path))["metadata"]
        merged = metadata | {
            "labels": (found.get("labels") or {}) | metadata["labels"],
            "annotations": (found.get("annotations") or {}) | metadata["annotations"],
            "resourceVersion": found["resourceVersion"],
        }
        self.cache.endpoints.put(
            await self._write("service", "PUT", path, endpoint | {"metadata": merged}, priority)
        )

    async def create_service(self, service: JSONObject, priority: Priority) -> None:
        """Create a Default InferenceService. One that a user created meanwhile stays as it is."""
        path = resource_path(Kind.SERVICE, service["metadata"]["namespace"])
        try:
            answer = await self._write("inferenceservice", "POST", path, service, priority)
        except Conflict:
            log.info("default_service.exists", service=service["metadata"]["name"])
            return
        if (change := self.cache.services.put(answer)) is not None:
            self.on_service(change)

    async def probe_secret(self, secret: JSONObject, priority: Priority) -> SecretWriteResult:
        """Return what the API server would answer to a new Secret; nothing is stored."""
        return await self._post_secret("secret_probe", "?dryRun=All", secret, priority)

    async def create_secret(self, secret: JSONObject, priority: Priority) -> SecretWriteResult:
        """Create a Secret. An existing Secret of this name is neither changed nor read."""
        return await self._post_secret("secret", "", secret, priority)

    async def _post_secret(
        self, what: str, query: str, secret: JSONObject, priority: Priority
    ) -> SecretWriteResult:
        """Post a Secret; raises what `_write` raises, except for a final refusal.

        A webhook may quote the Secret in its refusal: the message is redacted.
        """
        path = core_path("secrets", secret["metadata"]["namespace"]) + query
        try:
            await self._write(what, "POST", path, secret, priority)
        except KubeError as error:
            message = redacted(error.message, secret)
            # The conflict of a quota is a 409 too, and does not mean that the Secret exists.
            if isinstance(error, Conflict) and error.reason == "AlreadyExists":
                return SecretWriteResult(SecretOutcome.EXISTS, message)
            if isinstance(error, Invalid) or error.status == 403:
                return SecretWriteResult(SecretOutcome.REFUSED, message)
            raise type(error)(error.status, error.reason, message) from None
        return SecretWriteResult(SecretOutcome.CREATED)

    async def delete(self, path: str, uid: str, priority: Priority) -> None:
        """Delete an object, if it is still the one with this uid."""
        try:
            await self._write("delete", "DELETE", path, {"preconditions": {"uid": uid}}, priority)
        except (NotFound, Conflict):
            return

    async def _write(
        self,
        what: str,
        method: str,
        path: str,
        body: JSONObject,
        priority: Priority,
        content_type: str = "application/json",
    ) -> JSONObject:
        """Send one write. Bulk work waits for the rate limit, single edits do not.

        Raises:
            NotLeading: another replica may hold the Lease.
            KubeError, KubeUnreachable: see KubeClient.request.
        """
        if priority is Priority.LOW:
            await self.bucket.take()
        if not self.may_write():
            raise NotLeading(f"{method} {path}: this replica does not hold the Lease")
        WRITES.labels(what).inc()
        try:
            with WRITE_SECONDS.labels(what).time():
                return await self.client.request(method, path, body=body, content_type=content_type)
        except KubeError as error:
            WRITE_ERRORS.labels(str(error.status)).inc()
            raise


def _foreign(kind: str, metadata: JSONObject) -> Invalid:
    place = f"{metadata['namespace']}/{metadata['name']}"
    message = f"{kind} {place} exists and was not created by Farebox. Delete or rename it"
    return Invalid(409, "AlreadyExists", message)


def _no_namespace(metadata: JSONObject, error: NotFound) -> Invalid:
    message = f"The backends' Namespace {metadata['namespace']} does not exist. Create it"
    return Invalid(error.status, error.reason, message)
