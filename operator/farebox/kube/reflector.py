"""What a process hears of one collection of objects: a list, then its changes, for ever. It keeps no objects.

`Reflector` is the watch alone, for those who list and compare by themselves (the operator's resync).
`Informer` does both: watches lose deletions now and then, and a connection can be dead for a while without a
sign, so every `sweep_seconds` a list is compared with what was heard. An API server that is away changes
nothing: whoever listens goes on with what it knows.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import structlog

from farebox.domain.keys import ObjectKey
from farebox.errors import KubeError, KubeUnreachable
from farebox.kube.client import KubeClient
from farebox.kube.names import key_of

log = structlog.get_logger(__name__)
JSONObject = dict[str, Any]
_WATCH_SECONDS: Final = 240.0
_MIN_PAUSE: Final = 0.1
_MAX_PAUSE: Final = 5.0


@dataclass
class Reflector:
    """Watches one collection, and starts anew whenever the watch ends.

    Args:
        path: of the collection.
        hear: takes the type ("ADDED", "MODIFIED" or "DELETED") and the object of each change; must not raise.
        relist: lists and takes in everything, and returns the list's resourceVersion; it is asked at the
            beginning when `run` got no version, and when a version is too old.
        alive: called when the API server accepts a watch, and with every line that comes.
    """

    client: KubeClient
    path: str
    on_event: Callable[[str, JSONObject], None]
    relist: Callable[[], Awaitable[str]]
    alive: Callable[[], None] = lambda: None
    _pause: float = _MIN_PAUSE

    async def run(self, version: str = "") -> None:
        """Follow for ever, from a resourceVersion on; a server that is away is asked ever more slowly."""
        while True:
            try:
                version = version or await self.relist()
                async for event in self.client.watch(self.path, version, _WATCH_SECONDS, self.alive):
                    self._pause = _MIN_PAUSE
                    self.alive()
                    type_, raw = event["type"], event["object"]
                    if type_ != "BOOKMARK":
                        self.on_event(type_, raw)
                    version = str(raw["metadata"]["resourceVersion"])
                # A server that ends every watch at once is not asked as fast as it can answer.
                await asyncio.sleep(_MIN_PAUSE)
            except KubeError as error:
                if error.status == 410:
                    log.info("watch.version_too_old", path=self.path)
                    version = ""
                await self._rest(error)
            except KubeUnreachable as error:
                await self._rest(error)

    async def _rest(self, error: Exception) -> None:
        log.warning(
            "watch.unavailable", path=self.path, error=str(error), retry_seconds=round(self._pause, 1)
        )
        await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))
        self._pause = min(self._pause * 2, _MAX_PAUSE)


class Sink(Protocol):
    """Where objects go. Neither method may raise."""

    def put(self, raw: JSONObject) -> None:
        """An object is there, or is another one than before."""

    def remove(self, key: ObjectKey) -> None:
        """An object is gone."""


@dataclass
class Informer:
    """Follows one collection.

    Args:
        path: of the collection.
        sweep_seconds: how often a list is compared with what was heard.
    """

    client: KubeClient
    path: str
    sink: Sink
    sweep_seconds: float = 30.0
    clock: Callable[[], float] = time.monotonic
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    updated_at: float | None = None
    _versions: dict[ObjectKey, int] = field(default_factory=dict)
    _gone: dict[ObjectKey, int] = field(default_factory=dict)

    @property
    def age(self) -> float:
        """Seconds since the API server was heard; infinite before the first time."""
        return float("inf") if self.updated_at is None else self.clock() - self.updated_at

    async def run(self) -> None:
        """Follow for ever."""
        follower = Reflector(self.client, self.path, self._hear, self.compare, self._alive)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follower.run())
            tasks.create_task(self._sweep())

    async def _sweep(self) -> None:
        await self.synced.wait()
        while True:
            await asyncio.sleep(self.sweep_seconds)
            try:
                await self.compare()
            except (KubeError, KubeUnreachable) as error:
                log.warning("informer.sweep_failed", path=self.path, error=str(error))

    async def compare(self) -> str:
        """Put right what differs from a list; returns the list's resourceVersion.

        Versions tell which is newer: what was heard after the list was made stays.

        Raises:
            KubeError, KubeUnreachable: nothing is known.
        """
        listed, version = await self.client.listed(self.path, self._put)
        for key in [key for key, at in self._versions.items() if key not in listed and at <= int(version)]:
            self._remove(key, int(version))
        self._gone = {key: at for key, at in self._gone.items() if at > int(version)}
        self._alive()
        self.synced.set()
        return version

    def _alive(self) -> None:
        self.updated_at = self.clock()

    def _hear(self, type_: str, raw: JSONObject) -> None:
        if type_ == "DELETED":
            self._remove(key_of(raw), int(raw["metadata"]["resourceVersion"]))
        else:
            self._put(raw)

    def _put(self, raw: JSONObject) -> None:
        key, version = key_of(raw), int(raw["metadata"]["resourceVersion"])
        if version > max(self._versions.get(key, 0), self._gone.get(key, 0)):
            self._versions[key] = version
            self._gone.pop(key, None)
            self.sink.put(raw)

    def _remove(self, key: ObjectKey, version: int) -> None:
        if self._versions.get(key, 0) > version:
            return
        self._gone[key] = version
        if self._versions.pop(key, None) is not None:
            self.sink.remove(key)
