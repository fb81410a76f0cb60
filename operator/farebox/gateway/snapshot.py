"""The snapshot of admission: keys, services, models and accounts of the cluster, money of the spend tracker.

Reflectors put objects into its stores. No I/O.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, TypeVar

from farebox.api import APIKey, BillingAccount, Enforcement, InferenceService, Model
from farebox.domain.admission.types import AvailableFunds, FreeTokens, KeyPolicy, ModelPolicy, ServicePolicy
from farebox.domain.facts import Unknown
from farebox.domain.keys import ObjectKey
from farebox.gateway.convert import ModelUpstream, key_policy, model_policy, model_upstream, service_policy
from farebox.gateway.spend.tracker import SpendTracker
from farebox.kube.store import Change, Store

JSONObject = dict[str, Any]
T = TypeVar("T")
_Key = tuple[str, KeyPolicy]
_Model = tuple[ModelPolicy, ModelUpstream]


class _PolicyStore(Store[T]):
    """Objects that decide about calls. One that cannot be read counts as absent, and opens nothing."""

    def _on_unreadable(self, key: ObjectKey, version: int) -> Change[T] | None:
        return self.remove(key, version)


class GatewaySnapshot:
    """What a decision about a call reads; see `farebox.domain.admission.types.Snapshot`."""

    def __init__(self, spend: SpendTracker) -> None:
        self._spend = spend
        self._by_hash: dict[str, dict[ObjectKey, KeyPolicy]] = defaultdict(dict)
        self._usable: dict[str, KeyPolicy] = {}
        self._in_namespace: dict[str, dict[str, ServicePolicy]] = defaultdict(dict)
        self._models: dict[str, _Model] = {}
        self.keys = _PolicyStore("APIKey", _read_key, self._index_key)
        self.services = _PolicyStore("InferenceService", _read_service, self._index_service)
        self.models = _PolicyStore("Model", _read_model, self._index_model)
        self.accounts = _PolicyStore("BillingAccount", _read_account)

    def key(self, key_hash: str) -> KeyPolicy | None:
        """Return the key with this hash. A hash that two objects share is no key: neither owner may pay."""
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
        """Return where a model is served."""
        found = self._models.get(model)
        return None if found is None else found[1]

    def funds(self, account: ObjectKey) -> AvailableFunds:
        """See Snapshot. An absent account is Soft; the operator reports that it is absent."""
        return AvailableFunds(
            self._spend.available(account), self.accounts.get(account) or False, self._spend.fresh
        )

    def free_tokens(self, account: ObjectKey, model: str) -> FreeTokens | Unknown:
        """See Snapshot."""
        return self._spend.free_tokens(account, model)

    def services_in(self, namespace: str) -> Iterator[ServicePolicy]:
        """Return the services of a namespace, sorted by name."""
        yield from (service for _, service in sorted(self._in_namespace.get(namespace, {}).items()))

    def keys_with_quota(self) -> Iterator[KeyPolicy]:
        """Return all keys with a quota."""
        for keys in list(self._by_hash.values()):
            yield from (key for key in list(keys.values()) if key.quota is not None)

    def _index_key(self, change: Change[_Key]) -> None:
        if change.old is not None:
            key_hash, policy = change.old
            self._by_hash[key_hash].pop(policy.key, None)
            self._use(key_hash)
        if change.new is not None and change.new[0]:
            key_hash, policy = change.new
            self._by_hash[key_hash][policy.key] = policy
            self._use(key_hash)

    def _use(self, key_hash: str) -> None:
        """Let the key with this hash be used if exactly one object has the hash."""
        found = list(self._by_hash[key_hash].values())
        if len(found) == 1:
            self._usable[key_hash] = found[0]
        else:
            self._usable.pop(key_hash, None)
        if not found:
            del self._by_hash[key_hash]

    def _index_service(self, change: Change[ServicePolicy]) -> None:
        namespace, name = change.key
        if change.new is not None:
            self._in_namespace[namespace][name] = change.new
            return
        services = self._in_namespace[namespace]
        services.pop(name, None)
        if not services:
            del self._in_namespace[namespace]

    def _index_model(self, change: Change[_Model]) -> None:
        if change.new is not None:
            self._models[change.key.name] = change.new
        else:
            self._models.pop(change.key.name, None)


def _read_key(raw: JSONObject) -> _Key:
    """Return the policy of a key with its hash; "" for a key without one yet, which no call can carry."""
    key = APIKey.model_validate(raw)
    return key.status.key_hash or "", key_policy(key)


def _read_service(raw: JSONObject) -> ServicePolicy:
    return service_policy(InferenceService.model_validate(raw))


def _read_model(raw: JSONObject) -> _Model:
    model = Model.model_validate(raw)
    return model_policy(model), model_upstream(model)


def _read_account(raw: JSONObject) -> bool:
    """Return whether the account's enforcement is Hard."""
    return BillingAccount.model_validate(raw).spec.enforcement is Enforcement.HARD
