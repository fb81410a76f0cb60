"""Which keys have to be looked at again after a change. Reads the cache, touches nothing.

A change that concerns many objects puts them into the bulk lane, so that it never delays a single edit.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from farebox.api import APIKey, BillingAccount, InferenceService, Model, TopUp
from farebox.controller.keys import Key, Kind, account_key, apikey_key, model_key, service_key, topup_key
from farebox.controller.queue import Lane
from farebox.controller.state.cache import Backend, Cache, Change, Endpoint, Labels, account_of
from farebox.domain.keys import ObjectKey
from farebox.kube.names import MODEL_LABEL

FEW = 32
"""So many keys at once still count as a single edit."""
_COUNTS_REST_SECONDS = 1.0


class Work(NamedTuple):
    """A key to look at again, and after how many seconds."""

    key: Key
    lane: Lane
    seconds: float = 0.0


def concerned(cache: Cache, change: Change[Any]) -> Iterator[Work]:
    """The keys that a change concerns, each with its lane."""
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


def everything(cache: Cache, reserved: Iterable[ObjectKey]) -> Iterator[Work]:
    """All that there is to look at, with the services that ever `reserved`; all of it bulk work."""
    for name in cache.models:
        yield Work(model_key(name.name), Lane.BULK)
    for key in cache.accounts:
        yield Work(account_key(key), Lane.BULK)
    for key, topup in cache.topups.items():
        if topup.status.phase is None:
            yield Work(topup_key(key), Lane.BULK)
    for key in cache.apikeys:
        yield Work(apikey_key(key), Lane.BULK)
    for key in cache.services:
        yield Work(service_key(key), Lane.BULK)
    for key in reserved:
        # A reservation whose service is gone: the pass over the missing owner ends it.
        yield Work(service_key(key), Lane.BULK)
    # Backends whose service or model is gone: the pass over the missing owner deletes them.
    for backend in cache.backends.values():
        yield from ownerless(cache, backend)
    # A Service may be left without its Deployment: whoever deleted that one did not know of it yet.
    for endpoint in cache.endpoints.values():
        yield from ownerless(cache, endpoint)


def after_balance(cache: Cache, account: ObjectKey) -> Iterator[Work]:
    """The account's services, after its state or what is known of it changed."""
    yield Work(account_key(account), Lane.FAST)
    yield from _lane(service_key(key) for key in cache.services_of_account.of(account))


def after_quota(cache: Cache, account: ObjectKey, model: str, rest: float) -> Iterator[Work]:
    """The account's services on a model, after its free quota moved; figures alone can `rest` a while."""
    on_model = cache.services_of_model.of(ObjectKey("", model))
    of_account = cache.services_of_account.of(account)
    for work in _lane(service_key(key) for key in of_account if key in on_model):
        yield Work(work.key, Lane.BULK if rest else work.lane, rest)


def _lane(keys: Iterable[Key]) -> Iterator[Work]:
    listed = list(keys)
    lane = Lane.FAST if len(listed) <= FEW else Lane.BULK
    for key in listed:
        yield Work(key, lane)


def _after_service(cache: Cache, change: Change[InferenceService]) -> Iterator[Work]:
    old, new = change.old, change.new
    # A status write of the operator's own comes back here; it concerns nobody but the counts.
    if edited(old, new):
        yield Work(service_key(change.key), Lane.FAST)
    made_or_gone = _another(old, new)
    there = [service for service in (old, new) if service is not None]
    moved = len({service.status.phase for service in there}) > 1
    for service in there:
        if made_or_gone or moved:
            # The counts in the account's status: thousands of services that move at once make one pass.
            yield Work(
                account_key(account_of(service)), Lane.BULK, 0.0 if made_or_gone else _COUNTS_REST_SECONDS
            )
    if made_or_gone:
        for service in there:
            yield Work(model_key(service.model_name), Lane.BULK)
        # A name that is free, or taken, matters to every account that wants a Default service there.
        for account in cache.accounts_in_namespace.of(ObjectKey("", change.key.namespace)):
            yield Work(account_key(account), Lane.BULK)


Seen = InferenceService | Model | BillingAccount | APIKey


def _another(old: Seen | None, new: Seen | None) -> bool:
    """Whether the object was made, or is gone, or both: a watch that began anew tells that as one change."""
    return old is None or new is None or old.metadata.uid != new.metadata.uid


def edited(old: Seen | None, new: Seen | None) -> bool:
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


def _after_model(cache: Cache, change: Change[Model]) -> Iterator[Work]:
    if not edited(change.old, change.new):
        return
    yield Work(model_key(change.key.name), Lane.FAST)
    yield from _lane(service_key(key) for key in cache.services_of_model.of(change.key))
    # Every account may get, or lose, a Default service for it.
    yield from _lane(account_key(key) for key in cache.accounts)


def _after_account(cache: Cache, change: Change[BillingAccount]) -> Iterator[Work]:
    old, new = change.old, change.new
    if not edited(old, new):
        return
    yield Work(account_key(change.key), Lane.FAST)
    yield from _lane(service_key(key) for key in cache.services_of_account.of(change.key))
    yield from _lane(topup_key(key) for key in cache.topups_of_account.of(change.key))
    if _another(old, new):
        # Which account of a namespace is the oldest decides about its Default services.
        neighbours = cache.accounts_in_namespace.of(ObjectKey("", change.key.namespace))
        yield from _lane(account_key(key) for key in neighbours if key != change.key)


def _after_topup(change: Change[TopUp]) -> Iterator[Work]:
    if change.new is None:
        yield Work(topup_key(change.key), Lane.BULK)
    elif change.new.status.phase is None:
        yield Work(topup_key(change.key), Lane.FAST)


def _after_apikey(change: Change[APIKey]) -> Iterator[Work]:
    if edited(change.old, change.new):
        yield Work(apikey_key(change.key), Lane.FAST)


def _after_namespace(cache: Cache, change: Change[Labels]) -> Iterator[Work]:
    if change.old is not None and change.new is not None and change.old.labels == change.new.labels:
        return
    namespace = change.key.name
    yield from _lane(service_key(key) for key in cache.services_in_namespace.of(ObjectKey("", namespace)))


def _after_backend(cache: Cache, change: Change[Backend]) -> Iterator[Work]:
    if change.old is not None and change.new is not None and change.old.same(change.new):
        return
    for backend in (change.old, change.new):
        if backend is None:
            continue
        if backend.service is not None:
            # Not the fast lane: thousands of Deployments that move at once must not delay a single edit.
            yield Work(service_key(backend.service), Lane.BULK)
        elif model := backend.annotations.get(MODEL_LABEL):
            yield Work(model_key(model), Lane.FAST)
            if change.old is None or change.new is None or change.old.facts != change.new.facts:
                keys = cache.services_of_model.of(ObjectKey("", model))
                yield from _lane(service_key(key) for key in keys if not _dedicated(cache, key))


def _after_endpoint(cache: Cache, change: Change[Endpoint]) -> Iterator[Work]:
    if change.new is not None:
        yield from ownerless(cache, change.new)
        if change.old is None or change.old == change.new:
            return
    backend = cache.backends.get(change.key)
    if backend is not None:
        yield from _after_backend(cache, Change(Kind.DEPLOYMENT, change.key, backend, None))


def ownerless(cache: Cache, found: Backend | Endpoint) -> Iterator[Work]:
    """The pass over the service or model that is gone, which deletes what is left of its backend."""
    if found.service is not None:
        if found.service not in cache.services:
            yield Work(service_key(found.service), Lane.BULK)
    elif (model := found.annotations.get(MODEL_LABEL)) and ObjectKey("", model) not in cache.models:
        yield Work(model_key(model), Lane.BULK)


def _dedicated(cache: Cache, key: ObjectKey) -> bool:
    service = cache.services.get(key)
    return service is not None and service.spec.dedicated
