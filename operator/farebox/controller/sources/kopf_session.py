"""The watches: every event goes into the cache, and the keys it concerns into the queue. Nothing else.

Farebox's own kinds come through Kopf's handlers, the backends' Deployments and Services through watches of
our own (docs/decisions/001, 007). Handlers do no I/O and never raise, because nobody retries here; the queue
owns all retries. Kopf stores nothing on the objects: no finalizers, no annotations, no Events of its own.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import aiohttp
import kopf

from farebox.api import GROUP, KINDS, VERSION
from farebox.controller.queue import Kind
from farebox.controller.sources.kopf_filter import Cached, ListTracker, drop_known_events
from farebox.controller.sources.resync import Resync
from farebox.kube.client import KubeClient, tls_context
from farebox.kube.reflector import Reflector
from farebox.metrics import WATCH_EVENTS
from farebox.sockets import connector

JSONObject = dict[str, Any]
Observe = Callable[[Kind, str, JSONObject], None]
"""Takes a kind, "ADDED", "MODIFIED" or "DELETED", and the object."""


_CLUSTERWIDE: Final = {Kind(kind): (GROUP, VERSION, info.plural) for kind, info in KINDS.items()} | {
    Kind.NAMESPACE: ("", "v1", "namespaces")
}
_OF_BACKENDS: Final = {
    Kind.DEPLOYMENT: ("apps", "v1", "deployments"),
    Kind.ENDPOINT: ("", "v1", "services"),
}
_SERVER_SECONDS: Final = 240
"""A watch ends after so long, and connects anew."""
_DEAF_SECONDS: Final = _SERVER_SECONDS + 60
_CHUNK: Final = 500
_IDLE_SECONDS: Final = 0.5


@dataclass
class Watches:
    """When each watch was last accepted by the API server. One that is alive connects anew all the time."""

    clock: Callable[[], float] = time.monotonic
    _connected: dict[str, float] = field(default_factory=dict)

    def connected(self, plural: str) -> None:
        """The API server accepted a watch of this kind."""
        self._connected[plural] = self.clock()

    def never_connected(self) -> list[Kind]:
        """Kinds whose watch was not accepted yet."""
        return [kind for kind, place in self._all().items() if place[2] not in self._connected]

    def silent(self) -> list[Kind]:
        """Kinds whose watch was accepted, but should have connected anew since."""
        now = self.clock()
        return [
            kind
            for kind, place in self._all().items()
            if now - self._connected.get(place[2], now) > _DEAF_SECONDS
        ]

    @staticmethod
    def _all() -> dict[Kind, tuple[str, str, str]]:
        return _CLUSTERWIDE | _OF_BACKENDS

    def run(
        self, client: KubeClient, sweep: Resync, observe: Observe, stop: asyncio.Event
    ) -> list[asyncio.Task[None]]:
        """Watch Farebox's kinds and Namespaces everywhere, and the backends in their namespace only.

        Returns the running tasks. Any one's end is the end of the process: a watch that Kopf gives up makes
        the operator start anew.
        """
        backends = [
            asyncio.create_task(
                self._follower(kind, client, sweep, observe).run(sweep.initial_versions[kind]),
                name=f"watch of {kind}",
            )
            for kind in _OF_BACKENDS
        ]
        # Kopf last: it cancels tasks that are made after it started.
        return [*backends, _run_kopf(client, self, sweep, observe, stop)]

    def _follower(self, kind: Kind, client: KubeClient, sweep: Resync, observe: Observe) -> Reflector:
        plural, events = _OF_BACKENDS[kind][2], WATCH_EVENTS.labels(kind)

        def hear(type_: str, raw: JSONObject) -> None:
            events.inc()
            observe(kind, type_, raw)

        return Reflector(
            client,
            sweep.path(kind),
            hear,
            relist=lambda: sweep.relist(kind),
            alive=lambda: self.connected(plural),
        )


def _run_kopf(
    client: KubeClient, watches: Watches, sweep: Resync, observe: Observe, stop: asyncio.Event
) -> asyncio.Task[None]:
    readers = {
        place[2]: (sweep.cache.store(kind).version, ListTracker(partial(sweep.remove_absent, kind)))
        for kind, place in _CLUSTERWIDE.items()
    }
    registry = kopf.OperatorRegistry()
    for kind, (group, version, plural) in _CLUSTERWIDE.items():
        kopf.on.event(group, version, plural, id=str(kind), registry=registry)(_handler(kind, observe))
    kopf.on.login(registry=registry)(_login(client, watches, readers))
    return asyncio.create_task(
        kopf.operator(
            registry=registry, settings=_settings(), clusterwide=True, standalone=True, stop_flag=stop
        ),
        name="watches of Farebox's kinds",
    )


def _handler(kind: Kind, observe: Observe) -> Callable[..., Any]:
    events = WATCH_EVENTS.labels(kind)

    async def on_event(event: dict[str, Any], **_: Any) -> None:
        events.inc()
        # Kopf's first list comes with no type.
        observe(kind, event["type"] or "ADDED", event["object"])

    return on_event


def _login(
    client: KubeClient, watches: Watches, readers: Mapping[str, tuple[Cached, ListTracker]]
) -> Callable[..., Any]:
    """The operator's own credentials and TLS settings for Kopf; it asks again after a 401.

    The token is read anew for each request, because a ServiceAccount's is replaced every hour.
    """
    configuration = client.configuration

    async def authorize(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if token := await configuration.get_api_key_with_prefix("BearerToken"):
            request.headers["Authorization"] = token.strip()
        response = await handler(request)
        plural = request.url.path.rpartition("/")[2]
        if response.status == 200 and plural in readers:
            if request.url.query.get("watch") == "true":
                watches.connected(plural)
            drop_known_events(response, *readers[plural])
        return response

    async def login(**_: Any) -> kopf.AiohttpSession:
        connections = connector(limit=0, ssl=tls_context(configuration))
        # Not compressed, as in KubeClient.
        headers = {"Accept-Encoding": "identity"}
        session = aiohttp.ClientSession(connector=connections, headers=headers, middlewares=(authorize,))
        return kopf.AiohttpSession(server=configuration.host, aiohttp_session=session)

    return login


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = _SERVER_SECONDS
    settings.watching.client_timeout = _SERVER_SECONDS + 10
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    # Each worker keeps an object's last event while it idles: not thousands of them after a first list.
    settings.watching.chunk_size = _CHUNK
    settings.queueing.idle_timeout = _IDLE_SECONDS
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.persistence.progress_storage = _NoProgress()
    return settings


class _NoDiffBase(kopf.DiffBaseStorage):
    """Keeps no last-seen state: `on.event` does not need one, and comparing costs CPU."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """Keeps no handlers' progress: there is nothing to resume."""

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: Any) -> Any:
        return essence
