"""Keeps from Kopf what the operator knows already: the first lists, and the echoes of its own writes.

A write's answer goes into the cache; a moment later the watch tells the same again. Kopf would spend half a
millisecond and more on each such event, and during a mass stop nearly all events of services are echoes. A
start is the same: the cache is full before Kopf lists. So what the API server answers to Kopf is read here
first, for a few microseconds an object, and what the cache has in that version, or a newer one, is left out.
Deletions, bookmarks and whatever cannot be read go on. It changes no event, and decides nothing else.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import aiohttp
import msgspec

from farebox.domain.keys import ObjectKey

Cached = Callable[[ObjectKey], int]
"""The resourceVersion in which the cache has an object of one kind; 0 when it has not."""

_TELLING = ("ADDED", "MODIFIED")


class _Metadata(msgspec.Struct):
    name: str = ""
    namespace: str = ""
    resourceVersion: str = ""


class _Object(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


class _Event(msgspec.Struct):
    type: str
    object: _Object


_read_event = msgspec.json.Decoder(_Event).decode
_read_object = msgspec.json.Decoder(_Object).decode
_read_page = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _News:
    """The content of an answer, of which Kopf reads what is news."""

    def __init__(self, content: aiohttp.StreamReader, cached: Cached) -> None:
        self._content = content
        self._cached = cached

    def __getattr__(self, name: str) -> Any:
        """Whatever else aiohttp does with the content of an answer, to close it for instance."""
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """A watch: whole lines, of which each is news."""
        rest = b""
        async for chunk in self._content.iter_chunked(size):
            *lines, rest = (rest + chunk).split(b"\n")
            if news := b"".join(line + b"\n" for line in lines if not self._is_echo(line)):
                yield news
        if rest:
            yield rest

    async def read(self) -> bytes:
        """A page of a list, of whose items each is news."""
        body = await self._content.read()
        try:
            page = _read_page(body)
            items = _read_items(page["items"])
            news = [item for item in items if not self._is_known(_read_object(item))]
        except (msgspec.MsgspecError, KeyError, ValueError):
            return body
        page["items"] = msgspec.Raw(msgspec.json.encode(news))
        return msgspec.json.encode(page)

    def _is_echo(self, line: bytes) -> bool:
        try:
            event = _read_event(line)
            return event.type in _TELLING and self._is_known(event.object)
        except (msgspec.MsgspecError, ValueError):
            return False

    def _is_known(self, found: _Object) -> bool:
        """Raises ValueError for what has no version."""
        metadata = found.metadata
        return self._cached(ObjectKey(metadata.namespace, metadata.name)) >= int(metadata.resourceVersion)


def without_echoes(response: aiohttp.ClientResponse, cached: Cached) -> None:
    """Leave what is known out of the answer to a list or a watch of one kind that nobody has read yet."""
    response.content = cast(aiohttp.StreamReader, _News(response.content, cached))
