"""Streams are as their callers asked for them, whatever the gateway asked for beside it (B16)."""

import asyncio
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lupa import luajit21

from farebox.gateway.envoy_hiding import LONGEST, script
from farebox.gateway.exchange import Forward, Head, Hiding, Refuse
from farebox.gateway.usage import Used, used
from tests.gateway.transport.gateway import Simulator, by_body, chat, gateway
from tests.gateway.transport.test_metering import CONTINUOUS, leave_after

USAGE: dict[str, Any] = {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}
TEXTS = ['"usage":{"a":1}', '\\"usage\\": {}', '}}}{"choices":[]', "\n\n", "é", ""]


class Chunk:
    """What Envoy gives the script of an answer."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    def length(self) -> int:
        return len(self.text)

    def getBytes(self, start: int, size: int) -> bytes:
        return self.text[start : start + size]

    def setBytes(self, text: bytes) -> None:
        self.text = text


def through(hiding: Hiding, pieces: list[bytes], kind: bytes = b"text/event-stream") -> bytes:
    """The pieces of an answer after the script, run by LuaJIT as in Envoy."""
    lua = luajit21.LuaRuntime(encoding=None, unpack_returned_tuples=True)
    lua.execute(script(hiding).encode())
    handle: Callable[..., Any] = lua.eval(
        b"""function(chunks, kind)
          local at = 0
          local headers = {get = function() return kind end, remove = function() end}
          envoy_on_response({
            headers = function() return headers end,
            bodyChunks = function()
              return function()
                at = at + 1
                local chunk = chunks[at]
                if not chunk then return nil end
                return {
                  length = function() return chunk.length() end,
                  getBytes = function(_, from, size) return chunk.getBytes(from, size) end,
                  setBytes = function(_, text) chunk.setBytes(text) end,
                }
              end
            end})
        end"""
    )
    chunks = [Chunk(piece) for piece in pieces]
    handle(lua.table_from(chunks), kind)
    return b"".join(chunk.text for chunk in chunks)


def event(text: str, usage: Any = None, *, spaced: bool = False, end: str = "\n") -> bytes:
    separators = (", ", ": ") if spaced else (",", ":")
    document: dict[str, Any] = {"id": "c", "choices": [{"delta": {"content": text}}]}
    if usage is not None:
        document |= {"usage": usage}
    return f"data: {json.dumps(document, separators=separators)}{end}{end}".encode()


def last(end: str = "\n") -> bytes:
    return f'data: {{"id":"c","choices":[],"usage":{json.dumps(USAGE)}}}{end}{end}'.encode()


@given(
    texts=st.lists(st.sampled_from(TEXTS) | st.text(), max_size=5),
    spaced=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
    hiding=st.sampled_from([Hiding.EACH_EVENT, Hiding.ALL]),
)
def test_wherever_a_stream_is_cut_only_its_usage_is_hidden(
    texts: list[str], spaced: bool, end: str, cuts: list[int], hiding: Hiding
) -> None:
    done = f"data: [DONE]{end}{end}".encode()
    stream = b"".join(event(text, USAGE, spaced=spaced, end=end) for text in texts) + last(end) + done
    bounds = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[start:stop] for start, stop in pairwise(bounds)]
    kept = last(end) if hiding is Hiding.EACH_EVENT else b""
    seen = through(hiding, [*pieces, b""])
    plain = b"".join(event(text, spaced=spaced, end=end) for text in texts) + kept + done
    assert documents(seen) == [
        {**each, "usage": None} if each["choices"] else each for each in documents(plain)
    ]
    assert seen.endswith(done)
    assert seen.count(b"\n") == plain.count(b"\n")


def documents(stream: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: {")]


def test_what_tells_no_usage_passes_byte_for_byte() -> None:
    events = b"".join(map(event, ["a", *TEXTS]))
    stream = b": hello\r\n\r\nevent: ping\ndata:\n\n" + events + b"data: [DONE]\n\n"
    for hiding in (Hiding.EACH_EVENT, Hiding.ALL):
        assert through(hiding, [stream]) == stream


def test_a_line_that_does_not_end_is_not_waited_for() -> None:
    pieces = [b"data: " + b"x" * (LONGEST // 3) for _ in range(4)] + [b"\n\n" + last()]
    assert through(Hiding.ALL, pieces) == b"".join(pieces)
    assert through(Hiding.ALL, [*pieces[:2], b"\n\n" + last()]) == b"".join(pieces[:2]) + b"\n\n"


def test_an_answer_that_is_no_stream_passes_byte_for_byte() -> None:
    whole = b'{"choices":[],"usage":{"prompt_tokens":1}}\nrest'
    assert through(Hiding.ALL, [whole], b"application/json") == whole


def asking(upstream: str, hiding: Hiding, **labels: str) -> Any:
    """A handler that forwards calls as they are, and hides usage of their streams."""

    @by_body
    async def handler(head: Head, body: bytes | None) -> Forward | Refuse:
        return Forward(upstream, False, head.path, labels={"service": "a/b", **labels}, hiding=hiding)

    return handler


@pytest.mark.parametrize(
    ("hiding", "usages"),
    [
        (Hiding.NOTHING, [0, 1, 2, 3, 3, 3]),
        (Hiding.EACH_EVENT, [None, None, None, None, None, 3]),
        (Hiding.ALL, [None, None, None, None, None]),
    ],
)
async def test_what_is_hidden_is_metered(
    tmp_path: Path, upstream: str, hiding: Hiding, usages: list[int | None]
) -> None:
    body = chat(max_tokens=3, stream=True, stream_options=CONTINUOUS)
    async with gateway(tmp_path, asking(upstream, hiding, continuous_usage="true")) as running:
        reply = await running.call(body=body)
        line = await running.line()
    seen = [each["usage"] and each["usage"]["completion_tokens"] for each in documents(reply.body)]
    assert seen == usages
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert used(line) == Used(3 + 3, 0, 3, estimated=False)


async def test_a_client_that_leaves_midway_pays_what_it_did_not_see_the_count_of(
    tmp_path: Path, slow: Simulator
) -> None:
    handler = asking(slow.upstream, Hiding.ALL, continuous_usage="true", stream="true")
    async with gateway(tmp_path, handler) as running:
        body = chat(stream=True, stream_options=CONTINUOUS, min_tokens=10_000)
        seen = await leave_after(running.url, body, 10)
        paid = used(await running.line())
    assert paid is not None
    assert not paid.estimated
    assert seen - 1 <= paid.output_tokens <= seen + 10


async def test_an_event_is_passed_on_as_soon_as_it_is_whole(tmp_path: Path) -> None:
    """Nothing waits for more of the stream, and what came in pieces is one event."""
    written, seen = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n")
        first = event("one", USAGE)
        for at in range(len(first)):
            writer.write(first[at : at + 1])
            await writer.drain()
        written.set()
        await seen.wait()
        writer.write(last() + b"data: [DONE]\n\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    handler = asking(f"127.0.0.1:{port}", Hiding.ALL, continuous_usage="true")
    async with server, gateway(tmp_path, handler) as running:
        call = running.session.post(f"{running.url}/v1/chat/completions", json=chat(stream=True))
        async with call as response:
            await written.wait()
            line = await asyncio.wait_for(response.content.readuntil(b"\n\n"), 60)
            assert documents(line) == [{**documents(event("one"))[0], "usage": None}]
            seen.set()
            assert await response.read() == b"data: [DONE]\n\n"
