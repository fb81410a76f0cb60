"""A small HTTP/2 server (RFC 9113) for one kind of client: an Envoy on the same machine that speaks gRPC.

It implements framing and flow control in both directions, and passes bytes to a receiver per stream. It does
not read messages or decide anything, and has no TLS: the mode of the socket's file controls access. README.md
lists the implemented sections.
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
"""Concurrent streams of a connection; for more, a client opens another connection."""
STREAM_WINDOW: Final = 1024 * 1024
"""The flow-control window of a stream, in bytes."""
CONNECTION_WINDOW: Final = 64 * 1024 * 1024
_TOGETHER: Final = 8
"""The maximum of frames in one write to the socket."""

_log = structlog.get_logger(__name__)


Accept = Callable[[Stream, Headers], Receiver]


class Connection(asyncio.Protocol):
    """One client.

    Frames written in one iteration of the event loop and the next are sent together, a few per system call,
    so that the client continues with the first answers while others are computed.
    """

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

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the settings."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class is not a subclass
        self._connections.add(self)
        # Writes are not buffered by the transport: streams keep what the socket does not accept.
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
        """Notify all streams."""
        self._connections.discard(self)
        self._transport = None
        for stream in list(self._streams.values()):
            self.forget(stream)
        for unread in self._unread.values():
            unread()
        self._unread.clear()

    def pause_writing(self) -> None:
        """The socket is full, so streams keep their bytes."""
        self._paused = True

    def resume_writing(self) -> None:
        """The socket accepts bytes again."""
        self._paused = False
        self._flush_all()

    def data_received(self, data: bytes) -> None:
        """Handle the complete frames."""
        if self._closing:
            return
        try:
            self._read_frames(self._in + data if self._in else data)
        except ProtocolError as error:
            _log.warning("http2.protocol_error", code=error.code, error=str(error))
            self._end(error.code, str(error))

    # Called by streams.

    def write(self, data: bytes) -> None:
        """Queue frames. They are sent when there are _TOGETHER, or after the next iteration of the loop, in
        which the tasks run that this iteration creates."""
        self._out.append(data)
        if len(self._out) >= _TOGETHER:
            self._send_out()
        elif not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._loop.call_soon, self._write_out)

    def reserve(self, stream: Stream, size: int) -> bool:
        """See Output."""
        if size > DEFAULT_FRAME or size > stream.window or size > self._window or self._paused:
            return False
        stream.window -= size
        self._window -= size
        return True

    def flush(self, stream: Stream) -> None:
        """See Output."""
        waiting = stream.waiting
        while waiting:
            size = min(len(waiting), DEFAULT_FRAME, stream.window, self._window)
            if size <= 0 or not self.reserve(stream, size):
                return
            self.write(frames.frame(frames.DATA, 0, stream.id, bytes(waiting[:size])))
            del waiting[:size]
        if stream.trailers is not None:
            # Trailers end a gRPC call: a client that reads them resets its side.
            self.write(frames.frame(frames.HEADERS, END_HEADERS | END_STREAM, stream.id, stream.trailers))
            if stream.unread is not None:
                self._await_reading(stream, stream.unread)
            self.forget(stream, notify=False)

    def _await_reading(self, stream: Stream, unread: Callable[[], None]) -> None:
        """Call `unread` if the client ends its side regularly: then it has not read the trailers."""
        if stream.remote_ended:
            unread()
            return
        if len(self._unread) >= MAX_STREAMS:
            self._unread.clear()  # the client neither resets nor ends its streams, which is legal
        self._unread[stream.id] = unread

    def forget(self, stream: Stream, notify: bool = True) -> None:
        """Remove a stream that is over; later frames for it are ignored."""
        if stream.closed:
            return
        stream.closed = True
        stream.waiting.clear()
        self._streams.pop(stream.id, None)
        if notify and stream.receiver is not None:
            stream.receiver.gone()
        if notify and stream.unread is not None:
            stream.unread()
        # They refer to the stream: without the cycle they are freed at once, not by the garbage collector.
        stream.receiver = stream.unread = None

    def close(self) -> None:
        """Close the connection after sending what is written."""
        if self._transport is not None and not self._closing:
            self._end(frames.NO_ERROR, "")

    # Reading.

    def _read_frames(self, data: bytes) -> None:
        position, end = 0, len(data)
        if not self._preface_seen:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise ProtocolError(frames.PROTOCOL_ERROR, "not HTTP/2")
            if end < len(PREFACE):
                self._in = data
                return
            self._preface_seen = True
            position = len(PREFACE)
        while end - position >= 9:
            high, low, kind, flags, stream_id = frames.HEAD.unpack_from(data, position)
            size = high << 8 | low
            if size > DEFAULT_FRAME:
                raise ProtocolError(frames.FRAME_SIZE_ERROR, f"frame of {size} bytes")
            behind = position + 9 + size
            if behind > end:
                break
            self._frame(kind, flags, stream_id & MAX_WINDOW, data[position + 9 : behind])
            position = behind
        self._in = data[position:]

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._open_block is not None and kind != CONTINUATION:
            raise ProtocolError(frames.PROTOCOL_ERROR, "unfinished header block")
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
            raise ProtocolError(frames.PROTOCOL_ERROR, "push from a client")
        # GOAWAY: the client closes the connection itself. PRIORITY and unknown types are ignored.

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        stream = self._known(stream_id)
        self._consumed += len(payload)
        if self._consumed > CONNECTION_WINDOW:
            raise ProtocolError(frames.FLOW_CONTROL_ERROR, "data exceeds the connection window")
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
            raise ProtocolError(frames.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        _, first_flags, block = self._open_block
        block += payload
        if len(block) > frames.MAX_BLOCK:
            raise ProtocolError(frames.ENHANCE_YOUR_CALM, "header block too large")
        if flags & END_HEADERS:
            self._on_block(flags, stream_id, first_flags, bytes(block))

    def _known(self, stream_id: int, may_be_new: bool = False) -> Stream | None:
        """The stream if it is open; None if it is over or new. Raises ProtocolError if the id is invalid."""
        stream = self._streams.get(stream_id)
        if stream is None and (stream_id % 2 == 0 or (stream_id > self._last_id and not may_be_new)):
            raise ProtocolError(frames.PROTOCOL_ERROR, f"stream {stream_id} does not exist")
        return stream

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ProtocolError(frames.FRAME_SIZE_ERROR, "WINDOW_UPDATE without 4 bytes")
        increment = int.from_bytes(payload, "big") & MAX_WINDOW
        if stream_id == 0:
            self._window += increment
            if increment == 0 or self._window > MAX_WINDOW:
                raise ProtocolError(frames.FLOW_CONTROL_ERROR, "invalid connection window")
            self._flush_all()
        elif (stream := self._known(stream_id)) is not None:
            stream.window += increment
            if increment == 0 or stream.window > MAX_WINDOW:
                stream.abort(frames.FLOW_CONTROL_ERROR)
            else:
                self.flush(stream)

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ProtocolError(frames.FRAME_SIZE_ERROR, "RST_STREAM without 4 bytes")
        if (stream := self._known(stream_id)) is not None:
            self.forget(stream)
        else:
            self._unread.pop(stream_id, None)

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) % 6 or (flags & ACK and payload):
            raise ProtocolError(frames.FRAME_SIZE_ERROR, "invalid SETTINGS")
        if flags & ACK:
            self._blocks.forbid_table()
            return
        # The client applies the new windows when it reads the acknowledgement, so it precedes any data.
        self.write(frames.frame(frames.SETTINGS, ACK, 0))
        for name, value in struct.iter_unpack(">HL", payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                self._set_stream_windows(value)

    def _set_stream_windows(self, value: int) -> None:
        if value > MAX_WINDOW:
            raise ProtocolError(frames.FLOW_CONTROL_ERROR, "window exceeds 2^31 - 1")
        difference = value - self._peer_stream_window
        self._peer_stream_window = value
        for stream in self._streams.values():
            stream.window += difference
        self._flush_all()

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) != 8:
            raise ProtocolError(frames.FRAME_SIZE_ERROR, "PING without 8 bytes")
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
