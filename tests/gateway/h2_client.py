"""A foreign HTTP/2 client (the package `h2`) on a Unix socket, for the endpoint that Envoy asks."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings

GRPC_HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "decision"),
    (":path", "/envoy.service.ext_proc.v3.ExternalProcessor/Process"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


class Client:
    """One connection. Windows are opened as data is taken, unless `hold_windows` is set."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.events: list[Any] = []
        self.hold_windows = False
        self.fragment = 0
        self._reader = reader
        self.writer = writer

    async def start(self) -> None:
        """Say hello, and wait for the server's settings to be in force on both sides."""
        self.h2.initiate_connection()
        await self.flush()
        await self.until(h2.events.SettingsAcknowledged)

    async def flush(self) -> None:
        """Send what h2 wants to send, `fragment` bytes at a time if that is set."""
        data = self.h2.data_to_send()
        step = self.fragment or len(data) or 1
        for start in range(0, len(data), step):
            self.writer.write(data[start : start + step])
            if self.fragment:
                await asyncio.sleep(0)
        await self.writer.drain()

    async def until(self, kind: Any, stream_id: int | None = None, keep: bool = False) -> Any:
        """The next event of that kind (of that stream); all others are kept in `events`."""
        seen = 0
        while True:
            for event in self.events[seen:]:
                if isinstance(event, kind) and stream_id in (None, getattr(event, "stream_id", None)):
                    if not keep:
                        self.events.remove(event)
                    return event
            seen = len(self.events)
            data = await self._reader.read(65536)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            for event in self.h2.receive_data(data):
                self.events.append(event)
                if isinstance(event, h2.events.DataReceived) and not self.hold_windows:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            await self.flush()

    async def request(self, end: bool = False, headers: Any = None) -> int:
        """Begin a stream."""
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, headers or GRPC_HEADERS, end_stream=end)
        await self.flush()
        return stream_id

    async def send(self, stream_id: int, data: bytes, end: bool = False) -> None:
        """Send data as the server's windows allow."""
        rest = memoryview(data)
        while rest:
            room = min(
                self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size, len(rest)
            )
            if room == 0:
                await self.until(h2.events.WindowUpdated)
                continue
            self.h2.send_data(stream_id, bytes(rest[:room]))
            await self.flush()
            rest = rest[room:]
        if end:
            self.h2.end_stream(stream_id)
            await self.flush()

    async def message(self, stream_id: int, message: bytes) -> None:
        """Send one gRPC message."""
        await self.send(stream_id, b"\x00" + len(message).to_bytes(4, "big") + message)

    async def answer(self, stream_id: int) -> tuple[list[bytes], dict[str, str]]:
        """All gRPC messages of a stream up to its end, and the trailers."""
        kinds = (h2.events.TrailersReceived, h2.events.StreamReset, h2.events.ResponseReceived)
        trailers = await self.until(kinds, stream_id)
        if isinstance(trailers, h2.events.ResponseReceived) and trailers.stream_ended is None:
            trailers = await self.until(kinds, stream_id)
        data = b"".join(self.taken(stream_id))
        messages = []
        while data:
            size = int.from_bytes(data[1:5], "big")
            messages.append(data[5 : 5 + size])
            data = data[5 + size :]
        return messages, dict(getattr(trailers, "headers", ()))

    async def ping(self) -> None:
        """Returns when the server has read all that was sent."""
        self.h2.ping(b"12345678")
        await self.flush()
        await self.until(h2.events.PingAckReceived)

    async def until_data(self, stream_id: int, size: int) -> None:
        """Wait until `size` bytes of a stream have arrived. Their events stay in `events`."""
        while True:
            found = [e for e in self.events if isinstance(e, h2.events.DataReceived)]
            if sum(len(e.data) for e in found if e.stream_id == stream_id) >= size:
                return
            count = len(self.events)
            while len(self.events) == count:
                for event in self.h2.receive_data(await self._reader.read(65536)):
                    self.events.append(event)
            await self.flush()

    def taken(self, stream_id: int) -> list[bytes]:
        """The data of a stream that has come so far and was not taken yet."""
        found = [e for e in self.events if isinstance(e, h2.events.DataReceived) and e.stream_id == stream_id]
        for event in found:
            self.events.remove(event)
        return [event.data for event in found]


@asynccontextmanager
async def connected(socket: Path, *, start: bool = True) -> AsyncIterator[Client]:
    """A client of the server on that socket."""
    reader, writer = await asyncio.open_unix_connection(str(socket))
    client = Client(reader, writer)
    try:
        if start:
            await client.start()
        yield client
    finally:
        writer.close()


async def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition is true; AssertionError if it does not become so in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds:g} s"
        await asyncio.sleep(0.005)
