"""Every upstream with every ending: what is reported is charged, the rest is estimated, and each byte passes.

The table of a run is printed at its end (`pytest -s`), and fails above 25 % for estimates (B25-B27, B29).
"""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import anthropic
import pytest
import pytest_asyncio

from farebox.gateway.metering.usage import BilledTokens, billed_tokens
from tests.gateway.harness import TOKEN, external, service
from tests.gateway.hostile_target import Stack, stacked
from tests.gateway.metering.upstreams import (
    CHATS,
    EMBEDDINGS,
    INPUT,
    PROSE,
    UPSTREAMS,
    Chat,
    Messages,
    Recording,
    Responses,
    Upstream,
    embeddings,
    without_usage,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOLERANCE = 0.25
HELD = b": held\n\n"
PROMPT = "".join(PROSE) * 2
STREAM = "text/event-stream"
TABLE: list[tuple[str, str, str, str, str]] = []


class Upstreams:
    """A server that plays what a test gives it, and may hold the connection open after that."""

    def __init__(self) -> None:
        self.address = ""
        self._play: tuple[str, list[str], list[bytes], bool] = ("", [], [], False)

    async def __aenter__(self) -> "Upstreams":
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()

    def play(self, pieces: list[bytes], kind: str = STREAM, *headers: str, hold: bool = False) -> None:
        """Answer the next call with these pieces. `hold`: end only when the client has left."""
        self._play = (kind, list(headers), pieces, hold)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer_all(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.split("content-length:")[1].split("\r\n")[0]))
            kind, headers, pieces, hold = self._play
            lines = [f"content-type: {kind}", *headers, "transfer-encoding: chunked"]
            writer.write(("HTTP/1.1 200 OK\r\n" + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode())
            for piece in pieces:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
            if hold:
                await reader.read()
                return
            writer.write(b"0\r\n\r\n")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Upstreams]:
    async with Upstreams() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory, server: Upstreams) -> AsyncIterator[Stack]:
    async with stacked(tmp_path_factory.mktemp("upstreams"), server.address) as running:
        remote = external(base_url=f"http://{server.address}/v1")
        running.harness.put(remote, service("remote", modelRef={"name": "remote"}))
        running.harness.report_balance(10**15)
        yield running


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Print the table."""
    yield
    rows = [("upstream", "ending", "reported", "charged", "error"), *TABLE]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def body_of(upstream: Upstream, *, stream: bool, choices: int = 1) -> dict[str, Any]:
    """The body of a call of an upstream."""
    body: dict[str, Any] = {"model": "chat" if upstream.deployed else "remote", "stream": stream}
    if isinstance(upstream, Responses):
        return body | {"input": PROMPT}
    if isinstance(upstream, Messages):
        return body | {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 5000}
    if stream:
        body["stream_options"] = {"include_usage": True}
        if upstream.deployed:
            body["stream_options"]["continuous_usage_stats"] = True
    if choices > 1:
        body["n"] = choices
    if isinstance(upstream, Chat):
        return body | {"messages": [{"role": "user", "content": PROMPT}]}
    return body | {"prompt": PROMPT}


async def call(stack: Stack, path: str, body: dict[str, Any], until: bytes = b"") -> bytes:
    """Call, and read the answer; leave as soon as `until` was read. Returns the bytes of the body."""
    got = b""
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(stack.envoy.url + path, json=body, headers=headers) as response,
    ):
        assert response.status == 200
        async for piece in response.content.iter_any():
            got += piece
            if until and until in got:
                response.close()
                break
    return got


COUNTS = {"calls": 0}


async def played(
    stack: Stack,
    server: Upstreams,
    upstream: Upstream,
    pieces: list[bytes],
    kind: str = STREAM,
    *headers: str,
    until: bytes = b"",
    choices: int = 1,
    stream: bool = True,
) -> tuple[bytes, BilledTokens | None]:
    """Play an answer; returns what the client got and what the call pays."""
    server.play(pieces, kind, *headers, hold=bool(until))
    COUNTS["calls"] += 1
    got = await call(stack, upstream.path, body_of(upstream, stream=stream, choices=choices), until)
    line = await stack.envoy.line(COUNTS["calls"])
    return got, billed_tokens(line)


def check_reported(upstream: Upstream, ending: str, recording: Recording, paid: BilledTokens | None) -> None:
    """The call pays exactly what was reported."""
    assert paid is not None
    seen = (paid.input_tokens, paid.cached_tokens, paid.cache_write_tokens, paid.output_tokens)
    TABLE.append((upstream.name, ending, str(recording.reported), str(seen), "0 %"))
    assert (seen, paid.estimated) == (recording.reported, False)


def check_estimate(
    upstream: Upstream, ending: str, recording: Recording, output: int, paid: BilledTokens | None
) -> None:
    """The call pays what was delivered, within TOLERANCE; and the input as it was reported, if it was."""
    assert paid is not None
    error = paid.output_tokens / output - 1
    exact = "exact" if recording.continuous else ""
    TABLE.append(
        (upstream.name, ending, f"{output} of output {exact}", str(paid.output_tokens), f"{error:+.0%}")
    )
    assert abs(error) <= (0 if recording.continuous else TOLERANCE)
    assert abs(paid.input_tokens / INPUT - 1) <= (
        0 if recording.continuous or recording.input_first else TOLERANCE
    )
    if recording.input_first:
        assert paid.cached_tokens == recording.reported[1], "cached input stays cached"
    assert paid.estimated is not recording.continuous


def each_byte(text: bytes) -> list[bytes]:
    return [text[at : at + 1] for at in range(len(text))]


def compressed(text: bytes) -> list[bytes]:
    packer = zlib.compressobj(wbits=31)
    pieces = []
    for event in text.split(b"\n\n"):
        pieces += [packer.compress(event + b"\n\n") + packer.flush(zlib.Z_SYNC_FLUSH)]
    return [*pieces, packer.flush()]


ALL = pytest.mark.parametrize("upstream", UPSTREAMS, ids=lambda upstream: upstream.name)


@ALL
async def test_a_whole_stream_is_charged_as_reported(
    stack: Stack, server: Upstreams, upstream: Upstream
) -> None:
    for kind in ("content", "reasoning", "tools"):
        if kind != "content" and upstream.path == "/v1/completions":
            continue
        recording = upstream.stream(kind)  # type: ignore[arg-type]
        got, paid = await played(stack, server, upstream, [recording.whole])
        assert got == recording.whole
        check_reported(upstream, f"whole, {kind}", recording, paid)


@ALL
@pytest.mark.parametrize("ending", ["CRLF", "CR", "no last newline", "single bytes", "gzip", "each event"])
async def test_every_byte_passes_and_is_read(
    stack: Stack, server: Upstreams, upstream: Upstream, ending: str
) -> None:
    recording = upstream.stream()
    text, headers = recording.whole, []
    if ending == "single bytes":
        recording = Recording(recording.head, recording.body[:8], recording.tail, recording.reported, b"")
        pieces = each_byte(recording.whole)
        text = recording.whole
    elif ending == "each event":
        pieces = [event + b"\n\n" for event in text.split(b"\n\n")[:-1]]
    elif ending == "gzip":
        pieces, headers = compressed(text), ["content-encoding: gzip"]
        text += b"\n\n"
    else:
        ends = {"CRLF": b"\r\n", "CR": b"\r", "no last newline": b"\n"}
        text = text.replace(b"\n", ends[ending])
        if ending == "no last newline":
            text = text.rstrip(b"\n").removesuffix(b"\n\ndata: [DONE]")
        pieces = [text]
    got, paid = await played(stack, server, upstream, pieces, STREAM, *headers)
    assert got == text
    check_reported(upstream, ending, recording, paid)


@ALL
async def test_a_client_that_leaves_at_the_end_marker_pays_what_was_reported(
    stack: Stack, server: Upstreams, upstream: Upstream
) -> None:
    marker = {"/v1/messages": b'"message_stop"', "/v1/responses": b'"response.completed"'}
    recording = upstream.stream()
    until = marker.get(upstream.path, b"[DONE]")
    got, paid = await played(stack, server, upstream, [recording.whole], until=until)
    assert recording.whole.startswith(got)
    check_reported(upstream, "left at the end marker", recording, paid)


@ALL
@pytest.mark.parametrize("tenths", [1, 5, 9])
async def test_a_client_that_leaves_earlier_pays_what_it_got(
    stack: Stack, server: Upstreams, upstream: Upstream, tenths: int
) -> None:
    for kind in ("content", "reasoning", "tools"):
        if kind != "content" and upstream.path == "/v1/completions":
            continue
        recording = upstream.stream(kind)  # type: ignore[arg-type]
        text, output = recording.part(tenths)
        got, paid = await played(stack, server, upstream, [text, HELD], until=HELD)
        assert got == text + HELD
        if output >= 8:
            check_estimate(upstream, f"left at {tenths}0 %, {kind}", recording, output, paid)


@ALL
async def test_several_choices_are_charged_together(
    stack: Stack, server: Upstreams, upstream: Upstream
) -> None:
    if isinstance(upstream, Messages | Responses):
        return
    recording = upstream.stream(choices=4)
    got, paid = await played(stack, server, upstream, [recording.whole], choices=4)
    assert got == recording.whole
    check_reported(upstream, "four choices", recording, paid)
    text, output = recording.part(5)
    got, paid = await played(stack, server, upstream, [text, HELD], until=HELD, choices=4)
    check_estimate(upstream, "four choices, left at 50 %", recording, output, paid)


@ALL
async def test_an_error_in_the_middle_charges_what_came_before_it(
    stack: Stack, server: Upstreams, upstream: Upstream
) -> None:
    recording = upstream.stream()
    text, output = recording.part(5)
    got, paid = await played(stack, server, upstream, [text, recording.error])
    assert got == text + recording.error
    check_estimate(upstream, "error at 50 %", recording, output, paid)
    got, paid = await played(stack, server, upstream, [recording.error])
    assert (got, paid) == (recording.error, None)


@ALL
async def test_a_stream_without_usage_is_estimated(
    stack: Stack, server: Upstreams, upstream: Upstream
) -> None:
    recording = without_usage(upstream.stream())
    recording = Recording(recording.head, recording.body, recording.tail, recording.reported, b"")
    got, paid = await played(stack, server, upstream, [recording.whole])
    assert got == recording.whole
    check_estimate(upstream, "whole, no usage", recording, recording.reported[3], paid)


@ALL
@pytest.mark.parametrize("kind", ["application/json", "text/plain; charset=utf-8", "gzip"])
async def test_a_document_is_charged_as_reported(
    stack: Stack, server: Upstreams, upstream: Upstream, kind: str
) -> None:
    text, recording = upstream.document(), upstream.stream()
    sent = [gzip.compress(text)] if kind == "gzip" else [text[:1000], text[1000:]]
    headers = ["content-encoding: gzip"] if kind == "gzip" else []
    type_ = "application/json" if kind == "gzip" else kind
    got, paid = await played(stack, server, upstream, sent, type_, *headers, stream=False)
    assert got == text
    check_reported(upstream, f"document, {kind}", recording, paid)
    hidden = text.replace(b'"usage"', b'"used"')
    got, paid = await played(stack, server, upstream, [hidden], "application/json", stream=False)
    assert got == hidden
    estimate = Recording([], [], [], recording.reported, b"")
    check_estimate(upstream, "document, no usage", estimate, recording.reported[3], paid)


@pytest.mark.parametrize(("name", "usage"), EMBEDDINGS, ids=[name for name, _ in EMBEDDINGS])
async def test_embeddings_are_charged_as_reported(
    stack: Stack, server: Upstreams, name: str, usage: dict[str, Any]
) -> None:
    server.play([embeddings(usage)], "application/json")
    COUNTS["calls"] += 1
    await call(stack, "/v1/embeddings", {"model": "remote", "input": PROMPT})
    paid = billed_tokens(await stack.envoy.line(COUNTS["calls"]))
    TABLE.append((f"{name}, embeddings", "document", str(INPUT), str(paid and paid.input_tokens), "0 %"))
    assert paid == BilledTokens(INPUT, 0, 0, estimated=False)


NOT_ANSWERS = [
    ("application/json", b'{"error": {"message": "Provider returned error", "code": 502}}'),
    ("application/json", b'{"detail": "Not Found"}'),
    ("application/json", b'{"object": "error", "message": "The model is not loaded", "code": 40301}'),
    ("application/json", b'[{"error": {"code": 400, "status": "INVALID_ARGUMENT"}}]'),
    (STREAM, b'{"error": {"message": "No more capacity", "type": "server_error"}}'),
    (STREAM, b'data: {"error": {"message": "No more capacity"}}\n\ndata: [DONE]\n\n'),
    (STREAM, b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error"}}\n\n'),
    (STREAM, b"data: [DONE]\n\n"),
    ("text/html; charset=utf-8", b"<!doctype html>" + b"<div>login</div>" * 6400),
    ("text/plain", b"upstream connect error"),
    (STREAM, b"\xef\xbb\xbf<html></html>"),
    ("application/json", b""),
]


@pytest.mark.parametrize(("kind", "text"), NOT_ANSWERS)
async def test_what_is_not_an_answer_costs_nothing_and_passes(
    stack: Stack, server: Upstreams, kind: str, text: bytes
) -> None:
    for stream in (True, False):
        got, paid = await played(stack, server, CHATS[0], [text] if text else [], kind, stream=stream)
        assert (got, paid) == (text, None)


@pytest.mark.parametrize("upstream", [each for each in UPSTREAMS if each.path != "/v1/completions"])
async def test_the_official_clients_read_what_passes(
    stack: Stack, server: Upstreams, upstream: Upstream
) -> None:
    recording = upstream.stream()
    server.play([recording.whole])
    COUNTS["calls"] += 1
    body = body_of(upstream, stream=True)
    text = ""
    if isinstance(upstream, Messages):
        async with anthropic.AsyncAnthropic(base_url=stack.envoy.url, api_key=TOKEN, max_retries=0) as claude:
            async for event in await claude.messages.create(**body):
                if event.type == "content_block_delta":
                    text += event.delta.text
    else:
        async with stack.client as client:
            if isinstance(upstream, Responses):
                async for event in await client.responses.create(**body):
                    text += event.delta if event.type == "response.output_text.delta" else ""
            else:
                async for chunk in await client.chat.completions.create(**body):
                    text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == "".join(PROSE)
    check_reported(
        upstream, "official client", recording, billed_tokens(await stack.envoy.line(COUNTS["calls"]))
    )
