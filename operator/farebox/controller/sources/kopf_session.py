"""Kopf's connection to the API server and its settings: the plumbing behind controller/handlers.py.

Kopf uses the operator's own credentials, and answers pass kopf_filter.py before Kopf reads them. Kopf stores
nothing on objects: no finalizers, no annotations, no Events.
"""

from collections.abc import Mapping
from typing import Any, Final, cast

import aiohttp
import kopf

from farebox.api import KINDS
from farebox.controller.queue import Kind
from farebox.controller.sources.kopf_filter import ListTracker, drop_known_events
from farebox.kube.client import KubeClient, tls_context
from farebox.kube.reflector import Reflector
from farebox.sockets import connector

_PLURALS: Final = {info.plural: Kind(kind) for kind, info in KINDS.items()} | {"namespaces": Kind.NAMESPACE}
_SERVER_SECONDS: Final = 240
"""The API server ends a watch after this time, and Kopf reconnects."""
_CHUNK: Final = 500
_IDLE_SECONDS: Final = 0.5


class KopfSession:
    """What Kopf's handlers need of the operator."""

    def __init__(self, client: KubeClient, reflectors: Mapping[Kind, Reflector]) -> None:
        self._configuration = client.configuration
        self._reflectors = reflectors
        self._lists = {kind: ListTracker(reflectors[kind]) for kind in _PLURALS.values()}

    def observe(self, kind: Kind, event: kopf.RawEvent) -> None:
        """Apply an event to the cache, and report the change. Kopf's first list has events without a type."""
        self._reflectors[kind].on_event(event["type"] or "ADDED", cast(dict[str, Any], event["object"]))

    def login(self) -> kopf.AiohttpSession:
        """Return a session with the operator's credentials and TLS settings."""
        session = aiohttp.ClientSession(
            connector=connector(limit=0, ssl=tls_context(self._configuration)),
            # Not compressed, as in KubeClient.
            headers={"Accept-Encoding": "identity"},
            middlewares=(self._authorize,),
        )
        return kopf.AiohttpSession(server=self._configuration.host, aiohttp_session=session)

    async def _authorize(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send a request with the current token: a ServiceAccount's is replaced every hour."""
        if token := await self._configuration.get_api_key_with_prefix("BearerToken"):
            request.headers["Authorization"] = token.strip()
        response = await handler(request)
        kind = _PLURALS.get(request.url.path.rpartition("/")[2])
        if response.status == 200 and kind is not None:
            if request.url.query.get("watch") == "true":
                self._reflectors[kind].connected()
            drop_known_events(response, self._lists[kind])
        return response


def configure(settings: kopf.OperatorSettings) -> None:
    """Turn off what Farebox does not use of Kopf, and bound its watches and workers."""
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = _SERVER_SECONDS
    settings.watching.client_timeout = _SERVER_SECONDS + 10
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    # Each idle worker keeps the last event of its object: bound how many there are after a first list.
    settings.watching.chunk_size = _CHUNK
    settings.queueing.idle_timeout = _IDLE_SECONDS
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.persistence.progress_storage = _NoProgress()


class _NoDiffBase(kopf.DiffBaseStorage):
    """Keeps no last-seen state: `on.event` needs none, and comparing costs CPU."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """Keeps no progress of handlers: there is nothing to resume."""

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
