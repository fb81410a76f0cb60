"""Paths, keys, labels and derived names: where objects live and what Farebox's own are called.

Names of services and models may have dots and 253 characters; those of Services and label values may not.
Every derived name goes through `dns_label` or `label_value`, which are the identity where they can be.
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
    """The key of an object as the API server has it."""
    metadata = raw["metadata"]
    return ObjectKey(metadata.get("namespace", ""), metadata["name"])


def dns_label(text: str) -> str:
    """A valid RFC 1035 label that is `text` where it can be, and its readable part and a hash where not."""
    if _DNS_LABEL.fullmatch(text):
        return text
    return _shortened(re.sub(r"[^a-z0-9-]+", "-", text.lower()), text)


def label_value(text: str) -> str:
    """A valid label value, made in the same way."""
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
    """The Deployment and Service that all shared services on a model use."""
    return dns_label(f"m-{model}")


@lru_cache(maxsize=16384)
def dedicated_backend_name(service: ObjectKey) -> str:
    """The Deployment and Service of one dedicated service.

    The parts are joined by a sign that no name has and always hashed, or "a/b-c" and "a-b/c" would meet.
    """
    return _shortened(re.sub(r"[^a-z0-9-]+", "-", f"s-{service.namespace}-{service.name}"), str(service))


def resource_path(kind: str, namespace: str = "", name: str = "", subresource: str = "") -> str:
    """The API path of an object of one of Farebox's kinds, or of the collection."""
    return _path(f"/apis/{GROUP}/{VERSION}", KINDS[kind].plural, namespace, name, subresource)


def deployment_path(namespace: str, name: str = "", subresource: str = "") -> str:
    """The API path of a Deployment, or of the collection."""
    return _path("/apis/apps/v1", "deployments", namespace, name, subresource)


def core_path(plural: str, namespace: str = "", name: str = "") -> str:
    """The API path of a core kind (services, namespaces)."""
    return _path("/api/v1", plural, namespace, name, "")


def event_path(namespace: str) -> str:
    """The API path of the Events of a namespace."""
    return _path("/apis/events.k8s.io/v1", "events", namespace, "", "")


def lease_path(namespace: str, name: str = "") -> str:
    """The API path of a Lease, or of the collection."""
    return _path("/apis/coordination.k8s.io/v1", "leases", namespace, name, "")


def _path(prefix: str, plural: str, namespace: str, name: str, subresource: str) -> str:
    parts = [prefix]
    if namespace:
        parts.append(f"namespaces/{namespace}")
    parts += [part for part in (plural, name, subresource) if part]
    return "/".join(parts)
