"""Streams of the HTTP/2 server, and the interfaces of the connection and the application to them."""

from collections.abc import Callable
from typing import Protocol

from farebox.gateway.ext_proc import frames
from farebox.gateway.ext_proc.frames import END_HEADERS


class Output(Protocol):
    """The connection, as its streams see it."""

    def write(self, data: bytes) -> None:
        """Send complete frames in order."""

    def reserve(self, stream: "Stream", size: int) -> bool:
        """Whether a DATA frame of this size may be sent now; if so, it is deducted from the windows."""

    def flush(self, stream: "Stream") -> None:
        """Send waiting data as the windows allow, and then the trailers."""

    def forget(self, stream: "Stream") -> None:
        """Remove a stream that is over."""


class Receiver(Protocol):
    """The application's end of a stream."""

    def data(self, chunk: bytes) -> None:
        """Receive bytes."""

    def ended(self) -> None:
        """The client has finished sending, and still reads."""

    def gone(self) -> None:
        """The stream was reset, or the connection was lost."""


class Stream:
    """The server's side of a stream: `start`, then any number of `send`, then `finish`."""

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
        """Send the header block of the response."""
        if not self.closed:
            self._connection.write(frames.frame(frames.HEADERS, END_HEADERS, self.id, block))

    def send(self, data: bytes) -> None:
        """Send data of the response. It waits while the client's windows are closed."""
        if self.closed:
            return
        if not self.waiting and self._connection.reserve(self, len(data)):
            self._connection.write(frames.frame(frames.DATA, 0, self.id, data))
            return
        self.waiting += data
        self._connection.flush(self)

    def finish(self, block: bytes, unread: Callable[[], None] | None = None) -> None:
        """Send the trailers after the data.

        Args:
            unread: called if the client may not have read them, because it ended its side or is lost.
        """
        if self.closed:
            return
        self.trailers, self.unread = block, unread
        self._connection.flush(self)

    def abort(self, code: int) -> None:
        """Reset the stream."""
        if not self.closed:
            self._connection.write(frames.reset(self.id, code))
            self._connection.forget(self)
