"""Maps a change to the keys that have to be reconciled. Reads the cache, changes nothing.

A change that concerns many objects gives them the low priority, so that it never delays a single edit.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from farebox.api import AnyObject, APIKey, BillingAccount, InferenceService, Model, TopUp
from farebox.controller.queue import (
    Key,
    Kind,
    Priority,
    account_key,
    apikey_key,
    model_key,
    service_key,
    topup_key,
)
from farebox.controller.state.cache import Backend, BackendService, Cache, Labels, account_of
from farebox.domain.keys import ObjectKey
from farebox.kube.names import MODEL_LABEL
from farebox.kube.store import Change

FEW = 32
"""Up to this many keys at once count as a single edit."""
_COUNTS_DELAY_SECONDS = 1.0


class Request(NamedTuple):
    """A key to reconcile, and after how many seconds."""

    key: Key
    priority: Priority
    delay: float = 0.0


def requests_for(cache: Cache, change: Change[Any]) -> Iterator[Request]:
    """Yield the keys that a change concerns."""
    match change.kind:
        case Kind.SERVICE:
            yield from _after_service(cache, change)
        case Kind.MODEL:
            yield from _after_model(cache, change)
        case Kind.ACCOUNT:
            yield from _after_account(cache, change)
        case Kind.TOPUP:
            yield from _after_topup(change)
        case Kind.APIKEY:
            yield from _after_apikey(change)
        case Kind.NAMESPACE:
            yield from _after_namespace(cache, change)
        case Kind.DEPLOYMENT:
            yield from _after_backend(cache, change)
        case Kind.ENDPOINT:
            yield from _after_endpoint(cache, change)


def requests_for_all(cache: Cache, reserved: Iterable[ObjectKey]) -> Iterator[Request]:
    """Yield every key as bulk work, with the services that have ever `reserved`."""
    keys = (
        *(model_key(model.name) for model in cache.models),
        *map(account_key, cache.accounts),
        *(topup_key(key) for key, topup in cache.topups.items() if topup.status.phase is None),
        *map(apikey_key, cache.apikeys),
        *map(service_key, cache.services),
        # If the service is deleted, reconciling its key ends the reservation.
        *map(service_key, reserved),
    )
    for key in keys:
        yield Request(key, Priority.LOW)
    # If the service or model of a backend is deleted, reconciling its key deletes the backend. A Service can
    # be left without its Deployment, if it was created while the Deployment was deleted.
    parts: list[Backend | BackendService] = [*cache.backends.values(), *cache.endpoints.values()]
    for found in parts:
        yield from orphans(cache, found)


def requests_for_balance(cache: Cache, account: ObjectKey) -> Iterator[Request]:
    """Yield an account and its services, after its state changed or became known."""
    yield Request(account_key(account), Priority.HIGH)
    yield from _prioritized(map(service_key, cache.services_of_account.of(account)))


def requests_for_quota(cache: Cache, account: ObjectKey, model: str, delay: float) -> Iterator[Request]:
    """Yield the account's services on a model, after its free quota changed; with a delay as bulk work."""
    on_model = cache.services_of_model.of(ObjectKey("", model))
    of_account = cache.services_of_account.of(account)
    for request in _prioritized(service_key(key) for key in of_account if key in on_model):
        yield Request(request.key, Priority.LOW if delay else request.priority, delay)


def _prioritized(keys: Iterable[Key]) -> Iterator[Request]:
    listed = list(keys)
    priority = Priority.HIGH if len(listed) <= FEW else Priority.LOW
    for key in listed:
        yield Request(key, priority)


def _after_service(cache: Cache, change: Change[InferenceService]) -> Iterator[Request]:
    old, new = change.old, change.new
    # A status write of the operator arrives here too; it concerns the counts of the account alone.
    if was_edited(old, new):
        yield Request(service_key(change.key), Priority.HIGH)
    recreated = _is_other(old, new)
    versions = [service for service in (old, new) if service is not None]
    moved = len({service.status.phase for service in versions}) > 1
    for service in versions:
        if recreated or moved:
            # The counts in the account's status: thousands of changes at once are one reconcile.
            yield Request(
                account_key(account_of(service)), Priority.LOW, 0.0 if recreated else _COUNTS_DELAY_SECONDS
            )
    if recreated:
        for service in versions:
            yield Request(model_key(service.model_name), Priority.LOW)
        # A name that is free or taken concerns every account with Default services in the namespace.
        for account in cache.accounts_in_namespace.of(ObjectKey("", change.key.namespace)):
            yield Request(account_key(account), Priority.LOW)


def _is_other(old: AnyObject | None, new: AnyObject | None) -> bool:
    """Return whether an object was created, deleted, or both (one change, if a watch missed the deletion)."""
    return old is None or new is None or old.metadata.uid != new.metadata.uid


def was_edited(old: AnyObject | None, new: AnyObject | None) -> bool:
    """Return whether more than the status changed: metadata or spec, or it was created or deleted.

    A status that another client overwrote is found when the object is reconciled after the next resync.
    """
    if old is None or new is None:
        return True
    before, after = old.metadata, new.metadata
    return (
        before.uid != after.uid
        or before.generation != after.generation
        or before.labels != after.labels
        or before.annotations != after.annotations
        or before.deletion_timestamp != after.deletion_timestamp
    )


def _after_model(cache: Cache, change: Change[Model]) -> Iterator[Request]:
    if not was_edited(change.old, change.new):
        return
    yield Request(model_key(change.key.name), Priority.HIGH)
    yield from _prioritized(map(service_key, cache.services_of_model.of(change.key)))
    # Every account may gain or lose a Default service on the model.
    yield from _prioritized(map(account_key, cache.accounts))


def _after_account(cache: Cache, change: Change[BillingAccount]) -> Iterator[Request]:
    old, new = change.old, change.new
    if not was_edited(old, new):
        return
    yield Request(account_key(change.key), Priority.HIGH)
    yield from _prioritized(map(service_key, cache.services_of_account.of(change.key)))
    yield from _prioritized(map(topup_key, cache.topups_of_account.of(change.key)))
    if _is_other(old, new):
        # The oldest account of a namespace gets its Default services.
        siblings = cache.accounts_in_namespace.of(ObjectKey("", change.key.namespace))
        yield from _prioritized(account_key(key) for key in siblings if key != change.key)


def _after_topup(change: Change[TopUp]) -> Iterator[Request]:
    if change.new is None:
        yield Request(topup_key(change.key), Priority.LOW)
    elif change.new.status.phase is None:
        yield Request(topup_key(change.key), Priority.HIGH)


def _after_apikey(change: Change[APIKey]) -> Iterator[Request]:
    if was_edited(change.old, change.new):
        yield Request(apikey_key(change.key), Priority.HIGH)


def _after_namespace(cache: Cache, change: Change[Labels]) -> Iterator[Request]:
    if change.old is not None and change.new is not None and change.old.labels == change.new.labels:
        return
    yield from _prioritized(map(service_key, cache.services_in_namespace.of(change.key)))


def _after_backend(cache: Cache, change: Change[Backend]) -> Iterator[Request]:
    if change.old is not None and change.new is not None and change.old.same(change.new):
        return
    for backend in filter(None, (change.old, change.new)):
        if backend.service is not None:
            # Bulk work: thousands of Deployments that change at once must not delay a single edit.
            yield Request(service_key(backend.service), Priority.LOW)
        elif model := backend.annotations.get(MODEL_LABEL):
            yield Request(model_key(model), Priority.HIGH)
            if change.old is None or change.new is None or change.old.facts != change.new.facts:
                keys = cache.services_of_model.of(ObjectKey("", model))
                yield from _prioritized(service_key(key) for key in keys if not _dedicated(cache, key))


def _after_endpoint(cache: Cache, change: Change[BackendService]) -> Iterator[Request]:
    if change.new is not None:
        yield from orphans(cache, change.new)
        if change.old is None or change.old == change.new:
            return
    backend = cache.backends.get(change.key)
    if backend is not None:
        yield from _after_backend(cache, Change(Kind.DEPLOYMENT, change.key, backend, None))


def orphans(cache: Cache, found: Backend | BackendService) -> Iterator[Request]:
    """Yield the key of a deleted service or model, so that what is left of its backend is deleted."""
    if found.service is not None:
        if found.service not in cache.services:
            yield Request(service_key(found.service), Priority.LOW)
    elif (model := found.annotations.get(MODEL_LABEL)) and ObjectKey("", model) not in cache.models:
        yield Request(model_key(model), Priority.LOW)


def _dedicated(cache: Cache, key: ObjectKey) -> bool:
    service = cache.services.get(key)
    return service is not None and service.spec.dedicated
