"""Builds what the operator makes: Deployments and their Services, and Secrets of keys.

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

# A big model can take long to load; the deployment controller must not call that a failure.
_PROGRESS_DEADLINE_SECONDS: Final = 1800
_DEFAULT_GRACE_SECONDS: Final = 30


def shared_backend(namespace: str, model: Model, serving: DeploymentServing, replicas: int) -> JSONObject:
    """The Deployment that all shared services on a model use."""
    name = shared_backend_name(model.metadata.name)
    labels = _labels(name, model.metadata.name)
    annotations = {MODEL_LABEL: model.metadata.name}
    return _deployment(namespace, name, labels, annotations, serving, replicas)


def dedicated_backend(
    namespace: str, service: InferenceService, serving: DeploymentServing, replicas: int
) -> JSONObject:
    """The Deployment of one service, after the pattern of its model.

    Owner references cannot cross namespaces: labels say whose it is (the sweep reads them), annotations
    carry the names in full, which labels cannot.
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
    """The Service in front of a backend; same name, same labels."""
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
    """Where a backend takes calls inside the cluster."""
    return f"http://{name}.{namespace}.svc:{serving.port}"


def selector(name: str) -> dict[str, str]:
    """The labels by which a backend finds its pods. They never change: a Deployment's selector cannot."""
    return {BACKEND_LABEL: name}


def selector_text(name: str) -> str:
    """The same as text, for the scale subresource."""
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
    """The model's pod template with Farebox's labels, and a drain where it has none of its own.

    Running calls outlive a stop because the pods do: `preStop: sleep` holds them for drainSeconds
    (product.md, Decisions). Environment variables for each of thousands of Services would break the pods'
    start, and a model server has no business with the API server: both are off unless the template says so.

    A null is as absent. What is of the wrong type is left as it is: the API server says so best (B23).
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


def _within(there: JSONObject, key: str) -> JSONObject:
    """The mapping under a key, made where there is none; one that leads nowhere where that is no mapping."""
    _default(there, key, {})
    found = there[key]
    return found if isinstance(found, dict) else {}


def _default(there: JSONObject, key: str, value: Any) -> None:
    if there.get(key) is None:
        there[key] = value


def api_key_secret(apikey: APIKey, token: str) -> JSONObject:
    """The Secret of an APIKey. Kubernetes deletes it with its owner; nobody can put another key into it.

    `blockOwnerDeletion` is left out: where the API server checks it, it takes rights that nothing needs.
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
    """A text without the values of a Secret, in either form: a webhook may quote what it refuses."""
    for value in secret["data"].values():
        text = text.replace(value, "[secret]").replace(base64.b64decode(value).decode(), "[secret]")
    return text
