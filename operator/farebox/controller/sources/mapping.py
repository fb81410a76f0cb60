"""Which keys have to be looked at again after a change. Reads the cache, touches nothing.

A change that concerns many objects puts them into the bulk priority, so that it never delays a single edit.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from farebox.api import APIKey, BillingAccount, InferenceService, Model, TopUp
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
"""So many keys at once still count as a single edit."""
_COUNTS_REST_SECONDS = 1.0


class Request(NamedTuple):
    """A key to look at again, and after how many seconds."""

    key: Key
    priority: Priority
    delay: float = 0.0


def requests_for(cache: Cache, change: Change[Any]) -> Iterator[Request]:
    """The keys that a change concerns, each with its priority."""
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
    """All that there is to look at, with the services that ever `reserved`; all of it bulk work."""
    for name in cache.models:
        yield Request(model_key(name.name), Priority.LOW)
    for key in cache.accounts:
        yield Request(account_key(key), Priority.LOW)
    for key, topup in cache.topups.items():
        if topup.status.phase is None:
            yield Request(topup_key(key), Priority.LOW)
    for key in cache.apikeys:
        yield Request(apikey_key(key), Priority.LOW)
    for key in cache.services:
        yield Request(service_key(key), Priority.LOW)
    for key in reserved:
        # A reservation whose service is gone: the pass over the missing owner ends it.
        yield Request(service_key(key), Priority.LOW)
    # Backends whose service or model is gone: the pass over the missing owner deletes them.
    for backend in cache.backends.values():
        yield from orphans(cache, backend)
    # A Service may be left without its Deployment: whoever deleted that one did not know of it yet.
    for endpoint in cache.endpoints.values():
        yield from orphans(cache, endpoint)


def requests_for_balance(cache: Cache, account: ObjectKey) -> Iterator[Request]:
    """The account's services, after its state or what is known of it changed."""
    yield Request(account_key(account), Priority.HIGH)
    yield from _prioritized(service_key(key) for key in cache.services_of_account.of(account))


def requests_for_quota(cache: Cache, account: ObjectKey, model: str, rest: float) -> Iterator[Request]:
    """The account's services on a model, after its free quota moved; figures alone can `rest` a while."""
    on_model = cache.services_of_model.of(ObjectKey("", model))
    of_account = cache.services_of_account.of(account)
    for work in _prioritized(service_key(key) for key in of_account if key in on_model):
        yield Request(work.key, Priority.LOW if rest else work.priority, rest)


def _prioritized(keys: Iterable[Key]) -> Iterator[Request]:
    listed = list(keys)
    priority = Priority.HIGH if len(listed) <= FEW else Priority.LOW
    for key in listed:
        yield Request(key, priority)


def _after_service(cache: Cache, change: Change[InferenceService]) -> Iterator[Request]:
    old, new = change.old, change.new
    # A status write of the operator's own comes back here; it concerns nobody but the counts.
    if was_edited(old, new):
        yield Request(service_key(change.key), Priority.HIGH)
    made_or_gone = _another(old, new)
    there = [service for service in (old, new) if service is not None]
    moved = len({service.status.phase for service in there}) > 1
    for service in there:
        if made_or_gone or moved:
            # The counts in the account's status: thousands of services that move at once make one pass.
            yield Request(
                account_key(account_of(service)), Priority.LOW, 0.0 if made_or_gone else _COUNTS_REST_SECONDS
            )
    if made_or_gone:
        for service in there:
            yield Request(model_key(service.model_name), Priority.LOW)
        # A name that is free, or taken, matters to every account that wants a Default service there.
        for account in cache.accounts_in_namespace.of(ObjectKey("", change.key.namespace)):
            yield Request(account_key(account), Priority.LOW)


Seen = InferenceService | Model | BillingAccount | APIKey


def _another(old: Seen | None, new: Seen | None) -> bool:
    """Whether the object was made, or is gone, or both: a watch that began anew tells that as one change."""
    return old is None or new is None or old.metadata.uid != new.metadata.uid


def was_edited(old: Seen | None, new: Seen | None) -> bool:
    """Whether more than the status was written: the spec, the labels, or the object was made or deleted.

    A status that somebody else wrote over is found by comparing it, which the sweep's pass does.
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
    yield from _prioritized(service_key(key) for key in cache.services_of_model.of(change.key))
    # Every account may get, or lose, a Default service for it.
    yield from _prioritized(account_key(key) for key in cache.accounts)


def _after_account(cache: Cache, change: Change[BillingAccount]) -> Iterator[Request]:
    old, new = change.old, change.new
    if not was_edited(old, new):
        return
    yield Request(account_key(change.key), Priority.HIGH)
    yield from _prioritized(service_key(key) for key in cache.services_of_account.of(change.key))
    yield from _prioritized(topup_key(key) for key in cache.topups_of_account.of(change.key))
    if _another(old, new):
        # Which account of a namespace is the oldest decides about its Default services.
        neighbours = cache.accounts_in_namespace.of(ObjectKey("", change.key.namespace))
        yield from _prioritized(account_key(key) for key in neighbours if key != change.key)


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
    namespace = change.key.name
    yield from _prioritized(
        service_key(key) for key in cache.services_in_namespace.of(ObjectKey("", namespace))
    )


def _after_backend(cache: Cache, change: Change[Backend]) -> Iterator[Request]:
    if change.old is not None and change.new is not None and change.old.same(change.new):
        return
    for backend in (change.old, change.new):
        if backend is None:
            continue
        if backend.service is not None:
            # Not the fast priority: thousands of Deployments that move at once must not delay a single edit.
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
    """The pass over the service or model that is gone, which deletes what is left of its backend."""
    if found.service is not None:
        if found.service not in cache.services:
            yield Request(service_key(found.service), Priority.LOW)
    elif (model := found.annotations.get(MODEL_LABEL)) and ObjectKey("", model) not in cache.models:
        yield Request(model_key(model), Priority.LOW)


def _dedicated(cache: Cache, key: ObjectKey) -> bool:
    service = cache.services.get(key)
    return service is not None and service.spec.dedicated
