"""Carries out writes: the only place of the operator that changes anything on the API server.

Every write carries what it is based on (a resourceVersion or a uid), so that one based on old knowledge fails
instead of undoing something; every answer goes into the cache, so that the next pass does not write again.
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
    """Writes for one pass over one key.

    Args:
        may_write: whether this replica holds the Lease for sure, asked right before every write (B21).
        on_service: called with each change of a service that a write's answer tells: the watch will have no
            news of it, so whatever depends on it (the service itself, its account's counts) is woken here.
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
        """Make a backend.

        Raises:
            Invalid: a Deployment that is not Farebox's has the name.
        """
        metadata = deployment["metadata"]
        path = deployment_path(metadata["namespace"])
        try:
            self.cache.backends.put(await self._write("deployment", "POST", path, deployment, priority))
        except Conflict as conflict:
            found = await self.client.get(deployment_path(metadata["namespace"], metadata["name"]))
            if not is_farebox_backend(found):
                raise _not_ours("Deployment", metadata) from conflict
            raise
        except NotFound as error:
            raise _no_namespace(metadata, error) from error

    async def replace_deployment(self, backend: Backend, deployment: JSONObject, priority: Priority) -> None:
        """Put a backend right whose template or labels differ; foreign labels and annotations stay."""
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
        """Make the Service of a backend; one of Farebox's that is there already is fine.

        Raises:
            Invalid: a Service that is not Farebox's has the name.
        """
        metadata = endpoint["metadata"]
        path = core_path("services", metadata["namespace"])
        try:
            self.cache.endpoints.put(await self._write("service", "POST", path, endpoint, priority))
        except Conflict as conflict:
            found = await self.client.get(f"{path}/{metadata['name']}")
            if not is_farebox_backend(found):
                raise _not_ours("Service", metadata) from conflict
            self.cache.endpoints.put(found)
        except NotFound as error:
            raise _no_namespace(metadata, error) from error

    async def replace_endpoint(self, endpoint: JSONObject, priority: Priority) -> None:
        """Put a Service right that leads elsewhere; foreign labels and annotations stay."""
        metadata = endpoint["metadata"]
        path = core_path("services", metadata["namespace"], metadata["name"])
        there = (await self.client.get(path))["metadata"]
        merged = metadata | {
            "labels": (there.get("labels") or {}) | metadata["labels"],
            "annotations": (there.get("annotations") or {}) | metadata["annotations"],
            "resourceVersion": there["resourceVersion"],
        }
        self.cache.endpoints.put(
            await self._write("service", "PUT", path, endpoint | {"metadata": merged}, priority)
        )

    async def create_service(self, service: JSONObject, priority: Priority) -> None:
        """Make a Default InferenceService; one that a user made meanwhile is left alone."""
        path = resource_path(Kind.SERVICE, service["metadata"]["namespace"])
        try:
            answer = await self._write("inferenceservice", "POST", path, service, priority)
        except Conflict:
            log.info("default_service.exists", service=service["metadata"]["name"])
            return
        if (change := self.cache.services.put(answer)) is not None:
            self.on_service(change)

    async def probe_secret(self, secret: JSONObject, priority: Priority) -> SecretWriteResult:
        """What the API server would say to a new Secret; nothing is stored."""
        return await self._post_secret("secret_probe", "?dryRun=All", secret, priority)

    async def create_secret(self, secret: JSONObject, priority: Priority) -> SecretWriteResult:
        """Make a Secret. One that has the name already is never touched, nor read."""
        return await self._post_secret("secret", "", secret, priority)

    async def _post_secret(
        self, what: str, query: str, secret: JSONObject, priority: Priority
    ) -> SecretWriteResult:
        """Raises what `_write` does, but for a final no. What a webhook quotes of the Secret goes nowhere."""
        path = core_path("secrets", secret["metadata"]["namespace"]) + query
        try:
            await self._write(what, "POST", path, secret, priority)
        except KubeError as error:
            message = redacted(error.message, secret)
            # A quota's own conflict is a 409 as well, and says nothing about the Secret.
            if isinstance(error, Conflict) and error.reason == "AlreadyExists":
                return SecretWriteResult(SecretOutcome.EXISTS, message)
            if isinstance(error, Invalid) or error.status == 403:
                return SecretWriteResult(SecretOutcome.REFUSED, message)
            raise type(error)(error.status, error.reason, message) from None
        return SecretWriteResult(SecretOutcome.CREATED)

    async def delete(self, path: str, uid: str, priority: Priority) -> None:
        """Delete an object if it still is the one with this uid."""
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
        """One write, within the rate for bulk work; single edits do not wait for bulk work's tokens.

        Raises:
            NotLeading: the Lease may be another's.
            KubeError, KubeUnreachable: as the client does.
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


def _not_ours(kind: str, metadata: JSONObject) -> Invalid:
    place = f"{metadata['namespace']}/{metadata['name']}"
    message = f"{kind} {place} exists and is not Farebox's: delete it or name it otherwise"
    return Invalid(409, "AlreadyExists", message)


def _no_namespace(metadata: JSONObject, error: NotFound) -> Invalid:
    message = f"Namespace {metadata['namespace']}, where all backends live, does not exist: create it"
    return Invalid(error.status, error.reason, message)
