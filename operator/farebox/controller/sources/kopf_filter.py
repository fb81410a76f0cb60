"""Keeps from Kopf what the operator knows already: the first lists, and the echoes of its own writes.

A write's answer goes into the cache; a moment later the watch tells the same again. Kopf would spend half a
millisecond and more on each such event, and during a mass stop nearly all events of services are echoes. A
start is the same: the cache is full before Kopf lists. So what the API server answers to Kopf is read here
first, for a few microseconds an object, and what the cache has in that version, or a newer one, is left out.
Deletions, bookmarks and whatever cannot be read go on. It changes no event, and decides nothing else.

Kopf lists again whenever a watch lost its place, and never tells what is not in that list any more. `Pages`
says what a list had that was read to its end.
"""

from collections.abc import AsyncIterator, Callable, Set
from typing import Any, cast

import aiohttp
import msgspec

from farebox.domain.keys import ObjectKey

Cached = Callable[[ObjectKey], int]
"""The resourceVersion in which the cache has an object of one kind; 0 when it has not."""

Whole = Callable[[Set[ObjectKey], int], None]
"""Takes the keys of all objects that a list had, and its resourceVersion."""

_TELLING = ("ADDED", "MODIFIED")


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
    """The pages of Kopf's lists of one kind, which it asks for one after the other.

    Args:
        whole: called with each list that was read to its end.
    """

    def __init__(self, whole: Whole) -> None:
        self._whole = whole
        self._next = ""
        self._keys: set[ObjectKey] = set()

    def add_page(self, asked: str, found: Set[ObjectKey], version: int, following: str) -> None:
        """A page that was asked for with a token, "" for the first one; `following` is the next one's.

        One that does not follow on what was read says nothing: its list is never whole.
        """
        if asked != (self._next if asked else ""):
            return
        self._keys = self._keys | found if asked else set(found)
        self._next = following
        if not following:
            self._whole(self._keys, version)
            self._keys = set()


class FilteredStream:
    """The content of an answer, of which Kopf reads what is news."""

    def __init__(self, content: aiohttp.StreamReader, cached: Cached, pages: ListTracker, asked: str) -> None:
        self._content = content
        self._cached = cached
        self._pages = pages
        self._asked = asked

    def __getattr__(self, name: str) -> Any:
        """Whatever else aiohttp does with the content of an answer, to close it for instance."""
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """A watch: whole lines, of which each is news."""
        rest = b""
        async for chunk in self._content.iter_chunked(size):
            *lines, rest = (rest + chunk).split(b"\n")
            if news := b"".join(line + b"\n" for line in lines if not self._is_known_event(line)):
                yield news
        if rest:
            yield rest

    async def read(self) -> bytes:
        """A page of a list, of whose items each is news."""
        body = await self._content.read()
        try:
            page = _read_page(body)
            items = [(_read_object(item), item) for item in _read_items(page["items"])]
            news = [item for found, item in items if not self._is_known(found)]
            metadata = _read_list_metadata(page["metadata"])
            version = int(metadata.resourceVersion)
        except (msgspec.MsgspecError, KeyError, ValueError):
            return body
        self._pages.add_page(self._asked, {found.key for found, _ in items}, version, metadata.token)
        page["items"] = msgspec.Raw(msgspec.json.encode(news))
        return msgspec.json.encode(page)

    def _is_known_event(self, line: bytes) -> bool:
        try:
            event = _read_event(line)
            return event.type in _TELLING and self._is_known(event.object)
        except (msgspec.MsgspecError, ValueError):
            return False

    def _is_known(self, found: _Object) -> bool:
        """Raises ValueError for what has no version."""
        return self._cached(found.key) >= int(found.metadata.resourceVersion)


def drop_known_events(response: aiohttp.ClientResponse, cached: Cached, pages: ListTracker) -> None:
    """Leave what is known out of the answer to a list or a watch of one kind that nobody has read yet."""
    asked = response.url.query.get("continue", "")
    response.content = cast(aiohttp.StreamReader, FilteredStream(response.content, cached, pages, asked))
