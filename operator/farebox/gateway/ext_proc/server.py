"""Envoy's ext_proc service on a Unix socket: HTTP/2, gRPC framing, and one stream per call.

It passes each call to the handler, first the head alone, so that the body of a refused call is never buffered
(`discard`). It makes two decisions itself: a body over the limit is refused, and if the handler raises, the
call fails with an error and is not forwarded.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Final

import structlog

from farebox.gateway.ext_proc import discard, messages
from farebox.gateway.ext_proc.discard import BodyDiscarder
from farebox.gateway.ext_proc.frames import Headers, literal_block
from farebox.gateway.ext_proc.http2 import Connection
from farebox.gateway.ext_proc.messages import HeadersMessage, InvalidMessage
from farebox.gateway.ext_proc.streams import Receiver, Stream
from farebox.gateway.interface import (
    BodyHandler,
    HeadHandler,
    ImmediateResponse,
    OnAbandoned,
    OnRefused,
    RequestHead,
    Route,
)
from farebox.gateway.request.errors import TOO_LARGE, too_large
from farebox.metrics import GATEWAY_DECISION_SECONDS

PATH: Final = b"/envoy.service.ext_proc.v3.ExternalProcessor/Process"
CLOSE_SECONDS: Final = 5.0
"""The time that running decisions have when the server closes."""
_HEAD_ROOM: Final = 256 * 1024
"""Bytes of a message beyond the body."""
_FORWARDED_HEADERS: Final = ("host", "content-length", "x-forwarded-proto", "x-request-id")
"""The headers of a refused call that Envoy needs to stream its body; all others are removed."""
_RESPONSE: Final = literal_block([(b":status", b"200"), (b"content-type", b"application/grpc")])
_OK: Final = literal_block([(b"grpc-status", b"0")])
_CANCELLED: Final = literal_block([(b"grpc-status", b"1")])
_INVALID: Final = literal_block([(b"grpc-status", b"3")])
_INTERNAL: Final = literal_block([(b"grpc-status", b"13")])
_UNIMPLEMENTED: Final = literal_block(
    [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"12")]
)

_LONG: Final = 256 * 1024
"""A message with headers is shorter (Envoy refuses more than 60 KiB of them)."""

_log = structlog.get_logger(__name__)


class Decisions:
    """Shared by all streams: the handler, the limit of bodies, and the running decisions."""

    def __init__(
        self, handler: HeadHandler, max_body_bytes: int, on_abandoned: OnAbandoned, on_refused: OnRefused
    ) -> None:
        self.handler = handler
        self.on_abandoned = on_abandoned
        self.on_refused = on_refused
        self.max_body_bytes = max_body_bytes
        self.tasks: set[asyncio.Task[None]] = set()
        self.discarder = BodyDiscarder()
        self._loop = asyncio.get_running_loop()

    def accept(self, stream: Stream, headers: Headers) -> Receiver:
        """The receiver of a new stream."""
        if (b":path", PATH) in headers:
            return ProcessingStream(self, stream)
        if (b":path", discard.PATH) in headers:
            with suppress(InvalidMessage):
                return self.discarder.accept(stream, headers)
        return Unimplemented(stream)

    def begin(self, stream: "ProcessingStream", body: bytes | None) -> asyncio.Task[None]:
        """Decide in a task of its own."""
        task = self._loop.create_task(stream.decide(body))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


class Unimplemented:
    """A stream of another gRPC method."""

    def __init__(self, stream: Stream) -> None:
        stream.finish(_UNIMPLEMENTED)

    def data(self, chunk: bytes) -> None:
        """See Receiver. Ignored."""

    def ended(self) -> None:
        """See Receiver. Ignored."""

    def gone(self) -> None:
        """See Receiver. Ignored."""


class ProcessingStream:
    """One call: its head, its body if it has one, and the decision, which ends the stream."""

    __slots__ = ("_buffer", "_decide", "_decisions", "_head", "_stream", "_task")

    def __init__(self, decisions: Decisions, stream: Stream) -> None:
        self._decisions = decisions
        self._stream = stream
        self._buffer = bytearray()
        self._head: RequestHead | None = None
        self._decide: BodyHandler | None = None
        self._task: asyncio.Task[None] | None = None

    def data(self, chunk: bytes) -> None:
        """See Receiver. Handles the messages that are complete."""
        buffer = self._buffer
        try:
            if not buffer and len(chunk) >= 5 and len(chunk) == 5 + int.from_bytes(chunk[1:5], "big"):
                self._check(chunk[0], len(chunk) - 5)
                self._message(chunk[5:])
                return
            buffer += chunk
            while len(buffer) >= 5:
                size = int.from_bytes(buffer[1:5], "big")
                self._check(buffer[0], size)
                if len(buffer) < 5 + size:
                    return
                if size > _LONG:
                    self._buffer = buffer[5 + size :]
                    del buffer[5 + size :]
                    del buffer[:5]
                    self._long_message(buffer)
                    buffer = self._buffer
                    continue
                message = bytes(buffer[5 : 5 + size])
                del buffer[: 5 + size]
                self._message(message)
        except InvalidMessage as error:
            _log.warning("ext_proc.invalid_message", error=str(error))
            self._fail(_INVALID)

    def ended(self) -> None:
        """See Receiver. Envoy ends its side when the call is over, or when it has the decision."""
        if self._task is None:
            self._fail(_CANCELLED)

    def gone(self) -> None:
        """See Receiver. The client has left, so the decision is not needed."""
        if self._task is not None:
            self._task.cancel()
            self._task = None  # its traceback would keep this object alive

    async def decide(self, body: bytes | None) -> None:
        """Decide the call with its body, and answer."""
        assert self._decide is not None
        began = perf_counter()
        try:
            decision = await self._decide(body)
            if body is not None or isinstance(decision, Route):
                # Without a body it is a look-up, which may wait for the meter.
                GATEWAY_DECISION_SECONDS.observe(perf_counter() - began)
            self._answer(decision, on_headers=body is None)
        except Exception:
            self._fault()

    def _check(self, compressed: int, size: int) -> None:
        if compressed or size > self._decisions.max_body_bytes + _HEAD_ROOM:
            raise InvalidMessage("message is compressed or too large")

    def _message(self, message: bytes) -> None:
        request = messages.read_request(message)
        if self._task is not None:
            raise InvalidMessage("message after the last one")
        if isinstance(request, HeadersMessage):
            self._on_headers(request)
        else:
            self._on_body(request)

    def _long_message(self, message: bytearray) -> None:
        """Handle a message that can only be a body, without a copy of it."""
        body = messages.long_body(message)
        if self._task is not None:
            raise InvalidMessage("message after the last one")
        self._on_body(body)

    def _on_headers(self, message: HeadersMessage) -> None:
        if self._head is not None:
            raise InvalidMessage("repeated headers")
        self._head = message.head
        self._stream.start(_RESPONSE)
        began = perf_counter()
        try:
            first = self._decisions.handler(message.head)
        except Exception:
            self._fault()
            return
        if isinstance(first, ImmediateResponse):
            GATEWAY_DECISION_SECONDS.observe(perf_counter() - began)
            self._refuse(first, message)
            return
        self._decide = first
        # CONNECT has no body; what follows would be the tunnel.
        if not message.has_body or message.head.method == "CONNECT":
            self._task = self._decisions.begin(self, None)
        elif _announced(message.head) > self._decisions.max_body_bytes:
            self._refuse(self._too_large(message.head), message)
        else:
            self._send(messages.CONTINUE)

    def _refuse(self, response: ImmediateResponse, message: HeadersMessage) -> None:
        """Answer a call by its head; a large body is discarded first, so that the client reads the answer."""
        large = message.has_body and _announced(message.head, discard.SMALL_BYTES + 1) > discard.SMALL_BYTES
        if not large or message.head.method == "CONNECT" or self._decisions.discarder.full:
            self._answer(response, on_headers=True)
            return
        removed = [name for name in message.head.headers if name not in _FORWARDED_HEADERS]
        self._send(
            messages.discard(
                discard.PATH.decode(), discard.HEADER, discard.encode_response(response), removed
            )
        )
        self._stream.finish(_OK)

    def _on_body(self, body: bytes) -> None:
        if self._head is None or self._decide is None:
            raise InvalidMessage("unexpected body")
        if len(body) > self._decisions.max_body_bytes:
            self._answer(self._too_large(self._head), on_headers=False)
        else:
            self._task = self._decisions.begin(self, body)

    def _too_large(self, head: RequestHead) -> ImmediateResponse:
        self._decisions.on_refused(head, 413, TOO_LARGE)
        return too_large(head, self._decisions.max_body_bytes)

    def _answer(self, decision: Route | ImmediateResponse, on_headers: bool) -> None:
        if isinstance(decision, ImmediateResponse):
            self._send(messages.immediate_response(decision))
            self._stream.finish(_OK)
        else:
            assert self._head is not None
            self._send(messages.continue_request(decision, on_headers, self._head.request_id))
            self._stream.finish(_OK, self._abandoned)

    def _abandoned(self) -> None:
        """The client left during the decision, so Envoy may neither have forwarded the call nor log it."""
        assert self._head is not None
        self._decisions.on_abandoned(self._head.request_id)

    def _send(self, message: bytes) -> None:
        self._stream.send(b"\x00" + len(message).to_bytes(4, "big") + message)

    def _fault(self) -> None:
        """The handler raised."""
        _log.exception("handler.failed", request_id=self._head.request_id if self._head else "")
        self._fail(_INTERNAL)

    def _fail(self, trailers: bytes) -> None:
        """End the stream without a decision; Envoy answers with an error of its own."""
        if self._head is None:
            self._stream.start(_RESPONSE)
        self._stream.finish(trailers)


def _announced(head: RequestHead, default: int = 0) -> int:
    """The Content-Length, or `default`. Envoy has checked that it is a number."""
    value = head.headers.get("content-length", "")
    return int(value) if value.isdecimal() else default


@asynccontextmanager
async def listening(
    path: Path,
    handler: HeadHandler,
    max_body_bytes: int,
    on_abandoned: OnAbandoned = lambda _: None,
    on_refused: OnRefused = lambda _head, _status, _code: None,
) -> AsyncIterator[None]:
    """Serve Envoys on this socket inside the `async with`.

    The socket is accessible to the user and the group of this process. The socket of a dead process is
    replaced. At the end, running decisions get CLOSE_SECONDS.

    Args:
        on_abandoned: receives calls whose client left during the decision.
        on_refused: receives calls that are refused here, for their size.

    Raises:
        OSError: the socket cannot be created.
    """
    decisions = Decisions(handler, max_body_bytes, on_abandoned, on_refused)
    connections: set[Connection] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: Connection(decisions.accept, connections), str(path))
    await asyncio.to_thread(path.chmod, 0o660)
    try:
        yield
    finally:
        server.close()
        if decisions.tasks:
            await asyncio.wait(set(decisions.tasks), timeout=CLOSE_SECONDS)
        for connection in list(connections):
            connection.close()
