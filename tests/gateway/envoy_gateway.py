"""A real Envoy with the real transport in front of a real simulator, and calls of it."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from farebox.gateway.envoy import process as envoy_process
from farebox.gateway.envoy.admin import Admin
from farebox.gateway.envoy.bootstrap import EnvoySettings
from farebox.gateway.envoy.process import EnvoyProcess
from farebox.gateway.ext_proc.server import listening
from farebox.gateway.interface import HeadHandler, ImmediateResponse, RequestHead, Route
from farebox.gateway.metering.usage import UsageLine, parse
from farebox.gateway.request.endpoints import ENDPOINTS
from tests.gateway.h2_client import eventually
from tests.support.ports import free_port

MODEL = "simulated"
SERVICE = "team-a/chat"


@dataclass(frozen=True)
class Simulator:
    """A simulator in a process of its own."""

    port: int

    @property
    def upstream(self) -> str:
        """As a decision names it."""
        return f"127.0.0.1:{self.port}"


@contextmanager
def simulator(ttft_ms: float = 0, tokens_per_second: float = 0) -> Iterator[Simulator]:
    """Runs inside the `with`."""
    port = free_port()
    pace = ["--ttft-ms", str(ttft_ms), "--tokens-per-second", str(tokens_per_second)]
    args = ["simulator", "--host", "127.0.0.1", "--port", str(port), "--model", MODEL, *pace]
    process = subprocess.Popen([sys.executable, "-m", "farebox", *args], stderr=subprocess.DEVNULL)
    try:
        while True:
            assert process.poll() is None, "the simulator has ended"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        yield Simulator(port)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


class Mirror:
    """An upstream that remembers what reached it."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.address = ""

    async def __aenter__(self) -> "Mirror":
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.address = site.name.removeprefix("http://")
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.raw_path, headers, await request.read()))
        return web.json_response({"usage": {"prompt_tokens": 1, "completion_tokens": 2}})


class HeldStream:
    """An upstream that begins a stream of events, and ends it when a test says so.

    Args:
        first: the events that are sent at once.
        last: the events that are sent after `finish` is set.
    """

    def __init__(self, first: list[bytes], last: list[bytes]) -> None:
        self._first = first
        self._last = last
        self.address = ""
        self.asked = asyncio.Event()
        self.finish = asyncio.Event()
        self.left = asyncio.Event()

    async def __aenter__(self) -> "HeldStream":
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        writer.write(b"".join(self._first))
        self.asked.set()
        gone = asyncio.ensure_future(self._until_gone(reader))
        finished = asyncio.ensure_future(self.finish.wait())
        await asyncio.wait({gone, finished}, return_when=asyncio.FIRST_COMPLETED)
        if not gone.done():
            writer.write(b"".join(self._last))
        gone.cancel()
        finished.cancel()
        writer.close()

    async def _until_gone(self, reader: asyncio.StreamReader) -> None:
        while await reader.read(65536):
            pass
        self.left.set()


def token_events(count: int) -> list[bytes]:
    """Events of one token each; each reports the usage so far, with 6 input tokens."""
    return [
        b"data: "
        + json.dumps(
            {
                "choices": [{"index": 0, "delta": {"content": "word "}}],
                "usage": {"prompt_tokens": 6, "completion_tokens": number},
            }
        ).encode()
        + b"\n\n"
        for number in range(1, count + 1)
    ]


def by_body(
    decide: Callable[[RequestHead, bytes | None], Awaitable[Route | ImmediateResponse]],
) -> HeadHandler:
    """A handler that refuses nothing by the head alone."""
    return lambda head: partial(decide, head)


def forwarding(upstream: str, **labels: str) -> HeadHandler:
    """A handler that forwards all calls as they are."""

    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        endpoint = ENDPOINTS.get(head.path)
        dialect = "" if endpoint is None else endpoint.dialect
        carried = {"service": SERVICE, "dialect": dialect, **labels}
        return Route(upstream, False, head.path, None, labels=carried, dialect=dialect)

    return handler


@dataclass
class Reply:
    """An answer, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error in the body."""
        return self.json["error"]


@dataclass
class Gateway:
    """What a test holds of it."""

    settings: EnvoySettings
    session: aiohttp.ClientSession
    admin: Admin
    envoy: EnvoyProcess
    _lines: list[UsageLine] = field(default_factory=list)
    _read_bytes: int = 0

    @property
    def url(self) -> str:
        """Where clients call."""
        return f"http://127.0.0.1:{self.settings.listen_port}"

    async def call(self, path: str = "/v1/chat/completions", body: Any = None, **options: Any) -> Reply:
        """POST a body as JSON, or GET without one; other options are aiohttp's."""
        method = options.pop("method", "GET" if body is None and "data" not in options else "POST")
        async with self.session.request(method, self.url + path, json=body, **options) as response:
            return Reply(response.status, response.headers, await response.read())

    async def raw(self, sent: bytes) -> bytes:
        """Send bytes and read until the connection is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.settings.listen_port)
        writer.write(sent)
        received = await reader.read()
        writer.close()
        return received

    def lines(self) -> list[UsageLine]:
        """The log so far, but for a line that Envoy is about to write."""
        if self.settings.log_file.exists():
            with self.settings.log_file.open("rb") as file:
                file.seek(self._read_bytes)
                text = file.read()
            whole = text.rfind(b"\n") + 1
            self._read_bytes += whole
            self._lines += [parse(line) for line in text[:whole].split(b"\n")[:-1]]
        return self._lines

    async def line(self, number: int = 1) -> UsageLine:
        """Wait until the log has exactly `number` lines; return the last one."""
        await eventually(lambda: len(self.lines()) >= number)
        assert len(self.lines()) == number
        return self.lines()[-1]


@asynccontextmanager
async def envoy_only(directory: Path, **settings: Any) -> AsyncIterator[Gateway]:
    """An Envoy whose questions nobody answers yet."""
    configured = EnvoySettings(directory, listen_host="127.0.0.1", listen_port=free_port(), **settings)
    async with (
        envoy_process.running(configured, concurrency=1) as envoy,
        Admin(configured.admin_socket) as admin,
        aiohttp.ClientSession() as session,
    ):
        yield Gateway(configured, session, admin, envoy)


@asynccontextmanager
async def gateway(directory: Path, handler: HeadHandler, **settings: Any) -> AsyncIterator[Gateway]:
    """An Envoy that asks this handler. Nothing is shipped: tests read the log."""
    async with envoy_only(directory, **settings) as running, answering(running.settings, handler):
        yield running


def answering(settings: EnvoySettings, handler: HeadHandler) -> Any:
    """The decision process of an Envoy, inside the `async with`."""
    return listening(settings.decision_socket, handler, settings.max_body_bytes)


def chat(words: int = 3, **fields: Any) -> dict[str, Any]:
    """The body of a chat call."""
    content = " ".join(["word"] * words)
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}
