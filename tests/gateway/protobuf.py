"""A reader and writer of protobuf that shares nothing with the gateway's."""

from collections.abc import Iterable, Mapping


def varint(value: int) -> bytes:
    """A number in protobuf's way."""
    out = []
    while True:
        value, low = divmod(value, 128)
        out.append(low | (128 if value else 0))
        if not value:
            return bytes(out)


def field(number: int, content: bytes | int) -> bytes:
    """A field: bytes with their length, or a number."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def fields(message: bytes) -> dict[int, list[bytes]]:
    """All fields of a message; numbers as the bytes of their varints."""
    found: dict[int, list[bytes]] = {}
    rest = message
    while rest:
        key, rest = _take(rest)
        if key & 7 == 2:
            size, rest = _take(rest)
            found.setdefault(key >> 3, []).append(rest[:size])
            rest = rest[size:]
        else:
            assert key & 7 == 0
            value, rest = _take(rest)
            found.setdefault(key >> 3, []).append(varint(value))
    return found


def headers_message(headers: Mapping[str, str] | Iterable[tuple[str, str]], end: bool) -> bytes:
    """A ProcessingRequest with request_headers, as Envoy writes it."""
    items = headers.items() if isinstance(headers, Mapping) else headers
    entries = b"".join(
        field(1, field(1, name.encode()) + field(3, value.encode("latin-1"))) for name, value in items
    )
    unknown = field(9, b"attributes") + field(11, field(1, 2))
    return field(2, field(1, entries) + (field(3, 1) if end else b"")) + unknown


def _take(data: bytes) -> tuple[int, bytes]:
    value = 0
    for index, byte in enumerate(data):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, data[index + 1 :]
    raise AssertionError("cut off")
