"""Lists every kind: once before the first decision, then periodically to repair what watches missed.

Kopf reports neither when its first list is complete nor what was deleted before a watch reconnected
(docs/decisions/001). So the operator fills its cache from lists of its own, and compares it with a list every
FAREBOX_SWEEP_SECONDS.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog

from farebox.controller.queue import Kind
from farebox.controller.state.cache import Cache, is_farebox_backend
from farebox.errors import KubeError, KubeUnreachable
from farebox.kube.client import KubeClient
from farebox.kube.names import core_path, deployment_path, resource_path
from farebox.kube.reflector import Reflector
from farebox.kube.store import Change
from farebox.metrics import SWEEP_REPAIRS, WATCH_EVENTS

log = structlog.get_logger(__name__)
JSONObject = dict[str, Any]

BACKEND_KINDS: Final = (Kind.DEPLOYMENT, Kind.ENDPOINT)
"""The kinds that the operator watches in the backends' namespace alone, and without Kopf."""
_STALE_AFTER = 2
_SILENT_SECONDS: Final = 300.0
"""Every watch ends after at most 240 s and reconnects: one that has not done so by now is dead."""


@dataclass
class _CountingReflector(Reflector):
    def on_event(self, type_: str, raw: JSONObject) -> None:
        """Count the event, and apply it."""
        WATCH_EVENTS.labels(self.store.kind).inc()
        super().on_event(type_, raw)


class Resync:
    """The reflectors of all kinds, and how well their watches work.

    Args:
        on_change: called with every change that a list or a watch brings, after the initial list.
        grace_seconds: how far a healthy watch may lag behind a list.
    """

    def __init__(
        self,
        client: KubeClient,
        cache: Cache,
        backend_namespace: str,
        on_change: Callable[[Change[Any]], None],
        grace_seconds: float = 5.0,
    ) -> None:
        self.reflectors: dict[Kind, Reflector] = {
            kind: _CountingReflector(
                client,
                _path(kind, backend_namespace),
                cache.store(kind),
                on_change,
                is_farebox_backend if kind in BACKEND_KINDS else _everything,
            )
            for kind in Kind
        }
        self._grace_seconds = grace_seconds
        self._missed_in_a_row = dict.fromkeys(Kind, 0)

    @property
    def synced(self) -> bool:
        """Whether the initial list is complete."""
        return all(reflector.synced.is_set() for reflector in self.reflectors.values())

    @property
    def stale_watches(self) -> list[Kind]:
        """Kinds whose watch missed changes in several comparisons in a row."""
        return [kind for kind, count in self._missed_in_a_row.items() if count >= _STALE_AFTER]

    @property
    def unconnected_watches(self) -> list[Kind]:
        """Kinds whose watch the API server has not accepted yet."""
        return [kind for kind, reflector in self.reflectors.items() if reflector.connected_at is None]

    @property
    def silent_watches(self) -> list[Kind]:
        """Kinds whose watch was accepted, but should have reconnected since."""
        return [
            kind
            for kind, reflector in self.reflectors.items()
            if reflector.connected_at is not None
            and reflector.clock() - reflector.connected_at > _SILENT_SECONDS
        ]

    async def initial_list(self) -> None:
        """Fill the cache, without reporting changes.

        Raises:
            KubeError, KubeUnreachable: a kind cannot be listed; NotFound means that its CRD is missing.
        """
        for reflector in self.reflectors.values():
            await reflector.relist(lambda change: None)

    async def run(self, seconds: float, on_compared: Callable[[], None]) -> None:
        """Compare all kinds every `seconds`. Never returns.

        Args:
            on_compared: called after each comparison for which the API server was reachable.
        """
        while True:
            await asyncio.sleep(seconds)
            if await self.compare_all():
                on_compared()

    async def compare_all(self) -> bool:
        """Compare every kind; False when the API server became unreachable.

        A kind that it refuses to list (the backends' Role is deleted with their namespace) delays no other.
        """
        for kind in Kind:
            try:
                await self.compare(kind)
            except KubeUnreachable as error:
                log.warning("resync.failed", kind=kind, error=str(error))
                return False
            except KubeError as error:
                log.warning("resync.failed", kind=kind, error=str(error))
        return True

    async def compare(self, kind: Kind) -> None:
        """Repair what the watch of one kind missed.

        Missed deletions do not make a watch stale: every watch can miss one when it reconnects.
        """
        changes = await self.reflectors[kind].compare(self._grace_seconds)
        for change in changes:
            SWEEP_REPAIRS.labels(kind).inc()
            event = "resync.missed_deletion" if change.new is None else "resync.missed_change"
            log.warning(event, kind=kind, object=str(change.key))
        missed = any(change.new is not None for change in changes)
        self._missed_in_a_row[kind] = self._missed_in_a_row[kind] + 1 if missed else 0


def _path(kind: Kind, backend_namespace: str) -> str:
    match kind:
        case Kind.DEPLOYMENT:
            return deployment_path(backend_namespace)
        case Kind.ENDPOINT:
            return core_path("services", backend_namespace)
        case Kind.NAMESPACE:
            return core_path("namespaces")
        case _:
            return resource_path(kind)


def _everything(raw: JSONObject) -> bool:
    return True
