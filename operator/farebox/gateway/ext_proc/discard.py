"""Discards the bodies of calls that are refused by their heads, so that their clients receive the response.

Envoy would answer such a call immediately and close the connection while the client still sends. A client
that writes before it reads then gets a broken pipe instead of the response. So Envoy streams a large body
here, as to an upstream, and buffers nothing. The response arrives in a header. It is sent back when the body
is complete or stalls. Nothing is decided or forwarded here.
"""

import asyncio
import base64
from typing import Final

import msgspec

from farebox.gateway.ext_proc.frames import Headers, literal_block
from farebox.gateway.ext_proc.messages import InvalidMessage
from farebox.gateway.ext_proc.streams import Stream
from farebox.gateway.interface import ImmediateResponse

PATH: Final = b"/refused"
HEADER: Final = "x-gw-refusal"
SMALL_BYTES: Final = 32 * 1024
"""Sockets buffer a body of this size, so its client has sent it before it reads the response."""
MAX_BODIES: Final = 32
"""The maximum of concurrent bodies. Further calls are answered immediately."""
BYTES_BURST: Final = 128 * 2**20
BYTES_PER_SECOND: Final = 8 * 2**20
"""The bytes that are discarded, in all bodies. Beyond them, calls are answered immediately."""
QUIET_SECONDS: Final = 0.2
"""A client that sends nothing for this time is waiting for its response."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(ImmediateResponse).decode


def encode_response(response: ImmediateResponse) -> str:
    """A response as the value of HEADER."""
    return base64.b64encode(_encode(response)).decode()


class BodyDiscarder:
    """Accepts the bodies to discard, and counts them."""

    def __init__(self) -> None:
        self.count = 0
        self._bytes = 0.0
        self._at = 0.0

    @property
    def full(self) -> bool:
        """Whether no more bodies are accepted."""
        return self.count >= MAX_BODIES or self._bytes_left() > BYTES_BURST

    def discarded(self, size: int) -> None:
        """Count bytes that were discarded."""
        self._bytes = self._bytes_left() + size
        self._at = asyncio.get_running_loop().time()

    def _bytes_left(self) -> float:
        elapsed = asyncio.get_running_loop().time() - self._at
        return max(0.0, self._bytes - elapsed * BYTES_PER_SECOND)

    def accept(self, stream: Stream, headers: Headers) -> "DiscardedBody":
        """The receiver of a body. Raises InvalidMessage if the header has no response."""
        name = HEADER.encode()
        value = next((value for key, value in headers if key == name), b"")
        try:
            return DiscardedBody(self, stream, _decode(base64.b64decode(value)))
        except (ValueError, msgspec.MsgspecError) as error:
            raise InvalidMessage("body without a response") from error


class DiscardedBody:
    """A body that is discarded."""

    def __init__(self, discarder: BodyDiscarder, stream: Stream, response: ImmediateResponse) -> None:
        self._discarder = discarder
        self._stream = stream
        self._response = response
        self._active = False
        self._timer = asyncio.get_running_loop().call_later(QUIET_SECONDS, self._check_idle)
        discarder.count += 1

    def data(self, chunk: bytes) -> None:
        """See Receiver. The bytes are dropped."""
        self._active = True
        self._discarder.discarded(len(chunk))

    def ended(self) -> None:
        """See Receiver. The client reads the response now."""
        self._end()
        names = self._response.headers.items()
        head = [(b":status", str(self._response.status).encode())]
        head += [(name.encode(), value.encode("latin-1")) for name, value in names]
        head.append((b"content-length", str(len(self._response.body)).encode()))
        self._stream.start(literal_block(head))
        self._stream.send(self._response.body)
        self._stream.finish(b"")

    def gone(self) -> None:
        """See Receiver."""
        self._end()

    def _check_idle(self) -> None:
        if not self._active:
            self.ended()
            return
        self._active = False
        self._timer = asyncio.get_running_loop().call_later(QUIET_SECONDS, self._check_idle)

    def _end(self) -> None:
        self._timer.cancel()
        self._discarder.count -= 1
