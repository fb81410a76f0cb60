"""Builds what the operator creates: Deployments and their Services, and Secrets of keys.

No client, no cache, no decisions.
"""

import base64
import copy
from typing import Any, Final

from farebox.api import (
    API_VERSION,
    SECRET_KEY,
    SECRET_TYPE,
    APIKey,
    DeploymentServing,
    InferenceService,
    Model,
    OwnerReference,
)
from farebox.domain.keys import ObjectKey
from farebox.kube.names import (
    BACKEND_LABEL,
    MANAGED_BY,
    MANAGER,
    MODEL_LABEL,
    SERVICE_NAME_LABEL,
    SERVICE_NAMESPACE_LABEL,
    SERVICE_UID_LABEL,
    dedicated_backend_name,
    label_value,
    shared_backend_name,
)

JSONObject = dict[str, Any]

# A big model takes long to load: the deployment controller must not report that as a failure.
_PROGRESS_DEADLINE_SECONDS: Final = 1800
_DEFAULT_GRACE_SECONDS: Final = 30


def shared_backend(namespace: str, model: Model, serving: DeploymentServing, replicas: int) -> JSONObject:
    """Build the Deployment that all shared services on a model use."""
    name = shared_backend_name(model.metadata.name)
    labels = _labels(name, model.metadata.name)
    annotations = {MODEL_LABEL: model.metadata.name}
    return _deployment(namespace, name, labels, annotations, serving, replicas)


def dedicated_backend(
    namespace: str, service: InferenceService, serving: DeploymentServing, replicas: int
) -> JSONObject:
    """Build the Deployment of one dedicated service, by the pattern of its model.

    Owner references cannot cross namespaces: labels identify the owner, and annotations carry its names in
    full, which labels cannot.
    """
    key = ObjectKey(service.metadata.namespace, service.metadata.name)
    name = dedicated_backend_name(key)
    labels = _labels(name, service.model_name) | {
        SERVICE_NAMESPACE_LABEL: label_value(key.namespace),
        SERVICE_NAME_LABEL: label_value(key.name),
        SERVICE_UID_LABEL: service.metadata.uid,
    }
    annotations = {
        MODEL_LABEL: service.model_name,
        SERVICE_NAMESPACE_LABEL: key.namespace,
        SERVICE_NAME_LABEL: key.name,
    }
    return _deployment(namespace, name, labels, annotations, serving, replicas)


def endpoint(deployment: JSONObject, serving: DeploymentServing) -> JSONObject:
    """Build the Service in front of a backend, with the same name and labels."""
    metadata = deployment["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": copy.deepcopy(metadata),
        "spec": {
            "selector": selector(metadata["name"]),
            "ports": [{"name": "http", "port": serving.port, "targetPort": serving.port, "protocol": "TCP"}],
        },
    }


def endpoint_url(namespace: str, name: str, serving: DeploymentServing) -> str:
    """Return the URL of a backend inside the cluster."""
    return f"http://{name}.{namespace}.svc:{serving.port}"


def selector(name: str) -> dict[str, str]:
    """Return the labels that select a backend's pods. They never change: a Deployment's selector cannot."""
    return {BACKEND_LABEL: name}


def selector_text(name: str) -> str:
    """Return the same selector as text, for the scale subresource."""
    return f"{BACKEND_LABEL}={name}"


def _labels(name: str, model: str) -> dict[str, str]:
    return {MANAGED_BY: MANAGER, BACKEND_LABEL: name, MODEL_LABEL: label_value(model)}


def _deployment(
    namespace: str,
    name: str,
    labels: dict[str, str],
    annotations: dict[str, str],
    serving: DeploymentServing,
    replicas: int,
) -> JSONObject:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations},
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": _PROGRESS_DEADLINE_SECONDS,
            "selector": {"matchLabels": selector(name)},
            "template": _template(_labels(name, annotations[MODEL_LABEL]), serving),
        },
    }


def _template(labels: dict[str, str], serving: DeploymentServing) -> JSONObject:
    """Build the model's pod template with Farebox's labels, and with a drain unless it has one.

    Running calls survive a stop because the pods do: `preStop: sleep` keeps them for drainSeconds. Two
    defaults differ from Kubernetes: environment variables for thousands of Services would break the start of
    pods, and a model server needs no access to the API server.

    A null counts as absent. A value of the wrong type stays: the API server's error names it (B23).
    """
    template = copy.deepcopy(serving.template)
    metadata = _within(template, "metadata")
    _within(metadata, "labels").update(labels)
    spec = template["spec"]
    _default(spec, "enableServiceLinks", False)
    _default(spec, "automountServiceAccountToken", False)
    if serving.drain_seconds > 0:
        _default(spec, "terminationGracePeriodSeconds", serving.drain_seconds + _DEFAULT_GRACE_SECONDS)
        for container in spec["containers"]:
            _default(
                _within(container, "lifecycle"), "preStop", {"sleep": {"seconds": serving.drain_seconds}}
            )
    return template


def _within(parent: JSONObject, key: str) -> JSONObject:
    """Return the mapping under a key, created if absent; a detached one if the value is no mapping."""
    _default(parent, key, {})
    found = parent[key]
    return found if isinstance(found, dict) else {}


def _default(parent: JSONObject, key: str, value: Any) -> None:
    if parent.get(key) is None:
        parent[key] = value


def api_key_secret(apikey: APIKey, token: str) -> JSONObject:
    """Build the Secret of an APIKey. It is immutable, and Kubernetes deletes it with its owner.

    `blockOwnerDeletion` is left out: some API servers require rights for it that nothing else needs.
    """
    owner = OwnerReference(
        api_version=API_VERSION,
        kind=apikey.KIND,
        name=apikey.name,
        uid=apikey.metadata.uid,
        controller=True,
    )
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": apikey.name,
            "namespace": apikey.namespace,
            "labels": {MANAGED_BY: MANAGER},
            "ownerReferences": [owner.to_json()],
        },
        "type": SECRET_TYPE,
        "immutable": True,
        "data": {SECRET_KEY: base64.b64encode(token.encode()).decode()},
    }


def redacted(text: str, secret: JSONObject) -> str:
    """Return a text without a Secret's values, encoded or not: a webhook may quote what it refuses."""
    for value in secret["data"].values():
        text = text.replace(value, "[secret]").replace(base64.b64decode(value).decode(), "[secret]")
    return text
