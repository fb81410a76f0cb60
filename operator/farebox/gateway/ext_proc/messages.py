"""The messages of Envoy's external processing (envoy.service.ext_proc.v3) as protobuf bytes. Pure.

They are encoded by hand, because the gateway reads six and writes nine of hundreds of fields, for every call.
Field numbers are those of Envoy's .proto files, named beside each use. Unknown fields are skipped, as
protobuf requires.
"""

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, cast

import msgspec
from msgspec import Struct

from farebox.gateway.interface import ImmediateResponse, RequestHead, Route
from farebox.gateway.metering.dialects import MAX_REPORTED_TOKENS

CONTINUE: Final = b"\x0a\x00"
"""ProcessingResponse{request_headers: {}}: continue, and send the body."""
LABELS: Final = "farebox"
"""The namespace of the dynamic metadata for the access log."""
ANSWER: Final = "farebox.answer"
"""The namespace of the dynamic metadata for the filter of answers (`envoy.response_filter`)."""
CLUSTER_HEADER: Final = "x-gw-cluster"
PEER_HEADER: Final = "x-gw-peer"
PRIVATE_PREFIX: Final = "x-gw-"
PLAIN_CLUSTER: Final = "upstream"
TLS_CLUSTER: Final = "upstream_tls"
DECISION_CLUSTER: Final = "decision"
REFUSED: Final = "farebox_refused"
"""The response code details of a call that the handler answered itself."""

_REQUEST_ID: Final = "x-request-id"
_NOTHING: Final[frozenset[str]] = frozenset()
_MAX_CACHED_ENTRY: Final = 64
"""Longer header entries are not cached: they may contain a key, and rarely repeat."""
_MAX_CACHED: Final = 4096
_MAX_MUTATIONS: Final = 1024
_CLEAR_ROUTE_CACHE: Final = b"\x28\x01"  # CommonResponse.clear_route_cache = 5
_CLEAR_BODY: Final = b"\x10\x01"  # BodyMutation.clear_body = 2
_ALWAYS_REMOVED: Final = ("accept-encoding",)
"""The usage of a compressed answer could not be read."""


class InvalidMessage(Exception):
    """The bytes are not a message of the protocol, or not one that was requested."""


class HeadersMessage(Struct, frozen=True):
    """The head of a request, and whether it has a body."""

    head: RequestHead
    has_body: bool


# Reading.


def read_request(message: bytes) -> HeadersMessage | bytes:
    """Decode a ProcessingRequest: the head of a call, or its complete body (mode BUFFERED).

    Raises:
        InvalidMessage: it is truncated, or about responses or trailers, which the configuration excludes.
    """
    fields = _fields(message)
    if 2 in fields:  # request_headers: HttpHeaders{headers = 1, end_of_stream = 3}
        request = _fields(fields[2])
        return HeadersMessage(_head(_map(request.get(1, b""))), request.get(3, b"\x00") == b"\x00")
    if 4 in fields:  # request_body: HttpBody{body = 1}
        return _fields(fields[4]).get(1, b"")
    raise InvalidMessage("neither request headers nor a request body")


def long_body(message: bytearray) -> bytes:
    """Decode a ProcessingRequest with a long body (mode BUFFERED): the message becomes that body.

    Nothing is copied, since a copy of some MiB would delay other calls. The result is a bytearray, which all
    readers of a body take for bytes.

    Raises:
        InvalidMessage: it is truncated, or has no request body.
    """
    start, end = 0, len(message)
    for number in (4, 1):  # request_body: HttpBody{body = 1}
        start, end = _span(message, number, start, end)
    del message[end:]
    del message[:start]
    return cast(bytes, message)


def _span(message: bytearray, number: int, position: int, end: int) -> tuple[int, int]:
    """Where the last length-delimited field of this number begins and ends, within a part of a message."""
    found = None
    try:
        while position < end:
            tag, position = _varint(message, position)
            size = 0
            if tag & 7 == 2:
                size, position = _varint(message, position)
                if tag >> 3 == number:
                    found = position, position + size
            elif tag & 7 == 0:
                _, position = _varint(message, position)
            elif tag & 7 in (1, 5):
                size = 8 if tag & 7 == 1 else 4
            else:
                raise InvalidMessage(f"wire type {tag & 7}")
            position += size
    except IndexError:
        raise InvalidMessage("truncated field") from None
    if position > end or found is None:
        raise InvalidMessage("no request body, or a field exceeds its message")
    return found


def _head(entries: list[tuple[str, str]]) -> RequestHead:
    headers, repeated = dict(entries), _NOTHING
    if len(headers) < len(entries):
        headers = dict(reversed(entries))  # the first of each
        times = Counter(name for name, _ in entries)
        repeated = frozenset(name for name in times if times[name] > 1)
    method, path = headers.pop(":method", ""), headers.pop(":path", "")
    headers.pop(":scheme", None)
    authority = headers.pop(":authority", "")
    headers.setdefault("host", authority)
    peer = headers.pop(PEER_HEADER, "")
    return RequestHead(method, path, headers, repeated, peer, headers.get(_REQUEST_ID, ""))


def _map(message: bytes) -> list[tuple[str, str]]:
    """A HeaderMap{headers = 1}. Decoded in place, because it is the longest part of a message."""
    entries = []
    known = _entries.get
    position, end = 0, len(message)
    try:
        while position < end:
            behind = position + 2 + message[position + 1]
            entry = known(message[position:behind])
            if entry is None:
                entry, behind = _entry(message, position)
            entries.append(entry)
            position = behind
    except IndexError:
        raise InvalidMessage("truncated header") from None
    return entries


_entries: dict[bytes, tuple[str, str]] = {}
"""Decoded entries by the bytes of the field, tag and size included."""


def _entry(message: bytes, position: int) -> tuple[tuple[str, str], int]:
    """A HeaderValue{key = 1, value = 2, raw_value = 3} of a map, and the position behind it."""
    if message[position] != 0x0A:
        raise InvalidMessage("unexpected field in a header map")
    size, start = _varint(message, position + 1)
    behind = start + size
    if behind > len(message):
        raise InvalidMessage("header exceeds the header map")
    fields = _fields(message[start:behind])
    name = fields.get(1, b"").decode("latin-1")
    entry = (name, (fields.get(3) or fields.get(2, b"")).decode("latin-1"))
    if size <= _MAX_CACHED_ENTRY and name != _REQUEST_ID and len(_entries) < _MAX_CACHED:
        _entries[message[position:behind]] = entry
    return entry, behind


def _fields(message: bytes) -> dict[int, bytes]:
    """The last occurrence of each field, by number. Varints are bytes; fixed-size fields are skipped."""
    fields = {}
    position, end = 0, len(message)
    try:
        while position < end:
            tag = message[position]
            position += 1
            if tag > 0x7F:
                tag, position = _varint(message, position - 1)
            start, wire = position, tag & 7
            if wire == 2:
                size = message[position]
                start += 1
                if size > 0x7F:
                    size, start = _varint(message, position)
                position = start + size
                fields[tag >> 3] = message[start:position]
            elif wire == 0:
                _, position = _varint(message, position)
                fields[tag >> 3] = message[start:position]
            elif wire in (1, 5):
                position += 8 if wire == 1 else 4
            else:
                raise InvalidMessage(f"wire type {wire}")
    except IndexError:
        raise InvalidMessage("truncated field") from None
    if position > end:
        raise InvalidMessage("field exceeds its message")
    return fields


def _varint(message: bytes | bytearray, position: int) -> tuple[int, int]:
    """The number at a position, and the position behind it. Raises IndexError if it is truncated."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise InvalidMessage("varint exceeds 64 bits")


# Writing.


def continue_request(decision: Route, on_headers: bool, request_id: str = "") -> bytes:
    """The ProcessingResponse that forwards a call to its upstream.

    Args:
        on_headers: whether it answers a headers message (a request without a body) or a body message.
    """
    body = decision.body
    if body is None:
        common = _bytes(2, _mutation(decision)) + _CLEAR_ROUTE_CACHE
    else:
        mutation = _bytes(2, _mutation(decision) + _length_header(len(body)))
        common = mutation + _bytes(3, _bytes(1, body) if body else _CLEAR_BODY) + _CLEAR_ROUTE_CACHE
    # request_headers = 1 or request_body = 3, each {response = 1}; dynamic_metadata = 8
    return _bytes(1 if on_headers else 3, _bytes(1, common)) + _bytes(8, _metadata(decision, request_id))


def discard(path: str, header: str, value: str, removed: Iterable[str]) -> bytes:
    """The ProcessingResponse that sends the body back to this process, with one header."""
    headers = {":path": path, CLUSTER_HEADER: DECISION_CLUSTER, header: value}
    parts = [_bytes(1, _set_header(name, value)) for name, value in headers.items()]
    parts += [_bytes(2, name.encode()) for name in removed]
    return _bytes(1, _bytes(1, _bytes(2, b"".join(parts)) + _CLEAR_ROUTE_CACHE))


def immediate_response(decision: ImmediateResponse) -> bytes:
    """The ProcessingResponse that answers a call directly."""
    mutation = b"".join(_bytes(1, _set_header(name, value)) for name, value in decision.headers.items())
    immediate = _bytes(1, b"\x08" + _number(decision.status)) + _bytes(2, mutation)
    return _bytes(7, immediate + _bytes(3, decision.body) + _bytes(5, REFUSED.encode()))


_mutations: dict[tuple[object, ...], bytes] = {}


def _mutation(decision: Route) -> bytes:
    """HeaderMutation{set_headers = 1, remove_headers = 2}, without content-length.

    Cached, because the calls of a service have the same mutation.
    """
    key = (
        *(decision.path, decision.upstream, decision.tls),
        decision.remove_headers,
        *decision.set_headers.items(),
    )
    known = _mutations.get(key)
    if known is not None:
        return known
    headers = {
        **decision.set_headers,
        ":path": decision.path,
        ":authority": decision.upstream,
        CLUSTER_HEADER: TLS_CLUSTER if decision.tls else PLAIN_CLUSTER,
    }
    parts = [_bytes(1, _set_header(name, value)) for name, value in headers.items()]
    parts += [_bytes(2, name.encode()) for name in (*_ALWAYS_REMOVED, *decision.remove_headers)]
    if len(_mutations) >= _MAX_MUTATIONS:
        _mutations.clear()  # tokens of providers change, and clients choose the removed headers
    made = _mutations[key] = b"".join(parts)
    return made


@lru_cache(_MAX_CACHED)
def _length_header(size: int) -> bytes:
    """HeaderMutation{set_headers = 1} of content-length."""
    return _bytes(1, _set_header("content-length", str(size)))


def _set_header(name: str, value: str) -> bytes:
    """HeaderValueOption{header = 1 {key = 1, raw_value = 3}, append_action = 3: overwrite or add}."""
    return _bytes(1, _bytes(1, name.encode()) + _bytes(3, value.encode("latin-1"))) + b"\x18\x02"


def _metadata(decision: Route, request_id: str) -> bytes:
    """Struct{LABELS: {labels}, ANSWER: {rules, headers}}. Strings, which cost Envoy less than structs.

    Struct{fields = 1: map of string to Value{string_value = 3, struct_value = 5}}.
    """
    labels = _bytes(5, _field(_LABELS_KEY, _encode(decision.labels)))
    answer = _field(_RULES_KEY, _rules(decision) + request_id.encode())
    if decision.response_headers:
        lines = [f"{name}: {value}\n" for name, value in decision.response_headers.items()]
        answer += _field(_HEADERS_KEY, "".join(lines).encode())
    return _bytes(1, _NAMESPACE_KEY + _bytes(2, labels)) + _bytes(
        1, _ANSWER_KEY + _bytes(2, _bytes(5, answer))
    )


def _field(key: bytes, text: bytes) -> bytes:
    """An entry of a Struct with a string."""
    return _bytes(1, key + _bytes(2, _bytes(3, text)))


def _rules(decision: Route) -> bytes:
    """ "DIALECT REDACTION CHOICES BY_CHOICE CEILING ", which the script reads."""
    labels = decision.labels
    ceiling = labels.get("output_ceiling") or labels.get("max_output") or MAX_REPORTED_TOKENS
    return b"%b %b %d %d %b " % (
        decision.dialect.encode(),
        decision.redaction.encode(),
        decision.choices,
        decision.usage_by_choice,
        str(ceiling).encode(),
    )


def _bytes(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    size = len(content)
    if size < 0x80:
        return b"%c%c%b" % (number << 3 | 2, size, content)
    if size < 0x4000:
        return b"%c%c%c%b" % (number << 3 | 2, size & 0x7F | 0x80, size >> 7, content)
    return b"%c%b%b" % (number << 3 | 2, _number(size), content)


def _number(value: int) -> bytes:
    """A varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_encode: Final = msgspec.json.Encoder().encode
_NAMESPACE_KEY: Final = _bytes(1, LABELS.encode())
_LABELS_KEY: Final = _bytes(1, b"labels")
_ANSWER_KEY: Final = _bytes(1, ANSWER.encode())
_RULES_KEY: Final = _bytes(1, b"rules")
_HEADERS_KEY: Final = _bytes(1, b"headers")
