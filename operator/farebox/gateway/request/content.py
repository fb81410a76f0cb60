"""What a request contains besides text: media, names of stored objects, and tools. Pure.

One walk over the messages finds all three. It visits the objects of messages, their parts and the tools, but
neither the schema nor the arguments of a tool, which a model reads as text.

A piece of media counts a number of tokens instead of its bytes (B28). Text cannot be hidden as media for
free: bytes are left out only where an upstream decodes them as an image, a recording or a file, each such
piece has its own number of tokens, and documents that are text (`text/plain`, JSON and the like) count by
their bytes. The number is an estimate until the call has reported its usage. What a Hard account holds does
not depend on it: a request that is not text only is bounded by the model's context alone.
"""

from collections.abc import Generator, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from farebox.domain.admission.types import NO_MEDIA, Denied, MediaPieces
from farebox.gateway.request.json_objects import Fields, read_object
from farebox.gateway.request.plain import TEXT_TYPES, is_plain, refers

MAX_OBJECTS: Final = 50_000
"""The most objects in messages and tools."""
STEP_OBJECTS: Final = 500
"""Objects between two pauses, about a millisecond."""
STEP_ITEMS: Final = 5_000
"""Items of a list between two pauses."""
STEP_BYTES: Final = 1024 * 1024
"""A pause is made before a longer value is read."""

_KINDS: Final = {
    "image": "images",
    "image_url": "images",
    "input_image": "images",
    "computer_screenshot": "images",
    "audio": "audios",
    "audio_url": "audios",
    "input_audio": "audios",
    "file": "files",
    "input_file": "files",
    "document": "files",
    "video": "videos",
    "video_url": "videos",
    "input_video": "videos",
}
"""The kinds of media by the type of a part, or by its key if it has no type."""
_SLOTS: Final = frozenset({*_KINDS, "url", "data", "file_data", "file_url"})
"""The keys of a part whose text may encode media."""
STORED: Final = frozenset(
    {
        "assistant_id",
        "batch_id",
        "cached_content",
        "container",
        "container_id",
        "conversation",
        "conversation_id",
        "file_id",
        "file_ids",
        "previous_response_id",
        "prompt_id",
        "response_id",
        "skill_id",
        "thread_id",
        "vector_store_id",
        "vector_store_ids",
    }
)
"""Keys whose values name objects that a provider stores under its key, which all callers share."""
_STORED_TYPES: Final = frozenset({"container_upload", "item_reference", "image_file"})
_WALKED: Final = (
    "messages",
    "input",
    "system",
    "prompt",
    "tools",
    "functions",
    "documents",
    "chat_template_kwargs",
)
_NOT_WALKED: Final = frozenset({"parameters", "input_schema", "function", "input", "arguments"})
_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_TEXT: Final = msgspec.json.Decoder(str)
_QUOTE, _LIST, _OBJECT = b'"[{'
_EMPTY: Final = (b"null", b"[]", b'""', b"{}")


class Content(Struct, frozen=True):
    """What a request contains.

    Args:
        text_only: whether there is nothing but text. False if in doubt.
        stored: the first key or type that names an object stored at a provider, or "".
        tools: the types of its tools other than functions.
    """

    text_only: bool = True
    media: MediaPieces = NO_MEDIA
    stored: str = ""
    tools: tuple[str, ...] = ()


PLAIN: Final = Content()


def survey(
    body: bytes, fields: Mapping[str, msgspec.Raw], inputs_field: str = ""
) -> Generator[None, None, Content]:
    """Find what a body contains; it yields after every few objects, so that other calls can go on.

    Args:
        inputs_field: a field that may be a list of strings or token ids (`APIEndpoint.inputs_field`).

    Raises:
        Denied: an object has a duplicate key, since an upstream might read either, or there are too many.
    """
    if is_plain(body, fields, inputs_field):
        return PLAIN
    found = _Survey()
    for name in _WALKED:
        value = fields.get(name)
        if value is not None and not (name == inputs_field and _is_plain(value)):
            yield from found.walk(value, "", "tools" if name == "tools" else "")
    text_only = found.text_only and not any(map(refers, fields))
    media = NO_MEDIA
    if found.counts:
        media = MediaPieces(encoded_bytes=found.encoded_bytes, **found.counts)
    return Content(text_only, media, found.stored, tuple(found.tools))


class _Survey:
    """The walk over the values of a body, and what it has found."""

    def __init__(self) -> None:
        self.text_only = True
        self.encoded_bytes = 0
        self.counts: dict[str, int] = {}
        self.stored = ""
        self.tools: dict[str, None] = {}
        self._objects = 0

    def walk(self, value: msgspec.Raw, part: str, where: str = "") -> Generator[None, None, None]:
        """Walk a list or an object.

        Args:
            part: the kind of media that encloses the value, or "".
            where: "tools" for the list of tools.
        """
        first = memoryview(value)[0]
        if first == _LIST:
            if not _has_object(value):
                return
            if len(memoryview(value)) > STEP_BYTES:
                yield
            for number, item in enumerate(_ITEMS.decode(value), 1):
                if number % STEP_ITEMS == 0:
                    yield
                if memoryview(item)[0] in (_LIST, _OBJECT):
                    yield from self.walk(item, part, where)
        elif first == _OBJECT:
            self._objects += 1
            if self._objects > MAX_OBJECTS:
                raise Denied(400, "too_complex", f"Messages and tools have more than {MAX_OBJECTS} objects")
            if self._objects % STEP_OBJECTS == 0 or len(memoryview(value)) > STEP_BYTES:
                yield
            yield from self._object(read_object(value, "An object of a message or tool"), part, where)

    def _object(self, entries: Fields, part: str, where: str) -> Generator[None, None, None]:
        kind = self._kind(entries, part, where)
        for name, value in entries.items():
            if name in STORED and bytes(value) not in _EMPTY:
                self.stored = self.stored or name
            if refers(name):
                self.text_only = False
            first = memoryview(value)[0]
            if first == _QUOTE:
                if kind and name in _SLOTS and _encodes(value, entries):
                    self.encoded_bytes += len(memoryview(value))
            elif first in (_LIST, _OBJECT) and name not in _NOT_WALKED:
                yield from self.walk(value, kind, "tools" if where and name == "tools" else "")

    def _kind(self, entries: Fields, part: str, where: str) -> str:
        """The kind of media that this object is or belongs to; counts the piece, or the tool."""
        type_ = _text(entries.get("type"))
        if type_ is None:
            self.text_only = False
            type_ = ""
        if part == "audios" and not type_ and "id" in entries:
            self.stored = self.stored or "audio.id"
        if where == "tools":
            if type_ not in ("", "function"):
                self.tools[type_] = None
        elif type_ in _STORED_TYPES:
            self.stored = self.stored or type_
        if type_ and type_ not in TEXT_TYPES:
            self.text_only = False
        kind = _KINDS.get(type_, "")
        if not kind and not type_ and not part:
            kind = next((_KINDS[name] for name in entries if name in _KINDS), "")
        if kind:
            self.counts[kind] = self.counts.get(kind, 0) + 1
        return kind or part


def _is_plain(value: msgspec.Raw) -> bool:
    """Whether a value of `inputs_field` is a list of texts: `body.py` refuses other items behind a text."""
    start = bytes(memoryview(value)[:64])
    return start[:1] == b"[" and start[1:].lstrip()[:1] == b'"'


def _has_object(value: msgspec.Raw) -> bool:
    """Whether a list may contain an object."""
    view = memoryview(value)
    return b"{" in bytes(view[:4096]) or b"{" in bytes(view)


def _text(value: msgspec.Raw | None) -> str | None:
    """The text of a value; "" if it is absent, None if it is not text."""
    if value is None:
        return ""
    try:
        return _TEXT.decode(value)
    except msgspec.DecodeError:
        return None


def _encodes(value: msgspec.Raw, entries: Fields) -> bool:
    """Whether a text encodes media that is not text: a data URL, or base64 beside its media type."""
    start = bytes(memoryview(value)[1:64]).lower()
    if start.startswith(b"data:"):
        return not _is_text(start[5:].decode("latin-1"))
    if "data" not in entries or _text(entries.get("type")) == "text":
        return False
    return not _is_text((_text(entries.get("media_type")) or "").lower())


def _is_text(media_type: str) -> bool:
    return media_type.startswith(("text", "application/json", "application/xml", "application/yaml"))
