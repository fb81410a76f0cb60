"""Lists everything: once before the first decision, and again and again to find what watches missed.

Kopf does not tell when a first list is complete, nor what was deleted before a watch starts anew
(docs/decisions/001): the cache is compared with the lists that it reads for itself (echoes.py), and now and
then with one of our own. The backends' own watches begin where their first list ended, and come here for
another when that is too long ago.
"""

import asyncio
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from farebox.controller.queue import Kind
from farebox.controller.state.cache import Cache, Change, is_farebox_backend
from farebox.domain.keys import ObjectKey
from farebox.errors import KubeError, KubeUnreachable, NotFound
from farebox.kube.client import KubeClient
from farebox.kube.names import core_path, deployment_path, key_of, resource_path
from farebox.metrics import SWEEP_REPAIRS

log = structlog.get_logger(__name__)
_DEAF_AFTER = 2


@dataclass
class Resync:
    """Compares the cache with the cluster.

    Args:
        on_change: called with every change that is found.
        grace_seconds: how far a healthy watch may lag behind a list.
    """

    client: KubeClient
    cache: Cache
    backend_namespace: str
    on_change: Callable[[Change[Any]], None]
    grace_seconds: float = 5.0
    initial_versions: dict[Kind, str] = field(default_factory=dict)
    """The resourceVersion of each kind's first list: a watch that begins there misses nothing."""
    _missed_in_a_row: dict[Kind, int] = field(default_factory=dict)

    @property
    def stale_watches(self) -> list[Kind]:
        """Kinds whose watch missed changes in one sweep after the other."""
        return [kind for kind, count in self._missed_in_a_row.items() if count >= _DEAF_AFTER]

    async def initial_list(self) -> None:
        """Fill the cache with everything there is.

        Raises:
            KubeError, KubeUnreachable: a kind cannot be listed; NotFound means that its CRD is missing.
        """
        for kind in Kind:
            _, self.initial_versions[kind] = await self.client.listed(
                self.path(kind), partial(self._put, kind)
            )

    async def relist(self, kind: Kind) -> str:
        """Take in one kind as it is now, for a watch that lost its place; returns the list's resourceVersion.

        Raises:
            KubeError, KubeUnreachable: it cannot be listed; what was taken in so far stays.
        """

        def take(raw: dict[str, Any]) -> None:
            if (change := self._put(kind, raw)) is not None:
                self.on_change(change)

        listed, version = await self.client.listed(self.path(kind), take)
        self.remove_absent(kind, listed, int(version))
        return version

    def remove_absent(self, kind: Kind, listed: Set[ObjectKey], version: int) -> None:
        """What is not in a whole list is gone. What is newer than the list was made after it, and stays."""
        store = self.cache.store(kind)
        for key in [key for key in store if key not in listed]:
            if (change := store.remove(key, version)) is not None:
                self.on_change(change)

    async def run(self, seconds: float, on_swept: Callable[[], None]) -> None:
        """Sweep every so often, for ever; an API server that is away is asked again next time."""
        while True:
            await asyncio.sleep(seconds)
            if await self.once():
                on_swept()

    async def once(self) -> bool:
        """Compare every kind; False when the API server went away meanwhile.

        A kind that it refuses (the backends' Role went with their namespace) holds up no other.
        """
        for kind in Kind:
            try:
                await self._compare(kind)
            except KubeUnreachable as error:
                log.warning("sweep.failed", kind=kind, error=str(error))
                return False
            except KubeError as error:
                log.warning("sweep.failed", kind=kind, error=str(error))
        return True

    async def _compare(self, kind: Kind) -> None:
        """Put right what the watch of one kind missed."""
        store = self.cache.store(kind)
        before = {key: store.version(key) for key in store}
        listed: set[ObjectKey] = set()
        newer: list[dict[str, Any]] = []
        async for raw in self.client.list(self.path(kind)):
            if not self._concerns(kind, raw):
                continue
            key = key_of(raw)
            listed.add(key)
            if store.version(key) < int(raw["metadata"]["resourceVersion"]):
                newer.append(raw)
        absent = [key for key in before if key not in listed]
        if newer or absent:
            await asyncio.sleep(self.grace_seconds)
        missed = sum(self._repair(kind, raw) for raw in newer)
        for key in absent:
            if store.version(key) == before[key]:
                await self._confirm_gone(kind, key)
        self._missed_in_a_row[kind] = self._missed_in_a_row.get(kind, 0) + 1 if missed else 0
        if before:
            store.forget_deletions(min(before.values()))

    def _repair(self, kind: Kind, raw: dict[str, Any]) -> bool:
        """Take in an object that the watch has still not told of."""
        change = self.cache.store(kind).put(raw)
        if change is None:
            return False
        SWEEP_REPAIRS.labels(kind).inc()
        log.warning("sweep.missed_change", kind=kind, object=str(change.key))
        self.on_change(change)
        return True

    async def _confirm_gone(self, kind: Kind, key: ObjectKey) -> None:
        """Ask for one object that a list did not have before believing that it is gone."""
        try:
            await self.client.get(f"{self._collection(kind, key.namespace)}/{key.name}")
        except NotFound:
            store = self.cache.store(kind)
            change = store.remove(key, store.version(key))
            if change is not None:
                SWEEP_REPAIRS.labels(kind).inc()
                log.warning("sweep.missed_deletion", kind=kind, object=str(key))
                self.on_change(change)

    def path(self, kind: Kind) -> str:
        """The collection of a kind, as far as the operator looks at it."""
        backend = kind in (Kind.DEPLOYMENT, Kind.ENDPOINT)
        return self._collection(kind, self.backend_namespace if backend else "")

    def _collection(self, kind: Kind, namespace: str) -> str:
        match kind:
            case Kind.DEPLOYMENT:
                return deployment_path(namespace)
            case Kind.ENDPOINT:
                return core_path("services", namespace)
            case Kind.NAMESPACE:
                return core_path("namespaces")
            case _:
                return resource_path(kind, namespace)

    def _put(self, kind: Kind, raw: dict[str, Any]) -> Change[Any] | None:
        return self.cache.store(kind).put(raw) if self._concerns(kind, raw) else None

    @staticmethod
    def _concerns(kind: Kind, raw: dict[str, Any]) -> bool:
        return kind not in (Kind.DEPLOYMENT, Kind.ENDPOINT) or is_farebox_backend(raw)
