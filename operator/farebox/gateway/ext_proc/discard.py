"""Reads the bodies of calls that their heads refused, and throws them away: only then do clients listen.

Envoy answers such a call at once and closes the connection under the client that still sends; one that writes
before it reads then sees a broken pipe in place of the answer. So Envoy sends a large body here, as to
an upstream and holding nothing of it. The refusal comes along in a header, and goes back when all is read or
when nothing more comes. It decides nothing, and no call is forwarded from here.
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
"""A body of this size is sent before its client hears anything: sockets hold it."""
MOST: Final = 32
"""At a time. Who sends more bodies without a key is answered at once, whether he hears it or not."""
QUIET_SECONDS: Final = 0.2
"""A client that sends nothing for so long waits for its answer."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(ImmediateResponse).decode


def written(refusal: ImmediateResponse) -> str:
    """A refusal as the value of HEADER."""
    return base64.b64encode(_encode(refusal)).decode()


class BodyDiscarder:
    """Those under way."""

    def __init__(self) -> None:
        self.count = 0

    @property
    def full(self) -> bool:
        """Whether no more are taken."""
        return self.count >= MOST

    def accept(self, stream: Stream, headers: Headers) -> "DiscardedBody":
        """The receiver of a body. Raises InvalidMessage if there is no refusal with it."""
        name = HEADER.encode()
        value = next((value for key, value in headers if key == name), b"")
        try:
            return DiscardedBody(self, stream, _decode(base64.b64decode(value)))
        except (ValueError, msgspec.MsgspecError) as error:
            raise InvalidMessage("a body without a refusal") from error


class DiscardedBody:
    """One body."""

    def __init__(self, drains: BodyDiscarder, stream: Stream, refusal: ImmediateResponse) -> None:
        self._drains = drains
        self._stream = stream
        self._refusal = refusal
        self._moved = False
        self._timer = asyncio.get_running_loop().call_later(QUIET_SECONDS, self._look)
        drains.count += 1

    def data(self, chunk: bytes) -> None:
        """See Receiver: thrown away."""
        self._moved = True

    def ended(self) -> None:
        """See Receiver: now the client listens."""
        self._end()
        names = self._refusal.headers.items()
        head = [(b":status", str(self._refusal.status).encode())]
        head += [(name.encode(), value.encode("latin-1")) for name, value in names]
        head.append((b"content-length", str(len(self._refusal.body)).encode()))
        self._stream.start(literal_block(head))
        self._stream.send(self._refusal.body)
        self._stream.finish(b"")

    def gone(self) -> None:
        """See Receiver."""
        self._end()

    def _look(self) -> None:
        if not self._moved:
            self.ended()
            return
        self._moved = False
        self._timer = asyncio.get_running_loop().call_later(QUIET_SECONDS, self._look)

    def _end(self) -> None:
        self._timer.cancel()
        self._drains.count -= 1
