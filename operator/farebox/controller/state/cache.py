"""What the operator knows of the cluster: every object of the watched kinds, with the indexes it needs.

Watches, first lists, sweeps and the operator's own writes all put objects here; the newest resourceVersion
wins, so a slow watch never undoes what a write's answer has said already. No I/O.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

import structlog
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from farebox.api import APIKey, APIObject, BillingAccount, InferenceService, Model, TopUp
from farebox.controller.queue import Kind
from farebox.controller.state.compact import compact
from farebox.domain.facts import BackendFacts
from farebox.domain.keys import ObjectKey
from farebox.kube.names import (
    BACKEND_LABEL,
    SERVICE_NAME_LABEL,
    SERVICE_NAMESPACE_LABEL,
    dedicated_backend_name,
    key_of,
)

log = structlog.get_logger(__name__)
JSONObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Backend:
    """A Deployment of Farebox's, as far as it matters.

    `template` is as the server has it; equal pod specs are one object, which nobody may change.
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
        """Whether nothing that matters differs: only the times of its conditions moved, or the like."""
        return (
            self.facts == other.facts
            and self.labels == other.labels
            and self.annotations == other.annotations
            and self.template == other.template
            and self.uid == other.uid
        )

    def scaled(self, replicas: int, version: str) -> "Backend":
        """As it is right after a scale write, before its controller has looked at it."""
        return replace(self, version=version, facts=replace(self.facts, desired=replicas, current=False))


@dataclass(frozen=True, slots=True)
class BackendService:
    """The Service in front of a backend, as far as it matters."""

    name: str
    uid: str
    annotations: dict[str, str]
    service: ObjectKey | None
    """The dedicated service it belongs to; None for a model's shared backend."""
    port: int
    """The port by which it leads to the same one of its backend's pods; 0: it leads elsewhere."""


def service_behind(name: str, annotations: dict[str, str]) -> ObjectKey | None:
    """The dedicated service that a backend of this name belongs to.

    The annotations must agree with the name, or an edit of them would make it somebody else's, to be
    deleted.
    """
    service = ObjectKey(annotations.get(SERVICE_NAMESPACE_LABEL, ""), annotations.get(SERVICE_NAME_LABEL, ""))
    return service if dedicated_backend_name(service) == name else None


@dataclass(frozen=True, slots=True)
class Labels:
    """An object of which only the labels and the identity matter: a Namespace."""

    uid: str
    labels: dict[str, str]


T = TypeVar("T")
ObjectT = TypeVar("ObjectT", bound=APIObject)


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """An object before and after: None where it did not or does not exist."""

    kind: Kind
    key: ObjectKey
    old: T | None
    new: T | None


class Store(Generic[T]):
    """The objects of one kind.

    `on_change` is called with every change, before `put` or `remove` returns it.
    """

    def __init__(
        self,
        kind: Kind,
        parse: Callable[[JSONObject], T],
        on_change: Callable[[Change[T]], None] | None = None,
    ) -> None:
        self.kind = kind
        self._parse = parse
        self._on_change = on_change
        self._objects: dict[ObjectKey, tuple[int, T]] = {}
        self._gone: dict[ObjectKey, int] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._objects

    def __iter__(self) -> Iterator[ObjectKey]:
        return iter(self._objects)

    def get(self, key: ObjectKey) -> T | None:
        """The object, if it exists."""
        entry = self._objects.get(key)
        return None if entry is None else entry[1]

    def items(self) -> Iterator[tuple[ObjectKey, T]]:
        """All objects with their keys; not to be held while objects are put."""
        for key, (_, value) in self._objects.items():
            yield key, value

    def values(self) -> Iterator[T]:
        """All objects; not to be held while objects are put."""
        for _, value in self._objects.values():
            yield value

    def version(self, key: ObjectKey) -> int:
        """The resourceVersion that is known; 0 for none."""
        entry = self._objects.get(key)
        return 0 if entry is None else entry[0]

    def put(self, raw: JSONObject) -> Change[T] | None:
        """Take in an object unless a newer version, or its deletion, is known. None: nothing is new."""
        key, version = key_of(raw), int(raw["metadata"]["resourceVersion"])
        known = self._objects.get(key)
        if version <= (known[0] if known else self._gone.get(key, 0)):
            return None
        try:
            value = self._parse(raw)
        except ValidationError as error:
            # The schema refuses such objects; one that is there all the same must not hold up the others.
            log.error("object.unreadable", kind=self.kind, object=str(key), error=str(error))
            return None
        self._objects[key] = (version, value)
        self._gone.pop(key, None)
        return self._changed(key, known[1] if known else None, value)

    def assume(self, key: ObjectKey, value: T, version: int) -> Change[T] | None:
        """Take in what a write's answer implies, before the watch tells it."""
        known = self._objects.get(key)
        if known is None or version <= known[0]:
            return None
        self._objects[key] = (version, value)
        return self._changed(key, known[1], value)

    def remove(self, key: ObjectKey, version: int) -> Change[T] | None:
        """Take note of a deletion at `version`, unless the object was made again since."""
        known = self._objects.get(key)
        if known is not None and known[0] > version:
            return None
        self._gone[key] = version
        if known is None:
            return None
        del self._objects[key]
        return self._changed(key, known[1], None)

    def forget_deletions(self, before: int) -> None:
        """Drop notes of deletions older than a complete list: nothing older can arrive any more."""
        self._gone = {key: version for key, version in self._gone.items() if version >= before}

    def _changed(self, key: ObjectKey, old: T | None, new: T | None) -> Change[T]:
        change = Change(self.kind, key, old, new)
        if self._on_change is not None:
            self._on_change(change)
        return change


class Cache:
    """All stores, and the indexes from accounts and models to what refers to them."""

    def __init__(self) -> None:
        self.services = Store(Kind.SERVICE, _reader(InferenceService), self._index_service)
        self.models = Store(Kind.MODEL, _reader(Model))
        self.accounts = Store(Kind.ACCOUNT, _reader(BillingAccount), self._index_account)
        self.topups = Store(Kind.TOPUP, _reader(TopUp), self._index_topup)
        self.apikeys = Store(Kind.APIKEY, _reader(APIKey))
        self.namespaces = Store(Kind.NAMESPACE, parse_labels)
        self.backends = Store(Kind.DEPLOYMENT, parse_backend, self._index_backend)
        self.endpoints = Store(Kind.ENDPOINT, parse_endpoint, self._index_endpoint)
        self.services_of_account = Index()
        self.services_of_model = Index()
        self.services_in_namespace = Index()
        self.defaults_of_account = Index()
        self.accounts_in_namespace = Index()
        self.topups_of_account = Index()
        self.backends_of_service = Index()
        self.endpoints_of_service = Index()

    def store(self, kind: Kind) -> "Store[Any]":
        """The store of a kind."""
        stores: dict[Kind, Store[Any]] = {
            Kind.SERVICE: self.services,
            Kind.MODEL: self.models,
            Kind.ACCOUNT: self.accounts,
            Kind.TOPUP: self.topups,
            Kind.APIKEY: self.apikeys,
            Kind.NAMESPACE: self.namespaces,
            Kind.DEPLOYMENT: self.backends,
            Kind.ENDPOINT: self.endpoints,
        }
        return stores[kind]

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

    def _index_backend(self, change: Change[Backend]) -> None:
        for backend, update in ((change.old, Index.discard), (change.new, Index.add)):
            if backend is not None and backend.service is not None:
                update(self.backends_of_service, backend.service, change.key)

    def _index_endpoint(self, change: Change[BackendService]) -> None:
        for endpoint, update in ((change.old, Index.discard), (change.new, Index.add)):
            if endpoint is not None and endpoint.service is not None:
                update(self.endpoints_of_service, endpoint.service, change.key)


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
        """The keys of an owner, as they are now."""
        return frozenset(self._keys.get(owner, ()))

    def count(self, owner: ObjectKey) -> int:
        """How many keys an owner has."""
        return len(self._keys.get(owner, ()))


def _reader(model: type[ObjectT]) -> Callable[[JSONObject], ObjectT]:
    return lambda raw: compact(model.model_validate(raw))


def account_of(service: InferenceService) -> ObjectKey:
    """The account that pays for a service; its namespace defaults to the service's own."""
    ref = service.spec.billing_account_ref
    return ObjectKey(ref.namespace or service.metadata.namespace or "", ref.name)


def model_of(service: InferenceService) -> ObjectKey:
    """The model of a service, as the key of a cluster-scoped object."""
    return ObjectKey("", service.spec.model_ref.name)


def parse_endpoint(raw: JSONObject) -> BackendService:
    """A Service as the endpoint of a backend."""
    metadata = raw["metadata"]
    name, annotations = metadata["name"], metadata.get("annotations") or {}
    return BackendService(
        name, metadata["uid"], annotations, service_behind(name, annotations), _port_of(name, raw["spec"])
    )


def _port_of(name: str, spec: JSONObject) -> int:
    """See Endpoint.port."""
    ports: list[JSONObject] = spec.get("ports") or []
    if spec.get("selector") != {BACKEND_LABEL: name} or len(ports) != 1:
        return 0
    port: int = ports[0]["port"]
    return port if ports[0].get("targetPort") == port and ports[0].get("protocol") == "TCP" else 0


def parse_labels(raw: JSONObject) -> Labels:
    """An object by its labels."""
    return Labels(raw["metadata"]["uid"], raw["metadata"].get("labels") or {})


_FAILURES: Final = (("Progressing", "False"), ("ReplicaFailure", "True"))
"""Conditions of a Deployment that is stuck: too late, or its pods are refused (quota, Pod Security)."""


@lru_cache(maxsize=1024)
def _shared_spec(text: bytes) -> JSONObject:
    """A pod spec: thousands of backends of one model have the same, and the cache holds it once."""
    spec: JSONObject = from_json(text)
    return spec


def parse_backend(raw: JSONObject) -> Backend:
    """A Deployment as a backend."""
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
    """Whether a Deployment or Service in the backends' namespace is Farebox's own.

    By its selector, which nobody can edit away from a Deployment: one that lost its labels is still ours to
    put right. A Service whose selector was edited is known by its labels.
    """
    selector = raw["spec"].get("selector") or {}
    if "matchLabels" in selector or "matchExpressions" in selector:
        return BACKEND_LABEL in (selector.get("matchLabels") or ())
    return BACKEND_LABEL in selector or BACKEND_LABEL in (raw["metadata"].get("labels") or ())
