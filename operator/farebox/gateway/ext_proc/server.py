"""Serves Envoy's questions on a Unix socket: HTTP/2, gRPC's framing, one exchange for each call.

It asks the handler and passes on what it says: by the head alone first, so that nobody holds the body of a
call that is refused whatever is in it (`draining`). It never decides by itself but for two things: a body
over the limit is refused, and a handler that raises is an error for the client, never an open door.
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
    RequestHead,
    Route,
)
from farebox.gateway.request.errors import too_large
from farebox.metrics import GATEWAY_DECISION_SECONDS

PATH: Final = b"/envoy.service.ext_proc.v3.ExternalProcessor/Process"
CLOSE_SECONDS: Final = 5.0
"""Decisions under way get so long when the server is closed."""
_HEAD_ROOM: Final = 256 * 1024
"""What a message may have beside a body of the greatest size."""
_KEPT: Final = ("host", "content-length", "x-forwarded-proto", "x-request-id")
"""Headers of a refused call that Envoy needs to send its body on; nothing else goes along."""
_RESPONSE: Final = literal_block([(b":status", b"200"), (b"content-type", b"application/grpc")])
_OK: Final = literal_block([(b"grpc-status", b"0")])
_CANCELLED: Final = literal_block([(b"grpc-status", b"1")])
_INVALID: Final = literal_block([(b"grpc-status", b"3")])
_INTERNAL: Final = literal_block([(b"grpc-status", b"13")])
_UNIMPLEMENTED: Final = literal_block(
    [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"12")]
)

_log = structlog.get_logger(__name__)


class Decisions:
    """What all exchanges share: the handler, the limit, and the decisions under way."""

    def __init__(self, handler: HeadHandler, max_body_bytes: int, unread: OnAbandoned) -> None:
        self.handler = handler
        self.unread = unread
        self.max_body_bytes = max_body_bytes
        self.tasks: set[asyncio.Task[None]] = set()
        self.drains = BodyDiscarder()
        self._loop = asyncio.get_running_loop()

    def accept(self, stream: Stream, headers: Headers) -> Receiver:
        """The receiver of a new stream."""
        if (b":path", PATH) in headers:
            return ProcessingStream(self, stream)
        if (b":path", discard.PATH) in headers:
            with suppress(InvalidMessage):
                return self.drains.accept(stream, headers)
        return Unimplemented(stream)

    def begin(self, exchange: "ProcessingStream", body: bytes | None) -> asyncio.Task[None]:
        """Decide in a task of its own."""
        task = self._loop.create_task(exchange.decide(body))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


class Unimplemented:
    """A call of another method."""

    def __init__(self, stream: Stream) -> None:
        stream.finish(_UNIMPLEMENTED)

    def data(self, chunk: bytes) -> None:
        """Not read."""

    def ended(self) -> None:
        """Nothing to do."""

    def gone(self) -> None:
        """Nothing to do."""


class ProcessingStream:
    """One call: its head comes, then its body if there is one; a decision goes back and ends the stream."""

    __slots__ = ("_buffer", "_decide", "_decisions", "_head", "_stream", "_task")

    def __init__(self, decisions: Decisions, stream: Stream) -> None:
        self._decisions = decisions
        self._stream = stream
        self._buffer = bytearray()
        self._head: RequestHead | None = None
        self._decide: BodyHandler | None = None
        self._task: asyncio.Task[None] | None = None

    def data(self, chunk: bytes) -> None:
        """See Receiver: the messages in what came."""
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
                message = bytes(buffer[5 : 5 + size])
                del buffer[: 5 + size]
                self._message(message)
        except InvalidMessage as error:
            _log.warning("ext_proc message cannot be read", error=str(error))
            self._fail(_INVALID)

    def ended(self) -> None:
        """See Receiver. Envoy closes its side when the call is over, or when it has the answer."""
        if self._task is None:
            self._fail(_CANCELLED)

    def gone(self) -> None:
        """See Receiver: the client has left, so nobody needs the decision."""
        if self._task is not None:
            self._task.cancel()
            self._task = None  # it keeps where it was cancelled, which is here

    async def decide(self, body: bytes | None) -> None:
        """Ask who decides with the body, and answer."""
        assert self._decide is not None
        began = perf_counter()
        try:
            decision = await self._decide(body)
            GATEWAY_DECISION_SECONDS.observe(perf_counter() - began)
            self._answer(decision, on_headers=body is None)
        except Exception:
            self._fault()

    def _check(self, compressed: int, size: int) -> None:
        if compressed or size > self._decisions.max_body_bytes + _HEAD_ROOM:
            raise InvalidMessage("a message is compressed, or larger than a body may be")

    def _message(self, message: bytes) -> None:
        request = messages.read_request(message)
        if self._task is not None:
            raise InvalidMessage("a message after the last")
        if isinstance(request, HeadersMessage):
            self._on_headers(request)
        else:
            self._on_body(request)

    def _on_headers(self, message: HeadersMessage) -> None:
        if self._head is not None:
            raise InvalidMessage("headers twice")
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
        # CONNECT has none, and no end either: what follows would be the tunnel.
        if not message.has_body or message.head.method == "CONNECT":
            self._task = self._decisions.begin(self, None)
        elif _announced(message.head) > self._decisions.max_body_bytes:
            self._refuse(self._too_large(message.head), message)
        else:
            self._send(messages.CONTINUE)

    def _refuse(self, refusal: ImmediateResponse, message: HeadersMessage) -> None:
        """Answer a call by its head. A large body that comes is read first, so that its client listens."""
        large = message.has_body and _announced(message.head, discard.SMALL_BYTES + 1) > discard.SMALL_BYTES
        if not large or message.head.method == "CONNECT" or self._decisions.drains.full:
            self._answer(refusal, on_headers=True)
            return
        removed = [name for name in message.head.headers if name not in _KEPT]
        self._send(messages.discard(discard.PATH.decode(), discard.HEADER, discard.written(refusal), removed))
        self._stream.finish(_OK)

    def _on_body(self, body: bytes) -> None:
        if self._head is None or self._decide is None:
            raise InvalidMessage("a body that was not asked for")
        if len(body) > self._decisions.max_body_bytes:
            self._answer(self._too_large(self._head), on_headers=False)
        else:
            self._task = self._decisions.begin(self, body)

    def _too_large(self, head: RequestHead) -> ImmediateResponse:
        return too_large(head, self._decisions.max_body_bytes)

    def _answer(self, decision: Route | ImmediateResponse, on_headers: bool) -> None:
        if isinstance(decision, ImmediateResponse):
            self._send(messages.immediate_response(decision))
            self._stream.finish(_OK)
        else:
            self._send(messages.continue_request(decision, on_headers))
            self._stream.finish(_OK, self._unread)

    def _unread(self) -> None:
        """The client of the call left while it was decided: Envoy may not have sent it on, nor log it."""
        assert self._head is not None
        self._decisions.unread(self._head.request_id)

    def _send(self, message: bytes) -> None:
        self._stream.send(b"\x00" + len(message).to_bytes(4, "big") + message)

    def _fault(self) -> None:
        """The handler raised."""
        _log.exception("the handler failed", request_id=self._head.request_id if self._head else "")
        self._fail(_INTERNAL)

    def _fail(self, trailers: bytes) -> None:
        """End the exchange without a decision: Envoy answers with its own error."""
        if self._head is None:
            self._stream.start(_RESPONSE)
        self._stream.finish(trailers)


def _announced(head: RequestHead, unsaid: int = 0) -> int:
    """The Content-Length, or `unsaid` without one. Envoy has checked that it is a number."""
    value = head.headers.get("content-length", "")
    return int(value) if value.isdecimal() else unsaid


@asynccontextmanager
async def listening(
    path: Path, handler: HeadHandler, max_body_bytes: int, unread: OnAbandoned = lambda _: None
) -> AsyncIterator[None]:
    """Answer Envoys on this socket inside the `async with`.

    `unread` hears of calls of which it is not known whether they went on their way.

    The socket is for the user and the group of this process. One that a dead process left is replaced. At
    the end, decisions under way get CLOSE_SECONDS.

    Raises:
        OSError: the socket cannot be made.
    """
    decisions = Decisions(handler, max_body_bytes, unread)
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
