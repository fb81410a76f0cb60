"""A small HTTP/2 server (RFC 9113) for one kind of client: an Envoy on the same machine that calls over gRPC.

It keeps the protocol's promises, flow control both ways among them, and hands bytes to a receiver for each
stream. It never reads a message, never decides, and has no TLS: the socket's file mode is who may connect.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Final, cast

import structlog

from farebox.gateway.ext_proc import frames
from farebox.gateway.ext_proc.frames import (
    ACK,
    CONTINUATION,
    DEFAULT_FRAME,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    MAX_WINDOW,
    PREFACE,
    HeaderBlocks,
    Headers,
    ProtocolError,
)
from farebox.gateway.ext_proc.streams import Receiver, Stream

MAX_STREAMS: Final = 4096
"""At the same time on one connection; a client opens another connection for more."""
STREAM_WINDOW: Final = 1024 * 1024
"""Bytes that a client may send on a stream before any of them are taken."""
CONNECTION_WINDOW: Final = 64 * 1024 * 1024
_TOGETHER: Final = 8
"""Frames that are sent in one piece at most."""

_log = structlog.get_logger(__name__)


Accept = Callable[[Stream, Headers], Receiver]


class Connection(asyncio.Protocol):
    """One client. What is written in a pass of the loop and the next goes out in pieces of a few frames: they
    share a system call, and the client goes on with the first answers while the next are made."""

    def __init__(self, accept: Accept, connections: set["Connection"]) -> None:
        self._accept = accept
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._in = b""
        self._out: list[bytes] = []
        self._flush_is_due = False
        self._preface_seen = False
        self._blocks = HeaderBlocks()
        self._open_block: tuple[int, int, bytearray] | None = None
        self._streams: dict[int, Stream] = {}
        self._unread: dict[int, Callable[[], None]] = {}
        self._last_id = 0
        self._window = DEFAULT_WINDOW
        self._peer_stream_window = DEFAULT_WINDOW
        self._consumed = 0
        self._closing = False
        self._paused = False

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say the settings first."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._connections.add(self)
        # A piece goes out when it is written, not at the end; streams keep what the socket does not take.
        self._transport.set_write_buffer_limits(high=0)
        self.write(
            frames.settings(
                {
                    frames.HEADER_TABLE_SIZE: 0,
                    frames.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                    frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                    frames.MAX_HEADER_LIST: frames.MAX_BLOCK,
                }
            )
        )
        self.write(frames.window_update(0, CONNECTION_WINDOW - DEFAULT_WINDOW))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell all streams."""
        self._connections.discard(self)
        self._transport = None
        for stream in list(self._streams.values()):
            self.forget(stream)
        for unread in self._unread.values():
            unread()
        self._unread.clear()

    def pause_writing(self) -> None:
        """The socket is full: streams keep their bytes."""
        self._paused = True

    def resume_writing(self) -> None:
        """The socket takes bytes again."""
        self._paused = False
        self._flush_all()

    def data_received(self, data: bytes) -> None:
        """All whole frames in what has come."""
        if self._closing:
            return
        try:
            self._read_frames(self._in + data if self._in else data)
        except ProtocolError as error:
            _log.warning("http2 client broke the protocol", code=error.code, error=str(error))
            self._end(error.code, str(error))

    # What streams call.

    def write(self, data: bytes) -> None:
        """Send with _TOGETHER frames, or at the end of the loop's next pass, in which the tasks run that this
        one begins."""
        self._out.append(data)
        if len(self._out) >= _TOGETHER:
            self._send_out()
        elif not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._loop.call_soon, self._write_out)

    def takes(self, stream: Stream, size: int) -> bool:
        """Whether a frame of this size can go now; its bytes are then taken from the windows."""
        if size > DEFAULT_FRAME or size > stream.window or size > self._window or self._paused:
            return False
        stream.window -= size
        self._window -= size
        return True

    def flush(self, stream: Stream) -> None:
        """Send what the windows allow of what waits, and the trailers when nothing waits any more."""
        waiting = stream.waiting
        while waiting:
            size = min(len(waiting), DEFAULT_FRAME, stream.window, self._window)
            if size <= 0 or not self.takes(stream, size):
                return
            self.write(frames.frame(frames.DATA, 0, stream.id, bytes(waiting[:size])))
            del waiting[:size]
        if stream.trailers is not None:
            # Trailers end a call of gRPC: a client that reads them resets its side.
            self.write(frames.frame(frames.HEADERS, END_HEADERS | END_STREAM, stream.id, stream.trailers))
            if stream.unread is not None:
                self._await_reading(stream, stream.unread)
            self.forget(stream, tell=False)

    def _await_reading(self, stream: Stream, unread: Callable[[], None]) -> None:
        """A client that ends its side by itself did so without having read the trailers."""
        if stream.remote_ended:
            unread()
            return
        if len(self._unread) >= MAX_STREAMS:
            self._unread.clear()  # by a client that says neither; nothing is wrong with that
        self._unread[stream.id] = unread

    def forget(self, stream: Stream, tell: bool = True) -> None:
        """The stream is over; frames that still come for it are ignored."""
        if stream.closed:
            return
        stream.closed = True
        stream.waiting.clear()
        self._streams.pop(stream.id, None)
        if tell and stream.receiver is not None:
            stream.receiver.gone()
        if tell and stream.unread is not None:
            stream.unread()
        # They know the stream, too: apart they are freed at once, by no search that stops the loop.
        stream.receiver = stream.unread = None

    def close(self) -> None:
        """End the connection, after what is already written."""
        if self._transport is not None and not self._closing:
            self._end(frames.NO_ERROR, "")

    # Reading.

    def _read_frames(self, data: bytes) -> None:
        position, end = 0, len(data)
        if not self._preface_seen:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise ProtocolError(frames.PROTOCOL_ERROR, "this is not HTTP/2")
            if end < len(PREFACE):
                self._in = data
                return
            self._preface_seen = True
            position = len(PREFACE)
        while end - position >= 9:
            high, low, kind, flags, stream_id = frames.HEAD.unpack_from(data, position)
            size = high << 8 | low
            if size > DEFAULT_FRAME:
                raise ProtocolError(frames.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
            behind = position + 9 + size
            if behind > end:
                break
            self._frame(kind, flags, stream_id & MAX_WINDOW, data[position + 9 : behind])
            position = behind
        self._in = data[position:]

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._open_block is not None and kind != CONTINUATION:
            raise ProtocolError(frames.PROTOCOL_ERROR, "a header block was not finished")
        if kind == frames.DATA:
            self._on_data(flags, stream_id, payload)
        elif kind == frames.HEADERS:
            block = frames.unpadded(flags, payload)
            self._on_block(flags, stream_id, flags, block[5:] if flags & frames.PRIORITIZED else block)
        elif kind == CONTINUATION:
            self._on_continuation(flags, stream_id, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == frames.RST_STREAM:
            self._on_reset(stream_id, payload)
        elif kind == frames.SETTINGS:
            self._on_settings(flags, stream_id, payload)
        elif kind == frames.PING:
            self._on_ping(flags, stream_id, payload)
        elif kind == frames.PUSH_PROMISE:
            raise ProtocolError(frames.PROTOCOL_ERROR, "clients do not push")
        # GOAWAY: the client ends the connection itself. PRIORITY and unknown kinds are ignored.

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        stream = self._known(stream_id)
        self._consumed += len(payload)
        if self._consumed > CONNECTION_WINDOW:
            raise ProtocolError(frames.FLOW_CONTROL_ERROR, "more data than the connection's window")
        if self._consumed > CONNECTION_WINDOW // 2:
            self.write(frames.window_update(0, self._consumed))
            self._consumed = 0
        if stream is None:
            if flags & END_STREAM and (unread := self._unread.pop(stream_id, None)):
                unread()
            return
        if stream.remote_ended:
            stream.abort(frames.STREAM_CLOSED)
            return
        stream.received += len(payload)
        if stream.received > STREAM_WINDOW:
            stream.abort(frames.FLOW_CONTROL_ERROR)
            return
        ends = bool(flags & END_STREAM)
        if stream.received > STREAM_WINDOW // 2 and not ends:
            self.write(frames.window_update(stream_id, stream.received))
            stream.received = 0
        stream.remote_ended = ends
        assert stream.receiver is not None
        stream.receiver.data(frames.unpadded(flags, payload))
        if ends and not stream.closed:
            stream.receiver.ended()

    def _on_block(self, flags: int, stream_id: int, first_flags: int, block: bytes) -> None:
        if not flags & END_HEADERS:
            self._open_block = (stream_id, first_flags, bytearray(block))
            return
        self._open_block = None
        headers = self._blocks.read(block)
        stream = self._known(stream_id, may_be_new=True)
        if stream is not None:
            self._on_trailers(stream, first_flags)
        elif stream_id > self._last_id:
            self._on_request(stream_id, first_flags, headers)

    def _on_request(self, stream_id: int, flags: int, headers: Headers) -> None:
        self._last_id = stream_id
        stream = Stream(self, stream_id, self._peer_stream_window)
        if len(self._streams) >= MAX_STREAMS:
            stream.abort(frames.REFUSED_STREAM)
            return
        self._streams[stream_id] = stream
        stream.remote_ended = bool(flags & END_STREAM)
        receiver = self._accept(stream, headers)
        if stream.closed:
            return
        stream.receiver = receiver
        if stream.remote_ended:
            receiver.ended()

    def _on_trailers(self, stream: Stream, flags: int) -> None:
        if stream.remote_ended or not flags & END_STREAM:
            raise ProtocolError(frames.PROTOCOL_ERROR, "headers in the middle of a stream")
        stream.remote_ended = True
        assert stream.receiver is not None
        stream.receiver.ended()

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._open_block is None or self._open_block[0] != stream_id:
            raise ProtocolError(frames.PROTOCOL_ERROR, "a continuation of nothing")
        _, first_flags, block = self._open_block
        block += payload
        if len(block) > frames.MAX_BLOCK:
            raise ProtocolError(frames.ENHANCE_YOUR_CALM, "too many headers")
        if flags & END_HEADERS:
            self._on_block(flags, stream_id, first_flags, bytes(block))

    def _known(self, stream_id: int, may_be_new: bool = False) -> Stream | None:
        """The stream if it is open, None if it is over, or new. Raises ProtocolError if it cannot be."""
        stream = self._streams.get(stream_id)
        if stream is None and (stream_id % 2 == 0 or (stream_id > self._last_id and not may_be_new)):
            raise ProtocolError(frames.PROTOCOL_ERROR, f"there is no stream {stream_id}")
        return stream

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ProtocolError(frames.FRAME_SIZE_ERROR, "a window update must have 4 bytes")
        increment = int.from_bytes(payload, "big") & MAX_WINDOW
        if stream_id == 0:
            self._window += increment
            if increment == 0 or self._window > MAX_WINDOW:
                raise ProtocolError(frames.FLOW_CONTROL_ERROR, "the connection's window cannot be so")
            self._flush_all()
        elif (stream := self._known(stream_id)) is not None:
            stream.window += increment
            if increment == 0 or stream.window > MAX_WINDOW:
                stream.abort(frames.FLOW_CONTROL_ERROR)
            else:
                self.flush(stream)

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ProtocolError(frames.FRAME_SIZE_ERROR, "a reset must have 4 bytes")
        if (stream := self._known(stream_id)) is not None:
            self.forget(stream)
        else:
            self._unread.pop(stream_id, None)

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) % 6 or (flags & ACK and payload):
            raise ProtocolError(frames.FRAME_SIZE_ERROR, "settings cannot be so")
        if flags & ACK:
            self._blocks.forbid_table()
            return
        # The client reckons with the new windows from the acknowledgement on: it goes before any data.
        self.write(frames.frame(frames.SETTINGS, ACK, 0))
        for name, value in struct.iter_unpack(">HL", payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                self._set_stream_windows(value)

    def _set_stream_windows(self, value: int) -> None:
        if value > MAX_WINDOW:
            raise ProtocolError(frames.FLOW_CONTROL_ERROR, "a window is at most 2^31 - 1")
        difference = value - self._peer_stream_window
        self._peer_stream_window = value
        for stream in self._streams.values():
            stream.window += difference
        self._flush_all()

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) != 8:
            raise ProtocolError(frames.FRAME_SIZE_ERROR, "a ping must have 8 bytes")
        if not flags & ACK:
            self.write(frames.frame(frames.PING, ACK, 0, payload))

    # Writing.

    def _flush_all(self) -> None:
        for stream in list(self._streams.values()):
            if stream.waiting:
                self.flush(stream)

    def _write_out(self) -> None:
        self._flush_is_due = False
        self._send_out()

    def _send_out(self) -> None:
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _end(self, code: int, reason: str) -> None:
        self._closing = True
        self.write(frames.goaway(self._last_id, code, reason))
        self._send_out()
        if self._transport is not None:
            self._transport.close()
