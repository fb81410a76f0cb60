"""All that the gateway knows now: keys, services, models and accounts from the cluster, money from the spend.

It is the `Snapshot` of admission. Informers put objects in; what cannot be read is left out and logged, and
counts as absent. No I/O.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import structlog

from farebox.api import APIKey, BillingAccount, Enforcement, InferenceService, Model
from farebox.domain.admission.types import AvailableFunds, FreeTokens, KeyPolicy, ModelPolicy, ServicePolicy
from farebox.domain.facts import Unknown
from farebox.domain.keys import ObjectKey
from farebox.gateway.convert import ModelUpstream, key_policy, model_policy, model_upstream, service_policy
from farebox.gateway.spend.tracker import SpendTracker
from farebox.kube.names import key_of

log = structlog.get_logger(__name__)
JSONObject = dict[str, Any]
T = TypeVar("T")
_Model = tuple[ModelPolicy, ModelUpstream]


class Store(Generic[T]):
    """The objects of one kind, as what they mean here. A sink of an informer."""

    def __init__(
        self, read: Callable[[JSONObject], T], on_change: Callable[[T | None, T | None], None]
    ) -> None:
        self._read = read
        self._on_change = on_change
        self._objects: dict[ObjectKey, T] = {}

    def get(self, key: ObjectKey) -> T | None:
        """The object, if it is there and can be read."""
        return self._objects.get(key)

    def put(self, raw: JSONObject) -> None:
        """See Sink."""
        key = key_of(raw)
        try:
            value = self._read(raw)
        except ValueError as error:
            # pydantic's and our own; the schema refuses such objects, and one must not stop the others.
            log.error("object.unreadable", kind=raw.get("kind"), object=str(key), error=str(error))
            self.remove(key)
            return
        self._on_change(self._objects.get(key), value)
        self._objects[key] = value

    def remove(self, key: ObjectKey) -> None:
        """See Sink."""
        old = self._objects.pop(key, None)
        if old is not None:
            self._on_change(old, None)


class GatewaySnapshot:
    """The snapshot of admission."""

    def __init__(self, spend: SpendTracker) -> None:
        self._spend = spend
        self._by_hash: dict[str, dict[ObjectKey, KeyPolicy]] = defaultdict(dict)
        self._usable: dict[str, KeyPolicy] = {}
        self._in_namespace: dict[str, dict[str, ServicePolicy]] = defaultdict(dict)
        self._models: dict[str, _Model] = {}
        self.keys = Store(_read_key, self._index_key)
        self.services = Store(_read_service, self._index_service)
        self.models = Store(_read_model, self._index_model)
        self.accounts = Store(_read_account, _no_index)

    def key(self, key_hash: str) -> KeyPolicy | None:
        """The key with this hash. Two objects with one hash are no key at all: neither owner may pay."""
        return self._usable.get(key_hash)

    def service(self, namespace: str, name: str) -> ServicePolicy | None:
        """See Snapshot."""
        found = self._in_namespace.get(namespace)
        return None if found is None else found.get(name)

    def model(self, name: str) -> ModelPolicy | None:
        """See Snapshot."""
        found = self._models.get(name)
        return None if found is None else found[0]

    def route(self, model: str) -> ModelUpstream | None:
        """Where a model is served."""
        found = self._models.get(model)
        return None if found is None else found[1]

    def funds(self, account: ObjectKey) -> AvailableFunds:
        """See Snapshot. An account that is not there is Soft; the operator says that it is not there."""
        return AvailableFunds(
            self._spend.available(account), self.accounts.get(account) or False, self._spend.fresh
        )

    def free_tokens(self, account: ObjectKey, model: str) -> FreeTokens | Unknown:
        """See Snapshot."""
        return self._spend.free_tokens(account, model)

    def services_in(self, namespace: str) -> Iterator[ServicePolicy]:
        """All services of a namespace, by name."""
        yield from (service for _, service in sorted(self._in_namespace.get(namespace, {}).items()))

    def keys_with_quota(self) -> Iterator[KeyPolicy]:
        """All keys that have a quota."""
        for keys in list(self._by_hash.values()):
            yield from (key for key in list(keys.values()) if key.quota is not None)

    def _index_key(self, old: tuple[str, KeyPolicy] | None, new: tuple[str, KeyPolicy] | None) -> None:
        if old is not None:
            key_hash, terms = old
            self._by_hash[key_hash].pop(terms.key, None)
            self._use(key_hash)
        if new is not None and new[0]:
            key_hash, terms = new
            self._by_hash[key_hash][terms.key] = terms
            self._use(key_hash)

    def _use(self, key_hash: str) -> None:
        """The key with this hash, if there is one and no other, is that which can be used."""
        found = list(self._by_hash[key_hash].values())
        if len(found) == 1:
            self._usable[key_hash] = found[0]
        else:
            self._usable.pop(key_hash, None)
        if not found:
            del self._by_hash[key_hash]

    def _index_service(self, old: ServicePolicy | None, new: ServicePolicy | None) -> None:
        if new is not None:
            self._in_namespace[new.key.namespace][new.key.name] = new
        elif old is not None:
            services = self._in_namespace[old.key.namespace]
            services.pop(old.key.name, None)
            if not services:
                del self._in_namespace[old.key.namespace]

    def _index_model(self, old: _Model | None, new: _Model | None) -> None:
        if new is not None:
            self._models[new[0].name] = new
        elif old is not None:
            self._models.pop(old[0].name, None)


def _read_key(raw: JSONObject) -> tuple[str, KeyPolicy]:
    """A key with its hash; "" for one that has none yet, which nobody can send."""
    key = APIKey.model_validate(raw)
    return key.status.key_hash or "", key_policy(key)


def _read_service(raw: JSONObject) -> ServicePolicy:
    return service_policy(InferenceService.model_validate(raw))


def _read_model(raw: JSONObject) -> _Model:
    model = Model.model_validate(raw)
    return model_policy(model), model_upstream(model)


def _read_account(raw: JSONObject) -> bool:
    """Whether it is Hard."""
    return BillingAccount.model_validate(raw).spec.enforcement is Enforcement.HARD


def _no_index(old: object, new: object) -> None:
    """Accounts are looked up by their key alone."""
