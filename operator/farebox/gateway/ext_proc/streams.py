"""The streams of the HTTP/2 server: what the application holds of one, and what it has to be for it."""

from collections.abc import Callable
from typing import Protocol

from farebox.gateway.ext_proc import frames
from farebox.gateway.ext_proc.frames import END_HEADERS


class Output(Protocol):
    """The connection, as its streams use it."""

    def write(self, data: bytes) -> None:
        """Send whole frames, in this order."""

    def takes(self, stream: "Stream", size: int) -> bool:
        """Whether a frame of this size can go now; its bytes are then taken from the windows."""

    def flush(self, stream: "Stream") -> None:
        """Send what the windows allow of what waits, and the trailers when nothing waits any more."""

    def forget(self, stream: "Stream") -> None:
        """The stream is over."""


class Receiver(Protocol):
    """The application's end of a stream."""

    def data(self, chunk: bytes) -> None:
        """Some bytes came."""

    def ended(self) -> None:
        """The client will send no more; it still listens."""

    def gone(self) -> None:
        """The stream was reset, or the connection is lost: nobody listens."""


class Stream:
    """The server's end of a stream: `start`, then `send` as often as need be, then `finish`."""

    __slots__ = (
        "_connection",
        "closed",
        "id",
        "received",
        "receiver",
        "remote_ended",
        "trailers",
        "unread",
        "waiting",
        "window",
    )

    def __init__(self, connection: Output, stream_id: int, window: int) -> None:
        self._connection = connection
        self.id = stream_id
        self.window = window
        self.receiver: Receiver | None = None
        self.waiting = bytearray()
        self.trailers: bytes | None = None
        self.unread: Callable[[], None] | None = None
        self.received = 0
        self.remote_ended = False
        self.closed = False

    def start(self, block: bytes) -> None:
        """The response's header block."""
        if not self.closed:
            self._connection.write(frames.frame(frames.HEADERS, END_HEADERS, self.id, block))

    def send(self, data: bytes) -> None:
        """Some of the response; it waits here while the client's windows are closed."""
        if self.closed:
            return
        if not self.waiting and self._connection.takes(self, len(data)):
            self._connection.write(frames.frame(frames.DATA, 0, self.id, data))
            return
        self.waiting += data
        self._connection.flush(self)

    def finish(self, block: bytes, unread: Callable[[], None] | None = None) -> None:
        """The trailers, after all that was sent.

        Args:
            unread: is called if the client may not have read them: it has ended its side, or is lost.
        """
        if self.closed:
            return
        self.trailers, self.unread = block, unread
        self._connection.flush(self)

    def abort(self, code: int) -> None:
        """End it without a response."""
        if not self.closed:
            self._connection.write(frames.reset(self.id, code))
            self._connection.forget(self)
