"""API paths, labels, and the names of the objects that Farebox creates.

Names of InferenceServices and Models may have dots and 253 characters; names of Services and label values may
not. `dns_label` and `label_value` derive valid ones, and return valid input unchanged.
"""

import hashlib
import re
from functools import lru_cache
from typing import Any, Final

from farebox.api import GROUP, KINDS, VERSION
from farebox.domain.keys import ObjectKey

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGER: Final = "farebox"
MODEL_LABEL: Final = f"{GROUP}/model"
BACKEND_LABEL: Final = f"{GROUP}/backend"
SERVICE_NAMESPACE_LABEL: Final = f"{GROUP}/service-namespace"
SERVICE_NAME_LABEL: Final = f"{GROUP}/service-name"
SERVICE_UID_LABEL: Final = f"{GROUP}/service-uid"
BOOKMARK_ANNOTATION: Final = f"{GROUP}/note"
DEFAULT_FOR_LABEL: Final = f"{GROUP}/default-for"

_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_HASH = 8


def key_of(raw: dict[str, Any]) -> ObjectKey:
    """Return the key of an object as the API server sends it."""
    metadata = raw["metadata"]
    return ObjectKey(metadata.get("namespace", ""), metadata["name"])


def dns_label(text: str) -> str:
    """Return a valid RFC 1035 label: `text` if it is one, otherwise its readable part and a hash."""
    if _DNS_LABEL.fullmatch(text):
        return text
    return _shortened(re.sub(r"[^a-z0-9-]+", "-", text.lower()), text)


def label_value(text: str) -> str:
    """Return a valid label value, derived in the same way."""
    if _LABEL_VALUE.fullmatch(text):
        return text
    return _shortened(re.sub(r"[^A-Za-z0-9_.-]+", "-", text), text)


def _shortened(readable: str, text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()[:_HASH]
    stem = readable.strip("-_.")[: 63 - _HASH - 1].strip("-_.")
    if not stem or not stem[0].isalpha():
        stem = f"x{stem}"[: 63 - _HASH - 1]
    return f"{stem}-{digest}"


def shared_backend_name(model: str) -> str:
    """Return the name of the Deployment and Service that all shared services on a model use."""
    return dns_label(f"m-{model}")


@lru_cache(maxsize=16384)
def dedicated_backend_name(service: ObjectKey) -> str:
    """Return the name of the Deployment and Service of one dedicated service.

    The hash of "namespace/name" is always part of it: "a/b-c" and "a-b/c" must not get the same name.
    """
    return _shortened(re.sub(r"[^a-z0-9-]+", "-", f"s-{service.namespace}-{service.name}"), str(service))


def resource_path(kind: str, namespace: str = "", name: str = "", subresource: str = "") -> str:
    """Return the API path of an object of one of Farebox's kinds, or of the collection."""
    return _path(f"/apis/{GROUP}/{VERSION}", KINDS[kind].plural, namespace, name, subresource)


def deployment_path(namespace: str, name: str = "", subresource: str = "") -> str:
    """Return the API path of a Deployment, or of the collection."""
    return _path("/apis/apps/v1", "deployments", namespace, name, subresource)


def core_path(plural: str, namespace: str = "", name: str = "") -> str:
    """Return the API path of a core kind (services, namespaces)."""
    return _path("/api/v1", plural, namespace, name, "")


def event_path(namespace: str) -> str:
    """Return the API path of the Events of a namespace."""
    return _path("/apis/events.k8s.io/v1", "events", namespace, "", "")


def lease_path(namespace: str, name: str = "") -> str:
    """Return the API path of a Lease, or of the collection."""
    return _path("/apis/coordination.k8s.io/v1", "leases", namespace, name, "")


def _path(prefix: str, plural: str, namespace: str, name: str, subresource: str) -> str:
    parts = [prefix]
    if namespace:
        parts.append(f"namespaces/{namespace}")
    parts += [part for part in (plural, name, subresource) if part]
    return "/".join(parts)
