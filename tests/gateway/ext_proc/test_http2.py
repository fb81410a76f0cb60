"""The HTTP/2 server and a client that was not written for it: flow control, fragments, broken promises."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import h2.events
import h2.settings
import pytest

from farebox.gateway.ext_proc import frames
from farebox.gateway.ext_proc.frames import Headers, literal_block
from farebox.gateway.ext_proc.http2 import STREAM_WINDOW, Connection
from farebox.gateway.ext_proc.streams import Stream
from tests.gateway.h2_client import GRPC_HEADERS, Client, connected, eventually

HEAD = literal_block([(b":status", b"200")])
TAIL = literal_block([(b"grpc-status", b"0")])


class Echo:
    """Sends back what comes, when all of it has come."""

    def __init__(self, stream: Stream, log: list[str]) -> None:
        self._stream = stream
        self._log = log
        self._received = bytearray()
        stream.start(HEAD)

    def data(self, chunk: bytes) -> None:
        self._received += chunk

    def ended(self) -> None:
        self._stream.send(bytes(self._received))
        self._stream.finish(TAIL)

    def gone(self) -> None:
        self._log.append(f"gone {self._stream.id}")


class Server:
    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.log: list[str] = []
        self.headers: list[Headers] = []
        self.connections: set[Connection] = set()

    def accept(self, stream: Stream, headers: Headers) -> Echo:
        self.headers.append(headers)
        return Echo(stream, self.log)


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Server]:
    server = Server(directory / "s")
    listener = await asyncio.get_running_loop().create_unix_server(
        lambda: Connection(server.accept, server.connections), str(server.socket)
    )
    try:
        yield server
    finally:
        listener.close()


def pattern(size: int) -> bytes:
    """Bytes whose order and number show in any part of them."""
    return bytes(itertools.islice(itertools.cycle(range(251)), size))


async def echoed(client: Client, data: bytes) -> bytes:
    stream_id = await client.request()
    await client.send(stream_id, data, end=True)
    await client.until(h2.events.StreamEnded, stream_id)
    return b"".join(client.taken(stream_id))


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 70_000, 3 * STREAM_WINDOW])
async def test_bytes_come_back_whatever_their_number(tmp_path: Path, size: int) -> None:
    data = pattern(size)
    async with serving(tmp_path) as server, connected(server.socket) as client:
        assert await echoed(client, data) == data
        assert await echoed(client, b"again") == b"again"


async def test_more_than_the_connections_window_in_one_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farebox.gateway.ext_proc.http2.CONNECTION_WINDOW", 100_000)
    monkeypatch.setattr("farebox.gateway.ext_proc.http2.STREAM_WINDOW", 30_000)
    data = pattern(150_000)
    async with serving(tmp_path) as server, connected(server.socket) as client:
        for _ in range(5):
            assert await echoed(client, data) == data


async def test_a_byte_at_a_time(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, connected(server.socket) as client:
        client.fragment = 1
        assert await echoed(client, b"abc" * 50) == b"abc" * 50


async def test_the_clients_windows_are_kept(tmp_path: Path) -> None:
    data = pattern(200_000)
    async with serving(tmp_path) as server, connected(server.socket) as client:
        client.hold_windows = True
        stream_id = await client.request()
        await client.send(stream_id, data, end=True)
        taken = b""
        while len(taken) < len(data):
            # A byte more than the windows allow is a FlowControlError of h2's.
            await client.until(h2.events.DataReceived, stream_id, keep=True)
            taken += b"".join(client.taken(stream_id))
            if client.h2.remote_flow_control_window(stream_id) == 0:
                client.h2.increment_flow_control_window(9_000, stream_id)
                client.h2.increment_flow_control_window(9_000)
                await client.flush()
        await client.until(h2.events.StreamEnded, stream_id)
    assert taken == data


async def test_a_window_that_shrinks_in_the_middle_of_a_stream_is_kept(tmp_path: Path) -> None:
    """A smaller initial window makes the stream's window negative (RFC 9113, 6.9.2)."""
    data, window = pattern(300_000), frames.DEFAULT_WINDOW
    async with serving(tmp_path) as server, connected(server.socket) as client:
        client.hold_windows = True
        stream_id = await client.request()
        await client.send(stream_id, data, end=True)
        await client.until_data(stream_id, window)
        received = b"".join(client.taken(stream_id))
        assert received == data[:window], "the whole window, and no more"
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10})
        await client.flush()
        await client.until(h2.events.SettingsAcknowledged)
        client.h2.increment_flow_control_window(500_000)
        client.h2.increment_flow_control_window(window - 10 + 7, stream_id)
        await client.flush()
        await client.until_data(stream_id, 7)
        await client.ping()
        received += b"".join(client.taken(stream_id))
        assert received == data[: window + 7], "the rest of the shrunken window"
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1_000_000})
        await client.flush()
        await client.until(h2.events.StreamEnded, stream_id)
        received += b"".join(client.taken(stream_id))
    assert received == data


async def test_waiting_streams_do_not_block_others(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, connected(server.socket) as client:
        ids = [await client.request() for _ in range(100)]
        for stream_id in reversed(ids):
            await client.send(stream_id, str(stream_id).encode(), end=True)
        for stream_id in ids:
            await client.until(h2.events.StreamEnded, stream_id)
            assert b"".join(client.taken(stream_id)) == str(stream_id).encode()


async def test_headers_are_read_with_and_without_the_table(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, connected(server.socket, start=False) as client:
        # Before the server's settings are known, h2 uses the table that HTTP/2 begins with.
        client.h2.initiate_connection()
        for _ in range(2):
            stream_id = await client.request(headers=[*GRPC_HEADERS, ("x-a", "b" * 100)])
            await client.send(stream_id, b"", end=True)
        await client.until(h2.events.StreamEnded, stream_id)
        for _ in range(3):
            await echoed(client, b"x")
    plain = [(name.encode(), value.encode()) for name, value in GRPC_HEADERS]
    assert server.headers == [[*plain, (b"x-a", b"b" * 100)]] * 2 + [plain] * 3


async def test_a_header_block_in_pieces(tmp_path: Path) -> None:
    long = [(f"x-{number}", "v" * 1000) for number in range(30)]
    async with serving(tmp_path) as server, connected(server.socket) as client:
        stream_id = await client.request(headers=[*GRPC_HEADERS, *long])
        await client.send(stream_id, b"x", end=True)
        await client.until(h2.events.StreamEnded, stream_id)
    assert server.headers[0][-1] == (b"x-29", b"v" * 1000)


async def test_a_reset_is_reported_and_the_connection_continues(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, connected(server.socket) as client:
        stream_id = await client.request()
        client.h2.reset_stream(stream_id)
        await client.flush()
        assert await echoed(client, b"on") == b"on"
        assert server.log == [f"gone {stream_id}"]


async def test_a_lost_connection_is_reported_to_all_streams(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        async with connected(server.socket) as client:
            ids = [await client.request() for _ in range(3)]
            await echoed(client, b"they are open")
        await eventually(lambda: not server.connections)
    assert server.log == [f"gone {stream_id}" for stream_id in ids]


async def test_a_ping_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, connected(server.socket) as client:
        client.h2.ping(b"12345678")
        await client.flush()
        assert (await client.until(h2.events.PingAckReceived)).ping_data == b"12345678"


PREFACE = frames.PREFACE + frames.settings({})
REQUEST = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, literal_block([(b":path", b"/")]))


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", frames.PROTOCOL_ERROR, id="HTTP/1.1"),
        pytest.param(PREFACE + b"\x00\x40\x01" + bytes(6), frames.FRAME_SIZE_ERROR, id="a frame too large"),
        pytest.param(
            PREFACE + frames.frame(frames.DATA, 0, 1, b"x"), frames.PROTOCOL_ERROR, id="data of nothing"
        ),
        pytest.param(
            PREFACE + frames.frame(frames.HEADERS, frames.END_HEADERS, 2, b""),
            frames.PROTOCOL_ERROR,
            id="even",
        ),
        pytest.param(
            PREFACE + frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\xff" * 9),
            frames.COMPRESSION_ERROR,
            id="headers that cannot be read",
        ),
        pytest.param(
            PREFACE + frames.frame(frames.HEADERS, 0, 1, b"") + frames.frame(frames.DATA, 0, 1, b"x"),
            frames.PROTOCOL_ERROR,
            id="data in a header block",
        ),
        pytest.param(
            PREFACE
            + frames.frame(frames.HEADERS, 0, 1, b"")
            + frames.frame(frames.CONTINUATION, 0, 1, bytes(16_384)) * 5,
            frames.ENHANCE_YOUR_CALM,
            id="headers without an end",
        ),
        pytest.param(
            PREFACE + REQUEST + frames.frame(frames.DATA, frames.PADDED, 1, b"\x05abc"),
            frames.PROTOCOL_ERROR,
            id="more padding than data",
        ),
        pytest.param(PREFACE + frames.window_update(0, 0), frames.FLOW_CONTROL_ERROR, id="no window"),
        pytest.param(
            PREFACE + frames.window_update(0, 2**31 - 1), frames.FLOW_CONTROL_ERROR, id="a window too large"
        ),
        pytest.param(
            PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31}),
            frames.FLOW_CONTROL_ERROR,
            id="setting",
        ),
        pytest.param(PREFACE + frames.frame(frames.PING, 0, 0, b"short"), frames.FRAME_SIZE_ERROR, id="ping"),
        pytest.param(
            PREFACE + frames.frame(frames.SETTINGS, 0, 0, b"12345"), frames.FRAME_SIZE_ERROR, id="sizes"
        ),
        pytest.param(PREFACE + frames.frame(frames.PUSH_PROMISE, 0, 1), frames.PROTOCOL_ERROR, id="push"),
        pytest.param(PREFACE + frames.reset(7, 0), frames.PROTOCOL_ERROR, id="reset of nothing"),
    ],
)
async def test_a_protocol_violation_ends_the_connection_with_its_code(
    tmp_path: Path, sent: bytes, code: int
) -> None:
    async with serving(tmp_path) as server, connected(server.socket, start=False) as client:
        client.writer.write(sent)
        received = await client._reader.read()
    goaway = received[received.rindex(b"\x07\x00\x00\x00\x00\x00") + 6 :]
    assert int.from_bytes(goaway[4:8], "big") == code


async def test_more_streams_than_allowed_are_refused_not_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farebox.gateway.ext_proc.http2.MAX_STREAMS", 2)
    block = literal_block([(b":path", b"/")])
    requests = [frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, block) for stream_id in (1, 3, 5)]
    expected = frames.reset(5, frames.REFUSED_STREAM)
    async with serving(tmp_path) as server, connected(server.socket, start=False) as client:
        client.writer.write(PREFACE + b"".join(requests))
        received = b""
        while expected not in received:
            received += await client._reader.read(65536)
        assert len(server.headers) == 2
