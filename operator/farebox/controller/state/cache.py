"""The operator's cache of the cluster: every object of the watched kinds, and indexes over them. No I/O.

Lists, watches, resyncs and the answers to the operator's own writes all put objects here.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Final, TypeVar

from pydantic_core import from_json, to_json

from farebox.api import APIKey, APIObject, APIPart, BillingAccount, InferenceService, Model, TopUp
from farebox.controller.queue import Kind
from farebox.domain.facts import BackendFacts
from farebox.domain.keys import ObjectKey
from farebox.kube.names import (
    BACKEND_LABEL,
    SERVICE_NAME_LABEL,
    SERVICE_NAMESPACE_LABEL,
    dedicated_backend_name,
)
from farebox.kube.store import Change, Store

JSONObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Backend:
    """What the operator uses of a backend's Deployment.

    `template` is as the server has it; equal pod specs are one shared object, and must not be changed.
    """

    name: str
    uid: str
    version: str
    labels: dict[str, str]
    annotations: dict[str, str]
    template: JSONObject
    facts: BackendFacts
    service: ObjectKey | None
    """The dedicated service it belongs to; None for a model's shared backend."""

    def same(self, other: "Backend") -> bool:
        """Return whether all that the operator uses is equal."""
        return (
            self.facts == other.facts
            and self.labels == other.labels
            and self.annotations == other.annotations
            and self.template == other.template
            and self.uid == other.uid
        )

    def scaled(self, replicas: int, version: str) -> "Backend":
        """Return the backend right after a scale write, before the Deployment controller has acted."""
        return replace(self, version=version, facts=replace(self.facts, desired=replicas, current=False))


@dataclass(frozen=True, slots=True)
class BackendService:
    """What the operator uses of the Service in front of a backend."""

    name: str
    uid: str
    annotations: dict[str, str]
    service: ObjectKey | None
    """The dedicated service it belongs to; None for a model's shared backend."""
    port: int
    """The port that leads to the same port of the backend's pods; 0: the Service leads elsewhere."""


def service_behind(name: str, annotations: dict[str, str]) -> ObjectKey | None:
    """Return the dedicated service that a backend of this name belongs to.

    The annotations must agree with the name: otherwise an edit of them could let Farebox delete the backend
    of another service.
    """
    service = ObjectKey(annotations.get(SERVICE_NAMESPACE_LABEL, ""), annotations.get(SERVICE_NAME_LABEL, ""))
    return service if dedicated_backend_name(service) == name else None


@dataclass(frozen=True, slots=True)
class Labels:
    """What the operator uses of a Namespace: its identity and its labels."""

    uid: str
    labels: dict[str, str]


ObjectT = TypeVar("ObjectT", bound=APIObject)


class Cache:
    """The stores of all kinds, and indexes from accounts, models and services to what refers to them."""

    def __init__(self) -> None:
        self.services_of_account = Index()
        self.services_of_model = Index()
        self.services_in_namespace = Index()
        self.defaults_of_account = Index()
        self.accounts_in_namespace = Index()
        self.topups_of_account = Index()
        self.backends_of_service = Index()
        self.endpoints_of_service = Index()
        self.services = Store(Kind.SERVICE, _reader(InferenceService), self._index_service)
        self.models = Store(Kind.MODEL, _reader(Model))
        self.accounts = Store(Kind.ACCOUNT, _reader(BillingAccount), self._index_account)
        self.topups = Store(Kind.TOPUP, _reader(TopUp), self._index_topup)
        self.apikeys = Store(Kind.APIKEY, _reader(APIKey))
        self.namespaces = Store(Kind.NAMESPACE, parse_labels)
        self.backends = Store(Kind.DEPLOYMENT, parse_backend, partial(_index_part, self.backends_of_service))
        self.endpoints = Store(Kind.ENDPOINT, parse_endpoint, partial(_index_part, self.endpoints_of_service))
        stores = (
            *(self.services, self.models, self.accounts, self.topups),
            *(self.apikeys, self.namespaces, self.backends, self.endpoints),
        )
        self._stores: dict[str, Store[Any]] = {store.kind: store for store in stores}

    def store(self, kind: Kind) -> "Store[Any]":
        """Return the store of a kind."""
        return self._stores[kind]

    def _index_service(self, change: Change[InferenceService]) -> None:
        for service, update in ((change.old, Index.discard), (change.new, Index.add)):
            if service is not None:
                update(self.services_of_account, account_of(service), change.key)
                update(self.services_of_model, model_of(service), change.key)
                update(self.services_in_namespace, ObjectKey("", change.key.namespace), change.key)
                if service.is_default:
                    update(self.defaults_of_account, account_of(service), change.key)

    def _index_account(self, change: Change[BillingAccount]) -> None:
        update = Index.discard if change.new is None else Index.add
        update(self.accounts_in_namespace, ObjectKey("", change.key.namespace), change.key)

    def _index_topup(self, change: Change[TopUp]) -> None:
        for topup, update in ((change.old, Index.discard), (change.new, Index.add)):
            if topup is not None:
                account = ObjectKey(change.key.namespace, topup.spec.billing_account_ref.name)
                update(self.topups_of_account, account, change.key)


class Index:
    """A set of keys for each key."""

    def __init__(self) -> None:
        self._keys: defaultdict[ObjectKey, set[ObjectKey]] = defaultdict(set)

    def add(self, owner: ObjectKey, key: ObjectKey) -> None:
        """Put a key into its owner's set."""
        self._keys[owner].add(key)

    def discard(self, owner: ObjectKey, key: ObjectKey) -> None:
        """Take a key out of its owner's set."""
        keys = self._keys[owner]
        keys.discard(key)
        if not keys:
            del self._keys[owner]

    def of(self, owner: ObjectKey) -> frozenset[ObjectKey]:
        """Return a copy of the keys of an owner."""
        return frozenset(self._keys.get(owner, ()))

    def count(self, owner: ObjectKey) -> int:
        """Return the number of keys of an owner."""
        return len(self._keys.get(owner, ()))


def _index_part(index: Index, change: Change[Backend] | Change[BackendService]) -> None:
    """Index a part of a backend by the dedicated service that it belongs to, if any."""
    for part, update in ((change.old, Index.discard), (change.new, Index.add)):
        if part is not None and part.service is not None:
            update(index, part.service, change.key)


def _reader(model: type[ObjectT]) -> Callable[[JSONObject], ObjectT]:
    def read(raw: JSONObject) -> ObjectT:
        value = model.model_validate(raw)
        _share_field_sets(value)
        return value

    return read


_FIELD_SETS: Final[dict[frozenset[str], set[str]]] = {}


def _share_field_sets(value: Any) -> None:
    """Let equal parts of cached objects share the set of fields that were given.

    Pydantic keeps such a set in each part of an object: more than half of the 12 KB of a service. With shared
    sets a service takes 5 KB. Parts are frozen, so nothing adds to a set.
    """
    if isinstance(value, APIPart):
        given = frozenset(value.model_fields_set)
        object.__setattr__(value, "__pydantic_fields_set__", _FIELD_SETS.setdefault(given, set(given)))
        for field in value.__dict__.values():
            _share_field_sets(field)
    elif isinstance(value, tuple):
        for item in value:
            _share_field_sets(item)


def account_of(service: InferenceService) -> ObjectKey:
    """Return the account that pays for a service; its namespace defaults to the service's own."""
    ref = service.spec.billing_account_ref
    return ObjectKey(ref.namespace or service.metadata.namespace or "", ref.name)


def model_of(service: InferenceService) -> ObjectKey:
    """Return the model of a service, as the key of a cluster-scoped object."""
    return ObjectKey("", service.spec.model_ref.name)


def parse_endpoint(raw: JSONObject) -> BackendService:
    """Parse a Service."""
    metadata = raw["metadata"]
    name, annotations = metadata["name"], metadata.get("annotations") or {}
    return BackendService(
        name, metadata["uid"], annotations, service_behind(name, annotations), _port_of(name, raw["spec"])
    )


def _port_of(name: str, spec: JSONObject) -> int:
    """See BackendService.port."""
    ports: list[JSONObject] = spec.get("ports") or []
    if spec.get("selector") != {BACKEND_LABEL: name} or len(ports) != 1:
        return 0
    port: int = ports[0]["port"]
    return port if ports[0].get("targetPort") == port and ports[0].get("protocol") == "TCP" else 0


def parse_labels(raw: JSONObject) -> Labels:
    """Parse a Namespace."""
    return Labels(raw["metadata"]["uid"], raw["metadata"].get("labels") or {})


_FAILURES: Final = (("Progressing", "False"), ("ReplicaFailure", "True"))
"""Conditions of a failing Deployment: its deadline passed, or its pods are refused (quota, Pod Security)."""


@lru_cache(maxsize=1024)
def _shared_spec(text: bytes) -> JSONObject:
    """Return a pod spec; equal ones, as thousands of backends of one model have, are one object."""
    spec: JSONObject = from_json(text)
    return spec


def parse_backend(raw: JSONObject) -> Backend:
    """Parse a Deployment."""
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    failure = next(
        (
            condition.get("message", "")
            for condition in status.get("conditions") or ()
            if (condition["type"], condition["status"]) in _FAILURES
        ),
        "",
    )
    name, annotations, template = metadata["name"], metadata.get("annotations") or {}, spec["template"]
    return Backend(
        name=name,
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        labels=metadata.get("labels") or {},
        annotations=annotations,
        template=template | {"spec": _shared_spec(to_json(template["spec"]))},
        service=service_behind(name, annotations),
        facts=BackendFacts(
            desired=spec.get("replicas", 1),
            replicas=status.get("replicas", 0),
            ready=status.get("readyReplicas", 0),
            updated=status.get("updatedReplicas", 0),
            current=status.get("observedGeneration", 0) >= metadata["generation"],
            failure=failure,
        ),
    )


def is_farebox_backend(raw: JSONObject) -> bool:
    """Return whether Farebox created a Deployment or Service in the backends' namespace.

    A Deployment is recognized by its immutable selector: one that lost its labels is repaired. A Service
    whose selector was edited is recognized by its labels.
    """
    selector = raw["spec"].get("selector") or {}
    if "matchLabels" in selector or "matchExpressions" in selector:
        return BACKEND_LABEL in (selector.get("matchLabels") or ())
    return BACKEND_LABEL in selector or BACKEND_LABEL in (raw["metadata"].get("labels") or ())
