"""Keeps a store equal to one collection of the API server: a list, a watch, and a periodic comparison.

A watch alone is not enough: a deletion can be lost while it reconnects, and a connection can be dead without
a sign. `compare` finds both. While the API server is unreachable, the store stays as it is.
"""

import asyncio
import random
import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from farebox.domain.keys import ObjectKey
from farebox.errors import KubeError, KubeUnreachable
from farebox.kube.client import KubeClient
from farebox.kube.names import key_of
from farebox.kube.store import Change, Store, version_of

log = structlog.get_logger(__name__)
JSONObject = dict[str, Any]
_WATCH_SECONDS: Final = 240.0
_MIN_PAUSE: Final = 0.1
_MAX_PAUSE: Final = 5.0


@dataclass
class Reflector:
    """Lists and watches one collection into a store.

    Args:
        path: of the collection.
        on_change: called with each change, after the store has it; must not raise.
        selects: whether an object belongs in the store. One that no longer does is removed.
        version: the resourceVersion from which the next watch continues; "": list first.
        synced: set once the store had everything in the collection.
        updated_at: when the API server last answered, on `clock`; None before the first answer.
        connected_at: when the API server last accepted a watch or sent something on it.
    """

    client: KubeClient
    path: str
    store: Store[Any]
    on_change: Callable[[Change[Any]], None] = lambda change: None
    selects: Callable[[JSONObject], bool] = lambda raw: True
    clock: Callable[[], float] = time.monotonic
    version: str = ""
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    updated_at: float | None = None
    connected_at: float | None = None
    _pause: float = _MIN_PAUSE
    _compared_at: int = 0

    @property
    def age(self) -> float:
        """Seconds since the API server last answered; infinite before the first answer."""
        return float("inf") if self.updated_at is None else self.clock() - self.updated_at

    async def run(self, compare_seconds: float) -> None:
        """List, watch, and compare every `compare_seconds`. Never returns."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.watch())
            tasks.create_task(self._compare_every(compare_seconds))

    async def watch(self) -> None:
        """Watch from `version` on, and reconnect whenever the watch ends. Never returns."""
        while True:
            try:
                if not self.version:
                    await self.relist(self.on_change)
                async for event in self.client.watch(self.path, self.version, _WATCH_SECONDS, self.connected):
                    self._pause = _MIN_PAUSE
                    self.connected()
                    if event["type"] != "BOOKMARK":
                        self.on_event(event["type"], event["object"])
                    self.version = str(event["object"]["metadata"]["resourceVersion"])
                # A server that ends every watch at once must not be asked as fast as it can answer.
                await asyncio.sleep(_MIN_PAUSE)
            except KubeError as error:
                if error.status == 410:
                    log.info("watch.version_too_old", path=self.path)
                    self.version = ""
                await self._back_off(error)
            except KubeUnreachable as error:
                await self._back_off(error)

    async def relist(self, on_change: Callable[[Change[Any]], None]) -> None:
        """Make the store equal to a list, and let the next watch continue from it.

        Args:
            on_change: called with each change, as the pages arrive.

        Raises:
            KubeError, KubeUnreachable: the list failed; the objects read before that stay in the store.
        """

        def put(raw: JSONObject) -> None:
            if self.selects(raw) and (change := self.store.put(raw)) is not None:
                on_change(change)

        listed, self.version = await self.client.listed(self.path, put)
        for change in self.store.remove_absent(listed, int(self.version)):
            on_change(change)
        self._answered()

    async def compare(self, grace_seconds: float = 0.0) -> list[Change[Any]]:
        """Repair what differs from a list; returns the changes.

        Args:
            grace_seconds: how long a watch may lag behind the list before a difference counts as missed.

        Raises:
            KubeError, KubeUnreachable: the list failed; nothing changed.
        """
        newer: list[JSONObject] = []

        def collect(raw: JSONObject) -> None:
            if self.selects(raw) and self.store.version(key_of(raw)) < version_of(raw):
                newer.append(raw)

        listed, version = await self.client.listed(self.path, collect)
        if newer or any(key not in listed for key in self.store):
            await asyncio.sleep(grace_seconds)
        changes = [change for raw in newer if (change := self.store.put(raw)) is not None]
        changes += self.store.remove_absent(listed, int(version))
        # Answers to writes can be late, but not as late as from before the last comparison.
        self.store.forget_deletions(self._compared_at)
        self._compared_at = int(version)
        for change in changes:
            self.on_change(change)
        self._answered()
        return changes

    def on_event(self, type_: str, raw: JSONObject) -> None:
        """Apply an event of a watch: "ADDED", "MODIFIED" or "DELETED", and the object."""
        selected = self.selects(raw)
        if not selected and key_of(raw) not in self.store:
            return
        if type_ == "DELETED" or not selected:
            change = self.store.remove(key_of(raw), version_of(raw))
        else:
            change = self.store.put(raw)
        if change is not None:
            self.on_change(change)

    def remove_absent(self, listed: Set[ObjectKey], version: int) -> None:
        """Remove what a complete list at this resourceVersion lacks, and report it."""
        for change in self.store.remove_absent(listed, version):
            self.on_change(change)

    def connected(self) -> None:
        """Record that the API server accepted a watch, or sent something on it."""
        self.connected_at = self.updated_at = self.clock()

    def _answered(self) -> None:
        self.updated_at = self.clock()
        self.synced.set()

    async def _compare_every(self, seconds: float) -> None:
        await self.synced.wait()
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.compare()
            except (KubeError, KubeUnreachable) as error:
                log.warning("reflector.compare_failed", path=self.path, error=str(error))

    async def _back_off(self, error: Exception) -> None:
        log.warning(
            "watch.unavailable", path=self.path, error=str(error), retry_seconds=round(self._pause, 1)
        )
        await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))
        self._pause = min(self._pause * 2, _MAX_PAUSE)
