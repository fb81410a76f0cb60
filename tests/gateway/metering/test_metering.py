"""What a call used, from a real simulator through a real Envoy into its log (B16)."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import h2.config
import h2.connection
import pytest

from farebox.domain.billing.estimates import TextCounts, estimate_tokens
from farebox.gateway.metering.usage import BilledTokens, billed_tokens
from tests.gateway.envoy_gateway import (
    MODEL,
    Gateway,
    HeldStream,
    Simulator,
    chat,
    forwarding,
    gateway,
    token_events,
)

LONG = 200
ASK = {"include_usage": True}
CONTINUOUS = {"include_usage": True, "continuous_usage_stats": True}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", chat(LONG, max_tokens=7)),
    "chat, streamed": ("/v1/chat/completions", chat(LONG, max_tokens=7, stream=True, stream_options=ASK)),
    "chat, continuous": (
        "/v1/chat/completions",
        chat(LONG, max_tokens=7, stream=True, stream_options=CONTINUOUS),
    ),
    "chat, continuous, of an upstream that says its usage once": (
        "/v1/chat/completions",
        chat(LONG, max_tokens=7, stream=True, stream_options=ASK),
    ),
    "chat, continuous, of an upstream that does not stream": (
        "/v1/chat/completions",
        chat(LONG, max_tokens=7),
    ),
    "completion": ("/v1/completions", {"model": MODEL, "prompt": "word " * LONG, "max_tokens": 7}),
    "completion, streamed": (
        "/v1/completions",
        {"model": MODEL, "prompt": "word " * LONG, "max_tokens": 7, "stream": True, "stream_options": ASK},
    ),
    "embeddings": ("/v1/embeddings", {"model": MODEL, "input": ["word " * LONG, "more"]}),
    "response": ("/v1/responses", {"model": MODEL, "input": "word " * LONG, "max_output_tokens": 7}),
    "response, streamed": (
        "/v1/responses",
        {"model": MODEL, "input": "word " * LONG, "max_output_tokens": 7, "stream": True},
    ),
    "response, whole": ("/v1/responses", {"model": MODEL, "input": "word " * LONG, "stream": True}),
    "message": ("/v1/messages", {**chat(LONG), "max_tokens": 7}),
    "message, streamed": ("/v1/messages", {**chat(LONG), "max_tokens": 7, "stream": True}),
}


@pytest.mark.parametrize("name", CALLS)
async def test_metered_usage_is_what_the_client_was_sent(tmp_path: Path, upstream: str, name: str) -> None:
    path, body = CALLS[name]
    async with gateway(tmp_path, forwarding(upstream)) as running:
        replies = [await running.call(path, body) for _ in range(2)]
        await running.line(2)
        lines = running.lines()
    for reply, line in zip(replies, lines, strict=True):
        assert reply.status == 200
        assert billed_tokens(line) == BilledTokens(*reported_usage(reply.body), estimated=False)
        assert line.labels == {"service": "team-a/chat", "dialect": path.split("/")[2]}
    cached = billed_tokens(lines[1])
    assert cached is not None
    if name != "embeddings":
        assert cached.cached_tokens > 0, "the second time the prompt is cached"


async def test_compressed_answers_are_not_asked_for(tmp_path: Path, upstream: str) -> None:
    async with gateway(tmp_path, forwarding(upstream)) as running:
        reply = await running.call(body=chat(), headers={"Accept-Encoding": "gzip, br"})
        assert "content-encoding" not in reply.headers
        assert (await running.line()).complete


async def test_a_client_that_leaves_midway_pays_what_it_had_with_continuous_usage(tmp_path: Path) -> None:
    async with (
        HeldStream(token_events(10), []) as upstream,
        gateway(tmp_path, forwarding(upstream.address)) as running,
    ):
        assert await leave_after(running.url, chat(stream=True, stream_options=CONTINUOUS), 10) == 10
        line = await running.line()
    assert "DC" in line.flags
    assert billed_tokens(line) == BilledTokens(6, 0, 10, estimated=False)


async def test_a_client_that_leaves_midway_pays_an_estimate_otherwise(tmp_path: Path) -> None:
    labels = {"estimate_input": "5", "max_output": "1000"}
    events = [b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % (b"x" * 300)] * 10
    async with (
        HeldStream(events, []) as upstream,
        gateway(tmp_path, forwarding(upstream.address, **labels)) as running,
    ):
        assert await leave_after(running.url, chat(stream=True), 10) == 10
        line = await running.line()
    estimate = estimate_tokens(TextCounts(pieces=10, millitokens=1000 + 599 * 700))
    assert billed_tokens(line) == BilledTokens(5, 0, estimate, estimated=True)


async def test_a_call_that_takes_too_long_is_ended_and_pays_what_it_got(tmp_path: Path) -> None:
    async with (
        HeldStream(token_events(10), []) as upstream,
        gateway(tmp_path, forwarding(upstream.address), call_seconds=2) as running,
    ):
        with pytest.raises(aiohttp.ClientPayloadError):
            await running.call(body=chat(stream=True, stream_options=CONTINUOUS))
        line = await running.line()
        written = json.loads(running.settings.log_file.read_bytes())
    assert written["details"] == "max_duration_timeout", "Envoy ended it, and for this reason"
    assert (line.status, line.complete) == (200, False)
    assert billed_tokens(line) == BilledTokens(6, 0, 10, estimated=False)


def reset(client: h2.connection.H2Connection) -> bytes:
    client.reset_stream(1)
    return client.data_to_send()


def say_goodbye(client: h2.connection.H2Connection) -> bytes:
    client.close_connection()
    return client.data_to_send()


def break_the_protocol(client: h2.connection.H2Connection) -> bytes:
    return b"\xff" * 100


@pytest.mark.parametrize("leave", [reset, say_goodbye, break_the_protocol])
@pytest.mark.parametrize("answered", [False, True])
async def test_a_client_that_leaves_over_http2_pays_however_it_does(
    tmp_path: Path,
    slow: Simulator,
    leave: Callable[[h2.connection.H2Connection], bytes],
    answered: bool,
) -> None:
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    head = [(":method", "POST"), (":scheme", "http"), (":authority", "g"), (":path", "/v1/chat/completions")]
    labels = {"estimate_input": "5"}
    async with gateway(tmp_path, forwarding(slow.upstream, **labels)) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.settings.listen_port)
        client.initiate_connection()
        client.send_headers(1, head)
        client.send_data(1, json.dumps(chat(stream=answered, min_tokens=1000)).encode(), end_stream=True)
        writer.write(client.data_to_send())
        if answered:
            seen = b""
            while seen.count(b"data: ") < 10:
                seen += await reader.read(65536)
        else:
            await eventually_asked(running)
        writer.write(leave(client))
        if leave is say_goodbye:
            writer.close()
        line = await running.line()
        writer.close()
    paid = billed_tokens(line)
    assert paid is not None
    assert paid.input_tokens == 5
    assert (paid.output_tokens > 0) == answered


async def eventually_asked(running: Gateway) -> None:
    """Wait until an upstream has a call."""
    name = "^cluster.upstream.upstream_rq_active$"
    async with asyncio.timeout(30):
        while not (await running.admin._call("GET", f"/stats?filter={name}")).endswith(": 1\n"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_client_that_leaves_before_the_answer_pays_its_input(tmp_path: Path, slow: Simulator) -> None:
    async with gateway(tmp_path, forwarding(slow.upstream, estimate_input="5")) as running:
        call = asyncio.create_task(running.call(body=chat(min_tokens=10_000)))
        await eventually_asked(running)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        line = await running.line()
    assert billed_tokens(line) == BilledTokens(5, 0, 0, estimated=True)


async def test_a_disconnect_stops_the_upstream(tmp_path: Path) -> None:
    async with (
        HeldStream(token_events(1), []) as upstream,
        gateway(tmp_path, forwarding(upstream.address)) as running,
    ):
        await leave_after(running.url, chat(stream=True), 1)
        await asyncio.wait_for(upstream.left.wait(), 60)


@pytest.mark.parametrize("body", [{"model": "other", "messages": []}, {"model": MODEL, "messages": "x"}])
async def test_an_error_of_the_upstream_costs_nothing(tmp_path: Path, upstream: str, body: Any) -> None:
    async with gateway(tmp_path, forwarding(upstream, estimate_input="5")) as running:
        assert (await running.call(body=body)).status >= 400
        assert billed_tokens(await running.line()) is None


async def test_a_stream_that_the_upstream_breaks_off_costs_nothing(tmp_path: Path) -> None:
    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        usage = b'data: {"choices": [{}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}\n\n'
        writer.write(head + b"%x\r\n%b\r\n" % (len(usage), usage))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(breaks, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    labels = {"estimate_input": "5"}
    async with server, gateway(tmp_path, forwarding(f"127.0.0.1:{port}", **labels)) as running:
        with pytest.raises(aiohttp.ClientError):
            await running.call(body=chat(stream=True))
        assert billed_tokens(await running.line()) is None


@pytest.mark.parametrize(
    "usage", [{}, {"usage": None}, {"usage": {"completion_tokens": 5}}, {"usage": {"prompt_tokens": None}}]
)
async def test_an_answer_that_does_not_tell_its_input_is_estimated_not_free(
    tmp_path: Path, usage: dict[str, Any]
) -> None:
    answer = json.dumps({"choices": [{"message": {"content": "word " * 100}}], **usage}).encode()
    async with saying(answer) as said, gateway(tmp_path, forwarding(said, estimate_input="9")) as running:
        await running.call(body=chat())
        paid = billed_tokens(await running.line())
    more = usage.get("usage") or {}
    outputs = more.get("completion_tokens") or estimate_tokens(TextCounts(pieces=1, millitokens=100_000))
    assert paid == BilledTokens(9, 0, outputs, estimated=True)


@pytest.mark.parametrize(
    "more",
    [
        {"prompt_tokens_details": {"cached_tokens": None}},
        {"prompt_tokens_details": None, "completion_tokens_details": None},
        {
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": None},
        },
        {"total_tokens": None},
    ],
)
async def test_what_an_upstream_does_not_count_changes_nothing_of_what_it_does(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 5, **more}
    answer = json.dumps({"choices": [{"message": {"content": "word " * 100}}], "usage": usage}).encode()
    async with saying(answer) as said, gateway(tmp_path, forwarding(said, estimate_input="9")) as running:
        await running.call(body=chat())
        assert billed_tokens(await running.line()) == BilledTokens(3, 0, 5, estimated=False)


@pytest.mark.parametrize(
    "more", [b'"x":"\xff\xfe\xc3"', b'"x":"\x00\x1b\x7f"', rb'"x":"\ud800\n\"}"', b'"\xe2\x80\xa8":{"}":1}']
)
async def test_odd_text_beside_the_counts_loses_no_call(tmp_path: Path, more: bytes) -> None:
    answer = b'{"usage":{"prompt_tokens":3,"completion_tokens":5,%b}}' % more
    async with saying(answer) as said, gateway(tmp_path, forwarding(said, estimate_input="9")) as running:
        await running.call(body=chat())
        paid = billed_tokens(await running.line())
    assert paid == BilledTokens(3, 0, 5, estimated=False)


@asynccontextmanager
async def saying(answer: bytes) -> AsyncIterator[str]:
    """An upstream that always says this; gives its address."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(answer) + answer)
        await writer.drain()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def reported_usage(body: bytes) -> tuple[int, int, int]:
    """Input, cached and output tokens as an answer of any endpoint reports them."""
    usage: dict[str, Any] = {}
    texts = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")] or [body]
    for text in texts:
        document = json.loads(text)
        for place in (document, document.get("message") or {}, document.get("response") or {}):
            usage |= place.get("usage") or {}
    if "cache_read_input_tokens" in usage:
        cached = usage["cache_read_input_tokens"]
        return usage["input_tokens"] + cached, cached, usage["output_tokens"]
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    inputs = usage.get("prompt_tokens", usage.get("input_tokens", 0))
    outputs = usage.get("completion_tokens", usage.get("output_tokens", 0))
    return inputs, details.get("cached_tokens", 0), outputs


async def leave_after(url: str, body: Any, events: int) -> int:
    """Read `events` events of a stream, then disconnect; returns the number of events read."""
    seen = 0
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=body) as response,
    ):
        async for line in response.content:
            seen += line.startswith(b"data: ")
            if seen >= events:
                response.close()
                break
    return seen
