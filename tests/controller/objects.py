"""Objects as the API server gives them to the operator: whole, with uid, generation and resourceVersion."""

from typing import Any

from farebox.domain.keys import ObjectKey
from farebox.kube.names import (
    BACKEND_LABEL,
    MODEL_LABEL,
    SERVICE_NAME_LABEL,
    SERVICE_NAMESPACE_LABEL,
    dedicated_backend_name,
)
from tests.api import samples

JSONObject = dict[str, Any]
BACKENDS = "farebox-models"
TEAM = "team-a"


def stored(manifest: JSONObject, name: str, version: int, **metadata: Any) -> JSONObject:
    """A sample as the API server has it at `version`; `status` goes beside the metadata."""
    status = metadata.pop("status", None)
    given = {
        "name": name,
        "uid": f"uid-of-{name}",
        "resourceVersion": str(version),
        "generation": 1,
        "creationTimestamp": "2026-03-01T12:00:00Z",
    }
    return samples.changed(manifest, {"metadata": given | metadata, "status": status})


def service(name: str = "chat", version: int = 1, spec: JSONObject | None = None, **meta: Any) -> JSONObject:
    """A shared service of team-a on team-a/acme; a spec changes its fields."""
    return stored(samples.changed(samples.SHARED_SERVICE, {"spec": spec or {}}), name, version, **meta)


def account(name: str = "acme", version: int = 1, **meta: Any) -> JSONObject:
    """An account of team-a."""
    return stored(samples.ACCOUNT, name, version, **meta)


def model(name: str = "qwen3-8b", version: int = 1, **meta: Any) -> JSONObject:
    """A model with a Deployment."""
    return stored(samples.MODEL, name, version, **meta)


def topup(name: str = "july", version: int = 1, account: str = "acme", **meta: Any) -> JSONObject:
    """A TopUp of team-a."""
    spec = {"spec": {"billingAccountRef": {"name": account}}}
    return stored(samples.changed(samples.TOPUP, spec), name, version, **meta)


def apikey(name: str = "app", version: int = 1, **meta: Any) -> JSONObject:
    """An APIKey of team-a."""
    return stored(samples.APIKEY, name, version, **meta)


def namespace(name: str = TEAM, version: int = 1, **labels: str) -> JSONObject:
    """A Namespace."""
    return {
        "metadata": {"name": name, "uid": f"uid-of-{name}", "resourceVersion": str(version), "labels": labels}
    }


def dedicated(
    owner: str = "chat", version: int = 1, replicas: int = 1, ready: int = 1, **meta: Any
) -> JSONObject:
    """The Deployment of a dedicated service of team-a."""
    key = ObjectKey(TEAM, owner)
    owner_is = {SERVICE_NAMESPACE_LABEL: TEAM, SERVICE_NAME_LABEL: owner}
    return _deployment(dedicated_backend_name(key), version, replicas, ready, owner_is, **meta)


def shared(name: str, of: str, version: int = 1, replicas: int = 1, ready: int = 1) -> JSONObject:
    """The shared Deployment of a model."""
    return _deployment(name, version, replicas, ready, {MODEL_LABEL: of})


def _deployment(
    name: str, version: int, replicas: int, ready: int, annotations: dict[str, str], **meta: Any
) -> JSONObject:
    return {
        "metadata": {
            "namespace": BACKENDS,
            "name": name,
            "uid": f"uid-of-{name}",
            "resourceVersion": str(version),
            "generation": 1,
            "annotations": annotations,
        }
        | meta,
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {BACKEND_LABEL: name}},
            "template": {"metadata": {}, "spec": {}},
        },
        "status": {
            "replicas": replicas,
            "readyReplicas": ready,
            "updatedReplicas": replicas,
            "observedGeneration": 1,
        },
    }


def endpoint(name: str, version: int, annotations: dict[str, str]) -> JSONObject:
    """The Service in front of a backend."""
    return {
        "metadata": {
            "namespace": BACKENDS,
            "name": name,
            "uid": f"uid-of-{name}",
            "resourceVersion": str(version),
            "annotations": annotations,
        },
        "spec": {"selector": {BACKEND_LABEL: name}},
    }
