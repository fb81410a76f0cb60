"""Removes from the API server's answers to Kopf what the cache has already (docs/decisions/008).

The answer to a write goes into the cache, and the watch reports the same version a moment later. During a
mass stop nearly all events of services are such repetitions, and at a start the cache is full before Kopf
lists. Kopf spends 0.5 ms and more on each event; this filter spends some microseconds. It removes objects of
which the cache has this version or a newer one. Deletions, bookmarks and unreadable lines pass unchanged.

Kopf lists again when a watch lost its place, and does not report what the new list lacks. `ListTracker` does.
"""

from collections.abc import AsyncIterator, Set
from typing import Any, cast

import aiohttp
import msgspec

from farebox.domain.keys import ObjectKey
from farebox.kube.reflector import Reflector

_REMOVABLE = ("ADDED", "MODIFIED")


class _Metadata(msgspec.Struct):
    name: str = ""
    namespace: str = ""
    resourceVersion: str = ""


class _Object(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.metadata.namespace, self.metadata.name)


class _ListMetadata(msgspec.Struct):
    resourceVersion: str
    token: str = msgspec.field(name="continue", default="")


class _Event(msgspec.Struct):
    type: str
    object: _Object


_read_event = msgspec.json.Decoder(_Event).decode
_read_object = msgspec.json.Decoder(_Object).decode
_read_page = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_list_metadata = msgspec.json.Decoder(_ListMetadata).decode


class ListTracker:
    """Follows Kopf's lists of one kind, and removes from the cache what a complete list lacks."""

    def __init__(self, reflector: Reflector) -> None:
        self.version_of = reflector.store.version
        self._remove_absent = reflector.remove_absent
        self._next_token = ""
        self._keys: set[ObjectKey] = set()

    def add_page(self, token: str, keys: Set[ObjectKey], version: int, next_token: str) -> None:
        """Add a page of a list.

        Args:
            token: the continue token of its request, "" for a first page. A page that does not continue the
                pages so far is ignored, and its list never becomes complete.
            next_token: the continue token of the next page; "" for the last page.
        """
        if token != (self._next_token if token else ""):
            return
        self._keys = self._keys | keys if token else set(keys)
        self._next_token = next_token
        if not next_token:
            self._remove_absent(self._keys, version)
            self._keys = set()


class FilteredStream:
    """The content of an answer without the objects that the cache has."""

    def __init__(self, content: aiohttp.StreamReader, tracker: ListTracker, token: str) -> None:
        self._content = content
        self._tracker = tracker
        self._token = token

    def __getattr__(self, name: str) -> Any:
        """Delegate what else aiohttp does with the content of an answer, such as closing it."""
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Yield the events of a watch, as whole lines."""
        rest = b""
        async for chunk in self._content.iter_chunked(size):
            *lines, rest = (rest + chunk).split(b"\n")
            if unknown := b"".join(line + b"\n" for line in lines if not self._is_known_event(line)):
                yield unknown
        if rest:
            yield rest

    async def read(self) -> bytes:
        """Return a page of a list; one that cannot be read is returned unchanged."""
        body = await self._content.read()
        try:
            page = _read_page(body)
            items = [(_read_object(item), item) for item in _read_items(page["items"])]
            unknown = [item for found, item in items if not self._is_known(found)]
            metadata = _read_list_metadata(page["metadata"])
            version = int(metadata.resourceVersion)
        except (msgspec.MsgspecError, KeyError, ValueError):
            return body
        self._tracker.add_page(self._token, {found.key for found, _ in items}, version, metadata.token)
        page["items"] = msgspec.Raw(msgspec.json.encode(unknown))
        return msgspec.json.encode(page)

    def _is_known_event(self, line: bytes) -> bool:
        try:
            event = _read_event(line)
            return event.type in _REMOVABLE and self._is_known(event.object)
        except (msgspec.MsgspecError, ValueError):
            return False

    def _is_known(self, found: _Object) -> bool:
        """Raises ValueError for an object without a resourceVersion."""
        return self._tracker.version_of(found.key) >= int(found.metadata.resourceVersion)


def drop_known_events(response: aiohttp.ClientResponse, tracker: ListTracker) -> None:
    """Filter the answer to a list or a watch of one kind. Call it before the content is read."""
    token = response.url.query.get("continue", "")
    response.content = cast(aiohttp.StreamReader, FilteredStream(response.content, tracker, token))
