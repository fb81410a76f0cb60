"""Calls through a real Envoy: what decisions change, what clients cannot, and what Envoy says by itself."""

import asyncio
import os
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from farebox.gateway.envoy import process as envoy_process
from farebox.gateway.envoy.admin import Admin
from farebox.gateway.envoy.bootstrap import EnvoySettings
from farebox.gateway.interface import ImmediateResponse, RequestHead, Route
from tests.gateway.envoy_gateway import (
    Gateway,
    HeldStream,
    Mirror,
    answering,
    by_body,
    chat,
    envoy_only,
    forwarding,
    gateway,
    token_events,
)
from tests.gateway.h2_client import eventually
from tests.support.ports import free_port
from tests.tools.plane.certs import Authority


def test_envoy_accepts_the_configuration_with_and_without_tls(tmp_path: Path) -> None:
    binary = envoy_process.find()
    assert envoy_process.validate(binary, EnvoySettings(tmp_path / "a")) == ""
    Authority.create(tmp_path, "ca").server("gateway", ("gateway",), ())
    with_tls = EnvoySettings(
        tmp_path / "b", certificate=tmp_path / "gateway.crt", key=tmp_path / "gateway.key"
    )
    assert envoy_process.validate(binary, with_tls) == ""


def test_a_validation_error_names_the_problem(tmp_path: Path) -> None:
    wrong = EnvoySettings(tmp_path, certificate=tmp_path / "no.pem", key=tmp_path / "no.key")
    assert "no.key" in envoy_process.validate(envoy_process.find(), wrong)


async def test_a_decision_changes_path_body_and_headers_and_nothing_else(tmp_path: Path) -> None:
    async with Mirror() as mirror:

        @by_body
        async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
            assert body is not None
            changed = body.replace(b"alias", b"Qwen/Qwen3-8B")
            set_headers = {"authorization": "Bearer upstream", "x-new": "1"}
            return Route(mirror.address, False, "/base/v1/x?y=1", changed, set_headers, ("x-secret",))

        async with gateway(tmp_path, handler) as running:
            sent = b'{"model": "alias", "seed": 12345678901234567890123,"a":1.0}'
            headers = {
                "Authorization": "Bearer mine",
                "X-Secret": "s",
                "X-Keep": "k",
                "Accept-Encoding": "gzip",
            }
            reply = await running.call("/v1/chat/completions", data=sent, headers=headers)
    assert reply.status == 200
    ((path, received, body),) = mirror.requests
    assert path == "/base/v1/x?y=1"
    assert body == sent.replace(b"alias", b"Qwen/Qwen3-8B")
    assert received["content-length"] == str(len(body))
    assert received["host"] == mirror.address
    assert received["authorization"] == "Bearer upstream"
    assert received["x-new"] == "1"
    assert received["x-keep"] == "k"
    for name in ("x-secret", "accept-encoding", "x-forwarded-for", "x-envoy-external-address"):
        assert name not in received, name
    assert not [name for name in received if name.startswith("x-gw-")]


async def test_an_empty_body_and_an_unchanged_one(tmp_path: Path) -> None:
    async with Mirror() as mirror:

        @by_body
        async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
            return Route(mirror.address, False, head.path, b"" if head.path == "/empty" else None)

        async with gateway(tmp_path, handler) as running:
            await running.call("/empty", data=b"abc")
            await running.call("/same", data=b"abc")
            await running.call("/none")
    assert [body for _, _, body in mirror.requests] == [b"", b"abc", b""]


async def test_clients_cannot_say_what_only_the_gateway_may(tmp_path: Path, upstream: str) -> None:
    heads: list[RequestHead] = []

    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        heads.append(head)
        return Route(upstream, False, head.path, labels={"service": "a/b"})

    forged = {
        "x-gw-cluster": "decision",
        "x-gw-peer": "10.1.1.1",
        "X-Gw-Usage": "x",
        "x-gw-else": "1",
        "X-Request-Id": "chosen",
        "x-envoy-original-path": "/x",
        "x-forwarded-for": "10.2.2.2",
    }
    async with gateway(tmp_path, handler) as running:
        replies = [await running.call("/v1/models", headers=forged) for _ in range(2)]
        await running.line(2)
        ids = {line.request_id for line in running.lines()}
    assert [reply.status for reply in replies] == [200, 200]
    assert {head.peer for head in heads} == {"127.0.0.1"}
    assert {head.headers["x-forwarded-for"] for head in heads} == {"10.2.2.2"}
    for head in heads:
        assert not [name for name in head.headers if name.startswith("x-gw-")]
    assert "chosen" not in ids
    assert len(ids) == 2
    assert ids == {head.request_id for head in heads} == {reply.headers["x-request-id"] for reply in replies}


async def test_a_refusal_reaches_the_client_as_it_is_and_is_not_logged(tmp_path: Path) -> None:
    body = b'{"error": {"type": "permission_error", "message": "endpoint is inactive: OVERDUE"}}'
    statuses = iter([402, 413, 429, 503])

    @by_body
    async def handler(head: RequestHead, _: bytes | None) -> Route | ImmediateResponse:
        headers = {"content-type": "application/json", "retry-after": "7", "x-ratelimit-limit-requests": "60"}
        return ImmediateResponse(next(statuses), headers, body)

    async with gateway(tmp_path, handler) as running:
        replies = [await running.call(body=chat()) for _ in range(2)]
        replies += [await running.call("/v1/models") for _ in range(2)]
        assert running.lines() == []
    assert [reply.status for reply in replies] == [402, 413, 429, 503]
    for reply in replies:
        assert reply.body == body
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["retry-after"] == "7"
        assert reply.headers["x-ratelimit-limit-requests"] == "60"


async def test_without_a_decision_process_there_is_no_open_door(tmp_path: Path, upstream: str) -> None:
    async with envoy_only(tmp_path) as running:
        for reply in (await running.call(body=chat()), await running.call("/v1/models")):
            assert reply.status == 503
            assert reply.headers["content-type"] == "application/json"
            assert reply.error["source"] == "gateway"
            assert reply.error["request_id"] == reply.headers["x-request-id"]
        async with answering(running.settings, forwarding(upstream)):
            assert (await running.call(body=chat())).status == 200
        assert (await running.call(body=chat())).status == 503


async def test_a_decision_that_hangs_is_503_after_its_time(tmp_path: Path) -> None:
    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with gateway(tmp_path, handler, decision_seconds=0.2) as running:
        reply = await running.call(body=chat())
    assert reply.status == 503
    assert reply.error["code"] == "gateway_unavailable"


async def test_a_handler_that_fails_is_503(tmp_path: Path) -> None:
    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        raise RuntimeError("a fault")

    async with gateway(tmp_path, handler) as running:
        assert (await running.call("/v1/models")).status == 503
        assert (await running.call(body=chat())).status == 503


@pytest.mark.parametrize("framing", ["announced", "chunked"])
async def test_a_body_over_the_limit_is_413(tmp_path: Path, framing: str) -> None:
    async def pieces() -> Any:
        for _ in range(30):
            yield b"y" * 10_000

    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        raise AssertionError("asked")

    async with gateway(tmp_path, handler, max_body_bytes=100_000) as running:
        reply = await running.call(data=pieces() if framing == "chunked" else b"y" * 300_000)
    assert reply.status == 413
    assert reply.error["code"] == "request_too_large"


@pytest.mark.parametrize("size", [1_000_000, 4_000_000])
async def test_a_body_of_the_greatest_size_goes_through(tmp_path: Path, size: int) -> None:
    async with Mirror() as mirror:

        @by_body
        async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
            assert body is not None
            return Route(mirror.address, False, head.path, body[:-1] + b"!")

        async with gateway(tmp_path, handler, max_body_bytes=size) as running:
            assert (await running.call(data=b"x" * size)).status == 200
    assert mirror.requests[0][2] == b"x" * (size - 1) + b"!"


@pytest.mark.parametrize(
    ("upstream", "tls", "status", "code"),
    [
        ("127.0.0.1:1", False, 502, "upstream_unreachable"),
        ("nothing.invalid:80", False, 502, "upstream_unreachable"),
        ("SIMULATOR", True, 502, "upstream_unreachable"),
    ],
)
async def test_an_upstream_that_cannot_be_reached_is_an_upstream_error(
    tmp_path: Path, upstream: str, tls: bool, status: int, code: str, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue("upstream") if upstream == "SIMULATOR" else upstream

    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        return Route(address, tls, head.path, labels={"service": "a/b"})

    async with gateway(tmp_path, handler) as running:
        reply = await running.call(body=chat())
        line = await running.line()
    assert (reply.status, reply.error["type"], reply.error["code"]) == (status, "upstream_error", code)
    assert reply.error["source"] == "upstream"
    assert reply.error["request_id"] == reply.headers["x-request-id"] == line.request_id
    assert line.status == 502
    assert line.upstream_bytes == 0


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 200 OK\r\nx-a: " + b"y" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    ],
    ids=["nothing", "another protocol", "half a head", "a flood", "two lengths"],
)
async def test_an_upstream_that_breaks_off_or_answers_malformed_http_is_502(
    tmp_path: Path, said: bytes
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, gateway(tmp_path, forwarding(f"127.0.0.1:{port}")) as running:
        reply = await running.call("/v1/models")
        line = await running.line()
    assert (reply.status, reply.error["code"], reply.error["source"]) == (
        502,
        "upstream_unreachable",
        "upstream",
    )
    assert reply.error["request_id"] == line.request_id
    assert line.reported.output is None


async def test_a_silent_upstream_is_504(tmp_path: Path) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, gateway(tmp_path, forwarding(f"127.0.0.1:{port}"), idle_seconds=0.3) as running:
        reply = await running.call(body=chat())
    assert (reply.status, reply.error["type"]) == (504, "upstream_error")
    assert (reply.error["code"], reply.error["source"]) == ("upstream_timeout", "upstream")
    assert reply.error["request_id"] == reply.headers["x-request-id"]


async def test_errors_of_an_upstream_pass_unchanged(tmp_path: Path, upstream: str) -> None:
    async with gateway(tmp_path, forwarding(upstream)) as running:
        reply = await running.call(body={"model": "other", "messages": []})
    assert reply.status in (400, 404)
    assert reply.error["type"] == "invalid_request_error"
    assert "param" in reply.error, "the simulator's own form"


async def test_tls_upstreams_must_have_a_certificate_that_is_trusted(tmp_path: Path) -> None:
    """Of the right authority, and for the name that was called."""
    Authority.create(tmp_path, "ours").server("good", ("localhost",), ())
    Authority.create(tmp_path, "theirs").server("bad", ("localhost",), ())
    async with tls_upstream(tmp_path, "good") as good, tls_upstream(tmp_path, "bad") as bad:

        @by_body
        async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
            host = {"/good": f"localhost:{good}", "/bad": f"localhost:{bad}", "/name": f"127.0.0.1:{good}"}
            return Route(host[head.path], True, head.path)

        async with gateway(tmp_path / "run", handler, ca_file=tmp_path / "ours.crt") as running:
            assert (await running.call("/good")).body == b"over TLS"
            assert (await running.call("/bad")).status == 502
            assert (await running.call("/name")).status == 502


@asynccontextmanager
async def tls_upstream(directory: Path, name: str) -> AsyncIterator[int]:
    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(body=b"over TLS")

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / f"{name}.crt", directory / f"{name}.key")
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def test_draining_ends_readiness_then_takes_no_calls_and_lets_running_ones_finish(
    tmp_path: Path,
) -> None:
    """B18, the gateway's half."""
    events = [*token_events(100), b"data: [DONE]\n\n"]
    async with (
        HeldStream(events[:1], events[1:]) as upstream,
        gateway(tmp_path, forwarding(upstream.address, stream="true")) as running,
    ):
        url = f"{running.url}/v1/chat/completions"
        async with running.session.post(url, json=chat(stream=True)) as response:
            assert await response.content.readline()
            assert await running.admin.active_calls() == 1
            draining = asyncio.create_task(running.admin.drain(60, 0.5))
            await eventually_unready(running)
            await eventually_refused(running)
            assert not draining.done(), "the stream still runs"
            upstream.finish.set()
            text = await response.text()
        assert await draining is True
        line = await running.line()
    assert text.endswith("data: [DONE]\n\n")
    assert (line.complete, line.reported.output) == (True, 100)


async def test_a_drain_ends_when_its_time_is_over(tmp_path: Path, slow: Any) -> None:
    async with gateway(tmp_path, forwarding(slow.upstream)) as running:
        body = chat(stream=True, min_tokens=10_000)
        async with running.session.post(f"{running.url}/v1/chat/completions", json=body) as response:
            await response.content.readline()
            assert await running.admin.drain(0.2, 0) is False


async def test_an_envoy_that_dies_is_restarted(tmp_path: Path, upstream: str) -> None:
    async with gateway(tmp_path, forwarding(upstream)) as running:
        assert (await running.call("/v1/models")).status == 200
        os.kill(running.envoy.pid, signal.SIGKILL)
        await eventually(lambda: running.envoy.starts == 2)
        assert await first_success(running) == 200


async def test_an_envoy_that_exits_is_restarted_until_a_stop_is_requested(tmp_path: Path) -> None:
    """SIGTERM, or its admin interface, end it in good order; without it there would be no gateway."""
    settings = EnvoySettings(tmp_path, listen_host="127.0.0.1", listen_port=free_port())
    time = asyncio.Event()
    async with (
        envoy_process.running(settings, concurrency=1, stop_requested=time.is_set) as envoy,
        Admin(settings.admin_socket) as admin,
    ):
        os.kill(envoy.pid, signal.SIGTERM)
        await eventually(lambda: envoy.starts == 2)
        while not await admin.ready():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        time.set()
        await admin.quit()
        await eventually(lambda: envoy.ended)
    assert envoy.starts == 2


async def first_success(running: Gateway) -> int:
    """Calls until one is answered at all."""
    while True:
        try:
            return (await running.call("/v1/models")).status
        except aiohttp.ClientError:
            await asyncio.sleep(0.01)


async def eventually_unready(running: Gateway) -> None:
    """Wait until Envoy's health check reports 503, as it does while it drains."""
    while True:
        if (await running.call("/healthz")).status == 503:
            return
        await asyncio.sleep(0.01)


async def eventually_refused(running: Gateway) -> None:
    """Returns when Envoy takes no new connections."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", running.settings.listen_port)
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue  # it was in the backlog when the listener closed
        writer.close()
        await asyncio.sleep(0.01)
