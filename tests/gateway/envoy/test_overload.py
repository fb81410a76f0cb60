"""What Envoy refuses so that it does not run out of memory or connections, and what still works then."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import httpx
import pytest

from farebox.gateway.interface import ImmediateResponse, RequestHead, Route
from tests.gateway.envoy_gateway import Gateway, by_body, chat, forwarding, gateway
from tests.gateway.h2_client import eventually
from tests.support.ports import free_port

MIB = 2**20
UPLOAD = b"x" * MIB
LENGTH = 16


def asked(head: RequestHead) -> ImmediateResponse:
    raise AssertionError("asked")


async def healthy(running: Gateway) -> int:
    """What the port for probes says."""
    port = running.settings.health_port
    async with running.session.get(f"http://127.0.0.1:{port}/healthz") as response:
        return response.status


async def stat(running: Gateway, name: str) -> int:
    """One of Envoy's own figures."""
    text = await running.admin._call("GET", f"/stats?filter={name}")
    return int(text.rpartition(":")[2])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what Envoy has to be asked for."""
    async with asyncio.timeout(60):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    (line,) = (
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
async def test_without_memory_calls_are_refused_in_the_gateways_form_and_probes_are_not(
    tmp_path: Path, version: str
) -> None:
    """An Envoy that needs more than it may have from the start."""
    http2 = version == "HTTP/2"
    async with (
        gateway(tmp_path, asked, memory_bytes=4 * MIB, health_port=free_port()) as running,
        httpx.AsyncClient(http1=not http2, http2=http2, base_url=running.url) as client,
    ):

        async def overloaded() -> bool:
            return await stat(running, "^overload.*stop_accepting_requests.active$") == 1

        await until(overloaded)
        reply = await client.post("/v1/chat/completions", json=chat())
        assert reply.http_version == version
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        error = reply.json()["error"]
        assert (error["type"], error["code"]) == ("unavailable_error", "gateway_overloaded")
        assert error["source"] == "gateway"
        assert (await client.get("/healthz")).status_code == 503
        assert await healthy(running) == 200
        assert running.lines() == [], "nothing to pay"
        assert await running.admin.drain(5, 0)


async def upload(running: Gateway, cut: asyncio.Event) -> bytes:
    """Send a body of 16 MiB, the last byte not before `cut`; the answer, if one comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.settings.listen_port)
    lines = ("POST /v1/chat/completions HTTP/1.1", "Host: g", "Connection: close")
    head = "\r\n".join((*lines, f"Content-Length: {LENGTH * MIB + 1}", "", ""))
    answer = asyncio.ensure_future(reader.read())
    waiting = asyncio.ensure_future(cut.wait())
    try:
        writer.write(head.encode())
        for _ in range(LENGTH):
            writer.write(UPLOAD)
            await writer.drain()
        await asyncio.wait({answer, waiting}, return_when=asyncio.FIRST_COMPLETED)
        writer.write(b"x")
        return await answer
    except ConnectionError:
        return b""
    finally:
        answer.cancel()
        waiting.cancel()
        await asyncio.gather(answer, waiting, return_exceptions=True)
        writer.close()


async def test_uploads_that_would_fill_the_memory_are_cut_off_and_others_are_served_after(
    tmp_path: Path, upstream: str
) -> None:
    memory, cut = 160 * MIB, asyncio.Event()
    async with gateway(
        tmp_path, forwarding(upstream), memory_bytes=memory, max_body_bytes=32 * MIB, body_seconds=3600
    ) as running:
        uploads = [asyncio.create_task(upload(running, cut)) for _ in range(30)]
        most = 0
        async with asyncio.timeout(120):
            while not all(each.done() for each in uploads):
                most = max(most, resident(running.envoy.pid))
                with suppress(OSError):  # it may be too busy to say
                    if await stat(running, "^http.gateway.downstream_rq_overload_close$") > 0:
                        cut.set()  # Envoy does not cut calls that had sent all before; they would never end
                await asyncio.sleep(0.01)
        assert await stat(running, "^http.gateway.downstream_rq_overload_close$") > 0
        assert most < 3 * memory, "that is beside what the sockets deliver between two looks"
        for answer in (each.result() for each in uploads):
            assert answer[:13] in (b"", b"HTTP/1.1 503 ", b"HTTP/1.1 413 "), "nothing, ours or the upstream's"
            if answer[:13] == b"HTTP/1.1 503 ":
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "gateway_overloaded"

        async def served() -> bool:
            return (await running.call(body=chat(max_tokens=1))).status == 200

        await until(served)
        assert running.envoy.starts == 1
        line = await running.line()
    assert line.reported.output == 1


async def test_of_http2_streams_those_that_hold_much_are_reset(tmp_path: Path, upstream: str) -> None:
    more = asyncio.Event()

    async def body(size: int) -> AsyncIterator[bytes]:
        for _ in range(size):
            yield UPLOAD
        await more.wait()
        yield b"{}"

    def client(running: Gateway) -> httpx.AsyncClient:
        return httpx.AsyncClient(http1=False, http2=True, base_url=running.url, timeout=None)

    async with (
        gateway(
            tmp_path, forwarding(upstream), memory_bytes=160 * MIB, max_body_bytes=32 * MIB, body_seconds=3600
        ) as running,
        client(running) as one,
        client(running) as another,
    ):
        url = "/v1/chat/completions"

        async def small_runs() -> bool:
            return await running.admin.active_calls() == 1

        small = asyncio.create_task(another.post(url, content=body(0)))
        await until(small_runs)
        large = [asyncio.create_task(one.post(url, content=body(LENGTH))) for _ in range(12)]
        try:
            await asyncio.wait(large, return_when=asyncio.FIRST_COMPLETED)
            assert await stat(running, "reset_high_memory_stream.count$") > 0
            more.set()
            assert (await small).status_code == 400, "the upstream has read it"
            assert running.envoy.starts == 1
        finally:
            for each in (small, *large):
                each.cancel()
            ended = await asyncio.gather(*large, return_exceptions=True)
        assert any(isinstance(each, httpx.ProtocolError) for each in ended)
        assert len(running.lines()) <= 1 + sum(isinstance(each, httpx.Response) for each in ended)


@asynccontextmanager
async def connections(running: Gateway, count: int) -> AsyncIterator[list[socket.socket]]:
    """Clients that say nothing."""
    opened = [
        socket.create_connection(("127.0.0.1", running.settings.listen_port), timeout=60)
        for _ in range(count)
    ]
    try:

        async def accepted() -> bool:
            return await stat(running, "^http.gateway.downstream_cx_active$") >= count

        await until(accepted)
        yield opened
    finally:
        for each in opened:
            each.close()


async def test_connections_beyond_the_limit_are_closed_and_those_within_are_served(
    tmp_path: Path, upstream: str
) -> None:
    limits = {"memory_bytes": 256 * MIB, "connection_buffer_bytes": 8 * MIB, "health_port": free_port()}
    async with (
        gateway(tmp_path, forwarding(upstream), **limits) as running,
        aiohttp.ClientSession() as another,
    ):
        assert (await running.call(body=chat(max_tokens=1))).status == 200, "on a connection that is kept"
        async with connections(running, 7):
            with pytest.raises(aiohttp.ClientError):
                await another.get(running.url)
            assert (await running.call(body=chat(max_tokens=1))).status == 200
            assert await healthy(running) == 200
        while True:
            try:
                async with another.get(f"{running.url}/healthz") as response:
                    assert response.status == 200
                    break
            except aiohttp.ClientError:
                await asyncio.sleep(0.01)
        async with connections(running, 6):
            assert await running.admin.drain(5, 0)


async def test_a_thousand_streams_at_a_time_are_within_the_limits(tmp_path: Path) -> None:
    go = asyncio.Event()

    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        await go.wait()
        return ImmediateResponse(402, {}, b"{}")

    connector = aiohttp.TCPConnector(limit=0)
    async with (
        gateway(tmp_path, handler, decision_seconds=3600) as running,
        aiohttp.ClientSession(connector=connector) as session,
        AsyncExitStack() as stack,
    ):
        url = f"{running.url}/v1/chat/completions"
        calls = [asyncio.ensure_future(session.post(url, json=chat())) for _ in range(1000)]
        stack.callback(lambda: [call.cancel() for call in calls])

        async def all_run() -> bool:
            return await running.admin.active_calls() == 1000

        await until(all_run)
        go.set()
        replies = await asyncio.gather(*calls)
        assert {reply.status for reply in replies} == {402}
        for reply in replies:
            reply.release()


async def test_http2_limits_the_concurrent_calls_of_a_connection(tmp_path: Path) -> None:
    running_now, most, go = 0, 0, asyncio.Event()

    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        await go.wait()
        running_now -= 1
        return ImmediateResponse(402, {}, b"{}")

    async with (
        gateway(tmp_path, handler, http2_streams=3, decision_seconds=3600) as running,
        httpx.AsyncClient(http1=False, http2=True, base_url=running.url, timeout=None) as client,
    ):
        await client.get("/healthz")
        calls = [asyncio.create_task(client.post("/v1/chat/completions", json=chat())) for _ in range(10)]
        await eventually(lambda: running_now == 3)
        go.set()
        assert {(await call).status_code for call in calls} == {402}
        assert most == 3
