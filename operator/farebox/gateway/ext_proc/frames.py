"""HTTP/2 frames (RFC 9113, sections 4 and 6) and header blocks (RFC 7541) as bytes, without connection state.

Only what a gRPC server on a local socket needs: no priorities, no push, no padding in sent frames.
"""

import struct
from typing import Final

from hpack import Decoder
from hpack.exceptions import HPACKError

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 0x1, 0x1, 0x4, 0x8, 0x20
(
    HEADER_TABLE_SIZE,
    ENABLE_PUSH,
    MAX_CONCURRENT_STREAMS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST,
) = (
    1,
    2,
    3,
    4,
    5,
    6,
)

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0x0, 0x1, 0x2, 0x3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 0x5, 0x6, 0x7, 0x8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x9, 0xB

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DEFAULT_WINDOW: Final = 65_535
DEFAULT_FRAME: Final = 16_384
"""SETTINGS_MAX_FRAME_SIZE; this server does not raise it."""
MAX_WINDOW: Final = 2**31 - 1
MAX_BLOCK: Final = 64 * 1024
"""The maximum size of a header block in bytes."""
_CACHED_BLOCKS: Final = 256
HEAD: Final = struct.Struct(">HBBBL")
"""The frame header: length in two parts, type, flags, stream."""

Headers = list[tuple[bytes, bytes]]


class ProtocolError(Exception):
    """The client violated the protocol. The connection ends with this error code (RFC 9113, section 7)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A frame. The payload has at most DEFAULT_FRAME bytes."""
    size = len(payload)
    assert size <= DEFAULT_FRAME
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HL", name, value) for name, value in values.items()))


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, struct.pack(">L", increment))


def reset(stream_id: int, code: int) -> bytes:
    """An RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, struct.pack(">L", code))


def goaway(last_stream_id: int, code: int, reason: str = "") -> bytes:
    """A GOAWAY frame."""
    return frame(GOAWAY, 0, 0, struct.pack(">LL", last_stream_id, code) + reason.encode()[:1024])


def literal_block(headers: Headers) -> bytes:
    """A header block of literals (RFC 7541, 6.2.2), without a table. Names and values below 127 bytes."""
    block = bytearray()
    for name, value in headers:
        assert len(name) < 127
        assert len(value) < 127
        block += bytes((0, len(name))) + name + bytes((len(value),)) + value
    return bytes(block)


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of DATA or HEADERS without its padding. Raises ProtocolError."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ProtocolError(PROTOCOL_ERROR, "padding exceeds the payload")
    return payload[1 : len(payload) - payload[0]]


class HeaderBlocks:
    """Decodes header blocks.

    The settings forbid the client a dynamic table (HEADER_TABLE_SIZE 0). Then equal bytes mean equal headers,
    so blocks are cached: Envoy sends the same block for every call.
    """

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=MAX_BLOCK)
        self._known: dict[bytes, Headers] = {}

    def forbid_table(self) -> None:
        """The client has acknowledged the settings."""
        self._decoder.max_allowed_table_size = 0

    def read(self, block: bytes) -> Headers:
        """The headers of a block. Raises ProtocolError."""
        known = self._known.get(block)
        if known is not None:
            return known
        try:
            headers = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except HPACKError as error:
            raise ProtocolError(COMPRESSION_ERROR, f"invalid header block: {error}") from error
        stateless = self._decoder.max_allowed_table_size == 0 and block[:1] and block[0] & 0xE0 != 0x20
        if stateless and len(self._known) < _CACHED_BLOCKS:
            self._known[block] = headers
        return headers
